"""Recipes for EfficientDet."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize

# COCO val2017 AP of the authors' weights as effdet's README states it; the last two are effdet's own runs
PUBLISHED = {
    "efficientdet/d0": 34.2,
    "efficientdet/d1": 40.1,
    "efficientdet/d2": 43.4,
    "efficientdet/d3": 47.1,
    "efficientdet/d4": 49.2,
    "efficientdet/d5": 51.2,
    "efficientdet/d6": 52.0,
    "efficientdet/d7": 53.1,
    "efficientdet/d7x": 54.3,
    "efficientdet/torch_d0": 33.6,
    "efficientdet/torch_d1": 39.4,
}
SIDES = {"d0": 512, "d1": 640, "d2": 768, "d3": 896, "d4": 1024, "d5": 1280, "d6": 1280, "d7": 1536, "d7x": 1536}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    return tiny(model) if model == "efficientdet/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """2,500 steps of batch 16 on 128x128 pictures, from a backbone that knows digits, as the authors' knows ImageNet.

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
        steps=2500,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=1250,
        save_every=500,
        workers=1,
        # in batches of 16 the published weight of 50 lets boxes drown classes for hundreds of steps
        options={"box_weight": 20.0},
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
    """The authors' settings, for 300 epochs: SGD, linear warm-up, cosine, average of 0.9998, pictures scaled 0.1 to 2.

    D7 was trained for longer; the settings do not say how long.
    """
    variant = model.partition("/")[2].removeprefix("torch_")
    side, epochs = SIDES[variant], 300
    return Recipe(
        model,
        "",
        transforms=(
            Flip(),
            Resize((side, side), "letterbox", fill=114),
            Affine(translate=(0.25, 0.25), scale=(0.1, 2.0), fill=114),
        ),
        batch=128,
        epochs=epochs,
        optim={"all": Optim("sgd", lr=0.16, momentum=0.9, weight_decay=4e-5, clip=10.0)},
        schedules=(Schedule("cosine", warmup=1 / epochs, end=0.0),),
        average=0.9998,
        workers=8,
        note=f"google/automl, efficientdet/hparams_config.py: {epochs} epochs of COCO, batch 128, SGD 0.16 (0.08 per 64) after a linear epoch, "
        f"cosine, weight decay 4e-5, average 0.9998, from an ImageNet backbone; published AP {PUBLISHED[model]:.1f} (effdet's README); not run here",
    )
