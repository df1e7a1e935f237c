"""Recipes for DCGAN."""

from __future__ import annotations

from opticus import zoo
from opticus.recipes.small_drawings import drawings
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe
from opticus.transforms.geometry import Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny", the reference's training for the others."""
    channels = data[0].picture.pixels.shape[2]
    size = zoo.config_of(model, {"channels": channels}).size
    if model.endswith("/tiny"):
        return drawings(model, channels, size, steps=3000, batch=64, lr=1e-3)
    return published(model, channels, size)


def published(model: str, channels: int, size: int) -> Recipe:
    """The reference's training."""
    rule = Optim("adam", lr=2e-4, weight_decay=0.0, betas=(0.5, 0.999))
    return Recipe(
        model, "", changes={"channels": channels}, transforms=(Resize((size, 0), "shortest"), Resize((size, size))), batch=64, epochs=25,
        optim={"d": rule, "g": rule}, schedules=(), evaluate_every=0, workers=2,
        note="pytorch/examples, dcgan: Adam 2e-4 with beta1 0.5, batches of 64, 25 epochs; the paper: batches of 128; not run here",
    )  # fmt: skip
