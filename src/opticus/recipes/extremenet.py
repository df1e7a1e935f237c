"""Recipes for ExtremeNet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", the authors' COCO run for the others."""
    if model == "extremenet/tiny":
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
        batch=24,
        steps=250_000,
        optim={"all": Optim("adam", lr=2.5e-4, weight_decay=0.0)},
        schedules=(Schedule("step", milestones=(0.8,)),),
        workers=8,
        note="config/ExtremeNet.json of the authors' repository: 250k iterations of batch 24 from CornerNet's weights, learning rate 2.5e-4, "
        "divided by 10 at 200k; its README publishes AP 40.3 on COCO val2017 with mirrored pictures; not run here",
    )


def tiny(model: str) -> Recipe:
    """1,200 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped.

    Scenes come without masks unless asked: the points are then the middles of the boxes' sides, where the published training has the
    extreme points of COCO's polygons. Scenes hold few photographs, so any hue may turn into any other; crops are mild because
    small digits are the hard ones.
    """
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=0),  # as the network's own `prepare` frames pictures that are not square
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=1200,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=750,
        save_every=500,
        workers=1,
        note="minutes on two cores",
    )
