"""Recipes for ResNet, ResNeXt and wide ResNet."""

from __future__ import annotations

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Crop, Flip, Pad, RandomResizedCrop, Resize

# ImageNet top-1 in % of the files that torchvision trained with `imagenet`'s settings (meta data of torchvision 0.29 `models.resnet`)
PUBLISHED = {
    "resnet/18": 69.758,
    "resnet/34": 73.314,
    "resnet/50": 76.130,
    "resnet/101": 77.374,
    "resnet/152": 78.312,
    "resnet/resnext50_32x4d": 77.618,
    "resnet/resnext101_32x8d": 79.312,
    "resnet/wide50_2": 78.468,
    "resnet/wide101_2": 78.848,
}

# CIFAR-10 test error in %: table 6 of the paper (110 layers: the best of five runs)
PAPER = {"resnet/20": 8.75, "resnet/32": 7.51, "resnet/44": 7.17, "resnet/56": 6.97, "resnet/110": 6.43}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", CIFAR for the small networks of section 4.2 (digits for them too), ImageNet for the others."""
    if zoo.config_of(model).stem == "imagenet":
        return imagenet(model)
    return tiny(model, data) if model == "resnet/tiny" or set(data.names) <= set("0123456789") else cifar(model)


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
        note="two minutes and a half on two cores",
    )


def cifar(model: str) -> Recipe:
    """Section 4.2: pictures padded by 4 pixels, cropped to 32x32 and mirrored at random."""
    deep = model == "resnet/110"
    published = f"error {PAPER[model]:.2f} %" if model in PAPER else "no figure is printed for this network"
    return Recipe(
        model,
        "",
        transforms=(Resize((32, 32)), Pad(4, 4, 4, 4), Crop((32, 32)), Flip()),
        batch=128,
        steps=64_000,
        optim={"all": Optim("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_vectors=True)},
        schedules=(Schedule("step", warmup=400 / 64_000 if deep else 0.0, milestones=(0.5, 0.75)),),
        workers=8,
        note="CIFAR-10, He et al. 2016, section 4.2: batch 128, SGD 0.1 divided by 10 at 32,000 and 48,000 of 64,000 steps, weight decay "
        f"1e-4{', 400 steps of warm-up (0.01 in the paper)' if deep else ''}; published (table 6): {published}; not run here",
    )


def imagenet(model: str) -> Recipe:
    """torchvision's first recipe, which is the paper's with random resized crops and a fixed schedule."""
    epochs = 100 if "resnext" in model else 90
    published = f"top-1 {PUBLISHED[model]:.2f} %" if model in PUBLISHED else "no figure is published for these settings"
    return Recipe(
        model,
        "",
        transforms=(RandomResizedCrop((224, 224)), Flip()),
        batch=256,
        epochs=epochs,
        optim={"all": Optim("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_vectors=True)},
        schedules=(Schedule("step", milestones=(30 / epochs, 60 / epochs, 90 / epochs)[: 2 + (epochs > 90)]),),
        workers=8,
        note=f"ImageNet, torchvision references/classification: {epochs} epochs, batch 256 (8 x 32), SGD 0.1 divided by 10 every 30 "
        f"epochs, weight decay 1e-4; published: {published} (He et al. 2016, section 3.4, divide 'when the error plateaus' and make "
        "up to 600,000 steps); not run here",
    )
