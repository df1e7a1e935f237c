"""Samplers of diffusion models on data whose best denoiser is known: how far the samples are from the data, by the number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from opticus.diffusion import samplers
from opticus.diffusion.samplers import SAMPLERS, sampler
from opticus.diffusion.schedules import Schedule, schedule, visit
from opticus.recipes.lab import COLOURS, Cell, Check, Row, difference, dress, figures_of, mean, scaled
from opticus.structures import Noise

CLAIM = (
    "With a perfect denoiser the error of every sampler falls with its steps, and in few steps a second-order solver (DPM-Solver++ 2M) is "
    "nearer to the data than first-order ones (DDIM, Euler), which are nearer than the ancestral sampler of DDPM."
)
SETUP = (
    "A mixture of eight Gaussians in the plane, of unequal weights and deviations; its best answer to noise is a formula, so nothing is trained and "
    "all error is the sampler's. Linear schedule of 1,000 times, 10,000 samples. The error is the sliced Wasserstein distance (mean over 32 "
    "directions of the mean difference of quantiles) to the mixture itself, whose quantiles are exact; that of perfect samples is the floor. "
    "Each sampler visits the times that it is customarily used with."
)
VERSION = 1
SEEDS = 5
STEPS = (3, 5, 10, 20, 50, 100)
COUNT = 10_000
DIRECTIONS = 32


def mixture() -> tuple[Tensor, Tensor, Tensor]:
    """Weights (8,), means (8, 2) and deviations (8,) of the data."""
    turns = torch.arange(8, dtype=torch.float64) * math.pi / 4
    weights = torch.arange(1, 9, dtype=torch.float64)
    return weights / weights.sum(), 1.2 * torch.stack([turns.cos(), turns.sin()], 1), 0.05 + 0.02 * torch.arange(8).double()


def answer(path: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """The noise that is to be expected in x (B, 2): minus noise(t) times the gradient of log p_t(x)."""
    weights, means, deviations = mixture()
    place = visit(path, times[:1].double().numpy(), ends_clean=True)
    a, b = float(place.signal[0]), float(place.noise[0])
    variances = (a * deviations).square() + b * b
    away = x[:, None] - a * means
    logs = weights.log() - variances.log() - away.square().sum(2) / (2 * variances)
    shares = logs.softmax(1) / variances
    return b * (shares[..., None] * away).sum(1)


def error(points: Tensor) -> float:
    """The sliced Wasserstein distance of points (N, 2) to the mixture."""
    weights, means, deviations = (values.numpy() for values in mixture())
    shares, grid = (np.arange(len(points)) + 0.5) / len(points), np.linspace(-3, 3, 6001)
    total = 0.0
    for turn in np.arange(DIRECTIONS) * np.pi / DIRECTIONS:
        way = np.array([np.cos(turn), np.sin(turn)])
        below = (weights * ndtr((grid[:, None] - means @ way) / deviations)).sum(1)
        exact = np.interp(shares, below, grid)
        total += float(np.abs(np.sort(points.numpy() @ way) - exact).mean())
    return total / DIRECTIONS


def perfect(seed: int, count: int) -> Tensor:
    """Samples (N, 2) of the mixture itself."""
    weights, means, deviations = mixture()
    chance = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(weights, count, replacement=True, generator=chance)
    return means[chosen] + deviations[chosen, None] * torch.randn(count, 2, generator=chance, dtype=torch.float64)


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every sampler with every number of steps, and perfect samples, once per seed; `scale` multiplies the number of samples."""
    count = scaled(COUNT, scale)
    arms = [(f"{name} {steps}", name, steps) for name in SAMPLERS for steps in STEPS]
    rows = [{"arm": arm, "sampler": name, "steps": steps} for arm, name, steps in [*arms, ("perfect", "", 0)]]
    return [{**row, "seed": seed, "count": count} for seed in range(seeds) for row in rows]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """The error, and how many samples are further than four deviations from every mean."""
    if cell["arm"] == "perfect":
        points = perfect(cell["seed"], cell["count"])
    else:
        path, chance = schedule("linear"), _Chance(cell["seed"], cell["count"])
        rule = sampler(cell["sampler"], path, cell["steps"])
        points = samplers.draw(lambda x, times: answer(path, x, times), chance.normal(2), rule, cast(Noise, chance))
    _, means, deviations = mixture()
    astray = ((points[:, None] - means).norm(dim=2) / deviations).min(1).values > 4
    return {"error": error(points), "astray": float(astray.double().mean())}


class _Chance:
    """Noise of all samples from one stream: ten thousand generators, one a sample, would take longer than the sampling."""

    def __init__(self, seed: int, count: int) -> None:
        self.count = count
        self._stream = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(self.count, *shape, generator=self._stream, dtype=dtype)


def judge(rows: Sequence[Row]) -> list[Check]:
    """Few steps: second order before first order before chance. Many steps: less error than few, for each."""
    checks = [
        Check("error at 10 steps, DDIM minus DPM-Solver++", *difference(rows, "ddim 10", "dpm++ 10", "error")),
        Check("error at 10 steps, Euler minus DPM-Solver++", *difference(rows, "euler 10", "dpm++ 10", "error")),
        Check("error at 10 steps, DDPM minus DDIM", *difference(rows, "ddpm 10", "ddim 10", "error")),
    ]
    falls = [
        Check(f"error of {name}, 5 steps minus 50", *difference(rows, f"{name} 5", f"{name} 50", "error")) for name in SAMPLERS
    ]
    return checks + falls


def _points(axes: Any, name: str) -> None:
    """Samples of a sampler at 10 steps."""
    path, chance = schedule("linear"), _Chance(0, 1500)
    rule = sampler(name, path, 10)
    points = samplers.draw(lambda x, times: answer(path, x, times), chance.normal(2), rule, cast(Noise, chance))
    axes.plot(*points.T.numpy(), ".", markersize=1.5, color=COLOURS[SAMPLERS.index(name)], alpha=0.6)
    axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal")


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Error against steps, and what ten steps give."""
    grid = figure.add_gridspec(2, 4)
    axes = figure.add_subplot(grid[:, :2])
    for colour, name in zip(COLOURS, SAMPLERS):
        middles = [mean(figures_of(rows, f"{name} {steps}", "error")) for steps in STEPS]
        axes.plot(STEPS, [m.value for m in middles], "o-", color=colour, label=name, markersize=4)
        axes.fill_between(STEPS, [max(m.low, 1e-4) for m in middles], [m.high for m in middles], color=colour, alpha=0.15)
    floor = mean(figures_of(rows, "perfect", "error"))
    axes.axhline(floor.value, color="#888", linestyle=":", linewidth=1, label="perfect samples")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
    dress(axes, "Error against steps", "steps", "sliced Wasserstein distance")
    for place, name in enumerate(SAMPLERS):
        panel = figure.add_subplot(grid[place // 2, 2 + place % 2])
        _points(panel, name)
        dress(panel, f"{name}, 10 steps", "", "", legend=False)
