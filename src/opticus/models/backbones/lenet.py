"""Gradient-Based Learning Applied to Document Recognition.

LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 86(11), 1998: LeNet-5 (section II.B, figure 2).
Reference: a literal transcription of section II.B in `tools/references/lenet.py` (no weights were ever published).

*Differs*: the ten output units are linear and trained with cross-entropy, where the paper has radial basis functions around fixed
7x12 bitmaps and a mean squared error; weights start uniform with variance 1/fan-in, where the paper has +-2.4/fan-in; pictures
are resized to 32x32, where the paper centres 28x28 digits in them.
*Map*: appendix A -> `squash`; C3 -> `PartialConv` and its table I -> `TABLE`; S2, S4 -> `Subsample`; figure 2 -> `LeNet`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import SAME, Names

TASK: Task = "classify"
# the paper's grey values: background -0.1, ink 1.175 (section II.B)
PREPARE = Prepare(channels=1, resize="fixed", size=(32, 32), mean=(0.1 / 1.275,), std=(1 / 1.275,))

# table I: the maps of S2 that each of the 16 maps of C3 sees
TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)


@dataclass(frozen=True)
class Config:
    """`classes=0` leaves the output layer away; the features are then the 84 units of F6."""

    classes: int = 10
    channels: int = 1


# --- network -----------------------------------------------------------------------------------------------------------


def squash(x: Tensor) -> Tensor:
    """The sigmoid of appendix A: 1.7159 tanh(2/3 x), so that squash(1) = 1 and squash(-1) = -1."""
    return 1.7159 * torch.tanh(x * (2 / 3))


class Subsample(nn.Module):
    """The sum of every 2x2 neighbourhood, times one trainable coefficient per map, plus a bias, squashed (S2, S4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 0.25))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return squash(4 * F.avg_pool2d(x, 2) * scale + shift)


class PartialConv(nn.Module):
    """A 5x5 convolution whose output maps see the input maps listed in `table` only (C3, table I); weights (connections, 5, 5)."""

    outputs: Tensor
    inputs: Tensor

    def __init__(self, width_in: int, table: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        pairs = [(o, i) for o, seen in enumerate(table) for i in seen]
        self.shape = (len(table), width_in, 5, 5)
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.zeros(len(table)))
        self.register_buffer("outputs", torch.tensor([o for o, _ in pairs]), persistent=False)
        self.register_buffer("inputs", torch.tensor([i for _, i in pairs]), persistent=False)
        bounds = torch.tensor([math.sqrt(3 / (25 * len(table[o]))) for o, _ in pairs])
        with torch.no_grad():
            self.weight.uniform_(-1, 1).mul_(bounds[:, None, None])

    def forward(self, x: Float[Tensor, "B 6 H W"]) -> Float[Tensor, "B 16 h w"]:
        dense = self.weight.new_zeros(self.shape).index_put((self.outputs, self.inputs), self.weight)
        return F.conv2d(x, dense, self.bias)


class LeNet(nn.Module):
    """Figure 2: C1 6@28x28, S2 6@14x14, C3 16@10x10, S4 16@5x5, C5 120, F6 84, output."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.prepare = PREPARE
        if config.channels != 1:
            self.prepare = Prepare(channels=config.channels, resize="fixed", size=(32, 32))
        self.c1 = nn.Conv2d(config.channels, 6, 5)
        self.s2 = Subsample(6)
        self.c3 = PartialConv(6, TABLE)
        self.s4 = Subsample(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, config.classes) if config.classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.uniform_(module.weight, -math.sqrt(3 / module.weight[0].numel()), math.sqrt(3 / module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, pixels: Float[Tensor, "B C 32 32"]) -> Float[Tensor, "B 84"]:
        """The units of F6, which the output layer classifies."""
        if pixels.shape[2:] != (32, 32):
            raise UsageError(f"lenet: the input must be 32x32 pixels, found {pixels.shape[2]}x{pixels.shape[3]}")
        x = self.s2(squash(self.c1(pixels)))
        x = self.s4(squash(self.c3(x)))
        x = squash(self.c5(x)).flatten(1)
        return squash(self.f6(x))

    def forward(self, pixels: Float[Tensor, "B C 32 32"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.output is None else self.output(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without an output layer."""
        return ranked(out) if self.output is not None else [Embedding(vector) for vector in out.detach()]


NETWORK = LeNet


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the outputs; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {"5": Config()}
# the paper counts 60,000 trainable parameters up to F6; ten linear output units add 10 * (84 + 1)
PARAMETERS: dict[str, int] = {"5": 60_000 + 850}
HEAD = r"output\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"transcription": SAME}
WEIGHTS: dict[str, Weights] = {}
