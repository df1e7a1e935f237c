"""Recipes for SwAV."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import assigned_crops

# linear top-1 on ImageNet in % and epochs: projects/SwAV/README.md of facebookresearch/vissl
REPORTED = {"r50": (75.3, 800), "r50w2": (77.3, 400), "r50w4": (77.9, 400), "r50w5": (78.5, 400)}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for the others."""
    return small(model) if model.partition("/")[2].startswith("tiny") else imagenet(model)


def small(model: str) -> Recipe:
    """Pictures of 32 pixels: two global crops of 32 and two local ones of 16, few prototypes, a queue of four batches."""
    return Recipe(
        model,
        "textures",
        options={"prototypes": 64, "hidden": 256, "outputs": 64, "queue": 256, "queue_epoch": 1, "frozen_epochs": 0},
        transforms=(
            assigned_crops(
                32, 16, 2, scale=(0.3, 1.0), small_scale=(0.1, 0.3), jitter=(0.4, 0.4, 0.4, 0.1), sigma=(0.1, 0.8), flip=0.5
            ),
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
    """The authors' training with multi-crop: LARS on batches of 4096, learning rate 0.3 x 4096 / 256 down to a thousandth of it.

    Ten epochs of warm-up; weight decay of 1e-6 on all parameters; prototypes at rest for the first epoch. Wide networks have the heads and
    batches of facebookresearch/vissl's configurations, whose head of "r50w5" has no batch norm (this one has).
    """
    linear, epochs = REPORTED[model.partition("/")[2]]
    batch = 2560 if model.endswith(("w4", "w5")) else 4096
    return Recipe(
        model,
        "",
        options={"hidden": {"r50": 2048, "r50w5": 10240}.get(model.partition("/")[2], 8192)},
        transforms=(assigned_crops(),),
        batch=batch,
        epochs=epochs,
        optim={"all": Optim("lars", lr=0.3 * batch / 256, weight_decay=1e-6, decay_vectors=True)},
        schedules=(Schedule("cosine", warmup=10 / epochs, end=1e-3),),
        precision="fp16",
        workers=10,
        note=f"published: {linear} % linear top-1 on ImageNet; not run here",
    )
