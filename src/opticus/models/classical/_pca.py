"""Principal component analysis of small pictures: the linear codes that an autoencoder has to beat.

A yardstick, not a paper: Pearson, "On Lines and Planes of Closest Fit to Systems of Points in Space", Philosophical Magazine, 1901.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opticus.structures import DataError, UsageError


class PrincipalComponents:
    """The subspace of dimension `width` in which rows lose least (exact singular value decomposition, by scikit-learn)."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.machine: Any = None

    def fit(self, rows: Float[Tensor, "N D"]) -> PrincipalComponents:
        """Mean and components; DataError for fewer rows or values than `width`."""
        from sklearn.decomposition import PCA

        if not 1 <= self.width <= min(rows.shape):
            raise DataError(f"PCA: {tuple(rows.shape)} rows and values do not hold {self.width} components")
        self.machine = PCA(self.width, svd_solver="full").fit(_array(rows))
        return self

    def encode(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N k"]:
        """Coordinates in the subspace, the widest spread first."""
        return torch.from_numpy(self._fitted().transform(_array(rows)))

    def decode(self, codes: Float[Tensor, "N k"]) -> Float[Tensor, "N D"]:
        """Rows in the subspace; codes of fewer coordinates than `width` leave the last ones at 0."""
        full = np.pad(_array(codes), ((0, 0), (0, self.width - codes.shape[1])))
        return torch.from_numpy(self._fitted().inverse_transform(full))

    def error(self, rows: Float[Tensor, "N D"], k: int | None = None) -> float:
        """Mean squared difference of a value after going through the first `k` components (None = all)."""
        codes = self.encode(rows)
        return float((self.decode(codes[:, : self.width if k is None else k]) - rows.double().cpu()).square().mean())

    def _fitted(self) -> Any:
        if self.machine is None:
            raise UsageError("PCA: call fit first")
        return self.machine


def _array(rows: Tensor) -> Any:
    return rows.detach().cpu().double().numpy()
