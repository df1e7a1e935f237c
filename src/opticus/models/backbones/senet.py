"""Squeeze-and-Excitation Networks.

Hu, Shen and Sun, CVPR 2018, arXiv 1709.01507: ResNets whose blocks weigh their channels, and SENet-154, which won ILSVRC 2017.
Reference: timm 1.0.31 (Apache-2.0), `models/resnet.py` (seresnet*) and `models/senet.py` (the authors' Caffe files, converted by Cadene).

*Differs*: variants whose names begin with "caffe_" are the authors' networks (the stride of a block on its first 1x1 convolution where the
blocks are ResNet's, max pooling without padding, so that maps of odd sides are one pixel smaller than elsewhere); the other variants are
today's (stride on the 3x3 convolution), which the authors' repository reports to be better. Dropout 0.2 only in SENet-154.
*Map*: eq. 2-4 -> `SqueezeExcite`; figure 3 -> `Basic`, `Bottleneck`; table 1 -> `SENet`, `VARIANTS`; section 6.1 and the appendix
(SENet-154) -> `Halved`, stem "deep"; reduction ratio r of section 6.4 -> `reduction`.
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
from opticus.models.backbones.senet_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.senet_weights import PREPARE
from opticus.models.backbones.senet_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Prepare, Result, Task
from opticus.weights.names import Names, keep, rename

TASK: Task = "classify"
SMALL = Prepare(resize="fixed", size=(32, 32))


@dataclass(frozen=True)
class Config:
    """`stride_first`: a block's stride is on its first convolution; `caffe_pool`: the stem's pooling has no padding."""

    layers: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck", "halved"] = "bottleneck"
    classes: int = 1000
    width: int = 64
    groups: int = 1
    group_width: int = 64
    reduction: int = 16
    stem: Literal["imagenet", "deep", "small"] = "imagenet"
    stride_first: bool = False
    caffe_pool: bool = False
    dropout: float = 0.0
    channels: int = 3


# --- network -----------------------------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """Every channel times s = sigmoid(W2 relu(W1 z)) with z its spatial mean (eq. 2-4); the hidden layer has C / r units."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1)
        self.fc2 = nn.Conv2d(width // reduction, width, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        z = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(z).relu()).sigmoid()


def _conv3(width_in: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, stride, 1, groups=groups, bias=False)


def _project(width_in: int, width: int, stride: int, kernel: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class Basic(nn.Module):
    """Two 3x3 convolutions, squeeze and excitation, and the shortcut."""

    expansion = 1

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = _conv3(width_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.se = SqueezeExcite(width, config.reduction)
        self.downsample = _project(width_in, width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.se(self.bn2(self.conv2(x)))
        x += shortcut
        return self.relu(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (perhaps grouped), 1x1, squeeze and excitation, and the shortcut (figure 3 right)."""

    expansion = 4

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int, project: bool) -> None:
        super().__init__()
        inner = width * config.group_width // 64 * config.groups
        first, second = (stride, 1) if config.stride_first else (1, stride)
        self.conv1 = nn.Conv2d(width_in, inner, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv3(inner, inner, second, config.groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.se = SqueezeExcite(4 * width, config.reduction)
        self.downsample = _project(width_in, 4 * width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.se(self.bn3(self.conv3(x)))
        x += shortcut
        return self.relu(x)


class Halved(nn.Module):
    """SENet-154's bottleneck: the first 1x1 convolution has half the channels of the 3x3 one; projections that stride are 3x3."""

    expansion = 4

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int, project: bool) -> None:
        super().__init__()
        inner = width * config.group_width // 64 * config.groups
        self.conv1 = nn.Conv2d(width_in, inner // 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner // 2)
        self.conv2 = _conv3(inner // 2, inner, stride, config.groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.se = SqueezeExcite(4 * width, config.reduction)
        self.downsample = _project(width_in, 4 * width, stride, 1 if stride == 1 else 3) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.se(self.bn3(self.conv3(x)))
        x += shortcut
        return self.relu(x)


BLOCKS = {"basic": Basic, "bottleneck": Bottleneck, "halved": Halved}


def _stem(config: Config, width: int) -> nn.Module:
    """What stands before the first norm: one convolution, or three with norms between them (SENet-154)."""
    if config.stem == "imagenet":
        return nn.Conv2d(config.channels, width, 7, 2, 3, bias=False)
    if config.stem == "small":
        return _conv3(config.channels, width)
    half = width // 2
    first = (_conv3(config.channels, half, 2), nn.BatchNorm2d(half), nn.ReLU(inplace=True))
    return nn.Sequential(*first, _conv3(half, half), nn.BatchNorm2d(half), nn.ReLU(inplace=True), _conv3(half, width))


class SENet(nn.Module):
    """Table 1: a stem, stages of squeeze-and-excitation blocks that halve the map and double the width, pooling, a classifier.

    `forward` returns logits (B, classes), or the pooled features (B, widths[-1]) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        small = config.stem == "small"
        self.prepare = (SMALL if small else PREPARE).with_channels(config.channels)
        width_in = 2 * config.width if config.stem == "deep" else config.width
        self.conv1 = _stem(config, width_in)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu = nn.ReLU(inplace=True)
        pool = nn.MaxPool2d(3, 2, ceil_mode=True) if config.caffe_pool else nn.MaxPool2d(3, 2, 1)
        self.maxpool = nn.Identity() if small else pool
        block = BLOCKS[config.block]
        for i, count in enumerate(config.layers):
            width, stride = config.width * 2**i, 2 if i else 1
            project = stride != 1 or width_in != width * block.expansion
            blocks = [block(config, width_in, width, stride=stride, project=project)]
            width_in = width * block.expansion
            blocks += [block(config, width_in, width, stride=1, project=False) for _ in range(1, count)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.strides = tuple((1 if small else 4) * 2**i for i in range(len(config.layers)))
        self.widths = tuple(config.width * 2**i * block.expansion for i in range(len(config.layers)))
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(width_in, config.classes) if config.classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The output of every stage, fine to coarse."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        maps: list[Tensor] = []
        for i in range(len(self.config.layers)):
            x = self.get_submodule(f"layer{i + 1}")(x)
            maps.append(x)
        return maps

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The pooled features, which the head classifies."""
        return F.adaptive_avg_pool2d(self.features(pixels)[-1], 1).flatten(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.fc is None else self.fc(self.dropout(x))

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.fc is not None else [Embedding(vector) for vector in out.detach()]


NETWORK = SENet


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_154 = Config((3, 8, 36, 3), "halved", groups=64, group_width=4, stem="deep", dropout=0.2)
_TODAY = {
    "50": Config((3, 4, 6, 3)),
    "101": Config((3, 4, 23, 3)),
    "152": Config((3, 8, 36, 3)),
    "resnext50_32x4d": Config((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x4d": Config((3, 4, 23, 3), groups=32, group_width=4),
    "resnext101_64x4d": Config((3, 4, 23, 3), groups=64, group_width=4),
    "resnext101_32x8d": Config((3, 4, 23, 3), groups=32, group_width=8),
    "154": _154,
}
_CAFFE = ("50", "101", "152", "resnext50_32x4d", "resnext101_32x4d", "154")
VARIANTS: dict[str, Config] = {
    "tiny": Config((1, 1, 1, 1), "basic", width=16, stem="small", classes=10, reduction=4),
    **_TODAY,
    **{f"caffe_{v}": replace(_TODAY[v], caffe_pool=True, stride_first=v.isdigit() and v != "154") for v in _CAFFE},
}

# --- weights: this file's names are those of timm's ResNet -----------------------------------------------------------------

_STEM = {"1": ("0", "1"), "2": ("3", "4")}  # the first two convolutions of the deep stem, each with its norm


def _of_stem(match: re.Match[str]) -> str:
    """layer0.bn2.weight -> conv1.4.weight, where the stem is deep"""
    conv, norm = _STEM[match[2]]
    return f"conv1.{conv if match[1] == 'conv' else norm}.{match[3]}"


_BLOCK = rename(r"(layer[1-4]\.\d+\.)se_module\.(.+)", r"\1se.\2")
_REST = keep(r"layer[1-4]\..+")
_HEAD = rename(r"last_linear\.(\w+)", r"fc.\1")
IGNORE = r"fc\..+"  # a file's head has no place in a network with classes=0
HEAD = r"fc\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "timm": Names(keep(r"(conv1|bn1|layer\d+|fc)\..+")),
    "cadene": Names(rename(r"layer0\.(conv1|bn1)\.(\w+)", r"\1.\2"), _BLOCK, _REST, _HEAD),
    "cadene154": Names(
        rename(r"layer0\.conv3\.(\w+)", r"conv1.6.\1"),
        rename(r"layer0\.bn3\.(\w+)", r"bn1.\1"),
        rename(r"layer0\.(conv|bn)([12])\.(\w+)", _of_stem),
        *(_BLOCK, _REST, _HEAD),
    ),
}
