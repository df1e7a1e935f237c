"""Samplers: from noise to a picture in a number of steps, by any network that tells picture and noise apart.

All hold x as signal x_0 + noise e (a variance-preserving path has unit variance everywhere). A sampler is a grid of places and a rule for
one step; `draw` is the loop, `guided` and `Known` change what the network says and what is kept.
Sources: Ho 2020 (ancestral, arXiv 2006.11239), Song 2020 (DDIM, 2010.02502), Karras 2022 (Euler on sigma, 2206.00364), Lu 2022
(DPM-Solver++, 2211.01095), Lipman 2022 (flow matching, 2210.02747), Ho and Salimans 2022 (guidance, 2207.12598), Lugmayr 2022
(inpainting, 2201.09865). Every step equals that of the scheduler of the same name in diffusers (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from opticus.diffusion.prediction import Parts, parts
from opticus.diffusion.schedules import Grid, Schedule, grid, solver_grid
from opticus.structures import Noise, UnknownNameError, UsageError

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x (B, ...), times (B,)) -> the network's answer (B, ...)
Chance = Callable[[], Tensor]  # standard normal numbers shaped like x


class Rule(Protocol):
    """Where to look, and one step from place i to place i + 1."""

    grid: Grid

    def begin(self, noise: Tensor) -> Tensor:
        """x at the first place, from standard normal numbers."""
        ...

    def step(self, i: int, x: Tensor, found: Parts, chance: Chance) -> Tensor:
        """x at place i + 1."""
        ...


def _levels(grid: Grid, i: int) -> tuple[float, float, float, float]:
    """Signal and noise now and after the step."""
    return float(grid.signal[i]), float(grid.noise[i]), float(grid.signal[i + 1]), float(grid.noise[i + 1])


def _spread(grid: Grid, i: int) -> float:
    """The deviation of x at the earlier place given x and x_0 (Ho 2020, eq. 7): that of "small" variance."""
    a, b, a_next, b_next = _levels(grid, i)
    return b_next / b * math.sqrt(max(1 - (a / a_next) ** 2, 0.0))


class Ancestral:
    """DDPM: the mean of x_{t-1} given x_t and the predicted picture (eq. 7), and noise of the posterior's variance ("small") or of beta
    ("large")."""

    def __init__(self, grid: Grid, variance: str = "small") -> None:
        if variance not in ("small", "large"):
            raise UnknownNameError("variance", variance, ("small", "large"))
        self.grid, self.variance = grid, variance

    def begin(self, noise: Tensor) -> Tensor:
        """Noise alone."""
        return noise

    def step(self, i: int, x: Tensor, found: Parts, chance: Chance) -> Tensor:
        """The last step adds no noise."""
        a, b, a_next, b_next = _levels(self.grid, i)
        kept = a / a_next
        beta = 1 - kept**2
        mean = a_next * beta / b**2 * found.picture + kept * (b_next / b) ** 2 * x
        if i + 1 == len(self.grid):
            return mean
        return mean + (_spread(self.grid, i) if self.variance == "small" else math.sqrt(beta)) * chance()


class DDIM:
    """DDIM (eq. 12): the predicted picture, noised again to the next level in the predicted direction; `eta` 1 is as random as DDPM."""

    def __init__(self, grid: Grid, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise UsageError(f"sampler: eta must lie in 0..1, found {eta}")
        self.grid, self.eta = grid, eta

    def begin(self, noise: Tensor) -> Tensor:
        """Noise alone."""
        return noise

    def step(self, i: int, x: Tensor, found: Parts, chance: Chance) -> Tensor:
        """On the straight path with eta 0 this is Euler's step of flow matching."""
        _, _, a_next, b_next = _levels(self.grid, i)
        spread = self.eta * _spread(self.grid, i) if self.eta else 0.0
        x = a_next * found.picture + math.sqrt(max(b_next**2 - spread**2, 0.0)) * found.noise
        return x + spread * chance() if spread else x


class Euler:
    """Euler's method for dx/dsigma = e in x / signal, with sigma = noise / signal; the first place is sigma times noise alone."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def begin(self, noise: Tensor) -> Tensor:
        """sigma e in x / signal."""
        return float(self.grid.noise[0]) * noise

    def step(self, i: int, x: Tensor, found: Parts, chance: Chance) -> Tensor:
        """x / signal moves along the noise by the change of sigma."""
        a, b, a_next, b_next = _levels(self.grid, i)
        return a_next * (x / a + (b_next / a_next - b / a) * found.noise)


class Flow:
    """Euler's method on the straight path: x moves along the velocity e - x_0."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def begin(self, noise: Tensor) -> Tensor:
        """Noise alone."""
        return noise

    def step(self, i: int, x: Tensor, found: Parts, chance: Chance) -> Tensor:
        """By the change of s."""
        return x + float(self.grid.noise[i + 1] - self.grid.noise[i]) * (found.noise - found.picture)


