"""Recipes for R-FCN."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Flip, RandomResizedCrop, Resize

PUBLISHED = {"rfcn/r50": 77.4, "rfcn/r101": 79.5}  # VOC 2007 test mAP at IoU 0.5, README.md of daijifeng001/R-FCN


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", Pascal VOC for the others."""
    return tiny(model) if model == "rfcn/tiny" else voc(model)


def tiny(model: str) -> Recipe:
    """1,200 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped.

    Scenes hold few photographs, so any hue may turn into any other; crops are mild because small digits are the hard ones.
    """
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=114),  # as the network's own `prepare` frames pictures that are not square
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=1200,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=600,
        save_every=600,
        workers=1,
        note="minutes on two cores",
    )


def voc(model: str) -> Recipe:
    """The authors' 110,000 steps on Pascal VOC, hard examples mined; the first two stages of the backbone stay as ImageNet left them."""
    return Recipe(
        model,
        "",
        transforms=(Flip(), Resize((600, 1000), "shortest")),
        batch=2,
        steps=110_000,
        optim={
            "all": Optim(
                "sgd",
                lr=0.001,
                momentum=0.9,
                weight_decay=5e-4,
                groups=(Group(r"backbone\.(conv1|bn1|layer1|layer2)\.", frozen=True),),
            )
        },
        schedules=(Schedule("step", milestones=(80 / 110,)),),
        options={"hard": True},
        workers=4,
        note="daijifeng001/R-FCN: VOC 07+12 trainval, two pictures a step, learning rate 0.001, divided by 10 after 80,000 of 110,000 steps "
        "(name of the solver file), hard examples mined among all regions, tuned from the third stage on for ResNet-101; published mAP "
        f"on VOC 2007 test {PUBLISHED[model]:.1f}; weight decay of the paper, section 2; not run here",
    )
