"""Batches as a function of (seed, step): the same whichever process, worker or resumed run draws them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import data as torch_data

from opticus.data.collate import collate
from opticus.data.stream import Forward, Sequential, Shape, StreamOrder
from opticus.structures import Batch, DataError, Dataset, Error, Prepare, Sample, UsageError
from opticus.transforms.draw import draw_for

Transform = Callable[[Sample, Any], Sample]
ORDER_STREAM = 0x0DE5  # keeps the order of an epoch apart from its samples' own randomness


def epoch_order(seed: int, epoch: int, n: int, shares: Sequence[float] | None = None, even: bool = False) -> np.ndarray:
    """The permutation of 0..n-1 of one epoch, a function of (seed, epoch); with `shares` n draws with those chances instead.

    `even` draws them systematically: sample i occurs floor(n p_i) or ceil(n p_i) times, n p_i on average, in random order.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), (ORDER_STREAM << 32) + epoch]))
    if shares is None:
        return rng.permutation(n)
    if not even:
        return rng.choice(n, n, p=np.asarray(shares))
    order, chances = rng.permutation(n), np.asarray(shares)
    marks = np.floor(np.cumsum(chances[order] / chances.sum()) * n + rng.random())
    marks[-1] = n  # rounding of the sum must not cost or add a draw
    return rng.permutation(np.repeat(order, np.diff(np.minimum(marks, n), prepend=0).astype(np.int64)))


def balanced(dataset: Dataset) -> tuple[float, ...]:
    """Chances under which every class is drawn equally often: a sample has that of its rarest label (Gupta et al. 2019, LVIS).

    Samples without a label share the chance of one class. Raises DataError if no sample has a label.
    """
    labels = [target_labels(dataset.target_of(i)) for i in range(len(dataset))]
    counts = np.zeros(len(dataset.names) + 1)
    for row in labels:
        counts[row if len(row) else [-1]] += 1
    if not counts[:-1].any():
        raise DataError("sampling='balanced' needs labels, the data has none")
    chances = np.asarray([1 / counts[row if len(row) else [-1]].min() for row in labels])
    return tuple((chances / chances.sum()).tolist())


def repeat_factors(dataset: Dataset, threshold: float = 1e-3) -> tuple[float, ...]:
    """How often each sample should be seen (Gupta et al. 2019, LVIS): max over its classes of max(1, sqrt(t / f_c)).

    f_c is the share of samples with class c, t the `threshold` below which a class is repeated; a sample without labels counts once.
    Raises UsageError for a threshold outside (0, 1], DataError if no sample has a label.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"a class is repeated below a share of samples in (0, 1], found {threshold}")
    owners, labels = _presence(dataset)
    if not len(labels):
        raise DataError("sampling='repeat-factor' needs labels, the data has none")
    shares = np.bincount(labels, minlength=len(dataset.names)) / len(dataset)
    factors = np.ones(len(dataset))
    np.maximum.at(factors, owners, np.sqrt(threshold / shares[labels]))
    return tuple(factors.tolist())


def _presence(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (sample, label) of the labels that occur in each sample, from the flat boxes where the data has them."""
    table: Any = getattr(dataset, "boxes", None)
    if table is not None:
        width = max(len(dataset.names), 1)
        known = table.labels >= 0
        pairs = np.unique(table.image_of()[known] * width + table.labels[known].astype(np.int64))
        return pairs // width, pairs % width
    rows = [target_labels(dataset.target_of(i)) for i in range(len(dataset))]
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return owners, np.concatenate([np.zeros(0, np.int64), *rows])


def target_labels(target: Any) -> np.ndarray:
    """The different labels of a target, ascending; DataError for one without labels."""
    labels = getattr(target, "labels", None)
    if not isinstance(labels, torch.Tensor) or labels.ndim != 1:
        raise DataError(f"classes can be balanced only where targets have labels, found {type(target).__name__}")
    return np.unique(labels.numpy())


