"""Recipes for DeiT; a teacher comes with the words of `train` (teacher=, distill=), not with the recipe."""

from __future__ import annotations

from dataclasses import replace

from opticus.recipes import vit
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import Erase
from opticus.transforms.geometry import Flip, RandomResizedCrop
from opticus.transforms.mixing import CutMix, MixUp
from opticus.transforms.policy import RandAugment

# ImageNet top-1 in %, README of facebookresearch/deit; the distilled ones with the teacher RegNetY-16GF by hard distillation
PUBLISHED = {"ti": 72.2, "s": 79.9, "b": 81.8, "ti_distilled": 74.5, "s_distilled": 81.2, "b_distilled": 83.4}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; for the others the paper's table 9, at 384 pixels its fine-tuning."""
    variant = model.partition("/")[2]
    if variant == "tiny":
        return tiny(model, data)
    return fine_tuned(model) if variant.endswith("_384") else imagenet(model)


def tiny(model: str, data: Dataset) -> Recipe:
    """Digits in colour or grey: mirroring would change a digit's class and is left out."""
    if data[0].picture.pixels.shape[2] == 1:
        return replace(vit.digits(model), changes={"patch": 8}, steps=1500, evaluate_every=500, note="two minutes on one core")
    note = "the recipe of vit/tiny, not run for DeiT: five minutes on one core"
    return replace(vit.crops(model), note=note)


def imagenet(model: str) -> Recipe:
    """The paper's training (table 9); the published distilled files had teacher=RegNetY-16GF, distill="hard", share=0.5."""
    variant = model.partition("/")[2]
    before = (RandomResizedCrop((224, 224), interpolation="bicubic"), Flip(), RandAugment(2, 9), Erase(0.25))
    return Recipe(
        model,
        "",
        changes={"drop_path": 0.1},
        options={"smoothing": 0.1},
        transforms=(*before, MixUp(0.8, p=0.5, before=before), CutMix(1.0, p=0.5, before=before)),
        batch=1024,
        epochs=300,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05)},
        schedules=(Schedule("cosine", warmup=5 / 300, end=1e-2),),
        workers=8,
        note="Touvron et al. 2021, table 9: 300 epochs, batch 1024, AdamW 5e-4 x batch / 512, weight decay 0.05, 5 epochs of warm-up, "
        "RandAugment, mix-up 0.8, CutMix 1.0, erasing 0.25, smoothing 0.1, stochastic depth 0.1 (repeated augmentation is left out); "
        f"published: top-1 {PUBLISHED[variant]:.1f} %; not run here",
    )


def fine_tuned(model: str) -> Recipe:
    """Fine-tuning at 384 pixels from weights of 224 (`weights=`, `size=384`); README of facebookresearch/deit."""
    return Recipe(
        model,
        "",
        transforms=(RandomResizedCrop((384, 384), interpolation="bicubic"), Flip()),
        batch=512,
        accumulate=8,
        epochs=30,
        optim={"all": Optim("adamw", lr=5e-6, weight_decay=1e-8)},
        schedules=(Schedule("constant"),),
        workers=8,
        note="facebookresearch/deit, README: 30 epochs, AdamW 5e-6 x batch / 512, weight decay 1e-8; published: top-1 82.9 % (B at 384), "
        "85.2 % (B distilled at 384, from 1000 epochs at 224, with the teacher); not run here",
    )
