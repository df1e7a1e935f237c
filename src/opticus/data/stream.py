"""Order for data that can only be read forwards: shards shuffled, then a shuffle buffer, as a function of (seed, epoch, position).

An epoch is one sequence: the shards in a random order, each from its beginning. It is cut into lanes of almost equal length, and each
lane passes a shuffle buffer: of the `hold` records read last a random one leaves, and the next one read takes its place. A process
owns every world-th lane and draws its batches from its lanes in turn, so that workers of a number that divides `LANES` each read shards
that no other one reads (but for those in which a lane begins or ends). No order depends on the number of workers. Since the order is
known without reading, a resumed run reads on where it stopped: what went before is skipped, not decoded and not kept.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch.utils import data as torch_data

from opticus.data.tar import Reads
from opticus.structures import DataError, Sample

LANES = 4  # of each process
HOLD = 1024  # records that the buffers of a process's lanes hold together
STREAM = 0x57E4  # keeps this order apart from that of random access and from the samples' own randomness

Ints = npt.NDArray[np.int64]


@runtime_checkable
class Sequential(Protocol):
    """A data set whose records are cheap to read only one after the other."""

    sequential: bool

    @property
    def shard_of(self) -> npt.NDArray[np.int32]:
        """(records,) the shard of every record, ascending."""
        ...

    def raw_of(self, index: int, reads: Reads | None = None) -> Any:
        """The undecoded bytes of a record, read with the open files `reads`."""
        ...

    def sample_of(self, index: int, raw: Any) -> Sample:
        """The record from its bytes."""
        ...


class Shape(NamedTuple):
    """How batches are cut: `seed`; `share` samples of a micro-batch for each of `world` processes; micro-batches of an epoch."""

    seed: int
    share: int
    per_epoch: int
    world: int
    accumulate: int = 1
    hold: int = HOLD


class Epoch(NamedTuple):
    """The order of one epoch: `read` (records in reading order), `starts` (lanes + 1,) its cuts, `sent` (records in sending order)."""

    read: Ints
    starts: Ints
    sent: Ints


def epoch_of(shape: Shape, shard_of: npt.NDArray[np.int32], epoch: int) -> Epoch:
    """What is read and sent in `epoch`; records that fill no whole batch are at the end of the reading order and are not sent."""
    rng = np.random.Generator(np.random.Philox(key=[shape.seed & (2**64 - 1), (STREAM << 32) + epoch]))
    place = np.empty(int(shard_of[-1]) + 1, np.int64)
    place[rng.permutation(len(place))] = np.arange(len(place))
    read = np.argsort(place[shard_of], kind="stable")
    lanes, chunks = LANES * shape.world, shape.per_epoch * shape.world
    lengths = (chunks // lanes + (np.arange(lanes) < chunks % lanes)) * shape.share
    starts = np.concatenate([[0], np.cumsum(lengths)])
    sent = np.empty(int(starts[-1]), np.int64)
    for first, last in itertools.pairwise(starts.tolist()):
        sent[first:last] = _buffered(read[first:last], max(shape.hold // LANES, 1), rng)
    return Epoch(read, starts, sent)


def _buffered(records: Ints, hold: int, rng: np.random.Generator) -> Ints:
    """`records` after a shuffle buffer of `hold` places."""
    waiting, rest = records[:hold].tolist(), records[hold:].tolist()
    slots = rng.integers(0, max(len(waiting), 1), len(rest)).tolist()
    sent: list[int] = []
    for slot, record in zip(slots, rest):
        sent.append(waiting[slot])
        waiting[slot] = record
    return np.concatenate([np.asarray(sent, np.int64), rng.permutation(np.asarray(waiting, np.int64))])


class StreamOrder(torch_data.Sampler[list[tuple[int, int, int]]]):
    """Endless micro-batches of (epoch, record, optimiser step) for one process, from any starting point."""

    def __init__(self, shape: Shape, shard_of: npt.NDArray[np.int32], start: int, rank: int) -> None:
        self.shape, self.shard_of, self.start, self.rank = shape, shard_of, start, rank

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        shape, known = self.shape, -1
        starts, sent = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for number in itertools.count(self.start):
            epoch, place = divmod(number, shape.per_epoch)
            if epoch != known:
                _, starts, sent = epoch_of(shape, self.shard_of, epoch)
                known = epoch
            turn, lane = divmod(place * shape.world + self.rank, LANES * shape.world)
            first = int(starts[lane]) + turn * shape.share
            yield [(epoch, int(i), number // shape.accumulate) for i in sent[first : first + shape.share]]


def _few() -> Reads:
    return Reads(1)


class Forward:
    """Reads the records of the lanes that a worker is asked for, in reading order, and holds those that are sent later."""

    def __init__(self, data: Sequential, shape: Shape) -> None:
        self.data, self.shape = data, shape
        self._epoch = -1
        self._waiting: dict[int, Any] = {}
        self._reads: defaultdict[int, Reads] = defaultdict(_few)

    def sample(self, epoch: int, index: int) -> Sample:
        """Record `index`, which `StreamOrder` named for `epoch`. Raises DataError for a record that this epoch does not send."""
        if epoch != self._epoch:
            self._begin(epoch)
        turn, at = int(self._turn[index]), int(self._at[index])
        if turn < 0:
            raise DataError(f"record {index} is not sent in epoch {epoch}")
        if index in self._waiting:
            raw = self._waiting.pop(index)
        else:
            lane = int(np.searchsorted(self._order.starts, at, side="right")) - 1
            cursor = self._cursors.get(lane, int(self._order.starts[lane]))
            between = self._order.read[cursor:at]
            for record in between[self._turn[between] > turn].tolist():
                self._waiting[record] = self.data.raw_of(record, self._reads[lane])
            self._cursors[lane] = max(cursor, at + 1)
            raw = self.data.raw_of(index, self._reads[lane])
        return self.data.sample_of(index, raw)

    def _begin(self, epoch: int) -> None:
        self._epoch, self._waiting = epoch, {}
        self._cursors: dict[int, int] = {}
        for reads in self._reads.values():
            reads.close()
        self._reads.clear()
        shard_of = self.data.shard_of
        self._order = order = epoch_of(self.shape, shard_of, epoch)
        self._turn, self._at = np.full(len(shard_of), -1, np.int64), np.full(len(shard_of), -1, np.int64)
        self._turn[order.sent] = np.arange(len(order.sent))
        self._at[order.read] = np.arange(len(order.read))
