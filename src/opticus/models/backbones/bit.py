"""Big Transfer (BiT): General Visual Representation Learning.

Kolesnikov et al., ECCV 2020, arXiv 1912.11370; the network is ResNet v2 (He et al., ECCV 2016, 1603.05027) with group normalisation
(Wu and He, ECCV 2018, 1803.08494) and weight standardisation (Qiao et al., 2019, 1903.10520) in place of batch normalisation.
Reference: github.com/google-research/big_transfer (Apache-2.0); timm 1.0 and transformers 5 (both Apache-2.0).

*Differs*: the stride of a unit is on its 3x3 convolution, as in the authors' code, not on the first 1x1. timm and transformers add
1e-8 to the variance of the weights where the authors add 1e-10 (`Config.eps`).
*Map*: section 2.1 -> `BiT`; 1903.10520 eq. 6-8 -> `StdConv`; 1603.05027 figure 4 e -> `Unit`; BiT-S, BiT-M -> `WEIGHTS`; section 2.2
(BiT-HyperRule) -> the recipe; L, the largest data set, was never published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.models.backbones.bit_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.bit_weights import PREPARE
from opticus.models.backbones.bit_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Result, Task, UsageError
from opticus.weights.names import Names, chain, conv_kernel, flatten, keep, rename

TASK: Task = "classify"


@dataclass(frozen=True)
class Config:
    """`layers` counts the units of each block, `width` is that of the root (R50x3: 3 x 64), `groups` those of every group norm.

    `stem="small"` has a 3x3 kernel and no pooling, for small pictures; `size` is the side of the pictures that `prepare`
    makes, no limit; `classes=0` leaves the head away.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    size: int = 480
    width: int = 64
    classes: int = 1000
    groups: int = 32
    stem: Literal["imagenet", "small"] = "imagenet"
    channels: int = 3
    eps: float = 1e-10


# --- network -----------------------------------------------------------------------------------------------------------


class StdConv(nn.Module):
    """A convolution whose kernels have mean 0 and variance 1 for every output channel: (W - mean) / sqrt(var + eps)."""

    def __init__(self, width_in: int, width: int, side: int, stride: int = 1, *, eps: float) -> None:
        super().__init__()
        self.stride, self.padding, self.eps = stride, side // 2, eps
        self.weight = nn.Parameter(nn.init.kaiming_normal_(nn.Conv2d(width_in, width, side, bias=False).weight, mode="fan_out"))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        # batch normalisation over one "picture" whose channels are the kernels does this in one pass
        flat = F.batch_norm(self.weight.reshape(1, self.weight.shape[0], -1), None, None, training=True, momentum=0.0, eps=self.eps)
        return F.conv2d(x, flat.reshape(self.weight.shape), None, self.stride, self.padding)


