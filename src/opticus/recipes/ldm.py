"""Recipes for latent diffusion: digits in an autoencoder that is trained first, or in their pixels, and the paper's ImageNet run."""

from __future__ import annotations

from typing import Any

from opticus import zoo
from opticus.recipes import kl
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Crop, Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for the "tiny" variants, the paper's class-conditional run for the others."""
    config = zoo.config_of(model)
    changes: dict[str, Any] = {"classes": len(data.names)} if config.classes and data.names else {}
    if "/tiny" not in model:
        return published(model, changes)
    return small(model, changes, data[0].picture.pixels.shape[2], latent=config.autoencoder is not None)


def small(model: str, changes: dict[str, Any], channels: int, *, latent: bool) -> Recipe:
    """Digits in a code of 4x4 numbers; the autoencoder is trained first. Or in their pixels."""
    return Recipe(
        model,
        "digits",
        changes=changes,
        pretrain={"autoencoder": kl.small("kl/tiny", channels)} if latent else {},
        transforms=(Affine(degrees=6, translate=(0.02, 0.02), scale=(0.95, 1.05), fill=0), Resize((16, 16))),
        batch=64,
        steps=2000 if latent else 1000,
        optim={"all": Optim("adamw", lr=1e-3 if latent else 2e-3, weight_decay=0.0, betas=(0.9, 0.99), clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.02),),
        average=0.995,
        evaluate_every=0,
        precision="bf16",
        workers=1,
        note="minutes on one core, after two to three for the autoencoder; not run to its end here",
    )


def published(model: str, changes: dict[str, Any]) -> Recipe:
    """The class-conditional model of ImageNet at 256x256."""
    return Recipe(
        model,
        "",
        changes=changes,
        transforms=(Resize((256, 256)), Crop((256, 256)), Flip()),
        batch=1200,
        steps=178_000,
        optim={"all": Optim("adamw", lr=1e-4, weight_decay=0.01)},
        schedules=(Schedule("constant"),),
        average=0.9999,
        evaluate_every=10_000,
        workers=8,
        note="Rombach et al. 2022, class-conditional ImageNet: README of CompVis/latent-diffusion reports FID 3.6 with classifier-free "
        "guidance for cin256; 178,000 steps of batch 1200 (the paper's appendix); the text models of Stable Diffusion need a text "
        "encoder and its data; not run here",
    )
