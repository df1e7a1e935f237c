"""Recipes for CycleGAN: two domains of small pictures, and the authors' training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Crop, Flip, Resize
from opticus.transforms.pairs import Apart, InEach


def default(model: str, data: Dataset) -> Recipe:
    """Day and night (or other small pictures of two domains) for "tiny"; the authors' training for the others. Both train a pair."""
    sample = data[0]
    view = sample.views[0][1] if sample.views else sample
    changes = {"channels": view.picture.pixels.shape[2], "pair": True}
    recipe = small(model, changes) if model.endswith("/tiny") else published(model, changes)
    # of pairs both sides are used, but not which belongs to which
    return recipe if sample.views else replace(recipe, transforms=(Apart(), *recipe.transforms))


def small(model: str, changes: dict[str, Any]) -> Recipe:
    """Pictures of 32x32 pixels, mirrored; the discriminators see patches of 16x16.

    Batch norm, since a patch of a photograph may be of one brightness, which instance norm takes away.
    """
    size = zoo.config_of(model).size
    return Recipe(
        model,
        "daynight",
        changes={"norm": "batch", **changes},
        options={"layers": 1, "width": 32},
        transforms=(InEach((Resize((size, size)), Flip())),),
        batch=4,
        steps=1500,
        optim={side: Optim("adam", lr=2e-3, weight_decay=0.0, betas=(0.5, 0.999)) for side in ("g", "d")},
        schedules=(Schedule("linear", hold=0.5),),
        average=0.99,
        precision="bf16",
        evaluate_every=0,
        note="two minutes on one core",
    )


def published(model: str, changes: dict[str, Any]) -> Recipe:
    """Resized to 286/256 of the network's size, a window of that size, mirrored; 100 epochs at one rate and 100 down to zero."""
    size = zoo.config_of(model).size
    large = size * 286 // 256
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(InEach((Resize((large, large), interpolation="bicubic"), Crop((size, size)), Flip())),),
        batch=1,
        epochs=200,
        optim={side: Optim("adam", lr=2e-4, weight_decay=0.0, betas=(0.5, 0.999)) for side in ("g", "d")},
        schedules=(Schedule("linear", hold=0.5),),
        note="the paper's section 4 and the defaults of the authors' PyTorch repository; not run here",
    )
