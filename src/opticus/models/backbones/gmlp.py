"""Pay Attention to MLPs.

Liu, Dai, So and Le, NeurIPS 2021, arXiv 2105.08050 (gMLP).
Reference: timm 1.0 (Apache-2.0); the authors published neither code nor weights.

*Differs*: the masked-language models of section 4 and the tiny attention of section 4.3 (aMLP) are left out; the gate's own layer
norm has epsilon 1e-5 beside the blocks' 1e-6 and the head classifies the mean of the normalised tokens, as in timm's file.
*Map*: section 2, Z = gelu(XU), Y = s(Z) V -> `Block`; eq. 2-4 -> `SpatialGatingUnit`; section 3, table 1 -> `VARIANTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.drop import DropPath
from opticus.layers.fixed_patches import FixedPatches
from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, keep, rename

TASK: Task = "classify"
FIXED_SIZE = True  # the spatial projections belong to positions
HALF = (0.5, 0.5, 0.5)
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic", mean=HALF, std=HALF)


@dataclass(frozen=True)
class Config:
    """`hidden` is the even width d_ffn between U and the gate (table 1); `classes=0` leaves the head away."""

    size: int = 224
    patch: int = 16
    width: int = 256
    depth: int = 30
    hidden: int = 1536
    classes: int = 1000
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    eps: float = 1e-6


# --- network -----------------------------------------------------------------------------------------------------------


class SpatialGatingUnit(nn.Module):
    """s(Z) = Z1 * (W norm(Z2) + b), the halves of Z along channels; W mixes the tokens of every channel alike (eq. 2-4).

    W starts near zero and b at one, so that the unit is first an identity on Z1 (section 2.1).
    """

    def __init__(self, hidden: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden // 2)
        self.proj = nn.Linear(tokens, tokens)

    def forward(self, z: Float[Tensor, "B N E"]) -> Float[Tensor, "B N e"]:
        z1, z2 = z.chunk(2, dim=-1)
        return z1 * self.proj(self.norm(z2).transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """X + s(gelu(norm(X) U)) V: one MLP along channels with the gate in its middle (section 2, figure 1)."""

    def __init__(self, config: Config, tokens: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.u = nn.Linear(config.width, config.hidden)
        self.gate = SpatialGatingUnit(config.hidden, tokens)
        self.v = nn.Linear(config.hidden // 2, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        z = self.dropout(F.gelu(self.u(self.norm(x))))
        return x + self.drop_path(self.dropout(self.v(self.gate(z))))


class GMLP(nn.Module):
    """Patches as tokens without position embeddings, L blocks, layer norm, the mean of the tokens, a linear head (section 3).

    `forward` returns logits (B, classes), or the mean of the tokens (B, width) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.hidden % 2:
            raise UsageError(f"gmlp: hidden must be even, as the gate cuts it into halves; found {config.hidden}")
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.strides = (config.patch,)
        self.widths = (config.width,)
        self.stem = FixedPatches(config.channels, config.width, patch=config.patch, size=config.size)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.Sequential(*(Block(config, self.stem.tokens, rate) for rate in rates))
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.classes) if config.classes else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.stem.proj.weight, std=self.stem.proj.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.stem.proj.get_parameter("bias"))
        for module in self.modules():
            if isinstance(module, SpatialGatingUnit):
                nn.init.normal_(module.proj.weight, std=1e-6)
                nn.init.ones_(module.proj.bias)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def tokens(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The normalised tokens behind the last block, row by row. UsageError for pixels that are not size x size."""
        return self.norm(self.blocks(self.stem(pixels)))

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """One map of the normalised tokens, at the stride of the patches."""
        return [self.stem.as_map(self.tokens(pixels))]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The mean of the tokens, which the head classifies."""
        return self.tokens(pixels).mean(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _prepare(size: int) -> Prepare:
    """The centre 87.5 %, as in timm; small inputs are resized as they are."""
    if size < 64:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(int(size / 0.875), 0), crop=(size, size))


NETWORK = GMLP


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, patch=8, width=96, depth=4, hidden=384, classes=10),
    "ti16": Config(width=128, hidden=768),
    "s16": Config(),
    "b16": Config(width=512, hidden=3072),
}
# timm's counts; table 1 rounds: 5.9, 19.5 and 73.4 million
PARAMETERS: dict[str, int] = {"ti16": 5_867_328, "s16": 19_422_656, "b16": 73_075_392}
IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "timm": Names(
        rename(r"blocks\.(\d+)\.mlp_channels\.fc1\.(\w+)", r"blocks.\1.u.\2"),
        rename(r"blocks\.(\d+)\.mlp_channels\.fc2\.(\w+)", r"blocks.\1.v.\2"),
        rename(r"blocks\.(\d+)\.mlp_channels\.gate\.(.+)", r"blocks.\1.gate.\2"),
        keep(r"(stem\.proj|blocks\.\d+\.norm|norm|head)\.\w+"),
    ),
}
WEIGHTS: dict[str, Weights] = {
    "s16:ra3_in1k": Weights(
        url="https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/gmlp_s16_224_raa-10536d42.pth",
        format="timm",
        license="Apache-2.0",
        source="timm 1.0.31 models/mlp_mixer.py, results/results-imagenet.csv",
        prepare=PREPARE,
        digest="10536d42",
        labels="imagenet1k",
        reports={"imagenet1k acc@1": 79.644, "imagenet1k acc@5": 94.622},
    ),
}
