"""Recipes for SimCLR."""

from __future__ import annotations

import math

from opticus.recipes.small_pictures import pair
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import two_views

# linear top-1 on ImageNet in %: README of google-research/simclr (SimCLRv2 without selective kernels)
REPORTED = {"r50": 69.1, "r50w2": 74.2, "r50w4": 76.6, "v2-r50": 71.7, "v2-r50w2": 75.6}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny" and "v2-tiny"; ImageNet as published for the others."""
    return small(model, data) if model.endswith("tiny") else imagenet(model)


def small(model: str, data: Dataset) -> Recipe:
    """Pictures of 32 pixels, a batch of 128 and AdamW."""
    return Recipe(
        model,
        "textures",
        options={"temperature": 0.2, "outputs": 64, "layers": 3 if "/v2-" in model else 2},
        transforms=(pair(data),),
        batch=128,
        steps=400,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4)},
        schedules=(Schedule("cosine", warmup=0.1),),
        precision="bf16",
        evaluate_every=200,
        workers=1,
        note="minutes on two cores; its figures are in docs/selfsup.md",
    )


def imagenet(model: str) -> Recipe:
    """The authors' training: LARS on batches of 4096.

    First version: 1000 epochs, 10 of them warm-up, learning rate 0.075 sqrt(4096) = 0.3 x 4096 / 256, weight decay 1e-6. Second: three
    layers in the head, 800 epochs, a twentieth of them warm-up, 0.1 sqrt(4096) and 1e-4, without its memory of earlier batches.
    """
    variant = model.partition("/")[2]
    second = variant.startswith("v2-")
    epochs, batch = (800, 4096) if second else (1000, 4096)
    return Recipe(
        model,
        "",
        options={"temperature": 0.1, "outputs": 128, "layers": 3 if second else 2},
        transforms=(two_views(scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2)),),
        batch=batch,
        epochs=epochs,
        optim={"all": Optim("lars", lr=(0.1 if second else 0.075) * math.sqrt(batch), weight_decay=1e-4 if second else 1e-6)},
        schedules=(Schedule("cosine", warmup=0.05 if second else 10 / epochs),),
        workers=10,
        note=f"published: {REPORTED[variant]} % linear top-1 on ImageNet; not run here",
    )
