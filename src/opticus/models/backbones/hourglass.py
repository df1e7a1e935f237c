"""Stacked Hourglass Networks, as detectors of keypoints use them.

Newell, Yang and Deng, ECCV 2016, arXiv 1603.06937; in the layout of CornerNet, Law and Deng, ECCV 2018, arXiv 1808.01244, section 3.5.
Reference: github.com/princeton-vl/CornerNet (BSD-3-Clause).

*Differs* from the paper of 2016, as CornerNet does: blocks of two 3x3 convolutions, strides instead of pooling, widths that grow on
the way down, one convolution instead of the heat-maps between the stacks. Of our own: maps whose sides are not multiples of
2^levels are rounded up on the way down and cut on the way up; a classifier on the last map's mean, which nobody published
("tiny", and `classes` of the others).
*Map*: figure 3 -> `Hourglass`; figure 4 (the link between stacks) -> `inters_`, `cnvs_`, `inters`; CornerNet figure 4 -> `StackedHourglass`.
Intermediate supervision: `features` gives one map for each stack, all of stride 4; the last is the best, the others are for training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "classify"
STRIDE = 4
PREPARE = Prepare(resize="none", order="bgr", mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278), stride=128)
SMALL = Prepare(resize="fixed", size=(32, 32), mean=(0.470, 0.447, 0.408), std=(0.278, 0.274, 0.289))


@dataclass(frozen=True)
class Config:
    """`widths` and `depths` (blocks) of an hourglass from the outermost level to the innermost; `width` of the maps it gives.

    `stem` is the width at stride 2. Pictures of a network with a `side` are resized to it; those of the others keep their size.
    """

    classes: int = 0
    stacks: int = 2
    widths: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    width: int = 256
    stem: int = 128
    side: int = 0


# --- network -----------------------------------------------------------------------------------------------------------


class Convolution(nn.Module):
    """A convolution, batch norm, ReLU."""

    def __init__(self, kernel: int, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a projection where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.skip = _project(width_in, width, stride) if stride != 1 or width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.skip is None else self.skip(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


def _project(width_in: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def _blocks(count: int, width_in: int, width: int, *, stride: int = 1, late: bool = False) -> nn.Sequential:
    """`count` residual blocks; the first of them changes the shape, or the last one (`late`)."""
    change = count - 1 if late else 0
    widths = [width_in] * (change + 1) + [width] * (count - change)
    return nn.Sequential(*(Residual(widths[i], widths[i + 1], stride if i == change else 1) for i in range(count)))


class Hourglass(nn.Module):
    """Figure 3: down to half the size, a smaller hourglass (or blocks) there, up again, added to what stayed at full size."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        outer, inner = widths[:2]
        self.up1 = _blocks(depths[0], outer, outer)
        self.low1 = _blocks(depths[0], outer, inner, stride=2)
        self.low2 = Hourglass(widths[1:], depths[1:]) if len(widths) > 2 else _blocks(depths[1], inner, inner)
        self.low3 = _blocks(depths[0], inner, outer, late=True)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        stays = self.up1(x)
        low = self.low3(self.low2(self.low1(x)))
        return stays + F.interpolate(low, scale_factor=2)[..., : x.shape[-2], : x.shape[-1]]


class StackedHourglass(nn.Module):
    """A stem to stride 4, then hourglasses one after another, each with a map of its own.

    `forward` returns logits (B, classes), or the mean of the last map (B, width) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if len(config.widths) < 2 or len(config.widths) != len(config.depths) or config.stacks < 1:
            found = f"widths={config.widths}, depths={config.depths}, stacks={config.stacks}"
            raise UsageError(f"hourglass: expected at least two widths, as many depths and at least one stack, found {found}")
        self.config = config
        self.prepare = replace(SMALL, size=(config.side, config.side)) if config.side else _by_levels(config)
        self.strides = (STRIDE,) * config.stacks
        self.widths = (config.width,) * config.stacks
        outer, links = config.widths[0], range(config.stacks - 1)
        self.pre = nn.Sequential(Convolution(7, 3, config.stem, 2), Residual(config.stem, outer, 2))
        self.kps = nn.ModuleList(Hourglass(config.widths, config.depths) for _ in range(config.stacks))
        self.cnvs = nn.ModuleList(Convolution(3, outer, config.width) for _ in range(config.stacks))
        self.inters = nn.ModuleList(Residual(outer, outer) for _ in links)
        self.inters_ = nn.ModuleList(_project(outer, outer) for _ in links)
        self.cnvs_ = nn.ModuleList(_project(config.width, outer) for _ in links)
        self.fc = nn.Linear(config.width, config.classes) if config.classes else None

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """One map (B, width, ceil(H / 4), ceil(W / 4)) for each stack, first to last."""
        # channels-last input makes every convolution run channels-last: faster on CPU
        x = self.pre(pixels.contiguous(memory_format=torch.channels_last))
        maps: list[Tensor] = []
        for i, (hourglass, convolution) in enumerate(zip(self.kps, self.cnvs)):
            maps.append(convolution(hourglass(x)))
            if i < len(self.inters):
                x = self.inters[i](F.relu(self.inters_[i](x) + self.cnvs_[i](maps[-1])))
        return maps

    def embed(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """The mean of the last map, which the head classifies."""
        return self.features(pixels)[-1].mean((2, 3))

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.fc is None else self.fc(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.fc is not None else [Embedding(vector) for vector in out.detach()]


def _by_levels(config: Config) -> Prepare:
    """Pictures keep their size, padded to what every level halves without a rest."""
    return replace(PREPARE, stride=STRIDE * 2 ** (len(config.widths) - 1))


NETWORK = StackedHourglass


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants: this file's names are the authors' ------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(10, 2, (32, 48, 64), (1, 1, 1), width=64, stem=16, side=32),
    "104": Config(),
}
_TRUNK = r"((?:pre|kps|cnvs|inters|inters_|cnvs_)\..*)"
IGNORE = r"fc\..+"
HEAD = r"fc\..*"
FORMATS: dict[str, Names] = {
    # a detector's file: its trunk, without what stands on it
    "cornernet": Names(rename(r"(?:module\.)?" + _TRUNK, r"\1"), drop(r"(?:module\.)?[a-z]+_(?:cnvs|heats|tags|regrs)\..*")),
}
WEIGHTS: dict[str, Weights] = {}
PARAMETERS: dict[str, int] = {"104": 187_700_352}  # counted in the reference
