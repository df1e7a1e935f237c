"""Recipes for VQGAN and the quantising first stages of latent diffusion."""

from __future__ import annotations

from typing import Any

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Crop, Resize

# rFID on the validation set, training steps (None = not published), the configs' batch for one GPU, step and weight of the
# discriminator and its layers: README and configs of CompVis/taming-transformers (f16-*: ImageNet; the config of 16384 codes is not
# among them and taken to be that of 1024) and of CompVis/latent-diffusion
REPORTED = {
    "f16-1024": (7.94, None, 12, 250_001, 0.8, 3),
    "f16-16384": (4.98, None, 12, 250_001, 0.8, 3),
    "vq-f4": (0.58, 533_066, 8, 0, 0.75, 3),
    "vq-f4-noattn": (1.06, 658_131, 8, 11, 0.75, 3),
    "vq-f8": (1.14, 971_043, 10, 1, 0.6, 2),
    "vq-f8-n256": (1.49, 1_608_649, 10, 250_001, 0.75, 3),
    "vq-f16": (5.15, 1_101_166, 14, 250_001, 0.75, 2),
}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet or OpenImages as published for the others."""
    return small(model, data[0].picture.pixels.shape[2]) if model.endswith("/tiny") else published(model)


def small(model: str, channels: int) -> Recipe:
    """Grey pictures of 16 pixels a side in 16 codes of 6 bits, colour ones of 32 in 64 codes of 9: one for four pixels a side.

    Reconstruction alone: a discriminator (options `start`, `weight`, `layers=2`) makes pictures sharper and their error larger.
    """
    grey = channels == 1
    changes: dict[str, Any] = {} if grey else {"size": 32, "channels": 3, "codes": 512}
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


def published(model: str) -> Recipe:
    """The authors' training: crops of 256 pixels, Adam with betas 0.5 and 0.9, learning rate 4.5e-6 x batch.

    Their distance includes LPIPS: `objective(network, perceptual=LPIPS(vgg, "published"))`.
    """
    fid, steps, batch, start, weight, layers = REPORTED[model.partition("/")[2]]
    adam = Optim("adam", lr=4.5e-6 * batch, weight_decay=0.0, betas=(0.5, 0.9))
    where, side = ("ImageNet", 256) if "/f16-" in model else ("OpenImages", 384)
    return Recipe(
        model,
        "",
        changes={"size": 256},
        options={"penalty": 1.0, "start": start, "weight": weight, "layers": layers},
        transforms=(Resize((side, 0), "shortest"), Crop((256, 256))),
        batch=batch,
        steps=steps or 1_000_000,
        optim={"g": adam, "d": adam},
        schedules=(Schedule("constant"),),
        workers=8,
        note=f"published: rFID {fid} on {where}'s validation set, with LPIPS in the loss"
        + ("" if steps else "; how many steps it took is not published")
        + "; not run here",
    )
