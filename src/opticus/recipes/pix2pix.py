"""Recipes for pix2pix: pairs of small pictures, and the authors' training."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset, Picture
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Resize
from opticus.transforms.pairs import CropPair, FlipPair


def default(model: str, data: Dataset) -> Recipe:
    """Outlines and digits (or other small pairs) for "tiny"; the authors' training for the others."""
    sample = data[0]
    channels = sample.picture.pixels.shape[2]
    answer = sample.target.pixels.shape[2] if isinstance(sample.target, Picture) else channels
    changes = {"channels": channels, "answer": answer}
    return small(model, changes) if model.endswith("/tiny") else published(model, changes)


def small(model: str, changes: dict[str, Any]) -> Recipe:
    """Pictures of 32x32 pixels; the discriminator sees patches of 16x16."""
    size = zoo.config_of(model).size
    return Recipe(
        model,
        "sketches",
        changes=changes,
        options={"layers": 1, "width": 32},
        transforms=(Resize((size, size)),),
        batch=16,
        steps=1000,
        optim={side: Optim("adam", lr=1e-3, weight_decay=0.0, betas=(0.5, 0.999)) for side in ("g", "d")},
        schedules=(Schedule("linear", hold=0.5),),
        average=0.99,
        evaluate_every=500,
        note="a minute on one core",
    )


def published(model: str, changes: dict[str, Any]) -> Recipe:
    """Resized to 286/256 of the network's size, a window of that size, mirrored; 100 epochs at one rate and 100 down to zero."""
    size = zoo.config_of(model).size
    large = size * 286 // 256
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(Resize((large, large), interpolation="bicubic"), CropPair((size, size)), FlipPair()),
        batch=1,
        epochs=200,
        optim={side: Optim("adam", lr=2e-4, weight_decay=0.0, betas=(0.5, 0.999)) for side in ("g", "d")},
        schedules=(Schedule("linear", hold=0.5),),
        note="the defaults of the authors' PyTorch repository; not run here",
    )
