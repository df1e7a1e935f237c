"""Histograms, a Gaussian and a table of contexts as densities of small pictures: what a learned generative model has to beat.

Yardsticks, not papers, in bits per value. All are fitted to levels (N, D), the whole numbers 0..K-1 that a model predicts, and are proper
distributions over them, so that their bits are comparable with a model's negative log-likelihood of the same levels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opticus.structures import DataError


class Histograms:
    """An own histogram for every value, all values independent; one more count everywhere, so that nothing is impossible."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.logs: Float[Tensor, "D K"] = torch.zeros(0, count, dtype=torch.float64)

    def fit(self, levels: Int[Tensor, "N D"]) -> Histograms:
        """Count every value's levels; DataError for levels outside 0..count-1."""
        _check(levels, self.count)
        counts = torch.ones(levels.shape[1], self.count, dtype=torch.float64)
        counts.scatter_add_(1, levels.T, torch.ones_like(levels.T, dtype=torch.float64))
        self.logs = (counts / counts.sum(1, keepdim=True)).log()
        return self

    def bits(self, levels: Int[Tensor, "N D"]) -> float:
        """-log2 p a value, averaged over pictures and values."""
        return float(-self.logs.gather(1, levels.T).mean()) / math.log(2)


class Gaussian:
    """One Gaussian with full covariance over all values, integrated over the unit cube around every picture's levels.

    Its parameters are those of the levels with uniform noise of one level's width (1/12 is added to every variance). The bits are an
    upper bound of those of the integral (Jensen): -E log2 N(x + u) over that noise u, which has a closed form.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.mean = self.precision = torch.zeros(0, dtype=torch.float64)
        self.constant = 0.0

    def fit(self, levels: Int[Tensor, "N D"]) -> Gaussian:
        """Mean and covariance of the levels; DataError for levels outside 0..count-1."""
        _check(levels, self.count)
        values = levels.double()
        self.mean = values.mean(0)
        centred = values - self.mean
        covariance = centred.T @ centred / len(values) + torch.eye(levels.shape[1], dtype=torch.float64) / 12
        factor = torch.linalg.cholesky(covariance)
        self.precision = torch.cholesky_inverse(factor)
        self.constant = levels.shape[1] * math.log(2 * math.pi) / 2 + float(factor.diagonal().log().sum())
        return self

    def bits(self, levels: Int[Tensor, "N D"]) -> float:
        """The bound on -log2 p a value, averaged over pictures and values."""
        centred = levels.double() - self.mean
        quadratic = ((centred @ self.precision) * centred).sum(1) + self.precision.trace() / 12
        return float(self.constant + quadratic.mean() / 2) / (levels.shape[1] * math.log(2))


class Contexts:
    """Every value by how often it followed its left and its upper neighbour, row after row: the simplest auto-regressive model.

    A pair of neighbours that was seen n times counts for n values, the histogram of all values for `prior` more.
    """

    def __init__(self, count: int, prior: float = 4.0) -> None:
        self.count, self.prior = count, prior
        self.logs: Float[Tensor, "contexts K"] = torch.zeros(0, count, dtype=torch.float64)

    def fit(self, levels: Int[Tensor, "N D"]) -> Contexts:
        """Count square pictures of D values; DataError for levels outside 0..count-1."""
        _check(levels, self.count)
        counts = torch.zeros((self.count + 1) ** 2, self.count, dtype=torch.float64)
        places = (self._contexts(levels).flatten(), levels.flatten())
        counts.index_put_(places, torch.ones(levels.numel(), dtype=torch.float64), accumulate=True)
        overall = (counts.sum(0) + 1) / (counts.sum() + self.count)
        self.logs = ((counts + self.prior * overall) / (counts.sum(1, keepdim=True) + self.prior)).log()
        return self

    def bits(self, levels: Int[Tensor, "N D"]) -> float:
        """-log2 p a value, averaged over pictures and values."""
        return float(-self.logs[self._contexts(levels), levels].mean()) / math.log(2)

    def _contexts(self, levels: Int[Tensor, "N D"]) -> Int[Tensor, "N D"]:
        side = math.isqrt(levels.shape[1])
        if side**2 != levels.shape[1]:
            raise DataError(f"densities: expected square pictures, found {levels.shape[1]} values")
        framed = torch.full(
            (len(levels), side + 1, side + 1), self.count, dtype=levels.dtype
        )  # what is outside is a level of its own
        framed[:, 1:, 1:] = levels.unflatten(1, (side, side))
        return (framed[:, 1:, :-1] * (self.count + 1) + framed[:, :-1, 1:]).flatten(1)


def _check(levels: Int[Tensor, "N D"], count: int) -> None:
    if levels.numel() == 0 or int(levels.min()) < 0 or int(levels.max()) >= count:
        raise DataError(f"densities: expected levels in 0..{count - 1}, found shape {tuple(levels.shape)} or values beyond")
