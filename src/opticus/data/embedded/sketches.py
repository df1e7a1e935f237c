"""`sketches`: outlines of handwritten digits and the digits themselves, paired (task "translate").

The input is the outline of a digit, one or two pixels wide, white on black; the target is the digit. Pictures (32, 32, 1) uint8, the digits of
`digits` in a frame. The splits share no digit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from opticus.data.embedded.digits import enlarged
from opticus.data.embedded.material import MATERIAL, SPLITS, all_digits, digit_indices
from opticus.data.records import Boxes, digest
from opticus.structures import Picture, Sample, Task

VERSION = 1
INK = 110  # grey level from which on a pixel belongs to the digit


class Sketches:
    """An outline and the digit that it is the outline of."""

    task: Task = "translate"
    names: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "train") -> None:
        self.rows = digit_indices(split)
        self.split: str = split
        self.hash: str = digest(f"sketches {VERSION} {MATERIAL} {split}", all_digits()[0][self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        return Sample.of(torch.from_numpy(outline(row).copy()), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The row of the digit in scikit-learn's table."""
        return f"digit{int(self.rows[index]):04d}"

    def target_of(self, index: int) -> Picture:
        """The digit."""
        return Picture(torch.from_numpy(framed(int(self.rows[index])).copy()))

    def file_of(self, index: int) -> Path | None:
        """None: the digits do not sit in files of their own."""
        return None


@functools.cache
def framed(row: int) -> npt.NDArray[np.uint8]:
    """Digit `row` as (32, 32, 1) uint8."""
    return np.pad(enlarged(row), ((2, 2), (2, 2), (0, 0)))


@functools.cache
def outline(row: int) -> npt.NDArray[np.uint8]:
    """Where the ink of digit `row` touches what is no ink, (32, 32, 1) uint8 of 0 and 255."""
    ink = np.pad(framed(row)[..., 0] >= INK, 1)
    inner = ink[1:-1, 1:-1]
    surrounded = ink[:-2, 1:-1] & ink[2:, 1:-1] & ink[1:-1, :-2] & ink[1:-1, 2:]
    return np.where(inner & ~surrounded, np.uint8(255), np.uint8(0))[..., None]
