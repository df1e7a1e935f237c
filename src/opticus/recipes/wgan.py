"""Recipes for WGAN-GP."""

from __future__ import annotations

from opticus import zoo
from opticus.recipes.small_drawings import drawings
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe
from opticus.transforms.geometry import Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny", the published training for the others."""
    channels = data[0].picture.pixels.shape[2]
    size = zoo.config_of(model, {"channels": channels}).size
    if model.endswith("/tiny"):
        return drawings(model, channels, size, steps=3500, batch=64, lr=1e-3, betas=(0.0, 0.9), options={"critics": 2})
    return cifar10(model, channels, size)


def cifar10(model: str, channels: int, size: int) -> Recipe:
    """The reference's training: 200,000 updates of the generator, five of the critic before each."""
    rule = Optim("adam", lr=1e-4, weight_decay=0.0, betas=(0.5, 0.9))
    return Recipe(
        model, "", changes={"channels": channels}, transforms=(Resize((size, size)),), batch=64, steps=1_000_000,
        optim={"d": rule, "g": rule}, schedules=(), evaluate_every=0, workers=2,
        note="caogang/wgan-gp, gan_cifar10.py: CIFAR-10, Adam 1e-4 with betas 0.5 and 0.9, batches of 64, penalty 10; not run here",
    )  # fmt: skip
