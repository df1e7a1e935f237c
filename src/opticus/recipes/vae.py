"""Recipes for the VAE."""

from __future__ import annotations

from opticus import zoo
from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Flip, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures for the tiny variants, the references' trainings for the others."""
    channels = data[0].picture.pixels.shape[2]
    variant = model.partition("/")[2]
    if variant.startswith("tiny"):
        return small(model, channels)
    return mnist(model, channels) if variant == "mnist" else celeba(model, channels)


def small(model: str = "vae/tiny", channels: int = 1, beta: float | None = None) -> Recipe:
    """Small pictures as they are, since digits fill their frame.

    A Gaussian with one deviation for all pixels weighs the error so much that codes stray from the prior; beta = 8 (Higgins 2017) brings
    them back: better samples at a looser bound. The Bernoulli likelihood, which is the paper's for digits, needs none.
    """
    config = zoo.config_of(model, {})
    if beta is None:
        beta = 8.0 if config.likelihood == "gaussian" else 1.0
    return Recipe(
        model,
        "digits" if channels == 1 else "textures",
        changes={"channels": channels},
        options={"beta": beta},
        transforms=(Resize((config.size, config.size)),),
        batch=64,
        steps=2500,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=1e-4, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.995,
        evaluate_every=0,
        workers=1,
        note="a minute and a half on one core",
    )


def mnist(model: str, channels: int) -> Recipe:
    """The reference's training on MNIST: Adam at 1e-3, ten epochs of batches of 128."""
    return Recipe(
        model, "", changes={"channels": channels}, batch=128, epochs=10, schedules=(Schedule("constant"),),
        optim={"all": Optim("adam", lr=1e-3, weight_decay=0.0)}, workers=2,
        note="pytorch/examples vae: Adam at 1e-3, 10 epochs of batches of 128 of MNIST; it prints no figure; not run here",
    )  # fmt: skip


def celeba(model: str, channels: int) -> Recipe:
    """The reference's training on CelebA: Adam at 5e-3, times 0.95 an epoch, 100 epochs of batches of 64."""
    epochs = 100
    return Recipe(
        model, "", changes={"channels": channels}, batch=64, epochs=epochs, transforms=(Flip(), Resize((64, 64))),
        optim={"all": Optim("adam", lr=5e-3, weight_decay=0.0)}, workers=4,
        schedules=(Schedule("step", milestones=tuple(i / epochs for i in range(1, epochs)), gamma=0.95),),
        note="AntixK/PyTorch-VAE configs/vae.yaml: Adam at 5e-3, times 0.95 after every epoch, 100 epochs of batches of 64 of CelebA, "
        "KL weight 0.00025; no figure in print; not run here",
    )  # fmt: skip
