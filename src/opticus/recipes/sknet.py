"""Recipes for SKNet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize

# ImageNet top-1 error in % (224 pixels): table 2 of the paper, README of github.com/implus/SKNet
PUBLISHED = {"sknet/resnext50_32x4d": 20.79, "sknet/resnext101_32x4d": 20.19}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the others."""
    return tiny(model, data) if model == "sknet/tiny" else imagenet(model)


def tiny(model: str, data: Dataset) -> Recipe:
    """32x32 pictures of digits, in colour or grey: mirroring would change a digit's class and is left out, colours mean nothing."""
    grey = data[0].picture.pixels.shape[2] == 1
    return Recipe(
        model,
        "digits" if grey else "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=0 if grey else 114),
            ColourJitter(0.3, 0.3, 0.3, 0.3),
        ),
        batch=64,
        steps=800,
        optim={"all": Optim("adamw", lr=4e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=400,
        workers=1,
        note="two minutes and a half on two cores",
    )


def imagenet(model: str) -> Recipe:
    """Section 4.1 of the paper."""
    published = f"top-1 error {PUBLISHED[model]:.2f} %" if model in PUBLISHED else "no figure for this network"
    return Recipe(
        model,
        "",
        options={"smoothing": 0.1},
        transforms=(RandomResizedCrop((224, 224)), Flip()),
        batch=256,
        epochs=100,
        optim={"all": Optim("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_vectors=True)},
        schedules=(Schedule("step", milestones=(0.3, 0.6, 0.9)),),
        workers=8,
        note="ImageNet, Li et al. 2019, section 4.1: batch 256 (8 x 32), SGD 0.1 divided by 10 every 30 of 100 epochs, weight decay 1e-4, "
        f"label smoothing 0.1; published: {published}; not run here",
    )
