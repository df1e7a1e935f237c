"""Recipes for SPP-net: R-CNN's steps on maps that are computed once a picture."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.training.solved import Solved
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.regions import Propose


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", PASCAL VOC for the others."""
    return tiny(model) if model == "sppnet/tiny" else voc(model)


def tiny(model: str) -> Recipe:
    """A backbone that knows digits, 1,000 steps of fine-tuning behind it, then SVMs and regressors from 1,500 pictures."""
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
        steps=1000,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.005),),
        average=0.98,
        evaluate_every=0,
        save_every=250,
        workers=1,
        loop=Solved(pictures=1500),
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
        steps=2000,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=0,
        workers=1,
        note="about three minutes on two cores",
    )


def voc(model: str) -> Recipe:
    """The settings of R-CNN's fine-tuning, which section 4.1 refers to, on maps that stay as ImageNet left them."""
    return Recipe(
        model,
        "",
        transforms=(Propose(), Flip(), Resize((688, 0), "shortest")),
        batch=2,
        steps=100_000,
        optim={"all": Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4)},
        schedules=(Schedule("step", milestones=(0.2, 0.4, 0.6, 0.8)),),
        evaluate_every=0,
        workers=8,
        loop=Solved(),
        note="PASCAL VOC with R-CNN's fine-tuning (rbgirshick/rcnn, finetuning/), from an ImageNet backbone (backbone_weights=); the "
        "descriptions take tens of gigabytes in the run folder while they are needed; not run here",
    )
