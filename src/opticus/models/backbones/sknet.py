"""Selective Kernel Networks.

Li, Wang, Hu and Yang, CVPR 2019, arXiv 1903.06586; with the wide encoders of SimCLR v2 (Chen et al., NeurIPS 2020, 2006.10029), whose
blocks choose between two kernels of one size.
Reference: timm 1.0.31 (Apache-2.0), `models/sknet.py`; google-research/simclr (Apache-2.0, TensorFlow) and its PyTorch conversion
Separius/SimCLRv2-Pytorch (MIT), whose files the format "simclr" names.

*Differs*: "resnext50_32x4d" and "resnext101_32x4d" are the paper's SKNet-50 and SKNet-101; "18", "34" and "50" are timm's, whose paths see
one half of the input each; the 5x5 kernel is a 3x3 one of dilation 2, as in the paper. The SimCLR v2 encoders pool as TensorFlow does ("SAME":
windows start at the first pixel), which the PyTorch conversion does not.
*Map*: section 3.1 and figure 1 -> `SelectiveKernel`: split -> `paths`, fuse (eq. 1-4) and select (eq. 5-6) -> `Select`; table 1 -> `SKNet`;
d = max(C / r, L) of eq. 4 -> `reduction`, `least`; appendix A of SimCLR v2 (ResNet-D) -> stem "deep", `Shrink`, `SamePool`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, Weights
from opticus.weights.names import Names, copy, keep, rename, split

TASK: Task = "classify"
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")
SMALL = Prepare(resize="fixed", size=(32, 32))
UNIT = replace(PREPARE, mean=(0.0,) * 3, std=(1.0,) * 3)  # SimCLR: values in [0, 1]


@dataclass(frozen=True)
class Config:
    """`kernels` are the sides of the paths' kernels (odd); `halves`: each path sees its own share of the input channels."""

    layers: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    classes: int = 1000
    width: int = 64
    groups: int = 1
    group_width: int = 64
    kernels: tuple[int, ...] = (3, 5)
    halves: bool = False
    reduction: int = 16
    least: int = 32
    stem: Literal["imagenet", "deep", "small"] = "imagenet"
    channels: int = 3


# --- network -----------------------------------------------------------------------------------------------------------


