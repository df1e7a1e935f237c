"""Recipes for Real NVP."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; the paper's training for the others."""
    if model.endswith("/points"):  # coordinates in place of pictures: nothing is resized, and their number is the network's
        return published(model, {}, 0)
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
        note="about two minutes on one core; 600 steps reached 2.55 bits/dim on the test digits, a Gaussian 2.76",
    )


def published(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Section 4.1: Adam with its usual settings, batches of 64; the objective decays the scales of weight normalisation."""
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(Resize((size, size)), Flip()) if size else (),
        batch=64,
        steps=80_000,
        optim={"all": Optim("adam", lr=1e-3, weight_decay=0.0, clip=100.0)},
        schedules=(Schedule("constant"),),
        evaluate_every=5_000,
        workers=8,
        note="settings of chrischute/real-nvp's train.py (Adam at 0.001, batches of 64, gradients up to 100) and the 80,000 steps of "
        "fmu2/realNVP's README; the paper's bits/dim are in its table 1; not run here",
    )
