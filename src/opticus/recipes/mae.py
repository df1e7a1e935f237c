"""Recipes for masked autoencoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opticus import zoo
from opticus.matching.masking import RandomMask
from opticus.structures import Dataset, Part
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Flip, RandomResizedCrop


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny", the paper's pre-training for the others."""
    config = zoo.config_of(model)
    channels = data[0].picture.pixels.shape[2]
    part: Part = config.backbone
    changes: dict[str, Any] = {} if channels == 3 else {"backbone": Part(part.name, **{**part.changes, "channels": channels})}
    return small(model, changes) if model.endswith("/tiny") else imagenet(model, changes)


def small(model: str, changes: dict[str, Any]) -> Recipe:
    """Pictures of 32x32 pixels, 16 of 64 patches visible. Nothing is mirrored, since digits have a handedness."""
    return Recipe(
        model,
        "crops",
        changes=changes,
        options={"mask": RandomMask(0.75)},
        transforms=(RandomResizedCrop((32, 32), scale=(0.5, 1.0), interpolation="bicubic"),),
        batch=64,
        steps=1500,
        optim={"all": Optim("adamw", lr=1.5e-3, weight_decay=0.05, betas=(0.9, 0.95))},
        schedules=(Schedule("cosine", warmup=0.05),),
        evaluate_every=0,
        note="steps from the ViT's time for a step on one core; neither its own time nor its figures have been measured yet",
    )


def imagenet(model: str, changes: dict[str, Any]) -> Recipe:
    """The paper's pre-training (section 4, table 8): 75 % of the patches hidden, normalised pixels, 800 epochs."""
    epochs, batch = 800, 4096
    recipe = small(model, {**changes, "normalise": True})
    return replace(
        recipe,
        data="",
        transforms=(RandomResizedCrop((224, 224), scale=(0.2, 1.0), interpolation="bicubic"), Flip()),
        batch=batch,
        accumulate=8,
        steps=None,
        epochs=epochs,
        optim={"all": Optim("adamw", lr=1.5e-4 * batch / 256, weight_decay=0.05, betas=(0.9, 0.95))},
        schedules=(Schedule("cosine", warmup=40 / epochs),),
        workers=8,
        note="He et al. 2022, appendix A.1: AdamW with betas 0.9 and 0.95, 1.5e-4 x batch / 256, batch 4096, weight decay 0.05, cosine, "
        "40 epochs of warm-up, random resized crops and flips, 800 epochs (1600 for the best figures); published: ViT-H fine-tuned on "
        "ImageNet 87.8 % (abstract); not run here",
    )
