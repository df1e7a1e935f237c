"""Recipes for the stacked hourglass; as a classifier it is only ours, the published ones carry detectors."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Resize


def default(model: str, data: Dataset) -> Recipe:
    """32x32 pictures of digits, in colour or grey: mirroring would change a digit's class and is left out, colours mean nothing."""
    grey = data[0].picture.pixels.shape[2] == 1
    return Recipe(
        model,
        "digits" if grey else "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=0 if grey else 114),
            ColourJitter(0.3, 0.3, 0.3, 0.3),
        ),
        batch=64,
        steps=900,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=300,
        workers=1,
        note="two minutes on two cores; CornerNet trains its hourglass from scratch together with its heads",
    )
