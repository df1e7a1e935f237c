"""Mode collapse, vanishing gradients and oscillation of adversarial training on eight Gaussians in a ring, and what helps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from opticus import zoo
from opticus.losses.two_players import TwoPlayers
from opticus.recipes.lab import COLOURS, Cell, Check, Row, difference, dress, figures_of, mean, scaled
from opticus.structures import Batch, Images, Noise, Progress
from opticus.training import optim
from opticus.training.recipe import Optim

CLAIM = (
    "A plain GAN draws few of eight known modes and goes from one to another; a discriminator that is far ahead tells the generator nothing "
    "any more under the minimax loss, and much under the non-saturating one; where the discriminator is too strong, a smaller latent (100 "
    "to 16) and a generator that is favoured after a while help; WGAN-GP draws more of the modes."
)
SETUP = (
    "Points of eight Gaussians (deviation 0.1) on a circle of radius 1.41, dense networks with three hidden layers of 128, Adam, batches of "
    "128. A mode is drawn if at least a quarter of its fair share of 1,024 samples lies within 0.3 of it. The pull is the norm of the "
    "generator's gradient, that of its first 20 updates being 1; the swing is the deviation of the mean sample over the last 64 updates, "
    "that of the data being 1. Ten D: ten discriminator steps before each of the generator's, at ten times its learning rate; strong D: one. "
    "The remedy differs from strong D by its latent and by three generator updates a step after a fifth of the run."
)
VERSION = 1
SEEDS = 3
STEPS = 900
LONGER = {"WGAN-GP": 2}  # at five critic updates for each of the generator's: 360 of those, where the GAN has 900
LATE = 1 / 5  # share of the run after which the generator is favoured
RADIUS, DEVIATION, NEAR, MODES, BATCH = 1.41, 0.1, 0.3, 8, 128
SNAPSHOTS, SHOWN = 4, 150
STRONG = (2e-4, 2e-3)
# latent, options of the objective, learning rates of generator and discriminator, betas
ARMS: dict[str, tuple[int, dict[str, Any], tuple[float, float], tuple[float, float]]] = {
    "GAN": (100, {}, (2e-4, 2e-4), (0.5, 0.999)),
    "WGAN-GP": (16, {"loss": "wasserstein", "penalty": 0.1, "critics": 5}, (1e-3, 1e-3), (0.0, 0.9)),
    "minimax, 10 D": (100, {"loss": "minimax", "critics": 10}, STRONG, (0.5, 0.999)),
    "log D, 10 D": (100, {"loss": "logistic", "critics": 10}, STRONG, (0.5, 0.999)),
    "strong D": (100, {"loss": "minimax"}, STRONG, (0.5, 0.999)),
    "remedy": (16, {"loss": "minimax", "favour": 3}, STRONG, (0.5, 0.999)),
}


def centres() -> Tensor:
    """The known modes (8, 2)."""
    angles = torch.arange(MODES) * 2 * math.pi / MODES
    return RADIUS * torch.stack([angles.cos(), angles.sin()], 1)


def points(seed: int) -> Iterator[Batch]:
    """Endless batches of points as pictures (B, 2, 1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    places = centres()
    same, names = torch.eye(3, dtype=torch.float64).expand(BATCH, 3, 3), tuple(map(str, range(BATCH)))
    while True:
        chosen = places[torch.randint(MODES, (BATCH,), generator=generator)]
        pixels = (chosen + DEVIATION * torch.randn(BATCH, 2, generator=generator))[:, :, None, None]
        yield Batch(Images(pixels, None, same, ((1, 1),) * BATCH), (None,) * BATCH, names)


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every arm once per seed."""
    lengths = {arm: scaled(STEPS * LONGER.get(arm, 1), scale) for arm in ARMS}
    return [{"arm": arm, "seed": seed, "steps": lengths[arm]} for seed in range(seeds) for arm in ARMS]


def drawn_modes(samples: Tensor) -> tuple[float, float]:
    """The share of modes that are drawn, and the share of samples (N, 2) near any mode."""
    distances = torch.cdist(samples, centres())
    good = distances.amin(1) < NEAR
    counts = torch.bincount(distances.argmin(1)[good], minlength=MODES)
    return float((counts >= len(samples) / MODES / 4).double().mean()), float(good.double().mean())


def turns(objective: TwoPlayers, batch: Batch, at: Progress, optimisers: dict[str, torch.optim.Optimizer]) -> None:
    """The phases of one step, each with the other network frozen."""
    for phase in objective.phases(at.step):
        now = at._replace(phase=phase)
        objective.network.requires_grad_(phase == "g")
        objective.discriminator.requires_grad_(phase == "d")
        objective.zero_grad()
        torch.stack(list(objective(batch, now).values())).sum().backward()
        objective.before_update(now)
        optimisers[phase].step()


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """Modes that are drawn, the alarms, pull and swing over the second half of the run, and samples on the way."""
    latent, options, rates, betas = ARMS[cell["arm"]]
    steps, seed = cell["steps"], cell["seed"]
    torch.manual_seed(seed)
    network: Any = zoo.create("gan/points", latent=latent)
    further = {"favour_from": round(LATE * steps)} if "favour" in options else {}
    objective = zoo.paper("gan").objective(network, modes=centres().tolist(), near=NEAR, **options, **further).train()
    rules = {phase: Optim("adam", lr=rate, weight_decay=0.0, betas=betas) for phase, rate in zip("gd", rates)}
    optimisers = {phase: optim.build(objective, phase, rule) for phase, rule in rules.items()}
    stream, every = points(seed), max(steps // 24, 1)
    recalls: list[float] = []
    watched: list[dict[str, float]] = []
    alarms: list[str] = []
    shown: list[list[list[float]]] = []
    for step in range(steps):
        turns(objective, next(stream), Progress(step, 0, steps, 1), optimisers)
        if (step + 1) % every == 0:
            recalls.append(drawn_modes(network.sample(Noise(1, 1024)).flatten(1))[0])
            watched.append(objective.figures())
            alarms.append((objective.alarm(watched[-1]) or "").partition(":")[0])
        if (step + 1) % max(steps // SNAPSHOTS, 1) == 0 and len(shown) < SNAPSHOTS:
            rows = network.sample(Noise(2, SHOWN)).flatten(1)
            shown.append([[round(float(v), 3) for v in row] for row in rows])
    late = watched[len(watched) // 2 :]
    share, precise = drawn_modes(network.sample(Noise(3, 1024)).flatten(1))
    return {
        "modes": share, "precision": precise, "modes_curve": recalls, "samples": shown,
        **{name: sum(one.get(name, 0.0) for one in late) / len(late) for name in ("pull", "swing", "told apart")},
        "pull_curve": [one.get("pull", 1.0) for one in watched],
        **{name.replace(" ", "_"): float(name in alarms) for name in ("mode collapse", "vanishing gradient", "oscillation")},
    }  # fmt: skip


def judge(rows: Sequence[Row]) -> list[Check]:
    """Each pathology where the lecture sees it, and what takes it away."""
    silent = mean(figures_of(rows, "minimax, 10 D", "pull"))
    return [
        Check("share of the modes that are drawn, WGAN-GP minus GAN", *difference(rows, "WGAN-GP", "GAN", "modes")),
        Check("swing of the mean sample, GAN minus WGAN-GP", *difference(rows, "GAN", "WGAN-GP", "swing")),
        Check("pull on the generator under the minimax loss and ten discriminator steps", *silent, bound=0.15, above=False),
        Check("the same, non-saturating loss minus minimax", *difference(rows, "log D, 10 D", "minimax, 10 D", "pull")),
        Check("samples near a mode, remedy minus strong discriminator", *difference(rows, "remedy", "strong D", "precision")),
        Check(
            "share of the modes that are drawn, remedy minus strong discriminator", *difference(rows, "remedy", "strong D", "modes")
        ),
    ]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Modes over the run, and samples of the first seed at four moments."""
    grid = figure.add_gridspec(len(ARMS), SNAPSHOTS + 4)
    axes = figure.add_subplot(grid[:, :4])
    for colour, arm in zip(COLOURS, ARMS):
        for number, row in enumerate(row for row in rows if row["arm"] == arm):
            curve = row["found"]["modes_curve"]
            steps = [row["steps"] * (i + 1) / len(curve) for i in range(len(curve))]
            axes.plot(steps, [MODES * value for value in curve], color=colour, alpha=0.9, label=arm if number == 0 else None)
    axes.set_ylim(-0.3, MODES + 0.3)
    dress(axes, "Modes that are drawn (of 8)", "step", "modes")
    places = centres()
    for line, (colour, arm) in enumerate(zip(COLOURS, ARMS)):
        shown = next(row for row in rows if row["arm"] == arm)["found"]["samples"]
        for column, samples in enumerate(shown):
            small = figure.add_subplot(grid[line, 4 + column])
            small.plot(places[:, 0], places[:, 1], "o", color="#ccc", markersize=4)
            small.plot([p[0] for p in samples], [p[1] for p in samples], ".", color=colour, markersize=1.5)
            small.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), xticks=[], yticks=[], aspect="equal")
            if column == 0:
                small.set_ylabel(arm.replace(", ", ",\n"), fontsize=7)
            if line == 0:
                small.set_title(f"{(column + 1) * 100 // SNAPSHOTS} %", fontsize=8)
