"""Nearest class mean and k nearest neighbours on raw pixels: what a learned classifier has to beat.

Yardsticks, not papers: Cover & Hart, "Nearest neighbor pattern classification" (IEEE Trans. Information Theory, 1967). Pictures are
compared as they are, by the Euclidean distance of their pixel values; they must all have one size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from opticus.structures import Classes, DataError, Picture, Sample

Array = npt.NDArray[np.float32]


class NearestMean:
    """The class whose mean picture is nearest; scores are a softmax of minus the distances over their mean distance to the data."""

    def __init__(self) -> None:
        self.means: Array = np.zeros((0, 0), np.float32)  # (classes, H*W*C)
        self.size: tuple[int, ...] = ()
        self.spread = 1.0  # mean distance between a picture and its own class's mean

    def fit(self, samples: Iterable[Sample], classes: int) -> NearestMean:
        """Average the pictures of every class; DataError if a class has none or sizes differ."""
        pixels, labels, self.size = _table("nearest class mean", samples, classes)
        self.means = np.stack([pixels[labels == label].mean(0) for label in range(classes)])
        self.spread = float(np.linalg.norm(pixels - self.means[labels], axis=1).mean()) or 1.0
        return self

    def classify(self, picture: Picture) -> Classes:
        """All classes, nearest first."""
        row = _row("nearest class mean", picture, self.size)
        distances = np.linalg.norm(self.means - row, axis=1)
        beliefs = np.exp((distances.min() - distances) / self.spread)
        return _ranked(beliefs / beliefs.sum())


class Neighbours:
    """The vote of the `k` training pictures nearest to a picture; scores are shares of the vote."""

    def __init__(self, k: int = 20) -> None:
        self.k = k
        self.machine: Any = None
        self.size: tuple[int, ...] = ()

    def fit(self, samples: Iterable[Sample], classes: int) -> Neighbours:
        """Keep all pictures; DataError if a class has none, sizes differ or there are fewer than `k`."""
        from sklearn.neighbors import KNeighborsClassifier

        name = f"{self.k}-NN"
        pixels, labels, self.size = _table(name, samples, classes)
        if len(pixels) < self.k:
            raise DataError(f"{name}: expected at least {self.k} pictures, found {len(pixels)}")
        self.machine = KNeighborsClassifier(self.k, algorithm="brute").fit(pixels, labels)
        return self

    def classify(self, picture: Picture) -> Classes:
        """All classes, most votes first (of equal votes the lower label first)."""
        row = _row(f"{self.k}-NN", picture, self.size)
        return _ranked(np.asarray(self.machine.predict_proba(row[None])[0], np.float32))


def _table(name: str, samples: Iterable[Sample], classes: int) -> tuple[Array, npt.NDArray[np.int64], tuple[int, ...]]:
    """Pixels (N, H*W*C) in [0, 1], labels (N,), and the one size of all pictures."""
    rows: list[Array] = []
    labels: list[int] = []
    size: tuple[int, ...] = ()
    for sample in samples:
        if not isinstance(sample.target, Classes) or len(sample.target) != 1:
            raise DataError(f"{sample.id}: {name} needs Classes with one label as target, found {type(sample.target).__name__}")
        size = size or tuple(sample.picture.pixels.shape)
        rows.append(_row(name, sample.picture, size, sample.id))
        labels.append(int(sample.target.labels[0]))
    missing = sorted(set(range(classes)) - set(labels))
    if missing:
        raise DataError(f"{name}: expected pictures of every class, found none of {missing}")
    if max(labels) >= classes:
        raise DataError(f"{name}: expected labels below {classes}, found {max(labels)}")
    return np.stack(rows), np.asarray(labels, np.int64), size


def _row(name: str, picture: Picture, size: tuple[int, ...], id: str = "the picture") -> Array:
    if not size:
        raise DataError(f"{name}: call fit before classify")
    found = tuple(picture.pixels.shape)
    if found != size:
        raise DataError(f"{id}: {name} compares pictures of one size, expected {size}, found {found}")
    return picture.pixels.cpu().numpy().astype(np.float32).reshape(-1) / np.float32(255)


def _ranked(probs: npt.NDArray[np.floating[Any]]) -> Classes:
    shares = torch.from_numpy(np.ascontiguousarray(probs, np.float32))
    scores, labels = shares.sort(descending=True, stable=True)
    return Classes(labels, scores, shares)
