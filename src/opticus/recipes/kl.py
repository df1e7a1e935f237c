"""Recipes for the KL autoencoder of latent diffusion."""

from __future__ import annotations

from typing import Any

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Crop, Resize

# rFID, PSNR in dB, training steps and the configs' batch for one GPU: README and models/first_stage_models of CompVis/latent-diffusion
REPORTED = {
    "f4": (0.27, 27.53, 176_991, 10),
    "f8": (0.90, 24.19, 246_803, 4),
    "f16": (0.87, 24.08, 442_998, 6),
    "f32": (2.04, 22.27, 406_763, 6),
}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; OpenImages as published for the others."""
    return small(model, data[0].picture.pixels.shape[2]) if model.endswith("/tiny") else openimages(model)


def small(model: str, channels: int) -> Recipe:
    """Grey pictures of 16 pixels a side in 16 numbers, colour ones of 32 in 192: four pixels a side to a place of the code.

    In these minutes colour patches stay below PCA of as many numbers; grey ones pass it after 300 steps.
    Reconstruction alone: a discriminator (options `start`, `weight`, `layers=2`) makes pictures sharper and their error larger.
    """
    grey = channels == 1
    changes: dict[str, Any] = {} if grey else {"size": 32, "channels": 3, "latent": 3}
    steps = 1000 if grey else 900
    return Recipe(
        model,
        "digits" if grey else "textures",
        changes=changes,
        options={"start": steps, "layers": 2, "filters": 16},
        transforms=(Affine(degrees=6, translate=(0.03, 0.03), scale=(0.93, 1.07), fill=0), Resize((16, 16))) if grey else (),
        batch=64 if grey else 32,
        steps=steps,
        optim={"g": Optim("adamw", lr=4e-3, weight_decay=0.0, betas=(0.9, 0.95), clip=1.0), "d": Optim("adam", lr=4e-4)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.02),),
        precision="bf16",
        evaluate_every=steps // 2,
        workers=1,
        note="two to three minutes on one core",
    )


def openimages(model: str) -> Recipe:
    """The authors' training: crops of 256 pixels of pictures of 384, Adam with betas 0.5 and 0.9, learning rate 4.5e-6 x batch.

    Their distance includes LPIPS: `objective(network, perceptual=LPIPS(vgg, "published"))`; the discriminator joins at step 50,001.
    """
    known = REPORTED.get(model.partition("/")[2])
    batch = known[3] if known else 4
    adam = Optim("adam", lr=4.5e-6 * batch, weight_decay=0.0, betas=(0.5, 0.9))
    found = (
        f"published: rFID {known[0]} and {known[1]} dB PSNR on OpenImages' validation set" if known else "no figure is published"
    )
    return Recipe(
        model,
        "",
        changes={"size": 256},
        options={"penalty": 1e-6, "start": 50_001, "weight": 0.5},
        transforms=(Resize((384, 0), "shortest"), Crop((256, 256))),
        batch=batch,
        steps=known[2] if known else 246_803,
        optim={"g": adam, "d": adam},
        schedules=(Schedule("constant"),),
        workers=8,
        note=f"{found}, with LPIPS in the loss; not run here",
    )
