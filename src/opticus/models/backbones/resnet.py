"""Deep Residual Learning for Image Recognition.

He, Zhang, Ren and Sun, CVPR 2016, arXiv 1512.03385; with the grouped blocks of ResNeXt (Xie et al., CVPR 2017, 1611.05431)
and the wider ones of Wide ResNet (Zagoruyko and Komodakis, BMVC 2016, 1605.07146).
Reference: torchvision 0.29 (BSD-3-Clause); the same networks in timm and Hugging Face transformers (both Apache-2.0); the small ones
of section 4.2 in chenyaofo/pytorch-cifar-models (BSD-3-Clause); the wide encoders in facebookresearch/swav (CC-BY-NC-4.0: outputs compared).

*Differs*: the stride of a bottleneck is on its 3x3 convolution, not on the first 1x1 (as in torchvision's and timm's files;
`block="original"` has it where the paper has it, for Detectron2's);
shortcuts that change shape are projections everywhere (the paper's option B), the small networks of section 4.2 included.
*Map*: eq. 1-2 -> `Basic.forward`; figure 5 right -> `Bottleneck`; table 1 -> `ResNet`, `VARIANTS`; section 4.2 -> stem "small",
"20" to "110" (6n + 2 layers); the plain networks of figure 3 and section 4.2 -> `residual=False`; ResNeXt figure 3c -> `groups`,
`group_width`; Wide ResNet table 9 -> `group_width=128`; the encoders of SwAV and BYOL, every layer w times wider -> `width=64 w`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.norm import FrozenBatchNorm
from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.models.backbones.resnet_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.resnet_weights import PREPARE
from opticus.models.backbones.resnet_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Prepare, Result, Task
from opticus.weights.names import Names, drop, keep, rename

TASK: Task = "classify"
SMALL = Prepare(resize="fixed", size=(32, 32))


@dataclass(frozen=True)
class Config:
    """`dilate` lists the stages (1-based) whose stride becomes a dilation; `classes=0` leaves the head away.

    `residual=False` is the plain network: no shortcut, no projection. `norm="none"`: convolutions with biases, nothing after them.
    `norm_eps` is 0 under torchvision's first published detectors.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck", "original"] = "bottleneck"
    classes: int = 1000
    width: int = 64
    groups: int = 1
    group_width: int = 64
    stem: Literal["imagenet", "small"] = "imagenet"
    norm: Literal["batch", "frozen", "none"] = "batch"
    dilate: tuple[int, ...] = ()
    channels: int = 3
    residual: bool = True
    norm_eps: float = 1e-5


# --- network -----------------------------------------------------------------------------------------------------------


def _norm(config: Config, width: int) -> nn.Module:
    if config.norm == "none":
        return nn.Identity()
    return FrozenBatchNorm(width, eps=config.norm_eps) if config.norm == "frozen" else nn.BatchNorm2d(width, config.norm_eps)


def _conv1(config: Config, width_in: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 1, stride, bias=config.norm == "none")


def _conv3(config: Config, width_in: int, width: int, stride: int, dilation: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, stride, dilation, dilation, groups, bias=config.norm == "none")


def _project(config: Config, width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv1(config, width_in, width, stride), _norm(config, width))


