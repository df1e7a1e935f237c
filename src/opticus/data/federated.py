"""What LVIS says beyond COCO: which classes a picture was searched for, and how frequent each class is.

LVIS (Gupta et al., CVPR 2019, arXiv:1908.03195) annotates no picture with all of its 1,203 classes. A class is known to be present (it
has boxes), known to be absent (`neg_category_ids`), or nothing is known; of some present ones not every object was marked
(`not_exhaustive_category_ids`). Lists of labels sit in flat arrays, one stretch a picture.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opticus.data.findings import Finding
from opticus.data.records import Boxes, Strings

FREQUENCIES = ("r", "c", "f")  # rare: 1-10 training pictures, common: 11-100, frequent: more
Labels = npt.NDArray[np.int64]


@dataclass(slots=True)
class Lists:
    """A growing table of lists of whole numbers; list i is values[starts[i]:starts[i + 1]]."""

    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    values: array[int] = field(default_factory=lambda: array("q"))

    def append(self, items: Iterable[int]) -> None:
        """Add a list at the end."""
        self.values.extend(items)
        self.starts.append(len(self.values))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def flat(self) -> tuple[Labels, Labels]:
        """(N,) the list that each value belongs to, and the values."""
        counts = np.diff(np.frombuffer(self.starts, np.int64))
        values = np.frombuffer(self.values, np.int64) if self.values else np.zeros(0, np.int64)
        return np.repeat(np.arange(len(counts)), counts), values


class Federation:
    """The classes known to be absent, and those marked incompletely, of every picture by its id; `frequencies` of the classes."""

    def __init__(
        self, ids: Strings, absent: tuple[Labels, Labels], partial: tuple[Labels, Labels], frequencies: tuple[str, ...]
    ) -> None:
        self.frequencies = frequencies  # "r", "c" or "f" for each label, "" where the data set does not say
        self._places = {name: index for index, name in enumerate(ids)}
        self._absent, self._partial = (_stretches(len(ids), *pairs) for pairs in (absent, partial))

    def of(self, id: str) -> tuple[Labels, Labels]:
        """Labels that picture `id` was searched for in vain, and labels of which it may show more than is marked."""
        index = self._places[id]
        (first, absent), (second, partial) = self._absent, self._partial
        return absent[first[index] : first[index + 1]], partial[second[index] : second[index + 1]]


def _stretches(count: int, owners: Labels, values: Labels) -> tuple[Labels, Labels]:
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]), values


def known(owners: Labels, values: Labels, labels: Labels, ids: Strings, file: str, notes: list[Finding]) -> tuple[Labels, Labels]:
    """The pairs whose category is known, as labels; the others (`labels` -1) are noted, each with its picture."""
    for row in np.flatnonzero(labels < 0).tolist():
        words = f"the lists of absent or incomplete categories name {values[row]}, which is not in 'categories'"
        notes.append(Finding("unknown category", "error", ids[int(owners[row])], file, words))
    return owners[labels >= 0], labels[labels >= 0]


def contradictions(absent: tuple[Labels, Labels], boxes: Boxes, ids: Strings, names: tuple[str, ...], file: str) -> list[Finding]:
    """Pictures that are said to lack a class of which they have boxes."""
    owners, labels = absent
    width = max(len(names), 1)
    both = np.intersect1d(owners * width + labels, boxes.image_of() * width + boxes.labels.astype(np.int64))
    return [
        Finding(
            "contradicting categories",
            "warning",
            ids[pair // width],
            file,
            f"{names[pair % width]!r} is listed as absent but has a box",
        )
        for pair in both.tolist()
    ]
