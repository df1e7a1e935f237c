"""Linear separability: whether one hyperplane of a latent space tells apart what a classifier sees in the pictures.

Karras et al. 2019, section 4.2: for every attribute i, a linear support vector machine is fitted to the latent vectors of the pictures
that a classifier is surest about; H(Y_i | X_i) is what is left to know about the class Y_i once the side X_i of its plane is known.
The score is exp(sum_i H(Y_i | X_i)): 1 if every attribute has a plane, 2 for each that none helps with. Lower is better.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opticus.structures import MetricError, UsageError

Floats = npt.NDArray[np.float64]


def conditional_entropy(table: npt.NDArray[Any]) -> float:
    """H(Y | X) in nats of a table of counts (X, Y); MetricError if it is empty or negative."""
    counts = np.asarray(table, np.float64)
    total = counts.sum()
    if counts.ndim != 2 or (counts < 0).any() or not total > 0:
        raise MetricError(f"conditional entropy: a table of counts is needed, found {counts.tolist()}")
    rows = np.broadcast_to(counts.sum(1, keepdims=True), counts.shape)
    seen = counts > 0
    return float((counts[seen] / total * np.log(rows[seen] / counts[seen])).sum())


def plane(vectors: Floats, labels: npt.NDArray[np.bool_]) -> tuple[Floats, float]:
    """Normal and offset of the hyperplane of a linear support vector machine: `vectors @ normal + offset > 0` where True.

    Of labels that are all alike there is no plane: the normal is zero and the offset says the label.
    """
    if labels.all() or not labels.any():
        return np.zeros(vectors.shape[1]), 1.0 if labels.all() else -1.0
    from sklearn.svm import LinearSVC

    # features of mean 0 and deviation 1, so that the margin's weight does not depend on the space's scale
    mean, spread = vectors.mean(0), vectors.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    fitted = cast(Any, LinearSVC)(dual=len(vectors) < vectors.shape[1], max_iter=10_000, random_state=0)
    fitted.fit((vectors - mean) / spread, labels)
    normal = np.asarray(fitted.coef_[0], np.float64) / spread
    return normal, float(fitted.intercept_[0]) - float(normal @ mean)


class Separability:
    """Collects latent vectors with a classifier's probabilities; `compute` fits a plane for every attribute.

    `keep`: share of the pictures, the surest ones for each attribute, that the plane is fitted to and judged on (the paper's half).
    """

    def __init__(self, keep: float = 0.5) -> None:
        if not 0 < keep <= 1:
            raise UsageError(f"separability: keep must be in (0, 1], found {keep}")
        self.keep = keep
        self.vectors: list[Floats] = []
        self.probs: list[Floats] = []

    def update(self, vectors: Tensor, probs: Tensor) -> None:
        """Add latent vectors (B, D) and the probability (B, K) of each of K attributes; MetricError if they do not fit."""
        if vectors.ndim != 2 or probs.ndim != 2 or len(vectors) != len(probs):
            raise MetricError(
                f"separability: vectors (B, D) and probabilities (B, K) are needed, found {tuple(vectors.shape)} and "
                f"{tuple(probs.shape)}"
            )
        if not bool(torch.isfinite(vectors).all()) or not bool(((probs >= 0) & (probs <= 1)).all()):
            raise MetricError("separability: vectors must be finite and probabilities in [0, 1]")
        if self.vectors and (self.vectors[0].shape[1], self.probs[0].shape[1]) != (vectors.shape[1], probs.shape[1]):
            raise MetricError(f"separability: vectors of {self.vectors[0].shape[1]} numbers and others of {vectors.shape[1]}")
        self.vectors.append(vectors.detach().double().cpu().numpy())
        self.probs.append(probs.detach().double().cpu().numpy())

    def compute(self) -> dict[str, float]:
        """The score ("separability") and "entropy/<i>" in nats of every attribute; MetricError without samples."""
        if not self.vectors:
            raise MetricError("separability: no sample was seen")
        vectors, probs = np.concatenate(self.vectors), np.concatenate(self.probs)
        count = max(math.floor(self.keep * len(vectors)), 1)
        entropies: list[float] = []
        for each in probs.T:
            surest = np.argsort(-np.abs(each - 0.5), kind="stable")[:count]
            labels = each[surest] > 0.5
            normal, offset = plane(vectors[surest], labels)
            side = vectors[surest] @ normal + offset > 0
            table = [[int(((side == x) & (labels == y)).sum()) for y in (False, True)] for x in (False, True)]
            entropies.append(conditional_entropy(np.asarray(table)))
        return {"separability": math.exp(sum(entropies)), **{f"entropy/{i}": value for i, value in enumerate(entropies)}}
