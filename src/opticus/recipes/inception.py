"""Recipes for Inception v3."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the full networks."""
    return tiny(model, data) if model == "inception/tiny" else imagenet(model)


def tiny(model: str, data: Dataset) -> Recipe:
    """32x32 pictures of digits, in colour or grey: mirroring would change a digit's class and is left out, colours mean nothing."""
    grey = data[0].picture.pixels.shape[2] == 1
    return Recipe(
        model,
        "digits" if grey else "crops",
        changes={"channels": 1} if grey else {},
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=0 if grey else 114),
            ColourJitter(0.3, 0.3, 0.3, 0.3),
        ),
        batch=64,
        steps=800,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        precision="bf16",
        average=0.98,
        evaluate_every=400,
        workers=1,
        note="two minutes on two cores",
    )


def imagenet(model: str) -> Recipe:
    """The paper's RMSProp has no counterpart here: momentum with torchvision's learning rate stands for it."""
    return Recipe(
        model,
        "",
        options={"smoothing": 0.1},
        transforms=(RandomResizedCrop((299, 299)), Flip(), ColourJitter(0.4, 0.4, 0.4)),
        batch=1600,
        epochs=100,
        optim={"all": Optim("sgd", lr=0.45, momentum=0.9, weight_decay=4e-5, clip=2.0)},
        schedules=(Schedule("step", milestones=tuple(i * 2 / 100 for i in range(1, 50)), gamma=0.94),),
        average=0.9999,
        workers=8,
        note="Szegedy et al. 2016, section 8: batches of 32 on 50 machines, 100 epochs, learning rate 0.045 times 0.94 every second "
        "epoch, gradients clipped at 2, averaged weights, label smoothing 0.1; published: top-1 error 21.2 % (table 4, one crop); "
        "momentum in place of RMSProp; not run here",
    )
