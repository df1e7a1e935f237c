"""Recipes for Big Transfer."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Crop, Flip, Resize
from opticus.transforms.mixing import MixUp


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", BiT-HyperRule for the others."""
    return tiny(model, data) if model == "bit/tiny" else hyper_rule(model, data)


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
        note="two minutes on one core",
    )


def hyper_rule(model: str, data: Dataset) -> Recipe:
    """BiT-HyperRule (section 2.2): resolution, length and mix-up follow from the data; start it with `weights=`."""
    height, width = data[0].picture.pixels.shape[:2]
    before, side = (160, 128) if height * width < 96 * 96 else (512, 480)
    large = len(data) >= 20_000
    if not large:
        steps, warmup, milestones = 500, 100, (200, 300, 400)
    elif len(data) < 500_000:
        steps, warmup, milestones = 10_000, 500, (3000, 6000, 9000)
    else:
        steps, warmup, milestones = 20_000, 500, (6000, 12_000, 18_000)
    transforms = (Resize((before, before)), Crop((side, side)), Flip())
    return Recipe(
        model,
        "",
        changes={"size": side},
        transforms=(*transforms, MixUp(0.1, before=transforms)) if large else transforms,
        batch=512,
        accumulate=8,
        steps=steps,
        optim={"all": Optim("sgd", lr=0.003, momentum=0.9, weight_decay=0.0)},
        schedules=(Schedule("step", warmup=warmup / steps, milestones=tuple(step / steps for step in milestones)),),
        evaluate_every=steps // 10,
        workers=8,
        note="Kolesnikov et al. 2020, section 2.2, and bit_hyperrule.py of google-research/big_transfer: batch 512, SGD 0.003 with "
        "momentum 0.9, divided by 10 three times, no weight decay; published there for BiT-M on ImageNet: top-1 80.68 % (R50x1), "
        "85.15 % (R152x2); not run here",
    )
