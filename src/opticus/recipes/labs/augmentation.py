"""Data augmentation: input variations that enforce invariances the task is known to have (Krizhevsky et al. 2012, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from opticus import zoo
from opticus.recipes.lab import Cell, Check, Row, accuracy, at_side, bars, difference, dress, learn, mean, pictures, scaled
from opticus.transforms.geometry import Affine

CLAIM = "Varying the training pictures in ways that keep their class raises the accuracy on pictures that were not trained on."
SETUP = (
    "A small ResNet (8 layers, 8 channels) on 100 handwritten digits shrunk to 14x14, with and without random shifts, turns and zooms, for the "
    "same number of steps from the same weights; 500 test pictures. Mirroring is left out: it would change a digit's class."
)
VERSION = 1
SEEDS = 5
STEPS, TRAIN = 300, 100
ARMS = ("without augmentation", "with augmentation")
CHANGES = (Affine(degrees=12, translate=(0.07, 0.07), scale=(0.85, 1.15)),)


def cells(seeds: int, scale: float) -> list[Cell]:
    """Both arms once per seed; every seed has its own training pictures."""
    return [{"arm": arm, "seed": seed, "steps": scaled(STEPS, scale), "train": TRAIN} for seed in range(seeds) for arm in ARMS]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """Accuracy on the training and on the test pictures, both as they are."""
    torch.manual_seed(cell["seed"])
    network = zoo.create("resnet/20", layers=(1, 1, 1), width=8, channels=1)
    data = pictures("digits", "train", cell["train"], skip=cell["seed"] % 10 * cell["train"], side=14)
    learn(
        at_side(network, 14),
        data,
        steps=cell["steps"],
        batch=50,
        seed=cell["seed"],
        transforms=CHANGES if cell["arm"] == ARMS[1] else (),
    )
    return {"train": accuracy(network, data), "test": accuracy(network, pictures("digits", "test", 500, side=14))}


def judge(rows: Sequence[Row]) -> list[Check]:
    """The gain in test accuracy."""
    return [Check("test accuracy with augmentation minus without", *difference(rows, ARMS[1], ARMS[0], "test"))]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Accuracy on both sides."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, title in ((left, "train", "training pictures"), (right, "test", "test pictures")):
        bars(axes, rows, ARMS, key)
        dress(axes, f"{title}, as they are", "", "accuracy", legend=False)
        axes.set_ylim(0, 1.02)
    gap = {arm: mean([r["found"]["train"] - r["found"]["test"] for r in rows if r["arm"] == arm]).value for arm in ARMS}
    figure.suptitle(f"gap between training and test: {gap[ARMS[0]]:.2f} without, {gap[ARMS[1]]:.2f} with augmentation", fontsize=11)
