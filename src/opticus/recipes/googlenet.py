"""Recipes for GoogLeNet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the full network."""
    return tiny(model, data) if model == "googlenet/tiny" else imagenet(model)


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
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=300,
        workers=1,
        note="two minutes on two cores",
    )


def imagenet(model: str) -> Recipe:
    """The paper's data, momentum and averaging; its learning rate at the start is not stated."""
    return Recipe(
        model,
        "",
        transforms=(RandomResizedCrop((224, 224)), Flip(), ColourJitter(0.4, 0.4, 0.4)),
        batch=256,
        epochs=250,
        optim={"all": Optim("sgd", lr=0.01, momentum=0.9, weight_decay=2e-4)},
        schedules=(Schedule("step", milestones=tuple(i * 8 / 250 for i in range(1, 32)), gamma=0.96),),
        average=0.9999,
        workers=8,
        note="Szegedy et al. 2015, section 6: SGD with momentum 0.9, learning rate 4 % lower every 8 epochs, averaged weights, patches of "
        "8 to 100 % of the area with sides 3:4 to 4:3, photometric distortions; published: top-5 error 10.07 % (table 3, one network, one "
        "crop). Its first learning rate is not stated: 0.01, weight decay 2e-4 and 250 epochs are BVLC Caffe's (models/bvlc_googlenet, whose "
        "quick schedule of 60 epochs gave top-1 68.7 %, top-5 88.9 %); published for torchvision's file: top-1 69.78 %, top-5 89.53 %; "
        "not run here",
    )
