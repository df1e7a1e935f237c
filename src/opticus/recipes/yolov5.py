"""Recipes for YOLOv5."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    return tiny(model) if model == "yolov5/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """2,500 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped.

    Scenes hold few photographs, so any hue may turn into any other; crops are mild because small digits are the hard ones. The
    published weights are for 25 times as many anchors and 8 times as many classes: objectness and classes weigh less here.
    """
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=114),  # as the network's own `prepare` frames pictures that are not square
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        options={"object_weight": 0.15, "class_weight": 0.25},
        batch=16,
        steps=2500,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=1250,
        save_every=500,
        workers=1,
        note="minutes on two cores",
    )


def coco(model: str) -> Recipe:
    """A run of the length that detectors of this family are trained from scratch with, on plain crops and flips: no mosaic.

    The authors publish no paper; nothing here is claimed to reproduce their figures.
    """
    return Recipe(
        model,
        "",
        transforms=(
            Flip(),
            Affine(scale=(0.5, 1.5), translate=(0.1, 0.1)),
            Resize((640, 640), "letterbox", fill=114),
            ColourJitter(0.4, 0.4, 0.7, 0.015),
        ),
        batch=64,
        epochs=300,
        optim={"all": Optim("sgd", lr=0.01, momentum=0.937, weight_decay=5e-4, clip=10.0)},
        schedules=(Schedule("linear", warmup=3 / 300, end=0.01),),
        average=0.9999,
        workers=8,
        note="no paper states a recipe: opticus's own from scratch, not run here",
    )
