"""Recipes for deep layer aggregation."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the others."""
    return tiny(model, data) if model == "dla/tiny" else imagenet(model)


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
        steps=900,
        optim={"all": Optim("adamw", lr=4e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=300,
        workers=1,
        note="two minutes on two cores",
    )


def imagenet(model: str) -> Recipe:
    """Section 5.1: 120 epochs of SGD on random crops."""
    return Recipe(
        model,
        "",
        transforms=(RandomResizedCrop((224, 224)), Flip()),
        batch=256,
        epochs=120,
        optim={"all": Optim("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)},
        schedules=(Schedule("step", milestones=(0.25, 0.5, 0.75)),),
        workers=8,
        note="Yu et al. 2018, section 5.1: 120 epochs of batch 256, learning rate 0.1, divided by 10 every 30 epochs; not run here",
    )