class Root(nn.Module):
    """The 7x7 (small: 3x3) convolution and pooling before the blocks. Pooling sees a border of zeros, not of nothing (TensorFlow's padding)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pool = config.stem == "imagenet"
        self.conv = StdConv(config.channels, config.width, 7 if self.pool else 3, 2, eps=config.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv(pixels)
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2) if self.pool else x


class Unit(nn.Module):
    """A bottleneck with normalisation and ReLU before each convolution; the shortcut's projection takes the normalised input."""

    def __init__(self, config: Config, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        eps = config.eps
        self.gn1 = nn.GroupNorm(config.groups, width_in)
        self.conv1 = StdConv(width_in, width, 1, eps=eps)
        self.gn2 = nn.GroupNorm(config.groups, width)
        self.conv2 = StdConv(width, width, 3, stride, eps=eps)
        self.gn3 = nn.GroupNorm(config.groups, width)
        self.conv3 = StdConv(width, 4 * width, 1, eps=eps)
        project = stride != 1 or width_in != 4 * width
        self.downsample = StdConv(width_in, 4 * width, 1, stride, eps=eps) if project else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.gn1(x), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(F.relu(self.gn2(y), inplace=True))
        y = self.conv3(F.relu(self.gn3(y), inplace=True))
        return y + shortcut


class BiT(nn.Module):
    """ResNet v2: the root, blocks of units that halve the map and double the width, a last normalisation, average and head.

    `forward` returns logits (B, classes), or the average (B, widths[-1]) of a network without a head. The head starts at zero, as
    the authors' does for every new task.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width % config.groups:
            raise UsageError(f"bit: width {config.width} must be a multiple of groups {config.groups}")
        self.config = config
        self.prepare = replace(PREPARE, size=(config.size, config.size)).with_channels(config.channels)
        self.root = Root(config)
        first = 4 if config.stem == "imagenet" else 2
        self.strides = tuple(first * 2**i for i in range(len(config.layers)))
        self.widths = tuple(4 * config.width * 2**i for i in range(len(config.layers)))
        self.blocks = nn.ModuleList()
        width_in = config.width
        for i, count in enumerate(config.layers):
            width = config.width * 2**i
            units = [Unit(config, width_in, width, stride=2 if i else 1)]
            units += [Unit(config, 4 * width, width, stride=1) for _ in range(1, count)]
            self.blocks.append(nn.Sequential(*units))
            width_in = 4 * width
        self.norm = nn.GroupNorm(config.groups, width_in)
        self.head = nn.Linear(width_in, config.classes) if config.classes else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The output of every block, fine to coarse, not normalised (the next unit would do that)."""
        x = self.root(pixels)
        maps: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The average of the last block's normalised and rectified map, which the head classifies."""
        return F.relu(self.norm(self.features(pixels)[-1]), inplace=True).mean((2, 3))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


NETWORK = BiT


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_50, _101, _152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
VARIANTS: dict[str, Config] = {
    "tiny": Config((2, 2, 2), size=32, width=16, groups=8, stem="small", classes=10),
    "50x1": Config(_50),
    "50x3": Config(_50, width=3 * 64),
    "101x1": Config(_101),
    "101x3": Config(_101, width=3 * 64),
    "152x2": Config(_152, width=2 * 64),
    "152x4": Config(_152, width=4 * 64),
}
IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones

# --- weights -----------------------------------------------------------------------------------------------------------

_STEPS = {"a": 1, "b": 2, "c": 3}


def _of_unit(match: re.Match[str]) -> str:
    """resnet/block2/unit01/b/standardized_conv2d/kernel -> blocks.1.0.conv2.weight; group_norm/beta -> gn2.bias"""
    place = f"blocks.{int(match[1]) - 1}.{int(match[2]) - 1}"
    if match[4] == "standardized_conv2d/kernel":
        return f"{place}.conv{_STEPS[match[3]]}.weight"
    return f"{place}.gn{_STEPS[match[3]]}.{'weight' if match[4] == 'group_norm/gamma' else 'bias'}"


def _of_shortcut(match: re.Match[str]) -> str:
    return f"blocks.{int(match[1]) - 1}.{int(match[2]) - 1}.downsample.weight"


def _of_torch_unit(match: re.Match[str]) -> str:
    """body.block2.unit01.gn1.weight -> blocks.1.0.gn1.weight"""
    return f"blocks.{int(match[1]) - 1}.{int(match[2]) - 1}.{match[3]}"


_UNIT = r"resnet/block(\d+)/unit(\d+)/"
_HUB = r"(?:bit\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."
FORMATS: dict[str, Names] = {
    "google": Names(
        rename(r"resnet/root_block/standardized_conv2d/kernel", "root.conv.weight", conv_kernel()),
        rename(_UNIT + r"([abc])/(standardized_conv2d/kernel)", _of_unit, conv_kernel()),
        rename(_UNIT + r"([abc])/(group_norm/(?:gamma|beta))", _of_unit),
        rename(_UNIT + r"a/proj/standardized_conv2d/kernel", _of_shortcut, conv_kernel()),
        rename(r"resnet/group_norm/gamma", "norm.weight"),
        rename(r"resnet/group_norm/beta", "norm.bias"),
        rename(r"resnet/head/conv2d/kernel", "head.weight", chain(conv_kernel(), flatten(1))),
        rename(r"resnet/head/conv2d/bias", "head.bias"),
    ),
    "big_transfer": Names(  # what the authors' PyTorch code saves
        keep(r"root\.conv\.weight"),
        rename(r"body\.block(\d+)\.unit(\d+)\.((?:gn|conv)[123]\.\w+|downsample\.weight)", _of_torch_unit),
        rename(r"head\.gn\.(\w+)", r"norm.\1"),
        rename(r"head\.conv\.weight", "head.weight", flatten(1)),
        rename(r"head\.conv\.bias", "head.bias"),
    ),
    "timm": Names(
        rename(r"stem\.conv\.weight", "root.conv.weight"),
        rename(r"stages\.(\d+)\.blocks\.(\d+)\.norm([123])\.(\w+)", r"blocks.\1.\2.gn\3.\4"),
        rename(r"stages\.(\d+)\.blocks\.(\d+)\.(conv[123]\.weight)", r"blocks.\1.\2.\3"),
        rename(r"stages\.(\d+)\.blocks\.(\d+)\.downsample\.conv\.weight", r"blocks.\1.\2.downsample.weight"),
        keep(r"norm\.\w+"),
        rename(r"head\.fc\.weight", "head.weight", flatten(1)),
        rename(r"head\.fc\.bias", "head.bias"),
    ),
    "huggingface": Names(
        rename(r"(?:bit\.)?embedder\.convolution\.weight", "root.conv.weight"),
        rename(_HUB + r"norm([123])\.(\w+)", r"blocks.\1.\2.gn\3.\4"),
        rename(_HUB + r"(conv[123]\.weight)", r"blocks.\1.\2.\3"),
        rename(_HUB + r"downsample\.conv\.weight", r"blocks.\1.\2.downsample.weight"),
        rename(r"(?:bit\.)?(norm\.\w+)", r"\1"),
        rename(r"classifier\.1\.(\w+)", r"head.\1"),
    ),
}
