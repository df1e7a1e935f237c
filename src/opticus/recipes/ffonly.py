"""Recipes for the stack of feed-forward layers (Do You Even Need Attention?)."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter, Erase
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.mixing import CutMix, MixUp
from opticus.transforms.policy import RandAugment

# ImageNet top-1 in %: README of lukemelas/do-you-even-need-attention
PUBLISHED = {"ffonly/ti16": 61.4, "ffonly/b16": 74.9, "ffonly/l32": 71.4}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded data for "tiny", the author's ImageNet settings for the others."""
    return tiny(model, data) if model == "ffonly/tiny" else imagenet(model)


def tiny(model: str, data: Dataset) -> Recipe:
    """32x32 pictures of digits, in colour or grey: mirroring would change a digit's class and is left out."""
    grey = data[0].picture.pixels.shape[2] == 1
    return Recipe(
        model,
        "digits" if grey else "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=0 if grey else 114),
            ColourJitter(0.3, 0.3, 0.3),
        ),
        batch=64,
        steps=1600,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=400,
        workers=1,
        note="two minutes and a half on one core",
    )


def imagenet(model: str) -> Recipe:
    """DeiT's training script with the settings of the author's README; DeiT repeats every picture three times in a batch."""
    before = (RandomResizedCrop((224, 224), interpolation="bicubic"), Flip(), RandAugment(2, 9), Erase(0.25))
    return Recipe(
        model,
        "",
        changes={"dropout": 0.1, "drop_path": 0.1},
        options={"smoothing": 0.1},
        transforms=(*before, MixUp(0.8, p=0.5, before=before), CutMix(1.0, p=0.5, before=before)),
        batch=1024,
        epochs=300,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05)},
        schedules=(Schedule("cosine", warmup=5 / 300, end=1e-2),),
        workers=8,
        note="lukemelas/do-you-even-need-attention README: the training script of facebookresearch/deit (300 epochs, AdamW 5e-4 x batch "
        "/ 512, weight decay 0.05, 5 epochs of warm-up, RandAugment, mix-up 0.8, CutMix 1.0, erasing 0.25, stochastic depth 0.1) with "
        f"batch 1024 (8 x 128) and dropout 0.1; published: top-1 {PUBLISHED[model]:.1f} %; not run here",
    )
