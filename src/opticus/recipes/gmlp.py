"""Recipes for gMLP."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.mixing import CutMix, MixUp
from opticus.transforms.policy import RandAugment

# 1 - the survival probability, and ImageNet top-1 in % (tables 1 and 2 of the paper)
DROP_PATH = {"gmlp/ti16": 0.0, "gmlp/s16": 0.05, "gmlp/b16": 0.2}
PUBLISHED = {"gmlp/ti16": 72.3, "gmlp/s16": 79.6, "gmlp/b16": 81.6}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded data for "tiny", the paper's ImageNet settings for the others."""
    return tiny(model, data) if model == "gmlp/tiny" else imagenet(model)


def tiny(model: str, data: Dataset) -> Recipe:
    """32x32 pictures of digits, in colour or grey: mirroring would change a digit's class and is left out."""
    grey = data[0].picture.pixels.shape[2] == 1
    return Recipe(
        model,
        "digits" if grey else "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=0 if grey else 114),
            ColourJitter(0.3, 0.3, 0.3),
        ),
        batch=64,
        steps=1800,
        optim={"all": Optim("adamw", lr=4e-3, weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.005),),
        average=0.98,
        evaluate_every=450,
        workers=1,
        note="two minutes and a half on one core; the gates start as identities, and little is learned before step 300",
    )


def imagenet(model: str) -> Recipe:
    """The paper's settings (section 3 and appendix A.1)."""
    before = (RandomResizedCrop((224, 224), interpolation="bicubic"), Flip(), RandAugment(2, 9))
    return Recipe(
        model,
        "",
        changes={"drop_path": DROP_PATH[model]},
        options={"smoothing": 0.1},
        transforms=(*before, MixUp(0.8, p=0.5, before=before), CutMix(1.0, p=0.5, before=before)),
        batch=4096,
        accumulate=8,
        epochs=300,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=10_000 / (300 * 1_281_167 / 4096)),),
        workers=8,
        note="Liu et al. 2021, appendix A.1 (ImageNet): 300 epochs, batch 4096, AdamW 1e-3, weight decay 0.05, cosine, 10,000 steps of "
        f"warm-up, gradients clipped at norm 1, mix-up 0.8, CutMix 1.0, label smoothing 0.1, stochastic depth {DROP_PATH[model]:g}, and "
        f"AutoAugment, for which RandAugment stands here; published: top-1 {PUBLISHED[model]:.1f} %; not run here",
    )
