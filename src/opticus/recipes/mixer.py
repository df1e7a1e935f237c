"""Recipes for MLP-Mixer."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.mixing import MixUp
from opticus.transforms.policy import RandAugment


def default(model: str, data: Dataset) -> Recipe:
    """Embedded data for "tiny"; for the others the paper's pre-training on ImageNet or ImageNet-21k."""
    variant = model.partition("/")[2]
    if variant == "tiny":
        return tiny(model, data)
    return pretrained(model) if variant.endswith("in21k") else imagenet(model)


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
        steps=1600,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.1, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=400,
        workers=1,
        note="two minutes and a half on one core",
    )


def imagenet(model: str) -> Recipe:
    """The paper's training on ImageNet alone (supplement B, table 4): B and L with strong regularisation."""
    before = (RandomResizedCrop((224, 224)), Flip(), RandAugment(2, 15))
    return Recipe(
        model,
        "",
        changes={"drop_path": 0.1},
        transforms=(*before, MixUp(0.5, before=before)),
        batch=4096,
        accumulate=8,
        epochs=300,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.1, clip=1.0)},
        schedules=(Schedule("linear", warmup=10_000 / (300 * 1_281_167 / 4096)),),
        workers=8,
        note="Tolstikhin et al. 2021, table 4 (ImageNet): 300 epochs, batch 4096, Adam 1e-3, weight decay 0.1, 10,000 steps of warm-up "
        "and linear decay, gradients clipped at norm 1, RandAugment 2/15, mix-up 0.5, stochastic depth 0.1; published (table 3): top-1 "
        "76.44 % (B/16), 71.76 % (L/16); not run here",
    )


def pretrained(model: str) -> Recipe:
    """The paper's pre-training on ImageNet-21k (supplement B, table 4)."""
    before = (RandomResizedCrop((224, 224)), Flip(), RandAugment(2, 10))
    return Recipe(
        model,
        "",
        changes={"drop_path": 0.1},
        transforms=(*before, MixUp(0.5, before=before)),
        batch=4096,
        accumulate=8,
        epochs=300,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.1, clip=1.0)},
        schedules=(Schedule("linear", warmup=10_000 / (300 * 14_000_000 / 4096)),),
        workers=8,
        note="Tolstikhin et al. 2021, table 4 (ImageNet-21k): 300 epochs, batch 4096, Adam 1e-3, weight decay 0.1, 10,000 steps of "
        "warm-up and linear decay, gradients clipped at norm 1, RandAugment 2/10, mix-up 0.5, stochastic depth 0.1; published after "
        "fine-tuning (table 3): top-1 80.64 % (B/16), 82.89 % (L/16) at 224 pixels; not run here",
    )