class Basic(nn.Module):
    """Two 3x3 convolutions around an identity (figure 5 left): y = F(x) + x, eq. 1."""

    expansion = 1

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        self.residual = config.residual
        self.conv1 = _conv3(config, width_in, width, stride, dilation)
        self.bn1 = _norm(config, width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3(config, width, width, 1, dilation)
        self.bn2 = _norm(config, width)
        self.downsample = _project(config, width_in, width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.residual:
            x += shortcut
        return self.relu(x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around an identity (figure 5 right); the 3x3 may be grouped (ResNeXt) or wider (Wide ResNet).

    The stride is the second convolution's, or the first's as in the paper ("original").
    """

    expansion = 4

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        inner = width * config.group_width // 64 * config.groups
        first, second = (stride, 1) if config.block == "original" else (1, stride)
        self.residual = config.residual
        self.conv1 = _conv1(config, width_in, inner, first)
        self.bn1 = _norm(config, inner)
        self.conv2 = _conv3(config, inner, inner, second, dilation, config.groups)
        self.bn2 = _norm(config, inner)
        self.conv3 = _conv1(config, inner, 4 * width)
        self.bn3 = _norm(config, 4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _project(config, width_in, 4 * width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        if self.residual:
            x += shortcut
        return self.relu(x)


class ResNet(nn.Module):
    """Table 1: a stem, stages of residual blocks that halve the map and double the width, average pooling, a classifier.

    `forward` returns logits (B, classes), or the pooled features (B, widths[-1]) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.prepare = (PREPARE if config.stem == "imagenet" else SMALL).with_channels(config.channels)
        small = config.stem == "small"
        kernel, step = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(config.channels, config.width, kernel, step, kernel // 2, bias=config.norm == "none")
        self.bn1 = _norm(config, config.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        block = Basic if config.block == "basic" else Bottleneck
        width_in, reach, dilation = config.width, 1 if small else 4, 1
        strides: list[int] = []
        for i, count in enumerate(config.layers):
            width, stride, before = config.width * 2**i, 2 if i else 1, dilation
            if i + 1 in config.dilate:
                stride, dilation = 1, dilation * stride
            reach *= stride
            strides.append(reach)
            project = config.residual and (stride != 1 or width_in != width * block.expansion)
            blocks = [block(config, width_in, width, stride=stride, dilation=before, project=project)]
            width_in = width * block.expansion
            blocks += [block(config, width_in, width, stride=1, dilation=dilation, project=False) for _ in range(1, count)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.strides = tuple(strides)
        self.widths = tuple(config.width * 2**i * block.expansion for i in range(len(config.layers)))
        self.fc = nn.Linear(width_in, config.classes) if config.classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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
        return x if self.fc is None else self.fc(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.fc is not None else [Embedding(vector) for vector in out.detach()]


NETWORK = ResNet


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits (section 3.4); options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_WIDE = partial(Config, group_width=128)
_PLAIN = partial(Config, residual=False)
_SELF = partial(Config, classes=0)  # encoders of self-supervised methods: published without a classifier


def _small(depth: int, *, residual: bool = True) -> Config:
    """Section 4.2: 6n + 2 layers on 32x32 pictures, three stages of n blocks with 16, 32 and 64 channels."""
    count = (depth - 2) // 6
    return Config((count, count, count), "basic", classes=10, width=16, stem="small", residual=residual)


VARIANTS: dict[str, Config] = {
    "tiny": Config((1, 1, 1, 1), "basic", width=16, stem="small", classes=10),
    "18": Config((2, 2, 2, 2), "basic"),
    "34": Config((3, 4, 6, 3), "basic"),
    "50": Config((3, 4, 6, 3)),
    "101": Config((3, 4, 23, 3)),
    "152": Config((3, 8, 36, 3)),
    "resnext50_32x4d": Config((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Config((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Config((3, 4, 23, 3), groups=64, group_width=4),
    "wide50_2": _WIDE((3, 4, 6, 3)),
    "wide101_2": _WIDE((3, 4, 23, 3)),
    "plain18": _PLAIN((2, 2, 2, 2), "basic"),
    "plain34": _PLAIN((3, 4, 6, 3), "basic"),
    **{str(depth): _small(depth) for depth in (20, 32, 44, 56, 110)},
    **{f"plain{depth}": _small(depth, residual=False) for depth in (20, 32, 44, 56)},
    "50w2": _SELF((3, 4, 6, 3), width=128),
    "50w4": _SELF((3, 4, 6, 3), width=256),
    "50w5": _SELF((3, 4, 6, 3), width=320),
    "200w2": _SELF((3, 24, 36, 3), width=128),
}

# --- weights: this file's names are torchvision's ------------------------------------------------------------------------

_SAME = Names(keep(r"(conv1|bn1|layer\d+|fc)\..+"))
_HUB = {"convolution": "conv", "normalization": "bn"}


def _of_block(match: re.Match[str]) -> str:
    """stages.0.layers.1.layer.2.convolution -> layer1.1.conv3"""
    return f"layer{int(match[1]) + 1}.{match[2]}.{_HUB[match[4]]}{int(match[3]) + 1}.{match[5]}"


def _of_shortcut(match: re.Match[str]) -> str:
    """stages.1.layers.0.shortcut.normalization -> layer2.0.downsample.1"""
    return f"layer{int(match[1]) + 1}.{match[2]}.downsample.{list(_HUB).index(match[3])}.{match[4]}"


_STAGE = r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."
IGNORE = r"fc\..+"  # a file's head has no place in a network with classes=0
HEAD = r"fc\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "torchvision": _SAME,
    "timm": _SAME,
    "cifar": _SAME,
    "swav": Names(
        rename(r"module\.((?:conv1|bn1|layer\d+)\..+)", r"\1"),
        drop(r"module\.(projection_head|prototypes)\..+"),
    ),
    "huggingface": Names(
        rename(r"(?:resnet\.)?embedder\.embedder\.convolution\.(\w+)", r"conv1.\1"),
        rename(r"(?:resnet\.)?embedder\.embedder\.normalization\.(\w+)", r"bn1.\1"),
        rename(_STAGE + r"layer\.(\d+)\.(convolution|normalization)\.(\w+)", _of_block),
        rename(_STAGE + r"shortcut\.(convolution|normalization)\.(\w+)", _of_shortcut),
        rename(r"classifier\.1\.(\w+)", r"fc.\1"),
    ),
}
