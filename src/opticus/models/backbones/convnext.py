"""A ConvNet for the 2020s.

Liu, Mao, Wu, Feichtenhofer, Darrell and Xie, CVPR 2022, arXiv 2201.03545.
Reference: facebookresearch/ConvNeXt (MIT), whose names this file keeps; the same networks in timm, Hugging Face transformers (both
Apache-2.0) and torchvision 0.29 (BSD-3-Clause).

*Differs*: maps whose sides do not divide by a patch are zero-padded right and bottom, where the reference drops the rest; inputs of
multiples of 32 pixels, as all published figures use, give the same.
*Map*: section 2.2, "patchify" -> `Downsample` of the pixels; section 2.6, separate downsampling -> `Downsample` between stages;
figure 4 -> `Block`; section 3.1 and appendix A -> `VARIANTS`, `layer_scale`, `drop_path`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.drop import DropPath
from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.models.backbones.convnext_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.convnext_weights import PREPARE
from opticus.models.backbones.convnext_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError
from opticus.weights.names import Names, flatten, keep, rename

TASK: Task = "classify"
EPS = 1e-6


@dataclass(frozen=True)
class Config:
    """`layer_scale` is the initial value of gamma, `head_eps` the epsilon of the last norm; `classes=0` leaves the head away."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    size: int = 224
    patch: int = 4
    kernel: int = 7
    classes: int = 1000
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    head_eps: float = EPS
    channels: int = 3


