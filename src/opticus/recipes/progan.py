"""Recipes for the progressive GAN."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; the published training for the others."""
    channels = data[0].picture.pixels.shape[2]
    changes = {"channels": channels}
    size = zoo.config_of(model, changes).size
    return small(model, changes, size) if model.endswith("/tiny") else celebahq(model, changes, size)


def small(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Small pictures, slightly turned, scaled and shifted; digits have a handedness, so nothing is flipped."""
    player = Optim("adam", lr=3e-3, weight_decay=0.0, betas=(0.0, 0.99))
    return Recipe(
        model,
        "digits" if changes["channels"] == 1 else "crops",
        changes=changes,
        options={"growing": 0.35},
        transforms=(
            Affine(degrees=6, translate=(0.03, 0.03), scale=(0.93, 1.07), fill=0 if changes["channels"] == 1 else 114),
            Resize((size, size)),
        ),
        batch=32,
        steps=2000,
        optim={"d": player, "g": player},
        schedules=(Schedule("linear", start=1.0, end=0.1),),
        average=0.99,
        evaluate_every=0,
        workers=1,
        precision="bf16",
        note="from 4x4 to 16x16 pixels in the first third of the run; about three minutes on one core",
    )


def celebahq(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """The paper's training on faces: 800 thousand pictures to fade a level in and as many to settle, 12 million in all."""
    player = Optim("adam", lr=1e-3, weight_decay=0.0, betas=(0.0, 0.99))
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(Resize((size, size)), Flip()),
        batch=16,
        steps=750_000,
        optim={"d": player, "g": player},
        schedules=(Schedule("constant"),),
        average=0.999,
        evaluate_every=0,
        workers=8,
        note="Karras et al. 2018, appendix A.1: Adam 0.001 with betas 0 and 0.99, batch 16, average 0.999, penalty 10, drift 0.001, "
        "12 million pictures; the authors' batches shrink at high resolutions; not run here",
    )
