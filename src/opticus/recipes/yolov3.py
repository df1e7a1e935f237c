"""Recipes for YOLOv3."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, MultiScale, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    return tiny(model) if model == "yolov3/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """1,500 steps of batch 16 on 128x128 pictures, from a backbone that knows digits, as the authors' knows ImageNet.

    Digits have a handedness, so nothing is flipped. The sums over a picture are large next to other detectors' means, which Adam does
    not mind but clipping does.
    """
    return Recipe(
        model,
        "scenes",
        pretrain={"backbone": backbone()},
        transforms=(
            Resize((128, 128), "letterbox", fill=128),
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=1500,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.02, clip=100.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=750,
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


def coco(model: str) -> Recipe:
    """The 500,200 updates of batch 64 of yolov3.cfg, at another input size every ten updates (`random=1`)."""
    sides = tuple((side, side) for side in range(320, 609, 32))
    return Recipe(
        model,
        "",
        transforms=(
            Resize((608, 608), "letterbox", fill=128),
            RandomResizedCrop((608, 608), scale=(0.5, 1.0), ratio=(0.7, 1.43)),
            MultiScale(sides, "fixed", every=10),
            Flip(),
            ColourJitter(0.5, 0.0, 0.5, 0.1),
        ),
        batch=64,
        steps=500_200,
        optim={"all": Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4)},
        schedules=(Schedule("step", milestones=(400_000 / 500_200, 450_000 / 500_200), warmup=1000 / 500_200),),
        options={"ignore": 0.7},
        workers=8,
        note="pjreddie/darknet cfg/yolov3.cfg: learning rate 0.001, momentum 0.9, decay 0.0005, burn-in of 1,000 updates, divided by 10 "
        "at 400k and 450k, ignore_thresh 0.7, from a Darknet-53 trained on ImageNet; AP50 55.3 at 416 is published; not run here",
    )
