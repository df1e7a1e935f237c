"""Recipes for denoising diffusion models: small pictures of digits, and the paper's CIFAR-10 and 256x256 runs."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for the "tiny" variants; the paper's runs for the others."""
    channels = data[0].picture.pixels.shape[2]
    changes: dict[str, Any] = {"channels": channels}
    if zoo.config_of(model).classes and data.names:
        changes["classes"] = len(data.names)
    return small(model, changes) if "/tiny" in model else published(model, changes)


def small(model: str, changes: dict[str, Any]) -> Recipe:
    """Digits, slightly turned, scaled and shifted; they have a handedness, so nothing is flipped."""
    grey, side = changes["channels"] == 1, zoo.config_of(model).size
    turned = (Affine(degrees=6, translate=(0.02, 0.02), scale=(0.95, 1.05), fill=0),) if grey else ()
    return Recipe(
        model,
        "digits" if grey else "textures",
        changes=changes,
        transforms=(*turned, Resize((side, side))),
        batch=64,
        steps=1500,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99), clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.02),),
        average=0.995,
        evaluate_every=0,
        precision="bf16",
        workers=1,
        note="about ten minutes on one core of a machine that works for others too; samples in 50 steps of DDIM",
    )


def published(model: str, changes: dict[str, Any]) -> Recipe:
    """The runs of appendix B."""
    cifar = model.endswith("/cifar10")
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(Flip(),),
        batch=128 if cifar else 64,
        steps=800_000 if cifar else 500_000,
        optim={"all": Optim("adam", lr=2e-4 if cifar else 2e-5, weight_decay=0.0, clip=1.0)},
        schedules=(Schedule("constant", warmup=5000 / 800_000 if cifar else 0.01),),
        average=0.9999,
        evaluate_every=10_000,
        workers=8,
        note="Ho et al. 2020, appendix B: 800,000 steps of 128 pictures at 2e-4 on CIFAR-10 (FID 3.17, table 1), 500,000 of 64 at 2e-5 on "
        "CelebA-HQ 256x256; dropout 0.1 on CIFAR-10 only, average 0.9999; not run here",
    )
