"""Recipes for BYOL."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import two_views

# linear top-1 on ImageNet in %: README of deepmind/deepmind-research byol
REPORTED = {"r50": 74.4, "r200w2": 79.6}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for the others."""
    return small(model) if model.endswith("tiny") else imagenet(model)


def small(model: str) -> Recipe:
    """Pictures of 32 pixels, a batch of 128, small heads and a quick target."""
    return Recipe(
        model,
        "crops",
        options={"hidden": 256, "outputs": 64, "momentum": 0.98},
        transforms=(two_views(32, scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), sigma=(0.1, 0.8), flip=0.0),),
        batch=128,
        steps=400,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4)},
        schedules=(Schedule("cosine", warmup=0.1),),
        evaluate_every=200,
        workers=1,
    )


def imagenet(model: str) -> Recipe:
    """The authors' training: 1000 epochs of LARS on batches of 4096, learning rate 0.2 x 4096 / 256, 10 epochs of warm-up."""
    variant = model.partition("/")[2]
    epochs, batch = 1000, 4096
    figure = f"{REPORTED[variant]} % linear top-1 on ImageNet" if variant in REPORTED else "no figure for this width"
    return Recipe(
        model,
        "",
        options={"momentum": 0.996, "hidden": 4096, "outputs": 256},
        transforms=(two_views(scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=(1.0, 0.1), solarise=(0.0, 0.2)),),
        batch=batch,
        epochs=epochs,
        optim={"all": Optim("lars", lr=0.2 * batch / 256, weight_decay=1.5e-6)},
        schedules=(Schedule("cosine", warmup=10 / epochs),),
        workers=10,
        note=f"published: {figure}; not run here",
    )
