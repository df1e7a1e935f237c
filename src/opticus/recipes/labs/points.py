"""An autoencoder on points of the plane: what it does to points that lie off the shape it has learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from opticus import zoo
from opticus.models.generative.autoencoder import Autoencoder, objective
from opticus.recipes.lab import COLOURS, Cell, Check, Row, bars, difference, dress, figures_of, mean, scaled
from opticus.structures import Batch, Images, Progress
from opticus.training import optim
from opticus.training.recipe import Optim, Schedule

CLAIM = (
    "An autoencoder whose code is one number learns the curve that its training points lie on and pulls points off the curve onto it, "
    "which no line (PCA with one component) can do."
)
SETUP = (
    "400 points on nearly one turn of a spiral, each moved by a normal deviation of 0.03; layers 2-64-64-1-64-64-2 trained by Adam on all points "
    "at once, plain and denoising (input noise of deviation 0.1). Then 200 new points, moved off the spiral by a deviation of 0.15, go "
    "through. Distances are to the nearest of 4,000 points of the true curve; PCA is fitted to the same training points."
)
VERSION = 1
SEEDS = 3
STEPS = 3000
ARMS: dict[str, dict[str, Any]] = {"PCA": {}, "autoencoder": {}, "denoising": {"noise": "gaussian", "amount": 0.1}}
TRAINED, OFF = 0.03, 0.15  # deviations from the curve
SHOWN = 60
RULE = Optim("adam", lr=3e-3, weight_decay=0.0)
SCHEDULES = (Schedule("cosine", warmup=0.02, end=0.01),)


def curve(share: Tensor) -> Tensor:
    """Points (N, 2) of the spiral at `share` (N,) in [0, 1] of its way, evenly spaced along it to a good approximation."""
    angle = 3 * math.pi * (0.15 + 0.85 * share).sqrt()
    return torch.stack([angle.cos(), angle.sin()], 1) * angle[:, None] / (3 * math.pi)


def distances(points: Tensor) -> Tensor:
    """(N,): how far points (N, 2) are from the curve."""
    return torch.cdist(points, curve(torch.linspace(0, 1, 4000))).amin(1)


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every arm once per seed."""
    return [{"arm": arm, "seed": seed, "steps": scaled(STEPS, scale)} for seed in range(seeds) for arm in ARMS]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """Mean distances of points off the curve before and after, their ratio, and some of the points for the picture."""
    chance = torch.Generator().manual_seed(cell["seed"])
    known, new = (
        curve(torch.rand(count, generator=chance)) + away * torch.randn(count, 2, generator=chance)
        for count, away in ((400, TRAINED), (200, OFF))
    )
    found = line(known, new) if cell["arm"] == "PCA" else learned(known, new, cell)
    before, after = (float(distances(points).mean()) for points in (new, found))
    shown = {"in": new[:SHOWN].tolist(), "out": found[:SHOWN].tolist()}
    return {"before": before, "after": after, "ratio": after / before, **shown}


def line(known: Tensor, new: Tensor) -> Tensor:
    """New points on the line through the training points' middle along their first principal component."""
    middle = known.mean(0)
    axis = torch.linalg.svd(known - middle, full_matrices=False)[2][:1]
    return middle + (new - middle) @ axis.T @ axis


def learned(known: Tensor, new: Tensor, cell: Cell) -> Tensor:
    """New points through an autoencoder trained on the known ones: points are pictures of one pixel with two channels."""
    torch.manual_seed(cell["seed"])
    config = {"size": 1, "channels": 2, "code": 1, "widths": (64, 64), "activation": "gelu", "bounded": False}
    network = zoo.create("autoencoder/tiny-2d", **config)
    assert isinstance(network, Autoencoder)
    method: Any = objective(cast(Any, network).train(), **ARMS[cell["arm"]])
    optimiser = optim.build(method, "all", RULE)
    count = len(known)
    images = Images(known[:, :, None, None], None, torch.eye(3).expand(count, 3, 3), ((1, 1),) * count)
    batch = Batch(images, (None,) * count, tuple(str(i) for i in range(count)))
    for step in range(cell["steps"]):
        optim.apply_schedules(optimiser, SCHEDULES, step / cell["steps"])
        loss = torch.stack(list(method.forward(batch, Progress(step, 0, cell["steps"], 1)).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return network.eval()(new[:, :, None, None])[:, :, 0, 0]


def judge(rows: Sequence[Row]) -> list[Check]:
    """Points end nearer the curve than half their distance, and nearer than a line brings them."""
    checks: list[Check] = []
    for arm in ("autoencoder", "denoising"):
        ratio = mean(figures_of(rows, arm, "ratio"))
        checks.append(Check(f"distance to the curve, after / before ({arm})", *ratio, bound=0.5, above=False))
        apart = difference(rows, arm, "PCA", "after")
        checks.append(Check(f"distance to the curve, {arm} minus PCA", *apart, above=False))
    return checks


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Blue points go in, red ones come out; the distances beside them."""
    path = curve(torch.linspace(0, 1, 400)).tolist()
    for place, arm in enumerate(("PCA", "autoencoder")):
        axes = figure.add_subplot(1, 3, place + 1)
        found = next(row["found"] for row in rows if row["arm"] == arm)
        axes.plot(*zip(*path), color="#bbb", linewidth=1, label="true curve")
        for start, end in zip(found["in"], found["out"]):
            axes.plot(*zip(start, end), color="#ccc", linewidth=0.6, zorder=1)
        axes.plot(*zip(*found["in"]), ".", color="#1f4fd8", markersize=5, label="in")
        axes.plot(*zip(*found["out"]), ".", color="#d62020", markersize=5, label="out")
        axes.set_aspect("equal")
        dress(axes, f"Points through {'a line (PCA)' if arm == 'PCA' else 'the autoencoder'}", "x", "y", legend=place == 1)
    axes = figure.add_subplot(1, 3, 3)
    bars(axes, rows, list(ARMS), "after")
    before = mean(figures_of(rows, "PCA", "before")).value
    axes.axhline(before, color=COLOURS[1], linestyle=":", linewidth=1)
    axes.text(2.4, before, "before", ha="right", va="bottom", fontsize=9, color="#555")
    dress(axes, "Distance to the curve", "", "mean distance after", legend=False)
