"""Recipes for the autoencoder: plain, denoising, sparse, and two decoders on one encoder; a pair of domains with a known answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from opticus import zoo
from opticus.models.generative.autoencoder import Noisy
from opticus.structures import Dataset, Picture, Sample
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.draw import Draw
from opticus.transforms.geometry import Resize
from opticus.transforms.pairs import Apart, InEach

DIGITS = "digits"


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for the tiny variants (sparse and swapping ones in their own way), the published training for the others."""
    sample, variant = data[0], model.partition("/")[2]
    channels = (sample.views[0][1] if sample.views else sample).picture.pixels.shape[2]
    if variant == "tiny-sparse":
        return sparse(model, channels)
    if variant == "tiny-swap":
        return swap(model, channels, sample)
    return small(model, channels) if variant.startswith("tiny") else published(model, channels)


def small(model: str = "autoencoder/tiny", channels: int = 1, **options: Any) -> Recipe:
    """Small pictures as they are, since digits fill their frame; `options` are those of the objective."""
    side = zoo.config_of(model, {}).size
    return Recipe(
        model,
        DIGITS if channels == 1 else "textures",
        changes={"channels": channels},
        options=options,
        transforms=(Resize((side, side)),),
        batch=64,
        steps=2000,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.99,
        evaluate_every=500,
        workers=1,
        note="one to two minutes on one core",
    )


def denoising(
    model: str = "autoencoder/tiny", channels: int = 1, noise: Noisy = "gaussian", amount: float = 0.5, code: int = 64
) -> Recipe:
    """Vincent 2008: the clean picture from a noisy one; `amount` is a deviation in [-1, 1] pixels, or the share that is masked.

    The code is longer than that of `small`: what keeps the network from copying is the noise.
    """
    recipe = small(model, channels, noise=noise, amount=amount)
    return replace(recipe, changes={**recipe.changes, "code": code})


def sparse(model: str = "autoencoder/tiny-sparse", channels: int = 1, penalty: str = "l1", sparsity: float = 3e-4) -> Recipe:
    """More units than pixels need, most of them silent: Obj = L(x, x^) + sparsity sum_i |a_i|.

    Weight decay keeps the decoder from making up for small activations with large weights.
    """
    recipe = small(model, channels, penalty=penalty, sparsity=sparsity)
    return replace(recipe, steps=1000, optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.05, clip=1.0)})


# --- two decoders --------------------------------------------------------------------------------------------------------


def counterpart(pixels: Tensor) -> Tensor:
    """The same picture (H, W, C) uint8 in the other domain: strokes one pixel thicker on either side, dark on bright."""
    thick = F.max_pool2d(pixels.permute(2, 0, 1)[None].float(), 3, stride=1, padding=1)[0]
    return 255 - thick.permute(1, 2, 0).to(pixels.dtype)


@dataclass(frozen=True, slots=True)
class WithCounterpart:
    """A picture becomes a pair with its `counterpart`."""

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        return sample.with_picture(sample.picture.pixels, Picture(counterpart(sample.picture.pixels)))


def swap(model: str = "autoencoder/tiny-swap", channels: int = 1, sample: Sample | None = None) -> Recipe:
    """Two domains, an encoder for both and a decoder for each: data of two domains, pairs taken apart, or pictures and their counterparts.

    The encoder is shown pictures of any brightness, contrast and sign (face swapping augments colours to the same end): without it a
    domain's look goes into the code, and the other decoder cannot read it.
    """
    side = zoo.config_of(model, {}).size
    first: tuple[Any, ...] = () if sample is not None and sample.views else (Apart(),)
    if sample is None or not (sample.views or isinstance(sample.target, Picture)):
        first = (WithCounterpart(), Apart())
    recipe = small(model, channels, noise="tone", amount=0.5)
    return replace(
        recipe,
        transforms=(*first, InEach((Resize((side, side)),))),
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=1e-2, clip=1.0)},
        evaluate_every=0,
    )


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
        note="phlippe/uvadlc_notebooks tutorial 9: Adam at 1e-3, divided by five where the validation error rests, at most 500 epochs; its "
        "test errors are in a plot only; not run here",
    )
