"""Recipes for EfficientNet."""

from __future__ import annotations

from typing import cast

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.policy import RandAugment

EPOCHS = 350
# ImageNet top-1 in %: Tan and Le 2019, table 2
PUBLISHED = {"b0": 77.1, "b1": 79.1, "b2": 80.1, "b3": 81.6, "b4": 82.9, "b5": 83.6, "b6": 84.0, "b7": 84.3}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the others."""
    return tiny(model, data) if model == "efficientnet/tiny" else imagenet(model)


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
        steps=600,
        optim={"all": Optim("adamw", lr=4e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=300,
        workers=1,
        note="two minutes on two cores",
    )


def imagenet(model: str) -> Recipe:
    """The authors' training (section 5.2 and tensorflow/tpu) with SGD in place of RMSProp, which this trainer does not have."""
    variant = model.partition("/")[2].removeprefix("tf_")
    side = cast(int, zoo.config_of(model).size)
    figure = f"top-1 {PUBLISHED[variant]:.1f} %" if variant in PUBLISHED else "no figure for this variant"
    decays = tuple(2.4 * i / EPOCHS for i in range(1, int(EPOCHS / 2.4) + 1))
    return Recipe(
        model,
        "",
        options={"smoothing": 0.1},
        transforms=(RandomResizedCrop((side, side), interpolation="bicubic"), Flip(), RandAugment(2, 9)),
        batch=2048,
        accumulate=8,
        epochs=EPOCHS,
        optim={"all": Optim("sgd", lr=0.8, momentum=0.9, weight_decay=1e-5)},
        schedules=(Schedule("step", warmup=5 / EPOCHS, milestones=decays, gamma=0.97),),
        average=0.9999,
        workers=8,
        note="Tan and Le 2019, section 5.2, and tensorflow/tpu models/official/efficientnet: 350 epochs, batch 2048, 5 epochs of "
        "warm-up, learning rate times 0.97 every 2.4 epochs, weight decay 1e-5, smoothing 0.1, stochastic depth 0.2, average 0.9999; "
        "SGD 0.8 and RandAugment stand in for RMSProp 0.128 and AutoAugment, so that the published figure is not claimed for these "
        f"settings: {figure} (table 2); not run here",
    )
