"""Recipes for the linear classifier."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Resize

LARGEST = 32  # side in pixels to which larger pictures are reduced: CIFAR-10's


def default(model: str, data: Dataset) -> Recipe:
    """Pictures of the data's own size up to 32x32, as they are: a linear classifier has no use for shifted or turned ones."""
    height, width, channels = data[0].picture.pixels.shape
    size = min(max(height, width), LARGEST)
    return Recipe(
        model,
        "digits" if channels == 1 else "crops",
        changes={"size": size, "channels": channels},
        transforms=(Resize((size, size)),),
        batch=64,
        steps=1500,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.1)},
        schedules=(Schedule("cosine", end=0.01),),
        evaluate_every=500,
        note="a few seconds on one core",
    )
