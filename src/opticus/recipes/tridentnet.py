"""Recipes for TridentNet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize

PUBLISHED = {"tridentnet/r50-fast": 37.9}  # COCO val2017 AP, "TridentFast R50-C4 1X", detectron2 projects/TridentNet/README.md


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    return tiny(model) if model == "tridentnet/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """1,500 steps of batch 16 on 128x128 pictures, from a backbone that knows digits, as the authors' knows ImageNet.

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
        steps=1000,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=0,
        workers=1,
        note="about a minute and a half on two cores",
    )


def coco(model: str) -> Recipe:
    """90,000 steps of batch 16; the stem and first stage of the backbone stay as ImageNet left them."""
    published = f"AP {PUBLISHED[model]:.1f}" if model in PUBLISHED else "no figure for this form and length of training"
    return Recipe(
        model,
        "",
        transforms=(Flip(), Resize((800, 1333), "shortest")),
        batch=16,
        steps=90_000,
        optim={
            "all": Optim(
                "sgd", lr=0.02, momentum=0.9, weight_decay=1e-4, groups=(Group(r"backbone\.(conv1|bn1|layer1)\.", frozen=True),)
            )
        },
        schedules=(Schedule("step", milestones=(60 / 90, 80 / 90), warmup=1000 / 90_000),),
        workers=8,
        note="detectron2, projects/TridentNet/configs/Base-TridentNet-Fast-C4.yaml: 90k steps of batch 16, learning rate 0.02, divided by 10 "
        "after 60k and 80k; there the shorter side is drawn from 640 to 800, here it is 800; the README publishes "
        f"{published}; not run here",
    )
