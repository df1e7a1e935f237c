"""Data augmentation: input variations that enforce invariances the task is known to have (Krizhevsky et al. 2012, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from opticus import zoo
from opticus.recipes.lab import Cell, Check, Row, accuracy, bars, difference, dress, learn, mean, pictures, scaled
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine

CLAIM = "Varying the training pictures in ways that keep their class raises the accuracy on pictures that were not trained on."
SETUP = (
    "A small ResNet (8 layers, 8 channels) on 300 coloured digits (crops), with and without random shifts, turns, zooms and colours, for the "
    "same number of steps from the same weights; 500 test pictures. Mirroring is left out: it would change a digit's class."
)
VERSION = 1
SEEDS = 4
STEPS, TRAIN = 260, 300
ARMS = ("without augmentation", "with augmentation")
CHANGES = (Affine(degrees=15, translate=(0.1, 0.1), scale=(0.8, 1.2), fill=114), ColourJitter(0.4, 0.4, 0.4, 0.4))


def cells(seeds: int, scale: float) -> list[Cell]:
    """Both arms once per seed; every seed has its own training pictures."""
    return [{"arm": arm, "seed": seed, "steps": scaled(STEPS, scale), "train": TRAIN} for seed in range(seeds) for arm in ARMS]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """Accuracy on the training and on the test pictures, both as they are."""
    torch.manual_seed(cell["seed"])
    network = zoo.create("resnet/20", layers=(1, 1, 1), width=8)
    data = pictures("crops", "train", cell["train"], skip=cell["seed"] % 13 * cell["train"])
    learn(network, data, steps=cell["steps"], seed=cell["seed"], transforms=CHANGES if cell["arm"] == ARMS[1] else ())
    return {"train": accuracy(network, data), "test": accuracy(network, pictures("crops", "test", 500))}


def judge(rows: Sequence[Row]) -> list[Check]:
    """The gain in test accuracy."""
    return [Check("test accuracy with augmentation minus without", *difference(rows, ARMS[1], ARMS[0], "test"))]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Accuracy on both sides, and what the training pictures look like."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key in ((left, "train"), (right, "test")):
        bars(axes, rows, ARMS, key)
        dress(axes, f"{key} pictures, as they are", "", "accuracy", legend=False)
        axes.set_ylim(0, 1.02)
    gap = {arm: mean([r["found"]["train"] - r["found"]["test"] for r in rows if r["arm"] == arm]).value for arm in ARMS}
    figure.suptitle(f"gap between training and test: {gap[ARMS[0]]:.2f} without, {gap[ARMS[1]]:.2f} with augmentation", fontsize=11)
