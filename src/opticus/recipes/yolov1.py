"""Recipes for YOLO (v1)."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", Pascal VOC for the others."""
    return tiny(model) if model == "yolov1/tiny" else voc(model)


def tiny(model: str) -> Recipe:
    """4,000 steps of batch 16 on 128x128 pictures, from a backbone that knows digits, as the authors' knows ImageNet.

    Digits have a handedness, so nothing is flipped. Pictures are moved and scaled by up to 20 % (section 2.2): the connected layer
    learns every cell by itself, from the objects that lie there, and of its thousands of inputs each moves only a little in a step.
    """
    return Recipe(
        model,
        "scenes",
        pretrain={"backbone": backbone()},
        transforms=(
            Resize((128, 128), "letterbox", fill=128),
            Affine(translate=(0.2, 0.2), scale=(0.8, 1.2), fill=128, keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=4000,
        optim={
            "all": Optim(
                "adamw",
                lr=2e-3,
                weight_decay=0.02,
                clip=30.0,
                groups=(Group(r"answer\.", factor=0.1, weight_decay=3.0), Group(r"backbone\.", factor=0.3)),
            )
        },
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=2000,
        save_every=500,
        workers=1,
        note="minutes on two cores",
    )


def backbone() -> Recipe:
    """Digits of every size that scenes show them in, in 48x48 pictures."""
    return Recipe(
        "resnet/18",
        "crops",
        transforms=(
            Resize((48, 48)),
            Affine(degrees=10, translate=(0.1, 0.1), scale=(0.5, 1.15), fill=114),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=64,
        steps=1000,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=0,
        workers=1,
        note="about a minute and a half on two cores",
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
