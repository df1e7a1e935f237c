"""Learned densities with a known answer: Real NVP (Dinh et al. 2016) and flow matching (Lipman et al. 2022) in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.recipes.lab import Cell, Check, Row, dress, figures_of, mean, scaled
from opticus.structures import Noise

CLAIM = (
    "Two ways to an exact likelihood, couplings trained by it and a velocity field that never sees it, both learn a density whose "
    "entropy is known to within 0.15 nats, where the best Gaussian misses it by more than half a nat."
)
SETUP = (
    "Points of a ring of eight Gaussians and of two moons (each a mixture of Gaussians along a half circle), drawn afresh for every step; "
    "Real NVP with twelve couplings and flow matching with a dense network of three layers, Adam. The gap is the divergence KL(true, learned): "
    "the mean of log p - log q over 4,000 new points, with log q of flow matching by the exact trace along the ODE."
)
VERSION = 1
SEEDS = 3
STEPS = {"realnvp": 1200, "flow_matching": 3000}
WIDTHS, BATCH = {"realnvp": 64, "flow_matching": 128}, 512
ARMS = {
    f"{title}, {place}": (paper, place)
    for paper, title in (("realnvp", "Real NVP"), ("flow_matching", "flow matching"))
    for place in ("ring", "moons")
}
SIDE, REACH = 60, 3.0  # cells of the pictures of densities, and how far they go
SOLVING = 40  # steps of the ODE


# --- densities whose answer is known ------------------------------------------------------------------------------------------


def mixture(name: str) -> tuple[Tensor, float]:
    """Centres (K, 2) and the deviation of equally weighted Gaussians: a ring of eight, or two half circles of sixteen each."""
    if name == "ring":
        angles = torch.arange(8) * math.pi / 4
        return 2 * torch.stack([angles.cos(), angles.sin()], 1), 0.35
    angles = (torch.arange(16) + 0.5) * math.pi / 16
    upper = torch.stack([angles.cos() - 0.5, angles.sin() - 0.25], 1)
    return 1.5 * torch.cat([upper, -upper]), 0.2


def drawn(name: str, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 2) of a mixture."""
    centres, deviation = mixture(name)
    chosen = torch.randint(len(centres), (count,), generator=generator)
    return centres[chosen] + deviation * torch.randn(count, 2, generator=generator)


def log_density(name: str, points: Tensor) -> Tensor:
    """log p (N,) of points (N, 2), in nats."""
    centres, deviation = mixture(name)
    squares = (points[:, None] - centres).square().sum(2) / deviation**2
    return (-squares / 2).logsumexp(1) - math.log(len(centres) * 2 * math.pi * deviation**2)


def gaussian_gap(name: str, points: Tensor) -> float:
    """Mean of log p - log q for the best single Gaussian q of the points themselves: no Gaussian comes nearer."""
    normal = torch.distributions.MultivariateNormal(points.mean(0), points.T.cov())
    return float((log_density(name, points) - normal.log_prob(points)).mean())


# --- one training --------------------------------------------------------------------------------------------------------------


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every arm once per seed."""
    return [
        {"arm": arm, "seed": seed, "steps": scaled(STEPS[paper], scale)}
        for seed in range(seeds)
        for arm, (paper, _) in ARMS.items()
    ]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """The gap to the truth, that of a Gaussian, and, of the first seed, the density on a grid and points drawn from it."""
    paper, place = ARMS[cell["arm"]]
    network = learned(paper, place, cell["steps"], cell["seed"])
    generator = torch.Generator().manual_seed(10_000 + cell["seed"])
    points = drawn(place, 4000, generator)
    gaps = log_density(place, points) - likelihood(network, points)
    found: dict[str, Any] = {"gap": float(gaps.mean()), "gaussian": gaussian_gap(place, points)}
    axis = torch.linspace(-REACH, REACH, SIDE)
    grid = torch.cartesian_prod(axis, axis).flip(1)
    density = likelihood(network, grid).exp()
    found["mass"] = float(density.sum()) * (2 * REACH / (SIDE - 1)) ** 2
    if cell["seed"] == 0:
        found["density"] = [round(float(value), 4) for value in density]
        found["samples"] = network.sample(Noise(cell["seed"], 500)).round(decimals=3).tolist()
    return found


def learned(paper: str, place: str, steps: int, seed: int) -> Any:
    """The network after `steps` steps on fresh points."""
    torch.manual_seed(seed)
    network: Any = zoo.create(f"{paper}/points", width=WIDTHS[paper])
    objective: Any = zoo.paper(paper).objective(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        points = drawn(place, BATCH, generator)
        if paper == "realnvp":
            loss = -network.log_density(points).mean()
        else:
            loss = objective.errors(
                points, torch.randn(BATCH, 2, generator=generator), torch.rand(BATCH, generator=generator)
            ).mean()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
    return network.eval()


@torch.no_grad()
def likelihood(network: Any, points: Tensor) -> Tensor:
    """log q (N,) of points, in nats."""
    return network.log_density(points, steps=SOLVING) if hasattr(network, "divergence") else network.log_density(points)


# --- what is claimed ------------------------------------------------------------------------------------------------------------


def judge(rows: Sequence[Row]) -> list[Check]:
    """Each gap is small, and a Gaussian's is not; learned densities integrate to one."""
    checks = [Check(f"gap of {arm} in nats", *mean(figures_of(rows, arm, "gap")), bound=0.15, above=False) for arm in ARMS]
    for arm in list(ARMS)[:2]:
        checks.append(Check(f"gap of a Gaussian, {ARMS[arm][1]}", *mean(figures_of(rows, arm, "gaussian")), bound=0.5))
    masses = [abs(row["found"]["mass"] - 1) for row in rows]
    checks.append(Check("how far the integral over the picture is from 1", *mean(masses), bound=0.05, above=False))
    return checks


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """For each density: the truth, both learned ones, and points drawn from them."""
    axis = torch.linspace(-REACH, REACH, SIDE)
    grid = torch.cartesian_prod(axis, axis).flip(1)
    extent = (-REACH, REACH, -REACH, REACH)
    for line, place in enumerate(("ring", "moons")):
        truth = log_density(place, grid).exp().view(SIDE, SIDE).numpy()
        panels: list[tuple[str, Any, Any]] = [(f"{place}: true density", truth, None)]
        for row in rows:
            if ARMS[row["arm"]][1] == place and row["seed"] == 0:
                title = row["arm"].partition(",")[0]
                panels += [
                    (f"{title}, gap {row['found']['gap']:.3f}", np.asarray(row["found"]["density"]).reshape(SIDE, SIDE), None)
                ]
                panels += [(f"{title}: samples", None, np.asarray(row["found"]["samples"]))]
        for column, (title, density, samples) in enumerate(panels):
            axes = figure.add_subplot(2, 5, 5 * line + column + 1)
            if density is not None:
                axes.imshow(density, origin="lower", extent=extent, cmap="magma", vmin=0, vmax=float(truth.max()))
            else:
                axes.plot(samples[:, 0], samples[:, 1], ".", markersize=1.5, color="#0072B2")
                axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
            dress(axes, title, "", "", legend=False)
            axes.grid(False)
            axes.set_xticks([])
            axes.set_yticks([])
