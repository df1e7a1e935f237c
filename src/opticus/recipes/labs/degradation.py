"""The degradation problem (He et al. 2016, figure 1 and section 4.2): plain against residual networks, shallow and deep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from opticus import zoo
from opticus.recipes.lab import COLOURS, Cell, Check, Row, at_side, dress, figures_of, learn, mean, pictures, scaled, smooth
from opticus.training.recipe import Optim

CLAIM = "Made deeper, a plain network has a higher training error (so it is not overfitting); a residual network has not."
SETUP = (
    "Networks of section 4.2 of the ResNet paper, 8 channels wide, with 14 and 50 layers, on 1,000 handwritten digits shrunk to 14x14: "
    "SGD with momentum, batch 64, the same order of pictures for all four. The error is that of the last 20 % of the training batches."
)
VERSION = 1
SEEDS = 3
SHALLOW, DEEP, STEPS = 14, 50, 200


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every network once per seed."""
    return [
        {"arm": f"{kind} {depth}", "seed": seed, "depth": depth, "residual": kind == "residual", "steps": scaled(STEPS, scale)}
        for seed in range(seeds)
        for kind in ("plain", "residual")
        for depth in (SHALLOW, DEEP)
    ]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """The training error, and its curve."""
    count = (cell["depth"] - 2) // 6
    torch.manual_seed(cell["seed"])
    network = zoo.create("resnet/20", layers=(count,) * 3, width=8, channels=1, residual=cell["residual"])
    data = pictures("digits", "train", 1000, side=14)
    rule = Optim("sgd", lr=0.05, momentum=0.9, weight_decay=1e-4, clip=5.0)
    learned = learn(at_side(network, 14), data, steps=cell["steps"], seed=cell["seed"], rule=rule)
    return {"error": 1 - learned.last(0.2), "curve": [round(1 - a, 4) for a in learned.accuracies]}


def judge(rows: Sequence[Row]) -> list[Check]:
    """What depth does to the plain network, and how much more that is than what it does to the residual one."""
    error = {arm: np.asarray(figures_of(rows, arm, "error")) for arm in {row["arm"] for row in rows}}
    plain = error[f"plain {DEEP}"] - error[f"plain {SHALLOW}"]
    residual = error[f"residual {DEEP}"] - error[f"residual {SHALLOW}"]
    return [
        Check(f"training error of the plain network, {DEEP} minus {SHALLOW} layers", *mean(plain.tolist())),
        Check("the same, beyond what depth does to the residual network", *mean((plain - residual).tolist())),
    ]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """As figure 6 of the paper: training curves, plain on the left, residual on the right."""
    axes = figure.subplots(1, 2, sharey=True)
    for side, kind in zip(axes, ("plain", "residual")):
        for place, depth in enumerate((SHALLOW, DEEP)):
            curves = np.asarray(figures_of(rows, f"{kind} {depth}", "curve"))
            for curve in curves:
                side.plot(smooth(curve), color=COLOURS[place], linewidth=0.7, alpha=0.35)
            side.plot(smooth(curves.mean(0)), color=COLOURS[place], linewidth=2.2, label=f"{depth} layers")
        dress(side, f"{kind} networks", "step", "training error")
        side.set_ylim(0, 1)
