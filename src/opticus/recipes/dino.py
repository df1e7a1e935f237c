"""Recipes for DINO."""

from __future__ import annotations

from opticus.recipes.small_pictures import crops
from opticus.structures import Dataset, Part
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import multi_crop

# k-NN and linear top-1 on ImageNet in %: README of facebookresearch/dino
REPORTED = {"s16": (74.5, 77.0), "s8": (78.3, 79.7), "b16": (76.1, 78.2), "b8": (77.4, 80.1), "r50": (67.5, 75.3)}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for the others."""
    return small(model, data) if model.partition("/")[2].startswith("tiny") else imagenet(model)


def small(model: str, data: Dataset) -> Recipe:
    """Pictures of 32 pixels: two global crops of 32 and four local ones of 16, a small head, a quick teacher."""
    return Recipe(
        model,
        "textures",
        options={"outputs": 256, "hidden": 256, "bottleneck": 64, "momentum": 0.98, "teacher_epochs": 0, "teacher": (0.04, 0.04)},
        transforms=(crops(data),),
        batch=64,
        steps=700,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=1e-3, clip=3.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=1e-3),),
        precision="bf16",
        evaluate_every=350,
        workers=1,
        note="minutes on two cores; its figures are in docs/selfsup.md",
    )


def imagenet(model: str) -> Recipe:
    """The authors' training with multi-crop: 300 epochs of batch 1024, learning rate 0.0005 x batch / 256, 10 epochs of warm-up."""
    variant = model.partition("/")[2]
    vit = variant != "r50"
    neighbours, linear = REPORTED[variant]
    epochs, batch = 300, 1024
    rate = 0.0005 * batch / 256
    return Recipe(
        model,
        "",
        changes={"backbone": Part(f"vit/{variant}", classes=0, drop_path=0.1)} if vit else {},
        options={"momentum": 0.996, "teacher": (0.04, 0.07), "teacher_epochs": 30},
        transforms=(multi_crop(),),
        batch=batch,
        epochs=epochs,
        optim={"all": Optim("adamw", lr=rate, weight_decay=0.04, clip=3.0)},
        schedules=(
            Schedule("cosine", warmup=10 / epochs, end=1e-6 / rate),
            Schedule("cosine", "weight_decay", start=1.0, end=10.0),
        ),
        precision="fp16",
        workers=10,
        note=f"published: {neighbours} % 20-NN and {linear} % linear top-1 on ImageNet; not run here",
    )
