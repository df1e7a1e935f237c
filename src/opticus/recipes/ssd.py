"""Recipes for SSD."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize

PUBLISHED = {
    "ssd/300": "torchvision publishes AP 25.1 for this run; ",
    "ssd/512": "",
}  # COCO val2017, torchvision 0.28's weights enum


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    return tiny(model) if model == "ssd/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """A backbone that knows digits first, as the authors' knows ImageNet, then 1,500 steps of batch 16 on 128x128 pictures.

    Digits have a handedness, so nothing is flipped. Scenes hold few photographs, so any hue may turn into any other; crops are mild
    because small digits are the hard ones.
    """
    return Recipe(
        model,
        "scenes",
        pretrain={"backbone": backbone()},
        transforms=(
            Resize((128, 128), "letterbox", fill=114),  # as the network's own `prepare` frames pictures that are not square
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=1500,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=750,
        save_every=500,
        workers=1,
        note="minutes on two cores",
    )


def backbone() -> Recipe:
    """Digits of every size that scenes show them in, in 48x48 pictures."""
    return Recipe(
        "resnet/18",
        "crops",
        transforms=(
            Resize((48, 48)),
            Affine(degrees=10, translate=(0.1, 0.1), scale=(0.5, 1.15), fill=114),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=64,
        steps=800,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=0,
        workers=1,
        note="about a minute on two cores",
    )


def coco(model: str) -> Recipe:
    """torchvision's 120 epochs of batch 32; the first stage of the backbone stays as ImageNet left it.

    A picture is shrunk and shifted in a frame of the mean colour or a part of it is enlarged, where torchvision chooses parts by how
    much of an object they show ("zoom out" and "IoU crop" of the paper's section 2.2, data augmentation).
    """
    side = 512 if model.endswith("512") else 300
    return Recipe(
        model,
        "",
        transforms=(
            ColourJitter(0.125, 0.5, 0.5, 0.05),
            Affine(translate=(0.3, 0.3), scale=(0.25, 1.0), p=0.5, fill=117),
            RandomResizedCrop((side, side), scale=(0.3, 1.0), ratio=(0.5, 2.0), keep=0.5),
            Flip(),
        ),
        batch=32,
        epochs=120,
        optim={
            "all": Optim("sgd", lr=0.002, momentum=0.9, weight_decay=5e-4, groups=(Group(r"backbone\.trunk\.[02]\.", frozen=True),))
        },
        schedules=(Schedule("step", milestones=(80 / 120, 110 / 120), warmup=1000 / 439_800),),
        workers=8,
        note="torchvision's references/detection (README.md, presets.py): 120 epochs of COCO on eight GPUs with four pictures each, "
        "learning rate 0.002, divided by 10 after 80 and 110 epochs, weight decay 5e-4, from an ImageNet backbone; "
        f"{PUBLISHED[model]}not run here",
    )
