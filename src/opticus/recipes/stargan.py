"""Recipes for StarGAN."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Red, green and blue digits for "tiny"; the authors' training for the others."""
    return small(model) if model.endswith("/tiny") else published(model)


def small(model: str) -> Recipe:
    """32x32 pictures, three discriminator steps to one of the generator."""
    rule = Optim("adam", lr=5e-4, weight_decay=0.0, betas=(0.5, 0.999))
    return Recipe(
        model,
        "tints",
        options={"width": 16, "depth": 4, "critics": 3},
        transforms=(Resize((32, 32)),),
        batch=16,
        steps=1200,
        optim={"d": rule, "g": rule},
        schedules=(Schedule("linear", start=1.0, end=0.05),),
        average=0.98,
        workers=1,
        evaluate_every=0,
        note="minutes on one core; what the answers should be is known and never shown in training",
    )


def published(model: str) -> Recipe:
    """The authors': 200,000 steps of 16 pictures, Adam with betas 0.5 and 0.999, 1e-4 that falls to zero over the second half."""
    rule = Optim("adam", lr=1e-4, weight_decay=0.0, betas=(0.5, 0.999))
    size = 256 if model.endswith("256") else 128
    return Recipe(
        model,
        "",
        options={"attributes": "celeba" in model, "width": 64, "depth": 6, "critics": 5},
        transforms=(Flip(), Resize((size, size), "fixed")),
        batch=16,
        steps=200_000,
        optim={"d": rule, "g": rule},
        schedules=(Schedule("linear", end=0.0),),
        evaluate_every=0,
        workers=1,
        note="Choi et al. 2018, section 5.1 and the authors' main.py: faces cropped to 178x178 first, the rate constant over the "
        "first 100,000 steps (here it falls from the start); a ResNet-18 errs on 2.12 % of the expressions made from RaFD (table 3); "
        "not run here",
    )
