"""Recipes for R-CNN: its five steps."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.training.solved import Solved
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.regions import Propose


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", PASCAL VOC for the others."""
    return tiny(model) if model == "rcnn/tiny" else voc(model)


def tiny(model: str) -> Recipe:
    """A classifier of digits first, 600 steps of fine-tuning on warped proposals, then SVMs and regressors from 800 pictures."""
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
        batch=16,
        steps=600,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.005),),
        average=0.98,
        evaluate_every=0,
        save_every=200,
        workers=1,
        loop=Solved(pictures=800),
        note="minutes on two cores, and two more to search 4,000 pictures for proposals the first time",
    )


def backbone() -> Recipe:
    """Step 1: digits in 32x32 pictures, the size that regions are warped to."""
    return Recipe(
        "alexnet/tiny",
        "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=114),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=64,
        steps=1000,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=0,
        workers=1,
        note="two minutes on two cores",
    )


def voc(model: str) -> Recipe:
    """Section 2.3: fine-tuning at 0.001, a tenth of pre-training's rate, with 32 objects and 96 backgrounds a step."""
    return Recipe(
        model,
        "",
        transforms=(Propose(), Flip()),
        batch=2,
        steps=100_000,
        optim={"all": Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4)},
        schedules=(Schedule("step", milestones=(0.2, 0.4, 0.6, 0.8)),),
        evaluate_every=0,
        workers=8,
        loop=Solved(),
        note="Girshick et al. 2014, section 2.3, and the authors' solver for VOC 2007 (rbgirshick/rcnn, finetuning/): SGD 0.001, momentum "
        "0.9, weight decay 0.0005, divided by 10 every 20,000 of 100,000 steps, 128 regions a step (here of two pictures), from an "
        "ImageNet AlexNet (weights=); the descriptions of VOC 2007 take tens of gigabytes in the run folder while they are needed; "
        "not run here",
    )
