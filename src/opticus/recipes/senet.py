"""Recipes for SENet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize

# ImageNet top-1 error in % (224 pixels): README of github.com/hujie-frank/SENet, trained longer than for the paper
AUTHORS = {"50": 22.37, "101": 21.75, "152": 21.34, "resnext50_32x4d": 20.97, "resnext101_32x4d": 19.81, "154": 18.68}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the others."""
    return tiny(model, data) if model == "senet/tiny" else imagenet(model)


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
    """Section 5 of the paper."""
    variant = model.partition("/")[2].removeprefix("caffe_")
    published = (
        f"top-1 error {AUTHORS[variant]:.2f} % (the authors' repository, trained longer)" if variant in AUTHORS else "no figure"
    )
    return Recipe(
        model,
        "",
        transforms=(RandomResizedCrop((224, 224)), Flip()),
        batch=1024,
        accumulate=4,
        epochs=100,
        optim={"all": Optim("sgd", lr=0.6, momentum=0.9, weight_decay=1e-4, decay_vectors=True)},
        schedules=(Schedule("step", milestones=(0.3, 0.6, 0.9)),),
        workers=8,
        note="ImageNet, Hu et al. 2018, section 5: batch 1024, SGD 0.6 divided by 10 every 30 of 100 epochs, random resized crops and flips; "
        f"weight decay 1e-4 as for ResNet (the paper prints none); published: {published}; not run here",
    )
