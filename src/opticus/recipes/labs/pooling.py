"""Pooling and small shifts: max pooling against strided convolution, average pooling and blurred pooling (Zhang 2019, 1904.11486)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opticus.data.arrays import ArrayPictures
from opticus.recipes.lab import (
    COLOURS,
    Cell,
    Check,
    Row,
    bars,
    difference,
    dress,
    figures_of,
    learn,
    mean,
    pictures,
    pixels_of,
    predictions,
    scaled,
)
from opticus.structures import Prepare

CLAIM = "Max pooling makes a network's answers steadier under small shifts of the picture than strided convolution does."
SETUP = (
    "Two 5x5 convolutions (8 and 16 channels), each followed by one way of halving the map, and a linear classifier, trained on 1,000 centred "
    "handwritten digits in a 36x36 frame and never on shifted ones. Consistency: the share of 500 test pictures whose predicted class stays the "
    "same when the picture moves by 1 to 4 pixels left, right, up or down."
)
VERSION = 1
SEEDS = 5
STEPS, MARGIN = 160, 4
SIDE = 28 + 2 * MARGIN
ARMS = ("max", "stride", "average", "blur")


class Blur(nn.Module):
    """Max over 2x2 without stride, then a [1, 2, 1] x [1, 2, 1] / 16 filter with stride 2: max pooling without aliasing."""

    kernel: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row).expand(width, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), "replicate"), 2, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), self.kernel, stride=2, groups=x.shape[1])


def halving(arm: str, width: int) -> nn.Module:
    """What follows a convolution to halve its map; nothing where the convolution itself strides."""
    if arm == "stride":
        return nn.Identity()
    return {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2)}.get(arm) or Blur(width)


class Small(nn.Module):
    """Convolution, ReLU, halving, twice; then a linear classifier on the whole map."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.prepare = Prepare(channels=1, size=(SIDE, SIDE), mean=(0.0,), std=(1.0,))
        stride = 2 if arm == "stride" else 1
        first = (nn.Conv2d(1, 8, 5, stride, 2), nn.ReLU(), halving(arm, 8))
        second = (nn.Conv2d(8, 16, 5, stride, 2), nn.ReLU(), halving(arm, 16))
        self.layers = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16 * (SIDE // 4) ** 2, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every way of halving once per seed."""
    return [{"arm": arm, "seed": seed, "steps": scaled(STEPS, scale)} for seed in range(seeds) for arm in ARMS]


def framed(split: str, count: int) -> ArrayPictures:
    """Digits with a black margin on all sides."""
    data = pictures("digits", split, count)
    data.pixels = np.pad(data.pixels, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    return data


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """Accuracy on centred test pictures, and consistency for each size of shift."""
    torch.manual_seed(cell["seed"])
    network = Small(cell["arm"])
    learn(network, framed("train", 1000), steps=cell["steps"], seed=cell["seed"])
    pixels, labels = pixels_of(network, framed("test", 500))
    centred = predictions(network, pixels)
    by_shift: list[float] = []
    for shift in range(1, MARGIN + 1):
        moved = [pixels.roll(amount, axis) for axis in (2, 3) for amount in (-shift, shift)]  # the margin is empty: nothing wraps
        by_shift.append(float(torch.stack([predictions(network, m) == centred for m in moved]).float().mean()))
    return {
        "accuracy": float((centred == labels).float().mean()),
        "consistency": sum(by_shift) / len(by_shift),
        "by_shift": by_shift,
    }


def judge(rows: Sequence[Row]) -> list[Check]:
    """Max pooling against striding."""
    return [
        Check(
            "consistency under shifts of 1 to 4 pixels, max pooling minus strided convolution",
            *difference(rows, "max", "stride", "consistency"),
        )
    ]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Consistency over the size of the shift, and accuracy on centred pictures."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, arm in enumerate(ARMS):
        table = np.asarray(figures_of(rows, arm, "by_shift"))
        middle = [mean(column.tolist()) for column in table.T]
        steps = range(1, MARGIN + 1)
        left.plot(steps, [m.value for m in middle], "o-", color=COLOURS[place], linewidth=2, label=arm)
        left.fill_between(steps, [m.low for m in middle], [m.high for m in middle], color=COLOURS[place], alpha=0.12, linewidth=0)
    left.set_xticks(range(1, MARGIN + 1))
    left.set_ylim(None, 1.01)
    dress(left, "same answer after a shift", "shift in pixels", "consistency")
    bars(right, rows, ARMS, "accuracy")
    right.set_ylim(0, 1.02)
    dress(right, "centred test pictures", "", "accuracy", legend=False)
