"""Recipes for CenterNet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """The demo's recipe for small pictures; the paper's for the ResNet variants."""
    if model == "centernet/tiny":
        return tiny(model)
    return Recipe(
        model,
        "",
        transforms=(
            Flip(),
            Affine(scale=(0.6, 1.4), translate=(0.1, 0.1)),
            Resize((512, 512), "letterbox", fill=0),
            ColourJitter(0.4, 0.4, 0.4),
        ),
        batch=32,
        epochs=140,
        optim={"all": Optim("adam", lr=1.25e-4, weight_decay=0.0)},
        schedules=(Schedule("step", milestones=(90 / 140, 120 / 140)),),
        note="Objects as Points, section 5: 140 epochs, learning rate 1.25e-4 (batch 32), divided by 10 at 90 and 120; not run here",
    )


def tiny(model: str) -> Recipe:
    """2,000 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped.

    Scenes hold few photographs, so any hue may turn into any other; crops are mild because small digits are the hard ones. The
    sizes weigh three times as much as in the paper: pictures are four times smaller than COCO's, and so are errors in cells.
    """
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=0),  # as the network's own `prepare` frames pictures that are not square
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        options={"size_weight": 0.3},
        batch=16,
        steps=2000,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=1000,
        save_every=500,
        workers=1,
        note="the demo: minutes on two cores",
    )
