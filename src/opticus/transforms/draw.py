"""The randomness of one sample: a function of (seed, epoch, index) and of nothing else, so that workers and resumes agree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opticus.structures import Sample, UsageError

_COMMON = 0xBA7C  # where the counter of the batches' draws starts, in its highest word


@dataclass(frozen=True, slots=True)
class Draw:
    """What a transform may draw from: `rng`, `another()`, a further sample of the data set (mosaic, mix-up), and `common()`.

    `source` makes that further sample from the same generator; it is called with `rng` and must take all its randomness from it.
    `shared` makes the generator that all samples of some optimiser steps have in common.
    """

    rng: np.random.Generator
    source: Callable[[np.random.Generator], Sample] | None = field(default=None, repr=False)
    shared: Callable[[int], np.random.Generator] | None = field(default=None, repr=False)

    def common(self, every: int = 1) -> Draw:
        """A draw that gives all samples of the same `every` optimiser steps the same numbers; outside of training, this one."""
        return self if self.shared is None else Draw(self.shared(every))

    def another(self) -> Sample:
        """A further sample, drawn with this sample's generator; UsageError if the data set offers none."""
        if self.source is None:
            raise UsageError("mosaic and mix-up need further samples, but this data set was opened without a source of them")
        return self.source(self.rng)

    def uniform(self, low: float, high: float) -> float:
        """One number of [low, high)."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, p: float) -> bool:
        """True with probability `p`; always draws exactly one number."""
        return float(self.rng.random()) < p

    def integer(self, low: int, high: int) -> int:
        """One whole number of low..high-1."""
        return low + int(float(self.rng.random()) * (high - low))


def draw_for(
    seed: int, epoch: int, index: int, another: Callable[[np.random.Generator], Sample] | None = None, step: int | None = None
) -> Draw:
    """The draw of sample `index` in `epoch` of a run with `seed`.

    The three numbers are the key of a counter-based generator (Philox 4x64, Salmon et al. 2011): streams of different keys are
    independent, and no state is carried from one sample to the next. `another(rng)` returns a further sample; `step` is the
    optimiser step that the sample belongs to, for what a whole batch draws alike.

    Raises:
        UsageError: `epoch` or `index` is negative or too large for its share of the key (2^24 epochs, 2^40 samples).
    """
    if not (0 <= epoch < 1 << 24 and 0 <= index < 1 << 40):
        raise UsageError(f"a draw needs 0 <= epoch < 2^24 and 0 <= index < 2^40, found epoch {epoch} and index {index}")
    key: Any = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, epoch << 40 | index], dtype=np.uint64)
    shared = None if step is None else functools.partial(_of_steps, seed, step)
    return Draw(np.random.Generator(np.random.Philox(key=key)), another, shared)


def _of_steps(seed: int, step: int, every: int) -> np.random.Generator:
    """The generator of steps k * every .. (k + 1) * every - 1; its counter keeps it apart from every sample's own."""
    if every < 1:
        raise UsageError(f"samples share their draw for at least 1 step, found {every}")
    key: Any = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, step // every], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=_COMMON << 192))
