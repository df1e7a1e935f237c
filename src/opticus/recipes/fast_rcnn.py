"""Recipes for Fast R-CNN."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.regions import Propose


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", PASCAL VOC for the others."""
    return tiny(model) if model == "fast_rcnn/tiny" else voc(model)


def tiny(model: str) -> Recipe:
    """1,500 steps of batch 8 on 128x128 pictures, from a backbone that knows digits; proposals are searched for once a picture."""
    return Recipe(
        model,
        "scenes",
        pretrain={"backbone": backbone()},
        transforms=(
            Propose(limit=300, scales=(50.0,), spaces=("hsv",)),
            Resize((128, 128), "letterbox", fill=114),
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=8,
        steps=1500,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=10.0, groups=(Group(r"backbone\.", factor=0.5),))},
        schedules=(Schedule("cosine", warmup=0.05, end=0.005),),
        average=0.995,
        evaluate_every=500,
        save_every=500,
        workers=1,
        note="minutes on two cores, and two more to search 4,000 pictures for proposals the first time",
    )


def backbone() -> Recipe:
    """Digits of every size that scenes show them in, in 48x48 pictures."""
    return Recipe(
        "vgg/tiny",
        "crops",
        transforms=(
            Resize((48, 48)),
            Affine(degrees=10, translate=(0.1, 0.1), scale=(0.5, 1.15), fill=114),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=64,
        steps=600,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=0,
        workers=1,
        note="about a minute and a half on two cores",
    )


def voc(model: str) -> Recipe:
    """Section 2.3: 30,000 steps of two pictures at 0.001, 10,000 more at a tenth; conv1 and conv2 stay as ImageNet left them."""
    return Recipe(
        model,
        "",
        transforms=(Propose(), Flip(), Resize((600, 1000), "shortest")),
        batch=2,
        steps=40_000,
        optim={
            "all": Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, groups=(Group(r"backbone\.trunk\.[0-9]\.", frozen=True),))
        },
        schedules=(Schedule("step", milestones=(0.75,)),),
        workers=8,
        note="Girshick 2015, sections 2.3 and 4.5: PASCAL VOC, SGD 0.001 for 30,000 steps and 0.0001 for 10,000, momentum 0.9, weight "
        "decay 0.0005, from an ImageNet VGG-16 (weights=); biases have twice the rate in the paper, not here; not run here",
    )
