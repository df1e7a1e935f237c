"""Recipes for ConvNeXt."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter, Erase
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.mixing import CutMix, MixUp
from opticus.transforms.policy import RandAugment

# ImageNet-1K top-1 in % at 224 pixels and stochastic depth: README and TRAINING.md of facebookresearch/ConvNeXt
PUBLISHED = {"t": (82.1, 0.1), "s": (83.1, 0.4), "b": (83.8, 0.5), "l": (84.3, 0.5)}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny", ImageNet for the others."""
    return tiny(model, data) if model == "convnext/tiny" else imagenet(model)


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
        optim={"all": Optim("adamw", lr=1.5e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=500,
        workers=1,
        note="two minutes and a half on two cores",
    )


def imagenet(model: str) -> Recipe:
    """The authors' training on ImageNet-1K (appendix A.1)."""
    variant = model.partition("/")[2]
    top1, drop_path = PUBLISHED.get(variant, (None, 0.5))
    before = (RandomResizedCrop((224, 224), interpolation="bicubic"), Flip(), RandAugment(2, 9), Erase(0.25))
    figure = f"top-1 {top1:.1f} % at 224 pixels" if top1 else "no figure on ImageNet-1K alone for this size"
    return Recipe(
        model,
        "",
        changes={"drop_path": drop_path},
        options={"smoothing": 0.1},
        transforms=(*before, MixUp(0.8, p=0.5, before=before), CutMix(1.0, p=0.5, before=before)),
        batch=4096,
        accumulate=8,
        epochs=300,
        optim={"all": Optim("adamw", lr=4e-3, weight_decay=0.05)},
        schedules=(Schedule("cosine", warmup=20 / 300, end=2.5e-4),),
        average=0.9999,
        workers=8,
        note="Liu et al. 2022, appendix A.1, and facebookresearch/ConvNeXt TRAINING.md: 300 epochs, batch 4096, AdamW 4e-3, weight "
        "decay 0.05, 20 epochs of warm-up, RandAugment, mix-up 0.8, CutMix 1.0, erasing 0.25, smoothing 0.1, stochastic depth "
        f"{drop_path}, average 0.9999; published: {figure}; not run here",
    )
