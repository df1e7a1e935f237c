"""Recipes for StyleGAN."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; the published training for the others."""
    changes = {"channels": data[0].picture.pixels.shape[2]}
    size = zoo.config_of(model, changes).size
    return small(model, changes, size) if model.endswith("/tiny") else ffhq(model, changes, size)


def small(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Small pictures, slightly turned, scaled and shifted; digits have a handedness, so nothing is flipped.

    R1 is weaker than the paper's, as a picture of few pixels changes the score by more with each of them.
    """
    player = Optim("adam", lr=2e-3, weight_decay=0.0, betas=(0.0, 0.99))
    return Recipe(
        model,
        "digits" if changes["channels"] == 1 else "crops",
        changes=changes,
        options={"growing": 0.5, "start": 4, "gamma": 0.3, "mixing": 0.5},
        transforms=(
            Affine(degrees=6, translate=(0.03, 0.03), scale=(0.93, 1.07), fill=0 if changes["channels"] == 1 else 114),
            Resize((size, size)),
        ),
        batch=32,
        steps=1600,
        optim={"d": player, "g": player},
        schedules=(Schedule("linear", start=1.0, end=0.1),),
        average=0.99,
        evaluate_every=0,
        workers=1,
        precision="bf16",
        note="from 4x4 to 16x16 pixels in the first half of the run, minutes on one core; it does not learn enough: "
        "some digits are drawn far too often (docs/generative.md)",
    )


def ffhq(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """The paper's training on faces from Flickr: 25 million pictures, from 8x8 pixels up."""
    player = Optim("adam", lr=1e-3, weight_decay=0.0, betas=(0.0, 0.99))
    return Recipe(
        model,
        "",
        changes=changes,
        options={"gamma": 10.0},
        transforms=(Resize((size, size)), Flip()),
        batch=32,
        steps=781_250,
        optim={"d": player, "g": player},
        schedules=(Schedule("constant"),),
        average=0.999,
        evaluate_every=0,
        workers=8,
        note="Karras et al. 2019, appendix C: logistic loss with R1 (gamma 10), Adam with betas 0 and 0.99, 25 million pictures of FFHQ, "
        "batches that shrink as the resolution grows; FID 4.40 at 1024 pixels (table 1, also genforce's MODEL_ZOO.md); not run here",
    )
