"""Recipes for the autoencoder: plain, denoising, sparse, and two decoders on one encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Resize

REPORTED = "no figure in print: the notebook's test errors are in a plot"


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for the tiny variants (the sparse one with an L1 penalty), the published training for the others."""
    channels = data[0].picture.pixels.shape[2]
    variant = model.partition("/")[2]
    if variant == "tiny-sparse":
        return sparse(model, channels)
    if variant.startswith("tiny"):
        return small(model, channels)
    return published(model, channels)


def small(model: str = "autoencoder/tiny", channels: int = 1, **options: Any) -> Recipe:
    """Small pictures, slightly turned, scaled and shifted; `options` are those of the objective."""
    side = zoo.config_of(model, {}).size
    return Recipe(
        model,
        "digits" if channels == 1 else "textures",
        changes={"channels": channels},
        options=options,
        transforms=(
            Affine(degrees=6, translate=(0.03, 0.03), scale=(0.93, 1.07), fill=0 if channels == 1 else 114),
            Resize((side, side)),
        ),
        batch=64,
        steps=2500,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.99,
        evaluate_every=500,
        workers=1,
        note="a minute and a half on one core",
    )


def denoising(
    model: str = "autoencoder/tiny", channels: int = 1, noise: Literal["gaussian", "masking"] = "gaussian", amount: float = 0.5
) -> Recipe:
    """Vincent 2008: the clean picture from a noisy one; `amount` is a deviation in [-1, 1] pixels, or the share that is masked."""
    return small(model, channels, noise=noise, amount=amount)


def sparse(
    model: str = "autoencoder/tiny-sparse", channels: int = 1, penalty: Literal["l1", "l2"] = "l1", sparsity: float = 1e-3
) -> Recipe:
    """More units than needed, most of them silent: Obj = L(x, x^) + sparsity sum_i |a_i|.

    Weight decay keeps the decoder from making up for small activations with large weights.
    """
    recipe = small(model, channels, penalty=penalty, sparsity=sparsity)
    return replace(recipe, optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.05, clip=1.0)}, note="a minute on one core")


def published(model: str, channels: int) -> Recipe:
    """CIFAR-10 as in the reference's notebook: Adam, 500 epochs of batches of 256; the learning rate falls where it was watched there."""
    return Recipe(
        model,
        "",
        changes={"channels": channels},
        batch=256,
        epochs=500,
        optim={"all": Optim("adam", lr=1e-3, weight_decay=0.0)},
        schedules=(Schedule("cosine", end=0.05),),
        workers=4,
        note="phlippe/uvadlc_notebooks tutorial 9: Adam at 1e-3, divided by five where the validation error rests, at most 500 epochs; "
        "Hinton and Salakhutdinov report a mean squared error of 3.00 on MNIST with 30 numbers (PCA 13.87) after pre-training; not run here",
    )
