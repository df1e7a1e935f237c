"""Recipes for Barlow Twins."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.views import two_views


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for "r50"."""
    return small(model) if model.endswith("tiny") else imagenet(model)


def small(model: str) -> Recipe:
    """Pictures of 32 pixels, a batch of 128 and 256 outputs."""
    return Recipe(
        model,
        "crops",
        options={"hidden": 256, "outputs": 256, "off_weight": 0.02},
        transforms=(two_views(32, scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), sigma=(0.1, 0.8), flip=0.0),),
        batch=128,
        steps=400,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4)},
        schedules=(Schedule("cosine", warmup=0.1),),
        evaluate_every=200,
        workers=1,
    )


def imagenet(model: str) -> Recipe:
    """The authors' training: 1000 epochs of LARS on batches of 2048, 10 epochs of warm-up.

    The learning rate is 0.2 x 2048 / 256 for weights and 0.0048 x 2048 / 256 for biases and norms.
    """
    epochs, batch = 1000, 2048
    vectors = Group(r"\.bias$|\.bn\d\.weight$|downsample\.1\.weight$|projector\.[14]\.weight$", factor=0.0048 / 0.2)
    return Recipe(
        model,
        "",
        options={"off_weight": 0.0051, "hidden": 8192, "outputs": 8192},
        transforms=(two_views(scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=(1.0, 0.1), solarise=(0.0, 0.2)),),
        batch=batch,
        epochs=epochs,
        optim={"all": Optim("lars", lr=0.2 * batch / 256, weight_decay=1e-6, groups=(vectors,))},
        schedules=(Schedule("cosine", warmup=10 / epochs, end=1e-3),),
        precision="bf16",
        workers=8,
        note="published: 73.5 % linear top-1 on ImageNet; not run here",
    )