class ConvNorm(nn.Module):
    """A convolution without bias that keeps the map's size up to its stride, and a batch norm."""

    def __init__(self, width_in: int, width: int, kernel: int = 3, stride: int = 1, *, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(width_in, width, kernel, stride, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Select(nn.Module):
    """Softmax weights over the paths, per channel, from their pooled sum (eq. 2-5): (B, M, C, 1, 1)."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        inner = max(width // config.reduction, config.least)
        self.fc_reduce = nn.Conv2d(width, inner, 1, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.fc_select = nn.Conv2d(inner, width * len(config.kernels), 1, bias=False)

    def forward(self, fused: Float[Tensor, "B C H W"]) -> Float[Tensor, "B M C 1 1"]:
        z = self.bn(self.fc_reduce(fused.mean((2, 3), keepdim=True))).relu()
        return self.fc_select(z).unflatten(1, (-1, fused.shape[1])).softmax(1)


class SelectiveKernel(nn.Module):
    """Convolutions of several receptive fields, mixed by weights that depend on their sum (figure 1)."""

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        count = len(config.kernels)
        self.shares = [width_in // count] * count if config.halves else None
        seen = width_in // count if config.halves else width_in
        dilations = [(kernel - 1) // 2 for kernel in config.kernels]
        self.paths = nn.ModuleList([ConvNorm(seen, width, 3, stride, dilation=d, groups=config.groups) for d in dilations])
        self.attn = Select(config, width)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        parts = [x] * len(self.paths) if self.shares is None else x.split(self.shares, 1)
        found = torch.stack([path(part).relu() for path, part in zip(self.paths, parts)], 1)
        return (found * self.attn(found.sum(1))).sum(1)


class Shrink(nn.Module):
    """The mean of 2x2 windows that start at every `stride`-th pixel: windows at the rim hold zeros (stride 2) or only what is there."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        # repeating the rim leaves the mean of what is there as it is
        x = F.pad(x, (0, 1, 0, 1)) if self.stride > 1 else F.pad(x, (0, 1, 0, 1), "replicate")
        return F.avg_pool2d(x, 2, self.stride)


class SamePool(nn.Module):
    """Max pooling 3/2 of non-negative maps with TensorFlow's padding "SAME": none on the left and top of even sides."""

    def forward(self, x: Tensor) -> Tensor:
        down, right = x.shape[2] % 2, x.shape[3] % 2
        return F.max_pool2d(F.pad(x, (right, 1, down, 1)), 3, 2)


def _project(config: Config, width_in: int, width: int, stride: int) -> nn.Sequential:
    """A shortcut that changes shape: a 1x1 convolution, after average pooling where the stem is that of ResNet-D."""
    deep = config.stem == "deep"
    conv = nn.Conv2d(width_in, width, 1, 1 if deep else stride, bias=False)
    return nn.Sequential(*([Shrink(stride)] if deep else []), conv, nn.BatchNorm2d(width))


class Basic(nn.Module):
    """A selective-kernel unit and a 3x3 convolution around an identity."""

    expansion = 1

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = SelectiveKernel(config, width_in, width, stride=stride)
        self.conv2 = ConvNorm(width, width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _project(config, width_in, width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv2(self.conv1(x))
        x += shortcut
        return self.relu(x)


class Bottleneck(nn.Module):
    """1x1, a selective-kernel unit, 1x1 around an identity (table 1)."""

    expansion = 4

    def __init__(self, config: Config, width_in: int, width: int, *, stride: int, project: bool) -> None:
        super().__init__()
        inner = width * config.group_width // 64 * config.groups
        self.conv1 = ConvNorm(width_in, inner, 1)
        self.conv2 = SelectiveKernel(config, inner, inner, stride=stride)
        self.conv3 = ConvNorm(inner, 4 * width, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _project(config, width_in, 4 * width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv3(self.conv2(self.relu(self.conv1(x))))
        x += shortcut
        return self.relu(x)


def _stem(config: Config) -> nn.Module:
    """What stands before the first norm: one convolution, or three with norms between them (ResNet-D)."""
    width = config.width
    if config.stem == "imagenet":
        return nn.Conv2d(config.channels, width, 7, 2, 3, bias=False)
    if config.stem == "small":
        return nn.Conv2d(config.channels, width, 3, 1, 1, bias=False)
    first = (ConvNorm(config.channels, width // 2, 3, 2), nn.ReLU(inplace=True))
    second = (ConvNorm(width // 2, width // 2), nn.ReLU(inplace=True))
    return nn.Sequential(*first, *second, nn.Conv2d(width // 2, width, 3, 1, 1, bias=False))


class SKNet(nn.Module):
    """Table 1: a stem, stages of selective-kernel blocks that halve the map and double the width, pooling, a classifier.

    `forward` returns logits (B, classes), or the pooled features (B, widths[-1]) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        small = config.stem == "small"
        rule = SMALL if small else UNIT if config.stem == "deep" else PREPARE
        self.prepare = rule.with_channels(config.channels)
        self.conv1 = _stem(config)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else SamePool() if config.stem == "deep" else nn.MaxPool2d(3, 2, 1)
        block, width_in = Basic if config.block == "basic" else Bottleneck, config.width
        for i, count in enumerate(config.layers):
            width, stride = config.width * 2**i, 2 if i else 1
            project = stride != 1 or width_in != width * block.expansion
            blocks = [block(config, width_in, width, stride=stride, project=project)]
            width_in = width * block.expansion
            blocks += [block(config, width_in, width, stride=1, project=False) for _ in range(1, count)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.strides = tuple((1 if small else 4) * 2**i for i in range(len(config.layers)))
        self.widths = tuple(config.width * 2**i * block.expansion for i in range(len(config.layers)))
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
        return x if self.fc is None else self.fc(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.fc is not None else [Embedding(vector) for vector in out.detach()]


NETWORK = SKNet


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_V2 = Config((3, 4, 6, 3), kernels=(3, 3), stem="deep")
VARIANTS: dict[str, Config] = {
    "tiny": Config((1, 1, 1, 1), "basic", width=16, stem="small", classes=10, halves=True, reduction=4, least=8),
    "18": Config((2, 2, 2, 2), "basic", halves=True, reduction=8, least=16),
    "34": Config((3, 4, 6, 3), "basic", halves=True, reduction=8, least=16),
    "50": Config((3, 4, 6, 3), halves=True, least=8),
    "resnext50_32x4d": Config((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x4d": Config((3, 4, 23, 3), groups=32, group_width=4),
    "simclr50": _V2,
    "simclr50w2": replace(_V2, width=128),
    "simclr101": replace(_V2, layers=(3, 4, 23, 3)),
    "simclr101w2": replace(_V2, layers=(3, 4, 23, 3), width=128),
    "simclr152": replace(_V2, layers=(3, 8, 36, 3)),
    "simclr152w2": replace(_V2, layers=(3, 8, 36, 3), width=128),
    "simclr152w3": replace(_V2, layers=(3, 8, 36, 3), width=192),
}
PARAMETERS: dict[str, int] = {
    "18": 11958056,
    "34": 22282376,
    "50": 25803160,
    "resnext50_32x4d": 27479784,
    "simclr50": 37264584,
    "simclr50w2": 144403048,
    "simclr101": 66711304,
    "simclr101w2": 261229224,
    "simclr152": 90989896,
    "simclr152w2": 357495528,
    "simclr152w3": 800849160,
}

# --- weights: this file's names are timm's -------------------------------------------------------------------------------

_BLOCK, _OURS = r"net\.([1-4])\.blocks\.(\d+)\.", r"layer\1.\2."
_PATHS = tuple(rf"{_OURS}conv2.paths.{i}." for i in range(2))  # one convolution with twice the channels, in the file
IGNORE = r"fc\..+"  # a file's head has no place in a network with classes=0
HEAD = r"fc\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "timm": Names(keep(r"(conv1|bn1|layer\d+|fc)\..+")),
    "simclr": Names(
        rename(r"net\.0\.0\.(\w+)", r"conv1.0.conv.\1"),
        rename(r"net\.0\.1\.0\.(\w+)", r"conv1.0.bn.\1"),
        rename(r"net\.0\.2\.(\w+)", r"conv1.2.conv.\1"),
        rename(r"net\.0\.3\.0\.(\w+)", r"conv1.2.bn.\1"),
        rename(r"net\.0\.4\.(\w+)", r"conv1.4.\1"),
        rename(r"net\.0\.5\.0\.(\w+)", r"bn1.\1"),
        rename(_BLOCK + r"projection\.shortcut\.2\.(\w+)", _OURS + r"downsample.1.\3"),
        rename(_BLOCK + r"projection\.bn\.0\.(\w+)", _OURS + r"downsample.2.\3"),
        rename(_BLOCK + r"net\.0\.(\w+)", _OURS + r"conv1.conv.\3"),
        rename(_BLOCK + r"net\.1\.0\.(\w+)", _OURS + r"conv1.bn.\3"),
        split(_BLOCK + r"net\.2\.main_conv\.0\.(\w+)", [p + r"conv.\3" for p in _PATHS]),
        copy(_BLOCK + r"net\.2\.main_conv\.1\.0\.(num_batches_tracked)", [p + r"bn.\3" for p in _PATHS]),
        split(_BLOCK + r"net\.2\.main_conv\.1\.0\.(\w+)", [p + r"bn.\3" for p in _PATHS]),
        rename(_BLOCK + r"net\.2\.mixing_conv\.0\.(\w+)", _OURS + r"conv2.attn.fc_reduce.\3"),
        rename(_BLOCK + r"net\.2\.mixing_conv\.1\.0\.(\w+)", _OURS + r"conv2.attn.bn.\3"),
        rename(_BLOCK + r"net\.2\.mixing_conv\.2\.(\w+)", _OURS + r"conv2.attn.fc_select.\3"),
        rename(_BLOCK + r"net\.3\.(\w+)", _OURS + r"conv3.conv.\3"),
        rename(_BLOCK + r"net\.4\.0\.(\w+)", _OURS + r"conv3.bn.\3"),
        keep(r"fc\..+"),
    ),
}


def _hub(file: str) -> Weights:
    return Weights(
        url=f"https://huggingface.co/timm/{file}/resolve/main/model.safetensors",
        format="timm",
        license="Apache-2.0",
        source="timm 1.0.31 models/sknet.py",
        prepare=PREPARE,
        labels="imagenet1k",
    )


WEIGHTS: dict[str, Weights] = {
    "18:ra_in1k": _hub("skresnet18.ra_in1k"),
    "34:ra_in1k": _hub("skresnet34.ra_in1k"),
    "resnext50_32x4d:ra_in1k": _hub("skresnext50_32x4d.ra_in1k"),
}
