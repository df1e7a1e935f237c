"""`digits`: scikit-learn's 1,797 real handwritten digits as 28x28 gray pictures (1,097 train, 200 val, 500 test).

The 8x8 originals (values 0..16) are enlarged three times by bicubic interpolation and centred in 28x28, white on black, the
frame of MNIST, so that systems written for that data run unchanged. The splits share no sample.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from opticus.data.embedded.material import MATERIAL, SPLITS, all_digits, digit_indices
from opticus.data.records import Boxes, digest
from opticus.structures import Classes, Sample, Task

VERSION = 1


class Digits:
    """Single-label data of ten classes; pictures (28, 28, 1) uint8."""

    task: Task = "classify"
    names: tuple[str, ...] = tuple("0123456789")
    label_ids: tuple[int, ...] = tuple(range(10))
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "train") -> None:
        self.rows = digit_indices(split)
        self.split = split
        self.labels = all_digits()[1][self.rows]
        self.hash = digest(f"digits {VERSION} {MATERIAL} {split}", all_digits()[0][self.rows], self.labels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        return Sample.of(torch.from_numpy(enlarged(row).copy()), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The row of the digit in scikit-learn's table."""
        return f"digit{int(self.rows[index]):04d}"

    def target_of(self, index: int) -> Classes:
        """The digit's class."""
        return Classes(torch.tensor([int(self.labels[index])]))

    def file_of(self, index: int) -> Path | None:
        """None: the digits do not sit in files of their own."""
        return None


@functools.cache
def enlarged(row: int) -> npt.NDArray[np.uint8]:
    """Digit `row` as (28, 28, 1) uint8."""
    small = all_digits()[0][row].astype(np.float32) * (255.0 / 16.0)
    large = np.asarray(Image.fromarray(small).resize((24, 24), Image.Resampling.BICUBIC))
    out = np.zeros((28, 28, 1), np.uint8)
    out[2:26, 2:26, 0] = np.clip(np.rint(large), 0, 255).astype(np.uint8)
    return out
