"""Do You Even Need Attention? A Stack of Feed-Forward Layers Does Surprisingly Well on ImageNet.

Melas-Kyriazi, 2021, arXiv 2105.02723.
Reference: a literal transcription of the paper's section 2 and listing in `tools/references/ffonly.py`; the author's repository
lukemelas/do-you-even-need-attention, whose file format this reads, states no licence.

*Differs*: pictures of another size than `size` are refused, as the feed-forward layer over patches has one weight per position.
*Map*: section 2 and figure 1, feed-forward over features, then over patches -> `LinearBlock`; position embeddings that follow the
grid of patches -> `Positions`; table 1 -> `VARIANTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.drop import DropPath
from opticus.layers.fixed_patches import FixedPatches
from opticus.layers.mlp import FeedForward
from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, Weights
from opticus.weights.names import Names, rename

TASK: Task = "classify"
FIXED_SIZE = True  # the feed-forward layers over patches belong to positions
# the evaluation of facebookresearch/deit, in whose training script the author's networks ran
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")


@dataclass(frozen=True)
class Config:
    """`positions` is the side of the learned grid of position embeddings, resampled where the patches have another one."""

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    mlp: float = 4.0
    positions: int = 14
    classes: int = 1000
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    eps: float = 1e-6


# --- network -----------------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """Learned embeddings: one of the class token, and a grid that is resampled (bilinear) to the grid of the patches."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, width, side, side))
        self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, width))

    def forward(self, grid: int) -> Float[Tensor, "1 N D"]:
        """The embeddings of the class token and of grid x grid patches."""
        places = self.pos_embed
        if places.shape[2] != grid:
            places = F.interpolate(places, size=(grid, grid), mode="bilinear", align_corners=False)
        return torch.cat([self.cls_pos_embed, places.flatten(2).transpose(1, 2)], dim=1)


class LinearBlock(nn.Module):
    """A transformer block without attention: a feed-forward layer over features, then one over tokens.

    Each is normalised before (the second along the tokens of every feature) and added to its input.
    """

    def __init__(self, config: Config, tokens: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.mlp1 = FeedForward(config.width, int(config.width * config.mlp), drop=config.dropout)
        self.norm2 = nn.LayerNorm(tokens, config.eps)
        self.mlp2 = FeedForward(tokens, int(tokens * config.mlp), drop=config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = x + self.drop_path(self.mlp1(self.norm1(x)))
        x = x.transpose(1, 2)
        return (x + self.drop_path(self.mlp2(self.norm2(x)))).transpose(1, 2)


class FFOnly(nn.Module):
    """ViT with every attention layer replaced: patches and a class token with positions, L blocks, a head on the class token.

    `forward` returns logits (B, classes), or the class token (B, width) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.strides = (config.patch,)
        self.widths = (config.width,)
        self.patch_embed = FixedPatches(config.channels, config.width, patch=config.patch, size=config.size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_encoding = Positions(config.width, config.positions)
        self.dropout = nn.Dropout(config.dropout)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.Sequential(*(LinearBlock(config, 1 + self.patch_embed.tokens, rate) for rate in rates))
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.classes) if config.classes else None
        for table in (self.cls_token, self.pos_encoding.pos_embed, self.pos_encoding.cls_pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def tokens(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The normalised tokens behind the last block, class token first. UsageError for pixels that are not size x size."""
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.dropout(x + self.pos_encoding(self.patch_embed.grid))
        return self.norm(self.blocks(x))

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """One map of the normalised patch tokens, at the stride of the patches."""
        return [self.patch_embed.as_map(self.tokens(pixels)[:, 1:])]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The class token, which the head classifies."""
        return self.tokens(pixels)[:, 0]

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _prepare(size: int) -> Prepare:
    """DeiT's evaluation: the centre 87.5 %; small inputs are resized as they are."""
    if size < 64:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(int(size / 0.875), 0), crop=(size, size))


NETWORK = FFOnly


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, patch=8, width=128, depth=4, mlp=2.0, positions=4, classes=10),
    "ti16": Config(width=192),
    "b16": Config(),
    "l32": Config(patch=32, width=1024, depth=24),  # its position embeddings keep the 14x14 grid of the others
}
# the counts of the author's file; its README rounds: 7.7, 62 and 206 million
PARAMETERS: dict[str, int] = {"ti16": 7_676_332, "b16": 61_943_020, "l32": 206_363_576}
IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "lukemelas": Names(rename(r"(?:module\.)?((?:cls_token|(?:patch_embed|pos_encoding|blocks|norm|head)\..+))", r"\1")),
}


def _published(file: str, top1: float) -> Weights:
    return Weights(
        url=f"https://github.com/lukemelas/do-you-even-need-attention/releases/download/v0.0.1/{file}.pth",
        format="lukemelas",
        license="none stated",
        source="https://github.com/lukemelas/do-you-even-need-attention README.md",
        prepare=PREPARE,
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1},
    )


WEIGHTS: dict[str, Weights] = {
    "ti16:imagenet1k": _published("linear-tiny-checkpoint", 61.4),
    "b16:imagenet1k": _published("linear-base-checkpoint", 74.9),
}