def steps_per_epoch(n: int, batch: int) -> int:
    """Whole batches in one epoch; a data set smaller than a batch makes one smaller batch."""
    return max(n // batch, 1)


@dataclass(frozen=True)
class Plan:
    """What a loader needs to know: `batch` samples make an optimiser step, in `accumulate` micro-batches over all processes."""

    seed: int
    batch: int
    accumulate: int = 1
    workers: int = 0
    shares: tuple[float, ...] | None = None  # chances of the samples, drawn with replacement; None = every sample once an epoch
    even: bool = False  # the shares are kept within one draw a sample and epoch


def share_of(n: int, plan: Plan, world: int) -> int:
    """Samples of a micro-batch for each process; DataError if a batch cannot be divided so."""
    size = min(plan.batch, n) // plan.accumulate
    if size == 0 or size % world:
        raise DataError(
            f"{n} samples in batches of {min(plan.batch, n)} cannot be split into {plan.accumulate} micro-batches over {world} processes"
        )
    return size // world


class Order(torch_data.Sampler[list[tuple[int, int, int]]]):
    """Endless micro-batches of (epoch, index, optimiser step) for one process, from any starting point."""

    def __init__(self, n: int, plan: Plan, start: int, rank: int, world: int) -> None:
        self.n, self.plan, self.start, self.rank, self.world = n, plan, start, rank, world
        self.size = share_of(n, plan, world) * world

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        per_epoch = steps_per_epoch(self.n, self.plan.batch) * self.plan.accumulate
        order, known = np.zeros(0, dtype=np.int64), -1
        for number in itertools.count(self.start):
            epoch, place = divmod(number, per_epoch)
            if epoch != known:
                order, known = epoch_order(self.plan.seed, epoch, self.n, self.plan.shares, self.plan.even), epoch
            share = self.size // self.world
            first = place * self.size + self.rank * share
            yield [(epoch, int(i), number // self.plan.accumulate) for i in order[first : first + share]]


class Drawn(torch_data.Dataset[Sample]):
    """A data set whose items are transformed with randomness that is a function of (seed, epoch, index).

    `forward` reads data that can only be read in order; it has no further samples at hand for mosaic and mix-up.
    """

    def __init__(self, dataset: Dataset, transforms: Sequence[Transform], seed: int, forward: Forward | None = None) -> None:
        self.dataset, self.transforms, self.seed, self.forward = dataset, tuple(transforms), seed, forward

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        epoch, index, step = key
        draw = draw_for(self.seed, epoch, index, another=self._another if self.forward is None else None, step=step)
        sample = self.dataset[index] if self.forward is None else self.forward.sample(epoch, index)
        for transform in self.transforms:
            sample = transform(sample, draw)
        return sample

    def _another(self, rng: np.random.Generator) -> Sample:
        return self.dataset[int(rng.integers(len(self.dataset)))]


@dataclass(frozen=True)
class _Collate:
    rule: Prepare

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.rule)


def _streamed(data: Sequential, n: int, plan: Plan, start: int, rank: int, world: int) -> tuple[StreamOrder, Forward]:
    if plan.shares is not None:
        raise UsageError("sampling other than 'uniform' needs shards that can be read at any place: plain .tar files on a disk")
    per_epoch = steps_per_epoch(n, plan.batch) * plan.accumulate
    shape = Shape(plan.seed, share_of(n, plan, world), per_epoch, world, plan.accumulate)
    return StreamOrder(shape, data.shard_of, start, rank), Forward(data, shape)


def batches(
    dataset: Dataset, transforms: Sequence[Transform], rule: Prepare, plan: Plan, *, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Endless micro-batches from micro-batch `start` on. Raises DataError if the data set is empty."""
    if len(dataset) == 0:
        raise DataError("the data set has no samples to train on")
    order, forward = Order(len(dataset), plan, start, rank, world), None
    if isinstance(dataset, Sequential) and dataset.sequential:
        order, forward = _streamed(dataset, len(dataset), plan, start, rank, world)
    loader: torch_data.DataLoader[Any] = torch_data.DataLoader(
        Drawn(dataset, transforms, plan.seed, forward),
        batch_sampler=order,
        collate_fn=_Collate(rule),
        num_workers=plan.workers,
        generator=torch.Generator().manual_seed(plan.seed),  # the loader's own draw must not move the global generator
        prefetch_factor=4 if plan.workers else None,
    )
    return _plain(iter(loader))


def _plain(found: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; an error that a worker raised says its own sentence again, not the worker's traceback."""
    try:
        yield from found
    except Error as error:
        text = str(error)
        if text.startswith("Caught "):
            error.args = (text.rstrip().rsplit(f"{type(error).__name__}: ", 1)[-1],)
        raise error from None
    except RuntimeError as error:  # what torch makes of an error that it cannot build anew from its text
        if not str(error).startswith("Caught UnknownNameError"):
            raise
        raise UsageError(str(error).rstrip().rsplit("UnknownNameError: ", 1)[-1]) from None
