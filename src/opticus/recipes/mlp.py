"""Recipes for the feed-forward network."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Resize

LARGEST = 32  # side in pixels to which larger pictures are reduced


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures, slightly turned, scaled and shifted: the network has to learn from examples that a shift changes nothing."""
    height, width, channels = data[0].picture.pixels.shape
    size = min(max(height, width), LARGEST)
    jitter = (ColourJitter(0.2, 0.2, 0.2),) if channels == 3 else ()
    return Recipe(
        model,
        "digits" if channels == 1 else "crops",
        changes={"size": size, "channels": channels},
        transforms=(
            Resize((size, size)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=114 if channels == 3 else 0),
            *jitter,
        ),
        batch=64,
        steps=2500,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.99,
        evaluate_every=500,
        note="a minute on one core",
    )
