"""Learning Representations by Back-propagating Errors.

Rumelhart, Hinton and Williams, Nature 323, 1986: the feed-forward network. The rectified variant uses the units of Glorot, Bordes and
Bengio, AISTATS 2011, with the initial weights of He et al., ICCV 2015 (1502.01852).
Reference: scikit-learn 1.9 (BSD-3-Clause), `MLPClassifier`.

*Differs*: the output units are linear and compared by cross-entropy, where the paper has logistic ones and a squared error; weights
start at a scale that suits their number of inputs, where the paper has small random ones.
*Map*: eq. 1 (x_j = sum_i y_i w_ji, the bias an input fixed at 1) -> the linear layers; eq. 2 (y_j = 1 / (1 + exp(-x_j))) -> "sigmoid";
eq. 3-7 (the backward pass) -> autograd; eq. 8-9 (the step with momentum) -> the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import SAME, Names

TASK: Task = "classify"
PREPARE = Prepare(resize="fixed", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
UNITS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


@dataclass(frozen=True)
class Config:
    """`hidden` are the widths of the hidden layers, `activation` their units; `classes=0` leaves the output layer away."""

    classes: int = 10
    channels: int = 3
    size: int = 32
    hidden: tuple[int, ...] = (512, 256)
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"
    dropout: float = 0.0


# --- network -----------------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Flattened pixels, hidden layers whose every unit sees every unit below, and a linear output unit for each class."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rule = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(rule.channels, "fixed", (config.size, config.size), mean=rule.mean, std=rule.std)
        widths = (config.channels * config.size**2, *config.hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], config.classes) if config.classes else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module, config.activation if module is not self.head else "linear")

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The units of the last hidden layer; UsageError for pictures of another size."""
        wanted = (self.config.channels, self.config.size, self.config.size)
        if tuple(pixels.shape[1:]) != wanted:
            raise UsageError(f"mlp: pictures must have the one common shape {wanted}, found {tuple(pixels.shape[1:])}")
        x, units = pixels.flatten(1), UNITS[self.config.activation]
        for layer in self.hidden:
            x = F.dropout(units(layer(x)), self.config.dropout, self.training)
        return x

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without an output layer."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _initialise(layer: nn.Linear, units: Literal["relu", "sigmoid", "tanh", "linear"]) -> None:
    """Normal weights that keep the scale: He for rectified units, Glorot otherwise, with his factor 4 for logistic ones."""
    if units == "relu":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_normal_(layer.weight, gain=4.0 if units == "sigmoid" else 1.0)
    nn.init.zeros_(layer.bias)


NETWORK = MLP


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the outputs; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(),
    "sigmoid": Config(hidden=(300,), activation="sigmoid"),
    "300": Config(channels=1, size=28, hidden=(300,), activation="tanh"),
    "300-100": Config(channels=1, size=28, hidden=(300, 100), activation="tanh"),
}
# LeCun et al. 1998 (Proc. IEEE 86(11)), section III.C, calls these two networks on MNIST 28x28-300-10 and 28x28-300-100-10
PARAMETERS: dict[str, int] = {
    "300": 784 * 300 + 300 + 300 * 10 + 10,
    "300-100": 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
}
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"plain": SAME}
WEIGHTS: dict[str, Weights] = {}
