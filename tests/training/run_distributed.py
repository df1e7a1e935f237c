"""Train a network in float64 for a few steps, alone or under torchrun; writes the run into the folder given."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from opticus.recipes.choose import train
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.verbs.models import create

if __name__ == "__main__":
    torch.set_num_threads(1)
    model, out = sys.argv[1], Path(sys.argv[2])
    data = "digits" if model.startswith("resnet") else "scenes"
    # a two-stage detector draws the regions that it learns from: with room for all of them nothing is left to chance
    changes = {"samples": (10**6, 10**6)} if model.startswith("faster_rcnn") else {}
    recipe = Recipe(
        model,
        data,
        batch=8,
        steps=3,
        optim={"all": Optim("sgd", lr=0.05, weight_decay=1e-4, clip=5.0)},
        schedules=(Schedule("constant"),),
        precision="fp64",
        average=0.9,
        evaluate_every=0,
        log_every=1,
    )
    torch.manual_seed(0)
    train(create(model, **changes), data, recipe=recipe, out=out, quiet=True, test=False)
