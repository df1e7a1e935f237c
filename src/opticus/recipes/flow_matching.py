"""Recipes for flow matching."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; the published training for the others."""
    channels = data[0].picture.pixels.shape[2]
    changes: dict[str, Any] = {"channels": channels}
    size = zoo.config_of(model, changes).size
    return small(model, changes, size) if model.endswith("/tiny") else published(model, changes, size)


def small(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Small pictures, slightly turned, scaled and shifted; digits have a handedness, so nothing is flipped."""
    return Recipe(
        model,
        "digits" if changes["channels"] == 1 else "crops",
        changes=changes,
        transforms=(
            Affine(degrees=6, translate=(0.03, 0.03), scale=(0.93, 1.07), fill=0 if changes["channels"] == 1 else 114),
            Resize((size, size)),
        ),
        batch=32,
        steps=800,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.0, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.02),),
        average=0.99,
        precision="bf16",
        evaluate_every=800,
        workers=1,
        note="about two minutes on one core",
    )


def published(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """torchcfm's training on CIFAR-10 (examples/images/cifar10): Adam, warm-up of 5,000 steps, an average of 0.9999."""
    return Recipe(
        model,
        "",
        changes=changes,
        options={"sigma": 0.0},
        transforms=(Resize((size, size)), Flip()),
        batch=128,
        steps=400_001,
        optim={"all": Optim("adam", lr=2e-4, weight_decay=0.0, clip=1.0)},
        schedules=(Schedule("constant", warmup=0.0125),),
        average=0.9999,
        evaluate_every=20_000,
        workers=4,
        note="README of torchcfm's examples/images/cifar10: FID of 3.5 on CIFAR-10 with its best method (optimal transport between "
        "batches, which is not built here); not run here",
    )
