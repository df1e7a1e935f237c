"""Deep Layer Aggregation.

Yu, Wang, Shelhamer and Darrell, CVPR 2018, arXiv 1707.06484.
Reference: timm (Apache-2.0), `dla34` to `dla169`; the authors' repository is ucbdrive/dla (BSD-3-Clause).

*Differs*: projections that the authors' trees of several levels hold and never use are not made (as in timm; their files lose
them on loading); maps of odd size are rounded up where a tree passes its input on, as its convolutions do.
*Map*: eq. 1-2 (iterative deep aggregation) -> `Tree` of level 1, whose root joins what came before; eq. 3 and figure 3 (f)
(hierarchical deep aggregation) -> `Tree`; eq. 4 -> `Root`; section 4.1 -> `Basic`, `Bottleneck`; table 1 -> `VARIANTS`.
The aggregation of resolutions for dense prediction (section 4.2) is a detector's neck: see CenterNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, keep

TASK: Task = "classify"
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))
SMALL = Prepare(resize="fixed", size=(32, 32))


@dataclass(frozen=True)
class Config:
    """`levels`: convolutions of the first two stages, then the depth of each stage's tree; `widths` of the stages.

    `groups` and `group_width` (per 64 channels) are the bottleneck's, as in ResNeXt; `residual`: roots have a shortcut.
    """

    levels: tuple[int, ...] = (1, 1, 1, 2, 2, 1)
    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    classes: int = 1000
    groups: int = 1
    group_width: int = 64
    residual: bool = False
    side: int = 224


# --- network -----------------------------------------------------------------------------------------------------------


class Basic(nn.Module):
    """Two 3x3 convolutions around a shortcut that the tree gives."""

    def __init__(self, config: Config, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (perhaps in groups), 1x1 around a shortcut that the tree gives; half as wide inside."""

    def __init__(self, config: Config, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        inner = int(width * (config.group_width / 64)) * config.groups // 2
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=config.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class Root(nn.Module):
    """Eq. 4: an aggregation node, a 1x1 convolution of all that it joins; with `residual` the last of these is added."""

    def __init__(self, width_in: int, width: int, residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.residual = residual

    def forward(self, joined: list[Tensor]) -> Tensor:
        x = self.bn(self.conv(torch.cat(joined, 1)))
        return F.relu(x + joined[0] if self.residual else x, inplace=True)


class Tree(nn.Module):
    """Eq. 3: two subtrees one after the other (blocks at level 1); the root of the last joins all that came before it.

    `joined` is the width of what comes from outside; `passes`: the tree's input, pooled, is joined as well.
    """

    def __init__(
        self, config: Config, level: int, width_in: int, width: int, *, stride: int, passes: bool = False, joined: int = 0
    ) -> None:
        super().__init__()
        self.stride, self.passes, self.level = stride, passes, level
        joined += width_in if passes else 0
        self.project: nn.Module = nn.Identity()
        if level == 1:
            block = Basic if config.block == "basic" else Bottleneck
            self.tree1: nn.Module = block(config, width_in, width, stride)
            self.tree2: nn.Module = block(config, width, width, 1)
            self.root = Root(2 * width + joined, width, config.residual)
            if width_in != width:
                self.project = nn.Sequential(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))
        else:
            self.tree1 = Tree(config, level - 1, width_in, width, stride=stride)
            self.tree2 = Tree(config, level - 1, width, width, stride=1, joined=joined + width)

    def forward(self, x: Float[Tensor, "B C H W"], before: tuple[Tensor, ...] = ()) -> Float[Tensor, "B D h w"]:
        below = x
        if self.stride > 1 and (self.passes or self.level == 1):
            below = F.max_pool2d(x, self.stride, ceil_mode=True)
        if self.passes:
            before = (*before, below)
        if self.level > 1:
            first = self.tree1(x)
            return self.tree2(first, (*before, first))
        first = self.tree1(x, self.project(below))
        return self.root([self.tree2(first, first), first, *before])


class DLA(nn.Module):
    """Table 1: two plain stages at strides 1 and 2, then trees, each at half the size of the one before.

    `forward` returns logits (B, classes), or the pooled features (B, widths[-1]) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if len(config.levels) != len(config.widths) or len(config.levels) < 3 or min(config.levels) < 1:
            found = f"levels={config.levels}, widths={config.widths}"
            raise UsageError(f"dla: expected as many levels as widths, at least three, all of depth 1 or more, found {found}")
        self.config = config
        self.prepare = SMALL if config.side < 64 else PREPARE
        widths = config.widths
        self.base_layer = _convolutions(1, 3, widths[0], kernel=7)
        self.level0 = _convolutions(config.levels[0], widths[0], widths[0])
        self.level1 = _convolutions(config.levels[1], widths[0], widths[1], stride=2)
        for i in range(2, len(widths)):
            tree = Tree(config, config.levels[i], widths[i - 1], widths[i], stride=2, passes=i > 2)
            self.add_module(f"level{i}", tree)
        self.strides = tuple(2**i for i in range(len(widths)))
        self.widths = widths
        self.fc = nn.Conv2d(widths[-1], config.classes, 1) if config.classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.fc:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The output of every stage, strides 1 to 32."""
        x = self.base_layer(pixels)
        maps: list[Tensor] = []
        for i in range(len(self.strides)):
            x = self.get_submodule(f"level{i}")(x)
            maps.append(x)
        return maps

    def embed(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """The pooled features, which the head classifies."""
        return self.features(pixels)[-1].mean((2, 3))

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.fc is None else self.fc(x[..., None, None]).flatten(1)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.fc is not None else [Embedding(vector) for vector in out.detach()]


def _convolutions(count: int, width_in: int, width: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        source, step = (width_in, stride) if i == 0 else (width, 1)
        layers += [nn.Conv2d(source, width, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


NETWORK = DLA


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants: this file's names are timm's and the authors' ---------------------------------------------------------------

_C = (16, 32, 64, 64, 128, 256)
_WIDE = (16, 32, 128, 256, 512, 1024)
_60, _102, _169 = (1, 1, 1, 2, 3, 1), (1, 1, 1, 3, 4, 1), (1, 1, 2, 3, 5, 1)

VARIANTS: dict[str, Config] = {
    "tiny": Config((1, 1, 1, 2), (16, 32, 64, 96), "basic", classes=10, side=32),
    "34": Config(block="basic"),
    "46_c": Config(widths=_C),
    "46x_c": Config(widths=_C, groups=32, group_width=4),
    "60x_c": Config(_60, _C, groups=32, group_width=4),
    "60": Config(_60, _WIDE),
    "60x": Config(_60, _WIDE, groups=32, group_width=4),
    "102": Config(_102, _WIDE, residual=True),
    "102x": Config(_102, _WIDE, groups=32, group_width=4, residual=True),
    "102x2": Config(_102, _WIDE, groups=64, group_width=4, residual=True),
    "169": Config(_169, _WIDE, residual=True),
}
IGNORE = r"fc\..+"  # a file's head has no place in a network with classes=0
HEAD = r"fc\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_STAGES = r"(?:base_layer|level\d|fc)\..+"
FORMATS: dict[str, Names] = {
    "timm": Names(keep(_STAGES)),
    # the authors' files of DLA-34 and DLA-46: trees of two levels hold projections that nothing uses
    "ucbdrive": Names(drop(r"level[34]\.project\..+"), keep(_STAGES)),
}
PARAMETERS: dict[str, int] = {  # counted in timm
    "34": 15_742_104,
    "46_c": 1_301_400,
    "46x_c": 1_068_440,
    "60x_c": 1_319_832,
    "60": 22_036_632,
    "60x": 17_352_344,
    "102": 33_268_888,
    "102x": 26_309_272,
    "102x2": 41_282_200,
    "169": 53_389_720,
}
WEIGHTS: dict[str, Weights] = {
    f"{variant}:in1k": Weights(
        url=f"https://huggingface.co/timm/dla{variant}.in1k/resolve/main/model.safetensors",
        format="timm",
        license="BSD-3-Clause",
        source="timm 1.0.31: models/dla.py",
        prepare=PREPARE,
        labels="imagenet1k",
    )
    for variant in PARAMETERS
}
