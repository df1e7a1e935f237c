"""`patches`: 64x64 colour patches of photographs, without labels: what pictures are restored, coloured and drawn from (DESIGN 8).

Splits share no photograph: training sees a temple, an astronaut, a motorcycle, tissue and a retina, the test split a flower
and a cat. One patch is a pure function of (seed, VERSION, split, index): a photograph, one of its scales 1, 2^-1/2, 1/2, ... and a
place; of `_TRIES` places the first whose brightness varies is taken, so that few patches are plain sky or ground.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from opticus.data.embedded.material import MATERIAL, PHOTOGRAPHS, SPLITS, photographs, pyramids
from opticus.data.records import Boxes, digest
from opticus.structures import DataError, Sample, Task

VERSION = 1
SIDE = 64
COUNTS = {"train": 4000, "val": 300, "test": 600}
LEAST = 128  # shorter side of the smallest scale of a photograph, in pixels
VARIED = 12.0  # standard deviation of the brightness of a patch that is worth looking at, in grey levels
_TRIES = 4
_DARK = "skimage/data/hubble_deep_field.jpg"  # nearly every patch of it is black
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)


class Patches:
    """Pictures (64, 64, 3) uint8 without targets."""

    task: Task = "generate"
    names: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "train", *, count: int | None = None, seed: int = 0) -> None:
        if split not in COUNTS:
            raise DataError(f"patches has the splits {', '.join(COUNTS)}, found {split!r}")
        if count is not None and count < 1:
            raise DataError(f"patches: count must be at least 1, found {count}")
        self.split: str = split
        self.seed = seed
        self.count = COUNTS[split] if count is None else count
        self.hash: str = digest(f"patches {VERSION} {MATERIAL} {seed} {split} {self.count} {colourful(split)}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"patch {index} of {self.count}")
        return Sample.of(torch.from_numpy(patch(self.seed, self.split, index)), None, self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The split and number of the patch."""
        return f"{self.split}{index:06d}"

    def target_of(self, index: int) -> None:
        """None: patches have no target; transforms make one, such as the patch itself for its reduced picture."""
        return

    def file_of(self, index: int) -> Path | None:
        """None: patches are drawn, not read."""
        return None


@functools.cache
def colourful(split: str) -> tuple[tuple[int, ...], ...]:
    """The numbers of the split's photographs that are in colour; those of one stereo pair together, as they count as one."""
    groups: dict[str, list[int]] = {}
    for number, (name, pixels) in enumerate(zip(PHOTOGRAPHS[split], photographs(split), strict=True)):
        if name != _DARK and pixels.shape[2] == 3 and bool((pixels != pixels[..., :1]).any()):
            groups.setdefault(name.replace("_left", "").replace("_right", ""), []).append(number)
    return tuple(tuple(group) for group in groups.values())


def patch(seed: int, split: str, index: int) -> npt.NDArray[np.uint8]:
    """Patch `index` (64, 64, 3) of a split."""
    key = ((seed & 0xFFFFFFFF) << 32) | (VERSION << 8) | 0x80 | SPLITS.index(split)
    raw = np.random.Philox(key=key, counter=[0, 0, index, 0]).random_raw(3 + 2 * _TRIES)
    u: list[float] = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
    groups = colourful(split)
    group = groups[int(u[0] * len(groups))]
    levels = pyramids(split, LEAST)[group[int(u[1] * len(group))]]
    level = levels[int(u[2] * len(levels))]
    height, width = level.shape[0] - SIDE + 1, level.shape[1] - SIDE + 1
    cut = level[:SIDE, :SIDE]
    for attempt in range(_TRIES):
        top, left = int(u[3 + 2 * attempt] * height), int(u[4 + 2 * attempt] * width)
        cut = level[top : top + SIDE, left : left + SIDE]
        if float((cut @ _LUMA).std()) >= VARIED:
            break
    return np.ascontiguousarray(cut)
