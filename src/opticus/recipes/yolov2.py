"""Recipes for YOLOv2."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Flip, MultiScale, RandomResizedCrop, Resize

SIZES = tuple((side, side) for side in range(320, 609, 32))  # section 2, "Multi-Scale Training"


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", the authors' settings for the others."""
    if model == "yolov2/tiny":
        return tiny(model)
    return voc(model) if model.endswith("-voc") else coco(model)


def tiny(model: str) -> Recipe:
    """3,000 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped."""
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=128),
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=3000,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.02, clip=30.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=1500,
        save_every=500,
        workers=1,
        note="minutes on two cores",
    )


def voc(model: str) -> Recipe:
    """yolov2-voc.cfg."""
    return _published(
        model,
        steps=80_200,
        milestones=(40_000, 60_000),
        note="pjreddie/darknet cfg/yolov2-voc.cfg: learning rate 0.001, burn-in of 1,000 updates, divided by 10 at 40k and 60k of 80,200, "
        "from a Darknet-19 trained on ImageNet; not run here",
    )


def coco(model: str) -> Recipe:
    """yolov2.cfg."""
    return _published(
        model,
        steps=500_200,
        milestones=(400_000, 450_000),
        note="pjreddie/darknet cfg/yolov2.cfg: learning rate 0.001, burn-in of 1,000 updates, divided by 10 at 400k and 450k of 500,200, "
        "from a Darknet-19 trained on ImageNet; not run here",
    )


def _published(model: str, *, steps: int, milestones: tuple[int, int], note: str) -> Recipe:
    """Batch 64, momentum 0.9, decay 0.0005, another input size every ten updates, mirrored and jittered pictures."""
    return Recipe(
        model,
        "",
        transforms=(
            Resize((608, 608), "letterbox", fill=128),
            RandomResizedCrop((608, 608), scale=(0.5, 1.0), ratio=(0.7, 1.43)),
            MultiScale(SIZES, "fixed", every=10),
            Flip(),
            ColourJitter(0.5, 0.0, 0.5, 0.1),
        ),
        batch=64,
        steps=steps,
        optim={"all": Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4)},
        schedules=(Schedule("step", milestones=tuple(m / steps for m in milestones), warmup=1000 / steps),),
        workers=8,
        note=note,
    )
