"""Recipes for MoCo v2."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import two_views


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for "r50"."""
    return small(model) if model.endswith("tiny") else imagenet(model)


def small(model: str) -> Recipe:
    """Pictures of 32 pixels, a batch of 128, a short queue and a quick key encoder."""
    return Recipe(
        model,
        "crops",
        options={"queue": 2048, "outputs": 64, "momentum": 0.99, "groups": 4},
        transforms=(two_views(32, scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), sigma=(0.1, 0.8), flip=0.0),),
        batch=128,
        steps=400,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4)},
        schedules=(Schedule("cosine", warmup=0.1),),
        evaluate_every=200,
        workers=1,
    )


def imagenet(model: str) -> Recipe:
    """The authors' training of the second version: 800 epochs of SGD on batches of 256, learning rate 0.03 on a half cosine."""
    return Recipe(
        model,
        "",
        options={"temperature": 0.2, "momentum": 0.999, "queue": 65536, "outputs": 128, "groups": 8},
        transforms=(two_views(),),
        batch=256,
        epochs=800,
        optim={"all": Optim("sgd", lr=0.03, weight_decay=1e-4, decay_vectors=True)},
        schedules=(Schedule("cosine"),),
        workers=10,
        note="published: 71.1 % linear top-1 on ImageNet (67.7 % after 200 epochs); not run here",
    )
