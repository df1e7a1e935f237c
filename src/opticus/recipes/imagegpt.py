"""Recipes for Image GPT, and the palette of colours that is fitted to the training pictures first."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from opticus import zoo
from opticus.structures import DataError, Dataset, Prepare
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.prepare import place

LOOKED_AT, DRAWN = 512, 50_000  # pictures and pixels that the palette is fitted to


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; the published training for the others, on a palette of the data."""
    channels = data[0].picture.pixels.shape[2]
    changes: dict[str, Any] = {}
    config = zoo.config_of(model, {"channels": channels})
    if channels == 3:
        changes["palette"] = palette(data, config.colours, config.size)
    if model.endswith("/tiny"):
        return small(model, {"channels": channels, **changes}, config.size)
    return imagenet(model, {"channels": channels, **changes})


def palette(data: Dataset, colours: int, size: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    """`colours` colours in [-1, 1] by k-means on pixels of pictures spread over the data, reduced to `size` (section 3.2).

    DataError if the pictures hold fewer different colours.
    """
    from sklearn.cluster import KMeans

    rule, count = Prepare(resize="fixed", size=(size, size)), min(len(data), LOOKED_AT)
    pictures = (data[i * len(data) // count].picture.pixels for i in range(count))
    pixels = torch.cat([place(one, rule).pixels.reshape(-1, 3) for one in pictures]).numpy().astype(np.float64)
    pixels = np.random.default_rng(seed).permutation(pixels)[:DRAWN]
    if len(np.unique(pixels, axis=0)) < colours:
        raise DataError(f"imagegpt: {count} pictures hold fewer than {colours} different colours; ask for less with colours=")
    centres = cast(Any, KMeans)(colours, init="random", n_init=1, max_iter=30, random_state=seed).fit(pixels).cluster_centers_
    ordered = sorted(centres.tolist(), key=sum)
    return tuple(tuple(round(value / 127.5 - 1, 5) for value in colour) for colour in ordered)


def small(model: str, changes: dict[str, Any], size: int) -> Recipe:
    """Small pictures, slightly turned, scaled and shifted; digits have a handedness, so nothing is flipped."""
    return Recipe(
        model,
        "digits" if changes["channels"] == 1 else "crops",
        changes=changes,
        transforms=(
            Affine(degrees=6, translate=(0.03, 0.03), scale=(0.93, 1.07), fill=0 if changes["channels"] == 1 else 114),
            Resize((size, size)),
        ),
        batch=32,
        steps=900,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, betas=(0.9, 0.95), clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.98,
        evaluate_every=300,
        note="two and a half minutes on one core",
    )


def imagenet(model: str, changes: dict[str, Any]) -> Recipe:
    """The paper's pre-training on pictures of 32x32 pixels."""
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(RandomResizedCrop((32, 32)), Flip()),
        batch=128,
        steps=1_000_000,
        optim={"all": Optim("adam", lr=3e-3, weight_decay=0.0, betas=(0.9, 0.95))},
        schedules=(Schedule("cosine", warmup=0.01),),
        evaluate_every=10_000,
        workers=8,
        note="Chen et al. 2020: a million steps of 128 pictures, Adam with betas 0.9 and 0.95, warm-up and cosine, the learning rate "
        "found by search; test losses on ImageNet at 32x32 in nats a pixel: 2.0895 (S), 2.0614 (M), 2.0466 (L) (README of "
        "openai/image-gpt); not run here",
    )
