"""What every reader provides beyond the Dataset contract, and the flat arrays that annotations sit in."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from opticus.structures import Dataset, Instances, Sample

Ints = npt.NDArray[np.int64]


@runtime_checkable
class Source(Dataset, Protocol):
    """A data set with a split, the names of all its splits, and (where it has them) files and flat boxes."""

    split: str
    splits: tuple[str, ...]
    boxes: Boxes | None

    def file_of(self, index: int) -> Path | None:
        """The picture's file; None when pictures do not sit in files of their own."""
        ...

    def __iter__(self) -> Iterator[Sample]: ...


class Strings:
    """A growing list of strings in one block of bytes: eight bytes a string beyond its text."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._blob = bytearray()
        self._starts = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add a string at the end."""
        self._blob += text.encode("utf-8", "surrogateescape")
        self._starts.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} strings")
        index %= len(self)
        return self._blob[self._starts[index] : self._starts[index + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


@dataclass(slots=True)
class Boxes:
    """All boxes of a data set in flat arrays; those of picture i are rows starts[i]:starts[i + 1]."""

    starts: Ints  # (images + 1,)
    boxes: npt.NDArray[np.float32]  # (N, 4) xyxy pixels (YOLO: fractions until the picture's size is known)
    labels: npt.NDArray[np.int16]  # (N,), -1 where the annotation names no known category
    crowd: npt.NDArray[np.bool_] | None = None
    areas: npt.NDArray[np.float32] | None = None
    ids: npt.NDArray[np.int64] | None = None  # the data set's own annotation ids
    where: npt.NDArray[np.int64] | None = None  # byte offset of the record in its file, for lazily read masks

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def rows(self, index: int) -> slice:
        """The rows of picture `index`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def image_of(self) -> Ints:
        """(N,) the picture index of every row."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def instances(self, index: int, size: tuple[int, int], scale: tuple[float, float] = (1.0, 1.0)) -> Instances:
        """The target of picture `index` with frame `size` (H, W); `scale` (x, y) turns stored coordinates into pixels."""
        rows = self.rows(index)
        boxes = torch.from_numpy(self.boxes[rows].copy())
        if scale != (1.0, 1.0):
            boxes = boxes * boxes.new_tensor([scale[0], scale[1], scale[0], scale[1]])
        crowd = None if self.crowd is None else torch.from_numpy(self.crowd[rows].copy())
        areas = None if self.areas is None else torch.from_numpy(self.areas[rows].copy())
        return Instances(boxes, torch.from_numpy(self.labels[rows].astype(np.int64)), size, crowd=crowd, areas=areas)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        parts = (self.starts, self.boxes, self.labels, self.crowd, self.areas, self.ids, self.where)
        return sum(part.nbytes for part in parts if part is not None)


def digest(*parts: bytes | str | npt.NDArray[np.generic]) -> str:
    """sha256 of the parts, each with its length in front, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else bytes(part)
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()
