"""Recipes for VGG."""

from __future__ import annotations

from opticus.models.backbones.vgg_weights import WEIGHTS
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the others."""
    return tiny(model, data) if model == "vgg/tiny" else imagenet(model)


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
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=300,
        workers=1,
        note="two minutes on two cores",
    )


def imagenet(model: str) -> Recipe:
    """torchvision's training of its files: the recipe of its residual networks with a tenth of their learning rate."""
    row = WEIGHTS[f"{model.partition('/')[2]}:imagenet1k_v1"]
    top1, top5 = row.reports.values()
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
        f"30 epochs, weight decay 1e-4; published: top-1 {top1:.2f} %, top-5 {top5:.2f} % (meta data of torchvision 0.29 `models.vgg`); "
        "Simonyan and Zisserman (section 3.1): the same with weight decay 5e-4, divided three times in 74 epochs, training pictures "
        "rescaled to a shorter side of 256 to 512; top-1 error 24.4 % for D (table 5, multi-crop and dense); not run here",
    )
