"""Recipes for Glow."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.geometry import Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny", with as many classes as the data; the paper's training for the others."""
    channels = data[0].picture.pixels.shape[2]
    changes: dict[str, Any] = {"channels": channels}
    size = zoo.config_of(model, changes).size
    if not model.endswith("/tiny"):
        return published(model, changes, size)
    return small(model, {**changes, "classes": len(data.names) if data.task == "classify" else 0}, size)


def small(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Small pictures as they are: turning them would blur what their pixels have to do with each other."""
    return Recipe(
        model,
        "digits" if changes["channels"] == 1 else "crops",
        changes=changes,
        transforms=(Resize((size, size)),),
        batch=64,
        steps=1500,
        # an actnorm's scale has to grow from about 1 to 100: Adam's steps, which are of one length, are longer there
        optim={"all": Optim("adamw", lr=5e-3, weight_decay=0.0, clip=1.0, groups=(Group(r"actnorm\.scale$", factor=20.0),))},
        schedules=(Schedule("cosine", warmup=0.1, end=0.01),),
        average=0.98,
        evaluate_every=750,
        workers=1,
        note="about two minutes on one core",
    )


def published(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Section 5 and appendix: Adam at 0.001 with a warm-up; the batch is what fits."""
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(Resize((size, size)), Flip()),
        batch=64,
        epochs=1000,
        optim={"all": Optim("adam", lr=1e-3, weight_decay=0.0, clip=100.0)},
        schedules=(Schedule("constant", warmup=0.01),),
        evaluate_every=5_000,
        workers=8,
        note="Kingma and Dhariwal 2018, table 2: 3.35 bits/dim on CIFAR-10, figure from memory of the paper; not run here",
    )
