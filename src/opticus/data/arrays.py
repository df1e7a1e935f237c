"""Classification data whose pictures sit together in one array: the class behind the MNIST and CIFAR readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from opticus.data.findings import Finding
from opticus.data.records import Boxes, digest
from opticus.structures import Classes, DataError, Sample, Task


class ArrayPictures:
    """Pictures (N, H, W, C) uint8 with one label each."""

    task: Task = "classify"
    boxes: Boxes | None = None

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        names: tuple[str, ...],
        *,
        split: str,
        splits: tuple[str, ...],
        where: str,
    ) -> None:
        if len(pixels) != len(labels):
            raise DataError(f"{where}: {len(pixels)} pictures but {len(labels)} labels")
        self.pixels = pixels
        self.labels = labels
        self.names = names
        self.label_ids = tuple(range(len(names)))
        self.split = split
        self.splits = splits
        self.hash = digest(split, np.ascontiguousarray(pixels), labels, *names)
        bad = np.flatnonzero((labels < 0) | (labels >= len(names))).tolist()
        words = f"the label is not in 0..{len(names) - 1}"
        self.notes = [Finding("unknown category", "error", self.id_of(i), where, f"{labels[i]}: {words}") for i in bad]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return Sample.of(torch.from_numpy(np.array(self.pixels[index])), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The split and the number of the picture."""
        return f"{self.split}{index:06d}"

    def target_of(self, index: int) -> Classes:
        """The picture's class."""
        return Classes(torch.tensor([int(self.labels[index])]))

    def file_of(self, index: int) -> Path | None:
        """None: all pictures share a file."""
        return None
