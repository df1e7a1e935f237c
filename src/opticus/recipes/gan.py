"""Recipes for the original GAN."""

from __future__ import annotations

from opticus import zoo
from opticus.recipes.small_drawings import drawings
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe
from opticus.transforms.geometry import Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny", the reference's training for the others."""
    channels = data[0].picture.pixels.shape[2]
    if model.endswith("/tiny"):
        return drawings(
            model, channels, zoo.config_of(model, {"channels": channels}).size, steps=4500, batch=64, lr=1e-3, precision="fp32"
        )
    return mnist(model, channels)


def mnist(model: str, channels: int) -> Recipe:
    """The reference's training on MNIST."""
    rule = Optim("adam", lr=2e-4, weight_decay=0.0, betas=(0.5, 0.999))
    return Recipe(
        model, "", changes={"channels": channels}, transforms=(Resize((28, 28)),), batch=64, epochs=200, optim={"d": rule, "g": rule},
        schedules=(), evaluate_every=0,
        note="eriklindernoren/PyTorch-GAN, gan.py: MNIST, Adam 2e-4 with betas 0.5 and 0.999, 200 epochs of batches of 64; not run here",
    )  # fmt: skip
