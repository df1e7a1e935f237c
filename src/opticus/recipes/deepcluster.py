"""Recipes for DeepCluster-v2."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import assigned_crops


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for "r50"."""
    return small(model) if model.partition("/")[2].startswith("tiny") else imagenet(model)


def small(model: str) -> Recipe:
    """Pictures of 32 pixels: two global crops of 32 and two local ones of 16, few prototypes, clustered every 25 steps."""
    return Recipe(
        model,
        "textures",
        options={"prototypes": (64, 64, 64), "hidden": 256, "outputs": 64, "every": 25},
        transforms=(
            assigned_crops(32, 16, 2, scale=(0.3, 1.0), small_scale=(0.1, 0.3), jitter=(0.4, 0.4, 0.4, 0.1), sigma=(0.1, 0.8)),
        ),
        batch=64,
        steps=600,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-3, clip=3.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=1e-3),),
        precision="bf16",
        evaluate_every=300,
        workers=1,
        note="minutes on two cores; its figures are in docs/selfsup.md",
    )


def imagenet(model: str) -> Recipe:
    """The authors' training with multi-crop: LARS on batches of 4096, learning rate 0.3 x 4096 / 256 on a half cosine to 0.

    800 epochs, ten of them warm-up (configs/config/pretrain/deepcluster_v2 of facebookresearch/vissl); one epoch more, which only
    fills the memory.
    """
    epochs, batch = 801, 4096
    return Recipe(
        model,
        "",
        transforms=(assigned_crops(),),
        batch=batch,
        epochs=epochs,
        optim={"all": Optim("lars", lr=0.3 * batch / 256, weight_decay=1e-6, decay_vectors=True)},
        schedules=(Schedule("cosine", warmup=11 / epochs),),
        precision="bf16",
        workers=10,
        note="published: 75.2 % linear top-1 on ImageNet; not run here",
    )
