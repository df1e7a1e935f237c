"""Recipes for OBoW."""

from __future__ import annotations

from typing import Any

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.chain import Transform
from opticus.transforms.colour import Blur, ColourJitter, Grayscale
from opticus.transforms.geometry import CenterCrop, Flip, RandomResizedCrop, Resize
from opticus.transforms.views import Patches, View, Views

COLOURS: tuple[Transform, ...] = (ColourJitter(0.4, 0.4, 0.4, 0.1, p=0.8), Grayscale(0.2))


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for the others."""
    return small(model) if model.partition("/")[2].startswith("tiny") else imagenet(model)


def small(model: str) -> Recipe:
    """Pictures of 32 pixels: the teacher sees all of it, the student two crops of 24."""
    crop = (RandomResizedCrop((24, 24), (0.2, 0.7)), *COLOURS, Blur((0.1, 0.8), p=0.5), Flip(0.5))
    return Recipe(
        model,
        "textures",
        options={"words": 256, "hidden": 256, "momentum": 0.98, "sharpness": 10.0, "kappa": 5.0},
        transforms=(Views((View("global", (Resize((32, 32)), Flip(0.5))), View("global", crop, 2))),),
        batch=64,
        steps=600,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-3, clip=3.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=1e-3),),
        precision="bf16",
        evaluate_every=300,
        workers=1,
        note="minutes on two cores; its figures are in docs/selfsup.md",
    )


def imagenet(model: str) -> Recipe:
    """The authors' configurations ImageNetFull/ResNet50_OBoW_full and ImageNet20/ResNet18_OBoW_full.

    The teacher sees a central crop of 224, the student two crops of 160 and five patches of 96.
    """
    large = model.partition("/")[2] == "r50"
    whole = (Resize((256, 0), "shortest"), CenterCrop((224, 224)), Flip(0.5))
    crop = (RandomResizedCrop((160, 160), (0.08, 0.6)), *COLOURS, Blur((0.1, 2.0), p=0.5), Flip(0.5))
    patches = Patches((RandomResizedCrop((256, 256), (0.6, 1.0)), *COLOURS, Flip(0.5)))
    epochs = 200 if large else 80
    options: dict[str, Any] = {"sharpness": 15.0, "kappa": 8.0} if large else {"sharpness": 10.0, "kappa": 5.0}
    return Recipe(
        model,
        "",
        options={"words": 8192, "momentum": 0.99, **options},
        transforms=(Views((View("global", whole), View("global", crop, 2)), keep=True), patches),
        batch=256 if large else 128,
        epochs=epochs,
        optim={"all": Optim("sgd", lr=0.03 if large else 0.05, weight_decay=1e-4 if large else 5e-4, decay_vectors=True)},
        schedules=(Schedule("cosine", warmup=10 / epochs, end=1e-3) if large else Schedule("cosine"),),
        workers=10,
        note="published: 73.8 % linear top-1 on ImageNet; not run here" if large else "on a fifth of ImageNet; not run here",
    )
