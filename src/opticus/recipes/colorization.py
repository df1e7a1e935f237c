"""Recipes for colourisation, and the frequencies of colours that rebalancing needs."""

from __future__ import annotations

from typing import Any

import torch

from opticus import zoo
from opticus.models.generative.colorization import encoded, nearest_bins
from opticus.ops.lab import to_lab
from opticus.structures import Dataset, Picture
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.pairs import CropPair, FlipPair

LOOKED_AT = 256  # pictures whose colours are counted


def default(model: str, data: Dataset) -> Recipe:
    """Patches of photographs for "tiny"; the paper's training for the others."""
    return small(model, data) if model.endswith("/tiny") else published(model)


def prior(data: Dataset, bins: int) -> tuple[float, ...]:
    """The share of the colours of pictures spread over the data (their targets, where those are pictures) in each bin."""
    total, centres = torch.zeros(bins), nearest_bins(bins)
    count = min(len(data), LOOKED_AT)
    for i in range(count):
        sample = data[i * len(data) // count]
        seen = sample.target if isinstance(sample.target, Picture) else sample.picture
        lab = to_lab(seen.pixels[::4, ::4].expand(-1, -1, 3).permute(2, 0, 1)[None].float() / 255)
        shares, places = encoded(lab[0, 1:].flatten(1).T.contiguous(), centres)
        total.index_add_(0, places.flatten(), shares.flatten())
    return tuple(round(value, 7) for value in (total / total.sum()).tolist())


def small(model: str, data: Dataset, loss: str = "classes") -> Recipe:
    """32x32 crops of photograph patches; `loss` is "classes" (the paper's), "squared" or "adversarial"."""
    options: dict[str, Any] = {"loss": loss}
    if loss == "classes":
        options["prior"] = prior(data, zoo.config_of(model).bins)
    rule = Optim("adam", lr=1e-3, weight_decay=0.0, clip=1.0)
    slow = Optim("adam", lr=2e-4, weight_decay=0.0, betas=(0.5, 0.999))
    return Recipe(
        model,
        "grey:patches",
        options=options,
        transforms=(CropPair((32, 32)), FlipPair()),
        batch=16,
        steps=600,
        optim={"d": slow, "g": rule} if loss == "adversarial" else {"all": rule},
        schedules=(Schedule("cosine", warmup=0.05, end=0.05),),
        average=0.99,
        workers=1,
        evaluate_every=0,
        note="minutes on one core; five photographs teach no colours of things: what is compared is how colourful the answers are",
    )


def ambiguous(model: str, loss: str, steps: int = 400) -> Recipe:
    """Digits whose colour their grey picture does not tell: "squared" answers the mean, which is grey, "adversarial" a colour."""
    rule = Optim("adam", lr=1e-3, weight_decay=0.0, clip=1.0)
    quick = Optim("adam", lr=2e-3, weight_decay=0.0, betas=(0.5, 0.999))
    slow = Optim("adam", lr=1e-3, weight_decay=0.0, betas=(0.5, 0.999))
    return Recipe(
        model,
        "grey:tints-equal",
        options={"loss": loss},
        batch=16,
        steps=steps,
        optim={"d": quick, "g": slow} if loss == "adversarial" else {"all": rule},
        schedules=(Schedule("cosine", warmup=0.05, end=0.05),),
        average=0.95,
        workers=1,
        evaluate_every=0,
        note="minutes on one core; what is compared is the chroma of the answers with that of the digits",
    )


def published(model: str) -> Recipe:
    """The paper's: ImageNet, Adam with betas 0.9 and 0.99, 3.16e-5 falling to 1e-5 and 3.16e-6 on plateaus."""
    return Recipe(
        model,
        "",
        transforms=(),
        batch=40,
        steps=450_000,
        optim={"all": Optim("adam", lr=3.16e-5, weight_decay=1e-3, betas=(0.9, 0.99), decay_vectors=True)},
        schedules=(Schedule("step", milestones=(200 / 450, 375 / 450), gamma=0.316),),
        evaluate_every=0,
        workers=8,
        note="Zhang et al. 2016, section 3: about 450,000 steps on 1.3 million pictures with lambda 1/2, T 0.38; people took the "
        "answers for real in 32 % of the trials (a random answer: 13 %, eq. 1: 21 %; table 1); not run here",
    )
