"""Batch normalisation (Ioffe and Szegedy 2015, section 4.2): the speed of learning at low and high learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from opticus import zoo
from opticus.recipes.lab import (
    COLOURS,
    Cell,
    Check,
    Mean,
    Row,
    at_side,
    difference,
    dress,
    figures_of,
    learn,
    mean,
    pictures,
    scaled,
    smooth,
)
from opticus.training.recipe import Optim, Schedule

CLAIM = "With batch normalisation a network learns at learning rates that are too high for it without, and it learns faster."
SETUP = (
    "A plain convolutional network of 14 layers (8 channels, no shortcuts) with and without batch norms, 1,000 handwritten digits shrunk to "
    "14x14, SGD with momentum 0.9, batch 64, constant learning rates. The speed of learning is the mean accuracy on the training batches of the "
    "whole run; each side is also given its own best learning rate."
)
VERSION = 2
SEEDS = 4
STEPS = 150
RATES = (0.003, 0.01, 0.05, 0.25)
HIGH = RATES[-1]


def cells(seeds: int, scale: float) -> list[Cell]:
    """Both networks at every learning rate once per seed."""
    return [
        {"arm": f"{norm} {rate:g}", "seed": seed, "norm": norm, "rate": rate, "steps": scaled(STEPS, scale)}
        for seed in range(seeds)
        for norm in ("batch", "none")
        for rate in RATES
    ]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """The speed of learning, the accuracy at the end, and the curve."""
    torch.manual_seed(cell["seed"])
    network = zoo.create("resnet/20", layers=(2, 2, 2), width=8, channels=1, residual=False, norm=cell["norm"])
    rule = Optim("sgd", lr=cell["rate"], momentum=0.9, weight_decay=0.0)
    data = pictures("digits", "train", 1000, side=14)
    learned = learn(
        at_side(network, 14), data, steps=cell["steps"], seed=cell["seed"], rule=rule, schedules=(Schedule("constant"),)
    )
    speed = sum(learned.accuracies) / len(learned.accuracies)
    return {"speed": speed, "last": learned.last(), "curve": [round(a, 4) for a in learned.accuracies]}


def best(rows: Sequence[Row], norm: str) -> str:
    """The arm of the learning rate at which a network learns fastest on average."""
    return max((f"{norm} {rate:g}" for rate in RATES), key=lambda arm: float(np.mean(figures_of(rows, arm, "speed"))))


def judge(rows: Sequence[Row]) -> list[Check]:
    """At the highest rate, and each at its best."""
    high = difference(rows, f"batch {HIGH:g}", f"none {HIGH:g}", "last")
    first, second = best(rows, "batch"), best(rows, "none")
    fast: Mean = difference(rows, first, second, "speed")
    return [
        Check(f"training accuracy at learning rate {HIGH:g}, with batch norm minus without", *high),
        Check(f"speed of learning, with ({first.split()[1]}) minus without ({second.split()[1]}), each at its best rate", *fast),
    ]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Speed over learning rate, and the curves at the best rates."""
    left, right = figure.subplots(1, 2)
    for place, (norm, label) in enumerate((("batch", "with batch norm"), ("none", "without"))):
        middle = [mean(figures_of(rows, f"{norm} {rate:g}", "last")) for rate in RATES]
        left.plot(RATES, [m.value for m in middle], "o-", color=COLOURS[place], label=label, linewidth=2)
        left.fill_between(RATES, [m.low for m in middle], [m.high for m in middle], color=COLOURS[place], alpha=0.15, linewidth=0)
        arm = best(rows, norm)
        curves = np.asarray(figures_of(rows, arm, "curve"))
        for curve in curves:
            right.plot(smooth(curve), color=COLOURS[place], linewidth=0.7, alpha=0.35)
        right.plot(smooth(curves.mean(0)), color=COLOURS[place], linewidth=2.2, label=f"{label}, rate {arm.split()[1]}")
    left.set_xscale("log")
    left.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    left.minorticks_off()
    dress(left, f"after {rows[0]['steps']} steps", "learning rate", "training accuracy")
    dress(right, "each at its best learning rate", "step", "training accuracy")
    for axes in (left, right):
        axes.set_ylim(0, 1.02)
