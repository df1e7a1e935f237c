"""Recipes for ConvMixer."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter, Erase
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.mixing import CutMix, MixUp
from opticus.transforms.policy import RandAugment

# ImageNet top-1 in %: the authors' README for 1536/20; their files in timm's results/results-imagenet.csv for the others
PUBLISHED = {"convmixer/1536_20": 81.37, "convmixer/768_32": 80.17, "convmixer/1024_20": 76.94}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded data for "tiny", the authors' ImageNet settings for the others."""
    return tiny(model, data) if model == "convmixer/tiny" else imagenet(model)


def tiny(model: str, data: Dataset) -> Recipe:
    """32x32 pictures of digits, in colour or grey: mirroring would change a digit's class and is left out."""
    grey = data[0].picture.pixels.shape[2] == 1
    return Recipe(
        model,
        "digits" if grey else "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=0 if grey else 114),
            ColourJitter(0.3, 0.3, 0.3, 0.0 if grey else 0.3),
        ),
        batch=64,
        steps=1000,
        optim={"all": Optim("adamw", lr=1e-2, weight_decay=0.02, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.2, end=0.005),),
        average=0.98,
        evaluate_every=250,
        workers=1,
        note="two minutes on one core",
    )


def imagenet(model: str) -> Recipe:
    """The authors' command line (README of locuslab/convmixer)."""
    epochs = 300 if model == "convmixer/768_32" else 150
    before = (RandomResizedCrop((224, 224), interpolation="bicubic"), Flip(), RandAugment(2, 9), Erase(0.25))
    return Recipe(
        model,
        "",
        transforms=(*before, MixUp(0.5, p=0.5, before=before), CutMix(0.5, p=0.5, before=before)),
        batch=640,
        accumulate=10,
        epochs=epochs,
        optim={"all": Optim("adamw", lr=1e-2, weight_decay=2e-5, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.3),),
        workers=8,
        note=f"locuslab/convmixer README: {epochs} epochs, batch 640 (10 x 64), AdamW 0.01 (epsilon 1e-3 there), gradients clipped at "
        f"norm 1, RandAugment, mix-up 0.5, CutMix 0.5, erasing 0.25, one cycle, which the authors call no more than a cosine; published: "
        f"top-1 {PUBLISHED[model]:.2f} %; not run here",
    )
