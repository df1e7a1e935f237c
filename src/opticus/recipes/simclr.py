"""Recipes for SimCLR."""

from __future__ import annotations

import math

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import two_views

# linear top-1 on ImageNet in %: README of google-research/simclr (SimCLRv2 without selective kernels)
REPORTED = {"r50": 69.1, "r50w2": 74.2, "r50w4": 76.6, "v2-r50": 71.7, "v2-r50w2": 75.6}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny" and "v2-tiny"; ImageNet as published for the others."""
    return small(model) if model.endswith("tiny") else imagenet(model)


def small(model: str) -> Recipe:
    """Pictures of 32 pixels, a batch of 128 and AdamW."""
    return Recipe(
        model,
        "crops",
        options={"temperature": 0.2, "outputs": 64, "layers": 3 if "/v2-" in model else 2},
        transforms=(two_views(32, scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), sigma=(0.1, 0.8), flip=0.0),),
        batch=128,
        steps=400,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4)},
        schedules=(Schedule("cosine", warmup=0.1),),
        evaluate_every=200,
        workers=1,
    )


def imagenet(model: str) -> Recipe:
    """The authors' training: LARS on batches of 4096, learning rate 0.075 sqrt(4096) = 0.3 x 4096 / 256, 10 epochs of warm-up.

    1000 epochs and a weight decay of 1e-6 for the first version, 800 and 1e-4, with three layers in the head, for the second.
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
        optim={"all": Optim("lars", lr=0.075 * math.sqrt(batch), weight_decay=1e-4 if second else 1e-6)},
        schedules=(Schedule("cosine", warmup=10 / epochs),),
        precision="bf16",
        workers=10,
        note=f"published: {REPORTED[variant]} % linear top-1 on ImageNet; not run here",
    )