class DPMSolver:
    """DPM-Solver++ (2M): the exact solution for a picture that changes linearly in log(signal / noise), from two answers (algorithm 2).

    First order in the first and the last step. It remembers the last picture: one object per drawing.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.last: Tensor | None = None

    def begin(self, noise: Tensor) -> Tensor:
        """Noise alone."""
        return noise

    def step(self, i: int, x: Tensor, found: Parts, chance: Chance) -> Tensor:
        """The last step lands on the picture, where log(signal / noise) is infinite."""
        _, b, a_next, b_next = _levels(self.grid, i)
        picture, last = found.picture, self.last if i else None
        self.last = picture
        final = i + 1 == len(self.grid)
        if last is not None and not final:
            ratio = self._stride(i - 1) / self._stride(i)
            picture = picture + (picture - last) / (2 * ratio)
        shrink = 0.0 if final and b_next == 0 else math.exp(-self._stride(i))
        return b_next / b * x + a_next * (1 - shrink) * picture

    def _stride(self, i: int) -> float:
        a, b, a_next, b_next = _levels(self.grid, i)
        return math.log(a_next / b_next) - math.log(a / b)


SAMPLERS = ("ddim", "ddpm", "euler", "dpm++")


def sampler(
    name: str, path: Schedule, steps: int, *, eta: float = 0.0, variance: str = "small", spacing: str | None = None
) -> Rule:
    """A sampler of a schedule by name, on the times that it is customarily used with: "leading" for ddpm and ddim, "linspace" for the
    solvers of differential equations. `eta` is ddim's, `variance` ddpm's. UnknownNameError, UsageError for what another sampler would need.
    """
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)
    if eta and name != "ddim":
        raise UsageError(f"sampler {name}: eta belongs to ddim, found eta={eta:g}")
    if name == "ddpm":
        return Ancestral(grid(path, steps, spacing or "leading"), variance)
    if name == "ddim":
        return DDIM(grid(path, steps, spacing or "leading"), eta)
    if name == "euler":
        return Euler(grid(path, steps, spacing or "linspace", whole=False))
    return DPMSolver(solver_grid(path, steps, spacing or "linspace"))


class Known(NamedTuple):
    """Inpainting: `pixels` (B, C, H, W) are kept where `mask` (B or 1, 1 or C, H, W) is 1."""

    pixels: Tensor
    mask: Tensor

    def put(self, x: Tensor, signal: float, amount: float, chance: Chance) -> Tensor:
        """x with the known part replaced by the known pixels, as noisy as x is."""
        part = signal * self.pixels + (amount * chance() if amount else 0.0)
        return torch.where(self.mask.bool(), part.to(x), x)


@torch.no_grad()
def draw(
    denoise: Denoise, start: Tensor, rule: Rule, noise: Noise | None = None, *, predicts: str = "eps", clip: float | None = None,
    known: Known | None = None, progress: Callable[[int, int], None] | None = None, watch: Callable[[Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Pictures from `start` (B, ...), standard normal numbers, in as many steps as the rule's grid has.

    `denoise(x, times)` answers with what `predicts` names; the predicted picture is cut to [-clip, clip]; further chance comes from `noise`
    (UsageError if a rule needs it and there is none); `known` is kept; `progress(done, steps)` is called after every step, `watch`
    with the predicted picture. Computed in start's type.
    """

    def chance() -> Tensor:
        if noise is None:
            raise UsageError("sampler: this sampler draws noise at every step, but was given none")
        return noise.normal(*start.shape[1:], dtype=start.dtype).to(start.device)

    places, x = rule.grid, rule.begin(start)
    if known is not None:
        x = known.put(x, float(places.signal[0]), float(places.noise[0]), chance)
    for i in range(len(places)):
        a, b = float(places.signal[i]), float(places.noise[i])
        answer = denoise(x, places.times[i].to(start.device).expand(len(x)))
        found = parts(predicts, answer.to(x.dtype), x, a, b)
        if clip is not None:
            found = found._replace(picture=found.picture.clamp(-clip, clip))
        x = rule.step(i, x, found, chance)
        if known is not None:
            x = known.put(x, float(places.signal[i + 1]), float(places.noise[i + 1]), chance)
        if progress is not None:
            progress(i + 1, len(places))
        if watch is not None:
            watch(found.picture)
    return x


def guided(denoise: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Tensor, none: Tensor, scale: float) -> Denoise:
    """Classifier-free guidance: none + scale (conditional - none); scale 1 is the conditional network alone, 0 the unconditional one.

    `denoise(x, times, condition)` is asked once per step, for both conditions in one batch. `none` is shaped like `condition`.
    """
    if none.shape != condition.shape:
        raise UsageError(f"guidance: the empty condition has shape {tuple(none.shape)}, the condition {tuple(condition.shape)}")
    if scale in (0.0, 1.0):
        given = condition if scale else none
        return lambda x, times: denoise(x, times, given)
    both = torch.cat([none, condition])

    def run(x: Tensor, times: Tensor) -> Tensor:
        without, with_it = denoise(torch.cat([x, x]), torch.cat([times, times]), both).chunk(2)
        return without + scale * (with_it - without)

    return run
