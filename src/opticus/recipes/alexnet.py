"""Recipes for AlexNet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Crop, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the others."""
    return {"alexnet/tiny": tiny, "alexnet/2012": krizhevsky}.get(model, torchvision)(model, data)


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
        steps=1000,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=300,
        workers=1,
        note="two minutes on two cores",
    )


def krizhevsky(model: str, data: Dataset) -> Recipe:
    """Section 5: patches of 256x256 pictures, mirrored or not; the learning rate is divided by 10 three times."""
    return Recipe(
        model,
        "",
        transforms=(Resize((256, 256), antialias=False), Crop((227, 227)), Flip()),
        batch=128,
        epochs=90,
        optim={"all": Optim("sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)},
        schedules=(Schedule("step", milestones=(0.25, 0.5, 0.75)),),
        workers=8,
        note="Krizhevsky et al. 2012, section 5: about 90 cycles, batch 128, SGD 0.01 with momentum 0.9, weight decay 5e-4, divided by 10 "
        "whenever the validation error stopped falling (here after each quarter); their lighting noise is left out, as in BVLC Caffe. "
        "Published: top-1 error 40.7 %, top-5 18.2 % on the validation set (table 2, one network, ten crops); BVLC Caffe's replica: "
        "top-1 57.1 %, top-5 80.2 % (its readme, centre crop); not run here",
    )


def torchvision(model: str, data: Dataset) -> Recipe:
    """torchvision's own training of its file: the recipe of its residual networks with a tenth of their learning rate."""
    return Recipe(
        model,
        "",
        transforms=(RandomResizedCrop((224, 224)), Flip()),
        batch=256,
        epochs=90,
        optim={"all": Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, decay_vectors=True)},
        schedules=(Schedule("step", milestones=(1 / 3, 2 / 3)),),
        workers=8,
        note="ImageNet, torchvision references/classification (AlexNet and VGG): 90 epochs, batch 256 (8 x 32), SGD 0.01 divided by 10 every "
        "30 epochs, weight decay 1e-4; published: top-1 56.52 %, top-5 79.07 % (meta data of torchvision 0.29 `models.alexnet`); "
        "not run here",
    )
