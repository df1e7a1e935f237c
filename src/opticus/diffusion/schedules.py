"""Noise schedules: how much of a picture and how much noise there is at every time, and which times a sampler visits.

A noisy picture is x_t = signal(t) x_0 + noise(t) e with e standard normal. Times are 0..T-1 from little to much noise.
Sources: Ho 2020 (linear, arXiv 2006.11239), Nichol 2021 (cosine, 2102.09672), Rombach 2022 (scaled linear, 2112.10752), Lin 2023 (table
2: the spacings, 2305.08891); the numbers and roundings of the spacings are those of diffusers (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opticus.structures import UnknownNameError, UsageError


def linear(steps: int, start: float, end: float) -> Tensor:
    """(steps,) betas from `start` to `end` in equal steps."""
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


def scaled_linear(steps: int, start: float, end: float) -> Tensor:
    """(steps,) betas whose roots are equally spaced: latent diffusion's schedule."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64, device="cpu").square()


def cosine(steps: int, start: float = 0.008, end: float = 0.999) -> Tensor:
    """(steps,) betas for which signal squared falls as cos^2((t + s) / (1 + s) pi / 2); `start` is s, `end` the largest beta."""
    ends = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
    bars = ((ends + start) / (1 + start) * math.pi / 2).cos().square()
    return (1 - bars[1:] / bars[:-1]).clamp(max=end)


class Betas(NamedTuple):
    """A rule for betas with its customary range."""

    rule: Callable[[int, float, float], Tensor]
    start: float
    end: float


BETAS: dict[str, Betas] = {
    "linear": Betas(linear, 1e-4, 0.02),
    "scaled-linear": Betas(scaled_linear, 0.00085, 0.012),  # Stable Diffusion 1
    "cosine": Betas(cosine, 0.008, 0.999),
}


class Schedule(NamedTuple):
    """`signal` and `noise` (T,), float64: the factors of the picture and of the noise; their squares sum to one."""

    signal: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.signal)

    def at(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise (B, 1, ...) at whole times (B,), to be multiplied with `like` (B, ...)."""
        shape = (-1, *(1,) * (like.ndim - 1))
        signal, noise = (values.to(like.dtype).to(like.device)[times].view(shape) for values in (self.signal, self.noise))
        return signal, noise


def schedule(name: str, steps: int = 1000, start: float | None = None, end: float | None = None) -> Schedule:
    """The schedule of that name over `steps` times; `start` and `end` are those of its rule (None: the customary ones).

    UnknownNameError for a name that is none of BETAS, UsageError if a beta leaves (0, 1).
    """
    if name not in BETAS:
        raise UnknownNameError("noise schedule", name, BETAS)
    rule = BETAS[name]
    return of(rule.rule(steps, rule.start if start is None else start, rule.end if end is None else end))


def of(betas: Tensor) -> Schedule:
    """The schedule of given betas (T,): signal squared is the running product of 1 - beta."""
    if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
        raise UsageError(f"noise schedule: betas must be numbers between 0 and 1, found {betas.flatten()[:4].tolist()}...")
    bars = (1 - betas.double()).cumprod(0)
    return Schedule(bars.sqrt(), (1 - bars).sqrt())


# --- the places that a sampler visits ----------------------------------------------------------------------------------


class Grid(NamedTuple):
    """A sampler's way from noise to picture in n steps: `times` (n,) is what the network is told, `signal` and `noise` (n + 1,) are the
    factors before the first step, between steps and after the last one."""

    times: Tensor
    signal: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.times)


SPACINGS = ("leading", "linspace", "trailing")


def grid(
    path: Schedule, steps: int, spacing: str = "leading", *, offset: int = 0, whole: bool = True, ends_clean: bool = True
) -> Grid:
    """`steps` times of a schedule, from the noisiest on.

    "leading" takes every (T // steps)-th time from `offset` on (0, 20, 40...), "linspace" goes from 0 to T - 1, "trailing" steps down from
    T - 1. `whole` rounds times; otherwise factors between whole times come from interpolating noise / signal. The last step ends in the
    picture itself, or at time 0's noise with `ends_clean=False`. UnknownNameError, UsageError for steps outside 1..T.
    """
    total = len(path)
    if not 1 <= steps <= total:
        raise UsageError(f"sampler: the number of steps must lie in 1..{total}, found {steps}")
    if spacing == "leading":
        times = np.arange(steps - 1, -1, -1) * (total // steps) + float(offset)
    elif spacing == "linspace":
        times = np.linspace(0, total - 1, steps)[::-1]
    elif spacing == "trailing":
        times = np.arange(total, 0, -total / steps)[:steps] - 1
        times = np.round(times + 1) - 1
    else:
        raise UnknownNameError("spacing of times", spacing, SPACINGS)
    if times.max() > total - 1:
        raise UsageError(
            f"sampler: {steps} steps with offset {offset} begin at time {times.max():g}, the schedule ends at {total - 1}"
        )
    return visit(path, np.round(times) if whole else times, ends_clean=ends_clean)


def solver_grid(path: Schedule, steps: int, spacing: str = "linspace", *, offset: int = 0) -> Grid:
    """The times of a multistep solver: those of `steps` + 1 whole ones without the last, which the clean picture replaces."""
    total = len(path)
    if not 1 <= steps < total:
        raise UsageError(f"sampler: the number of steps must lie in 1..{total - 1}, found {steps}")
    if spacing == "trailing":
        return grid(path, steps, spacing)
    longer = grid(path, steps + 1, spacing, offset=offset)
    return visit(path, longer.times.double().numpy()[:-1], ends_clean=True)


def visit(path: Schedule, times: np.ndarray, *, ends_clean: bool) -> Grid:
    """The grid of given times (n,), falling, whole or between whole ones."""
    sigmas = (path.noise / path.signal).numpy()
    sigma = np.interp(times, np.arange(len(path)), sigmas)
    sigma = torch.from_numpy(np.append(sigma, 0.0 if ends_clean else sigmas[0]))
    signal = (1 + sigma.square()).rsqrt()
    told = np.ascontiguousarray(times, dtype=np.float64)
    exact = torch.from_numpy(told)
    whole = bool((exact == exact.round()).all())
    return Grid(exact.long() if whole else exact.float(), signal, sigma * signal)


def straight(steps: int, *, shift: float = 1.0, last: float = 0.0, scale: float = 1.0) -> Grid:
    """The straight path of flow matching, x_s = (1 - s) x_0 + s e: s goes from 1 to `last` in `steps` numbers, then to 0.

    With `last` = 0 the `steps` intervals are equal. `shift` moves times towards the noise, s -> shift s / (1 + (shift - 1) s) (Esser 2024,
    2403.03206, eq. 23); the network is told s times `scale`.
    """
    if steps < 1:
        raise UsageError(f"sampler: the number of steps must be at least 1, found {steps}")
    share = torch.linspace(1, last, steps if last else steps + 1, dtype=torch.float64, device="cpu")[:steps]
    share = shift * share / (1 + (shift - 1) * share)
    ends = torch.cat([share, share.new_zeros(1)])
    return Grid((share * scale).float(), 1 - ends, ends)
