"""Schedules: pure functions of progress in [0, 1], to be multiplied with a base value (learning rate, weight decay, momentum).

All have the value 1 where a run starts at full strength. Options are keywords, so that `functools.partial` makes a `Schedule`:
`partial(warmup, share=0.05, then=partial(cosine, end=0.01))`. Progress outside [0, 1] is cut to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from opticus.structures import UsageError

Schedule = Callable[[float], float]


def constant(progress: float, *, value: float = 1.0) -> float:
    """Always `value`."""
    return value


def linear(progress: float, *, start: float = 1.0, end: float = 0.0) -> float:
    """A straight line from `start` to `end`."""
    return start + (end - start) * _cut(progress)


def cosine(progress: float, *, start: float = 1.0, end: float = 0.0) -> float:
    """Half a cosine from `start` to `end` (Loshchilov 2017, without restarts)."""
    return end + (start - end) * (1 + math.cos(math.pi * _cut(progress))) / 2


def polynomial(progress: float, *, power: float = 0.9, start: float = 1.0, end: float = 0.0) -> float:
    """end + (start - end) (1 - progress)^power (DeepLab: power 0.9)."""
    return end + (start - end) * (1 - _cut(progress)) ** power


def multistep(progress: float, *, milestones: Sequence[float], factor: float = 0.1) -> float:
    """`factor` to the number of milestones reached (progress >= milestone): 1, 0.1, 0.01, ..."""
    return factor ** sum(_reached(progress, milestone) for milestone in milestones)


def step(progress: float, *, every: float, factor: float = 0.1) -> float:
    """`factor` once per `every` of progress; `every` is a share of the run, such as 1/3.

    Raises UsageError if `every` is not positive.
    """
    if every <= 0:
        raise UsageError(f"schedule step: every must be positive, found {every}")
    return factor ** math.floor(_cut(progress) / every + 1e-9)


def warmup(progress: float, *, share: float, then: Schedule, start: float = 0.0) -> float:
    """A straight line from `start` to the first value of `then` in the first `share` of the run, then `then` over the rest."""
    progress = _cut(progress)
    if progress < share:
        return start + (then(0.0) - start) * progress / share
    return then((progress - share) / (1 - share)) if share < 1 else then(1.0)


def held(progress: float, *, share: float, then: Schedule, start: float = 0.0) -> float:
    """As `warmup`, but `then` runs on the progress of the whole run (step schedules whose milestones count from 0)."""
    progress = _cut(progress)
    value = then(progress)
    return value if progress >= share else value * (start + (1 - start) * progress / share)


def pieces(progress: float, *, ends: Sequence[float], parts: Sequence[Schedule]) -> float:
    """Schedules one after another: `parts[i]` runs from `ends[i-1]` (0 for the first) to `ends[i]`, seeing 0..1 of its own.

    Raises UsageError if the two differ in length or `ends` does not rise to 1.
    """
    if len(ends) != len(parts) or not parts or list(ends) != sorted(ends) or ends[-1] != 1:
        raise UsageError(
            f"schedule pieces: expected one rising end per part, the last 1, found {list(ends)} for {len(parts)} parts"
        )
    progress, begin = _cut(progress), 0.0
    for end, part in zip(ends, parts, strict=True):
        if progress < end or end == 1:
            return part((progress - begin) / (end - begin) if end > begin else 1.0)
        begin = end
    return parts[-1](1.0)


def _cut(progress: float) -> float:
    return min(max(progress, 0.0), 1.0)


def _reached(progress: float, milestone: float) -> bool:
    # step / steps is rounded: progress 30/90 must count as having reached a milestone written as 1/3
    return progress >= milestone - 1e-9
