"""Recipes for LeNet-5."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Resize


def default(model: str, data: Dataset) -> Recipe:
    """Small pictures of characters, slightly turned, scaled and shifted; digits have a handedness, so nothing is flipped."""
    return Recipe(
        model,
        "digits",
        transforms=(Resize((32, 32)), Affine(degrees=12, translate=(0.06, 0.06), scale=(0.85, 1.15), shear=(8, 0))),
        batch=64,
        steps=1200,
        optim={"all": Optim("adamw", lr=5e-3, weight_decay=0.02, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.005),),
        average=0.99,
        evaluate_every=300,
        note="a minute on one core; the paper's own run, on MNIST: 20 passes of a stochastic second-order method, 0.8 % test error "
        "with distorted samples (LeCun et al. 1998, section III.B), not run here",
    )
