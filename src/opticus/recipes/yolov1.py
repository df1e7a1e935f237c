"""Recipes for YOLO (v1)."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", Pascal VOC for the others."""
    return tiny(model) if model == "yolov1/tiny" else voc(model)


def tiny(model: str) -> Recipe:
    """2,000 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped.

    The connected layer learns every cell by itself, so crops, which move objects from cell to cell, are wider than other detectors'.
    """
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=128),
            RandomResizedCrop((128, 128), scale=(0.6, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=2000,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.02, clip=30.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=1000,
        save_every=500,
        workers=1,
        note="minutes on two cores",
    )


def voc(model: str) -> Recipe:
    """The 40,000 updates of batch 64 of yolov1.cfg, whose learning rate rises in four steps; here it rises evenly over as many updates."""
    return Recipe(
        model,
        "",
        transforms=(
            Resize((448, 448), "fixed"),
            RandomResizedCrop((448, 448), scale=(0.6, 1.0), ratio=(0.7, 1.43)),
            Flip(),
            ColourJitter(0.5, 0.0, 0.5, 0.1),
        ),
        batch=64,
        steps=40_000,
        optim={"all": Optim("sgd", lr=5e-3, momentum=0.9, weight_decay=5e-4)},
        schedules=(Schedule("step", milestones=(0.5, 0.75), warmup=600 / 40_000),),
        workers=8,
        note="pjreddie/darknet cfg/yolov1.cfg: from 0.0005 to 0.005 in 600 updates, divided by 10 at 20k and 30k of 40k, momentum 0.9, "
        "decay 0.0005, from convolutions trained on ImageNet; not run here",
    )
