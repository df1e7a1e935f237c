"""Recipes for the vision transformer."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter, Erase
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.mixing import CutMix, MixUp
from opticus.transforms.policy import RandAugment

# ImageNet top-1 in %: Touvron et al. 2021 (README of facebookresearch/deit), trained at 224 pixels
DEIT = {"ti16": 72.2, "s16": 79.9, "b16": 81.8}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny"; for the others DeiT (Ti, S) and the paper's tables 3 and 4 (B, L, H)."""
    variant = model.partition("/")[2]
    if variant == "tiny":
        return digits(model) if data[0].picture.pixels.shape[2] == 1 else crops(model)
    size, _, rest = variant.partition("_")
    if rest.isdigit():
        return fine_tuned(model, int(rest))
    if rest == "in21k":
        return pretrained(model)
    return deit(model, size) if size[:-2] in ("ti", "s") or size in ("s8",) else imagenet(model)


def digits(model: str) -> Recipe:
    """Grey characters, slightly turned, scaled and shifted; mirroring would change a digit's class and is left out."""
    return Recipe(
        model,
        "digits",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15)),
            ColourJitter(0.3, 0.3, 0.3, 0.3),
        ),
        batch=64,
        steps=2000,
        optim={"all": Optim("adamw", lr=1.5e-3, weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=350,
        workers=1,
        note="three minutes on one core",
    )


def crops(model: str) -> Recipe:
    """Small pictures in colour: a transformer that starts from nothing needs many steps before it sees more than colours."""
    return Recipe(
        model,
        "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=114),
            ColourJitter(0.2, 0.2, 0.2),
        ),
        batch=64,
        steps=1500,
        optim={"all": Optim("adamw", lr=5e-4, weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.05),),
        average=0.98,
        evaluate_every=750,
        workers=1,
        note="five minutes on one core; nothing is learned before step 500",
    )


def imagenet(model: str) -> Recipe:
    """The paper's training on ImageNet alone (table 3): 300 epochs, strong weight decay and dropout."""
    warmup = 10_000 / (300 * 1_281_167 / 4096)
    return Recipe(
        model,
        "",
        changes={"dropout": 0.1},
        transforms=(RandomResizedCrop((224, 224)), Flip()),
        batch=4096,
        accumulate=8,
        epochs=300,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.3, clip=1.0)},
        schedules=(Schedule("cosine", warmup=warmup),),
        workers=8,
        note="Dosovitskiy et al. 2021, table 3 (ImageNet): 300 epochs, batch 4096, Adam 3e-3, cosine, 10,000 steps of warm-up, "
        "weight decay 0.3, dropout 0.1; published after fine-tuning at 384 pixels (table 5): top-1 77.91 % (B/16), 73.38 % (B/32), "
        "76.53 % (L/16), 71.16 % (L/32); not run here",
    )


def pretrained(model: str) -> Recipe:
    """The paper's training on ImageNet-21k (table 3)."""
    base = "/b" in model
    return Recipe(
        model,
        "",
        changes={"dropout": 0.1},
        transforms=(RandomResizedCrop((224, 224)), Flip()),
        batch=4096,
        accumulate=8,
        epochs=90,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.03 if base else 0.1, clip=1.0)},
        schedules=(Schedule("linear", warmup=10_000 / (90 * 14_000_000 / 4096)),),
        workers=8,
        note="Dosovitskiy et al. 2021, table 3 (ImageNet-21k): 90 epochs, batch 4096, linear decay, 10,000 steps of warm-up; not run here",
    )


def fine_tuned(model: str, side: int) -> Recipe:
    """The paper's fine-tuning of pre-trained weights at a higher resolution (table 4); start it with `weights=`."""
    return Recipe(
        model,
        "",
        transforms=(RandomResizedCrop((side, side), scale=(0.05, 1.0)), Flip()),
        batch=512,
        accumulate=8,
        steps=20_000,
        optim={"all": Optim("sgd", lr=0.03, momentum=0.9, weight_decay=0.0, clip=1.0)},
        schedules=(Schedule("cosine", warmup=500 / 20_000),),
        evaluate_every=2000,
        workers=8,
        note="Dosovitskiy et al. 2021, table 4 (ImageNet): 20,000 steps, batch 512, SGD with momentum 0.9, cosine, no weight decay, "
        "gradients clipped at norm 1, learning rate chosen from 0.003 to 0.06; not run here",
    )


def deit(model: str, size: str) -> Recipe:
    """The smaller networks on ImageNet alone: strong augmentation in place of a larger data set."""
    before = (RandomResizedCrop((224, 224), interpolation="bicubic"), Flip(), RandAugment(2, 9), Erase(0.25))
    figure = f"top-1 {DEIT[size]:.1f} % at 224 pixels" if size in DEIT else "no figure for this patch size"
    recipe = imagenet(model)
    return replace(
        recipe,
        changes={"drop_path": 0.1},
        options={"smoothing": 0.1},
        transforms=(*before, MixUp(0.8, p=0.5, before=before), CutMix(1.0, p=0.5, before=before)),
        batch=1024,
        accumulate=1,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05)},
        schedules=(Schedule("cosine", warmup=5 / 300, end=1e-2),),
        note="Touvron et al. 2021 (DeiT), table 9: 300 epochs, batch 1024, AdamW 5e-4 x batch / 512, weight decay 0.05, 5 epochs of "
        f"warm-up, RandAugment, mix-up 0.8, CutMix 1.0, erasing 0.25, stochastic depth 0.1; published: {figure}; not run here",
    )