# --- network -----------------------------------------------------------------------------------------------------------


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map (B, C, H, W), one position by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, EPS).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Figure 4: depthwise convolution, layer norm, a GELU perceptron four times as wide, scaled by gamma, added to its input."""

    def __init__(self, config: Config, width: int, drop_path: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, config.kernel, padding=config.kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, EPS)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), config.layer_scale)) if config.layer_scale else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.drop_path(self.pwconv2(self.act(self.pwconv1(y))))
        x = x.permute(0, 2, 3, 1)
        # gamma and stochastic depth commute: one pass over memory scales and adds
        y = x + y if self.gamma is None else torch.addcmul(x, y, self.gamma)
        return y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A patchify stem, then stages of blocks with a 2x2 convolution before each but the first; average pooling, norm, head.

    `forward` returns logits (B, classes), or the normalised pooled features (B, widths[-1]) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if len(config.depths) != len(config.widths):
            raise UsageError(f"convnext: depths {list(config.depths)} and widths {list(config.widths)} must be equally many")
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.widths = config.widths
        self.strides = tuple(config.patch * 2**i for i in range(len(config.widths)))
        first = nn.Conv2d(config.channels, config.widths[0], config.patch, config.patch)
        self.downsample_layers = nn.ModuleList([nn.Sequential(first, ChannelNorm(config.widths[0]))])
        for before, after in pairwise(config.widths):
            self.downsample_layers.append(nn.Sequential(ChannelNorm(before), nn.Conv2d(before, after, 2, 2)))
        last = max(sum(config.depths) - 1, 1)
        rates = iter([config.drop_path * i / last for i in range(sum(config.depths))])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(config, width, next(rates)) for _ in range(depth)))
            for width, depth in zip(config.widths, config.depths)
        )
        self.norm = nn.LayerNorm(config.widths[-1], config.head_eps)
        self.head = nn.Linear(config.widths[-1], config.classes) if config.classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The output of every stage, fine to coarse: strides 4, 8, 16, 32."""
        x = pixels.contiguous(memory_format=torch.channels_last)  # the norms and perceptrons then need no copy
        maps: list[Tensor] = []
        for i, (down, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(down(_whole(x, 2 if i else self.config.patch)))
            maps.append(x)
        return maps

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The normalised pooled features, which the head classifies."""
        return self.norm(self.features(pixels)[-1].mean((2, 3)))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _whole(x: Tensor, side: int) -> Tensor:
    """Zeros at the right and bottom up to whole patches, so that every map has ceil(H / stride) rows."""
    right, down = -x.shape[3] % side, -x.shape[2] % side
    return F.pad(x, (0, right, 0, down)) if right or down else x


def _prepare(size: int) -> Prepare:
    """The authors' evaluation: the centre 7/8 below 384 pixels, the whole picture squeezed from there on."""
    if size < 64 or size >= 384:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(size * 256 // 224, 0), crop=(size, size))


NETWORK = ConvNeXt


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; the authors smooth the labels by 0.1 (`smoothing=0.1`)."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_DEEP = (3, 3, 27, 3)
VARIANTS: dict[str, Config] = {
    "tiny": Config((2, 2, 2), (32, 64, 128), size=32, patch=2, kernel=5, classes=10, layer_scale=1.0, drop_path=0.05),
    "t": Config(),
    "s": Config(_DEEP),
    "b": Config(_DEEP, (128, 256, 512, 1024)),
    "l": Config(_DEEP, (192, 384, 768, 1536)),
    "xl": Config(_DEEP, (256, 512, 1024, 2048)),
}

# --- weights: this file's names are the authors' -------------------------------------------------------------------------


def _layer_of_torchvision(match: re.Match[str]) -> str:
    """features.3.1.block.5 -> stages.1.1.pwconv2"""
    layer = {"0": "dwconv", "2": "norm", "3": "pwconv1", "5": "pwconv2"}[match[3]]
    return f"stages.{int(match[1]) // 2}.{match[2]}.{layer}.{match[4]}"


def _scale_of_torchvision(match: re.Match[str]) -> str:
    """features.3.1.layer_scale -> stages.1.1.gamma"""
    return f"stages.{int(match[1]) // 2}.{match[2]}.gamma"


def _step_of_torchvision(match: re.Match[str]) -> str:
    """features.4.1 -> downsample_layers.2.1"""
    return f"downsample_layers.{int(match[1]) // 2}.{match[2]}.{match[3]}"


_NET = r"(?:convnext\.)?"
_STAGE = _NET + r"encoder\.stages\.(\d+)\."
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
FORMATS: dict[str, Names] = {
    "facebook": Names(keep(r"((downsample_layers|stages)\.\d+\.\d+|norm|head)\.((dwconv|norm|pwconv[12])\.)?(weight|bias|gamma)")),
    "timm": Names(
        rename(r"stem\.([01])\.(\w+)", r"downsample_layers.0.\1.\2"),
        rename(r"stages\.(\d+)\.downsample\.([01])\.(\w+)", r"downsample_layers.\1.\2.\3"),
        rename(r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(\w+)", r"stages.\1.\2.dwconv.\3"),
        rename(r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"stages.\1.\2.pwconv\3.\4"),
        rename(r"stages\.(\d+)\.blocks\.(\d+)\.(norm\.\w+|gamma)", r"stages.\1.\2.\3"),
        rename(r"head\.norm\.(\w+)", r"norm.\1"),
        rename(r"head\.fc\.(\w+)", r"head.\1"),
    ),
    "torchvision": Names(
        rename(r"features\.([0246])\.([01])\.(\w+)", _step_of_torchvision),
        rename(r"features\.([1357])\.(\d+)\.block\.([0235])\.(\w+)", _layer_of_torchvision),
        rename(r"features\.([1357])\.(\d+)\.layer_scale", _scale_of_torchvision, flatten()),
        rename(r"classifier\.0\.(\w+)", r"norm.\1"),
        rename(r"classifier\.2\.(\w+)", r"head.\1"),
    ),
    # transformers gives the norm before the head an epsilon of 1e-12 (`head_eps`): below float32's rounding
    "huggingface": Names(
        rename(_NET + r"embeddings\.patch_embeddings\.(\w+)", r"downsample_layers.0.0.\1"),
        rename(_NET + r"embeddings\.layernorm\.(\w+)", r"downsample_layers.0.1.\1"),
        rename(_STAGE + r"downsampling_layer\.([01])\.(\w+)", r"downsample_layers.\1.\2.\3"),
        rename(_STAGE + r"layers\.(\d+)\.layernorm\.(\w+)", r"stages.\1.\2.norm.\3"),
        rename(_STAGE + r"layers\.(\d+)\.layer_scale_parameter", r"stages.\1.\2.gamma"),
        rename(_STAGE + r"layers\.(\d+)\.(dwconv|pwconv[12])\.(\w+)", r"stages.\1.\2.\3.\4"),
        rename(_NET + r"layernorm\.(\w+)", r"norm.\1"),
        rename(r"classifier\.(\w+)", r"head.\1"),
    ),
}
