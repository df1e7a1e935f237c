"""Recipes for Real NVP."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; the paper's training for the others."""
    channels = data[0].picture.pixels.shape[2]
    changes = {"channels": channels}
    size = zoo.config_of(model, changes).size
    return small(model, changes, size) if model.endswith("/tiny") else published(model, changes, size)


def small(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Small pictures as they are: turning them would blur what their pixels have to do with each other."""
    return Recipe(
        model,
        "digits" if changes["channels"] == 1 else "crops",
        changes=changes,
        transforms=(Resize((size, size)),),
        batch=64,
        steps=700,
        optim={"all": Optim("adamw", lr=5e-3, weight_decay=0.0, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.98,
        evaluate_every=350,
        workers=1,
        note="about two minutes on one core",
    )


def published(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Section 4.1: Adam with its usual settings, batches of 64; the objective decays the scales of weight normalisation."""
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(Resize((size, size)), Flip()),
        batch=64,
        steps=80_000,
        optim={"all": Optim("adam", lr=1e-3, weight_decay=0.0, clip=100.0)},
        schedules=(Schedule("constant"),),
        evaluate_every=5_000,
        workers=8,
        note="Dinh et al. 2016, table 1: 3.49 bits/dim on CIFAR-10, 4.28 and 3.98 on ImageNet of 32 and 64 pixels, figures from memory "
        "of the paper; not run here",
    )
