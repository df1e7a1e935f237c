"""Recipes for InfoMin."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.chain import Transform
from opticus.transforms.colour import Blur, ColourJitter, Grayscale
from opticus.transforms.geometry import Flip, RandomResizedCrop
from opticus.transforms.policy import RandAugment
from opticus.transforms.views import Jigsaw, View, Views, two_views

# epochs and linear top-1 on ImageNet in %: README of HobbitLong/PyContrast, which does not say which ResNeXt it means
REPORTED = {"r50": (800, 73.0), "r101": (300, 73.4), "r152": (200, 73.4)}


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for "tiny"; ImageNet as published for the others."""
    return small(model) if model.endswith("tiny") else imagenet(model)


def views() -> tuple[Transform, ...]:
    """The InfoMin augmentation: nine patches, and two views with twice MoCo's jitter and RandAugment at its largest magnitude."""
    chain: tuple[Transform, ...] = (
        RandomResizedCrop((224, 224), (0.2, 1.0)),
        Flip(),
        ColourJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        Blur((0.1, 2.0), p=0.5),
        RandAugment(2, 30, fill=124, p=0.5),
        Grayscale(0.2),
    )
    return Jigsaw(), Views((View("global", chain, 2),))


def small(model: str) -> Recipe:
    """Pictures of 32 pixels and patches of 12, a batch of 64, a short queue and a quick key encoder."""
    return Recipe(
        model,
        "crops",
        options={"queue": 2048, "outputs": 64, "momentum": 0.99, "groups": 4},
        transforms=(
            Jigsaw(cell=14, size=12, flip=0.0),
            two_views(32, scale=(0.4, 1.0), jitter=(0.6, 0.6, 0.6, 0.15), sigma=(0.1, 0.8), flip=0.0),
        ),
        batch=64,
        steps=400,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=1e-4)},
        schedules=(Schedule("cosine", warmup=0.1),),
        evaluate_every=200,
        workers=1,
    )


def imagenet(model: str) -> Recipe:
    """The authors' training: SGD on batches of 256, learning rate 0.03 on a half cosine to a thousandth of it.

    ResNeXt: batches of 512, 0.06, 5 epochs of warm-up.
    """
    variant = model.partition("/")[2]
    epochs, linear = REPORTED.get(variant, (200, None))
    wide = variant.startswith("x")
    batch = 512 if wide else 256
    figure = "no figure for this very network" if linear is None else f"{linear} % linear top-1 on ImageNet"
    return Recipe(
        model,
        "",
        options={
            "temperature": 0.15,
            "momentum": 0.999,
            "queue": 65536,
            "outputs": 128,
            "jigsaw": 0.5,
            "groups": 32 if wide else 8,
        },
        transforms=views(),
        batch=batch,
        epochs=epochs,
        optim={"all": Optim("sgd", lr=0.03 * batch / 256, weight_decay=1e-4, decay_vectors=True)},
        schedules=(Schedule("cosine", warmup=5 / epochs if wide else 0.0, end=1e-3),),
        workers=10,
        note=f"published: {figure}; not run here",
    )
