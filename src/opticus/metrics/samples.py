"""How well drawn pictures cover real ones, in the space of a feature network that is part of the protocol.

FID: Heusel et al. 2017 (1706.08500). KID: Binkowski et al. 2018 (1801.01401), the unbiased squared MMD of the kernel (x.y / d + 1)^3.
Precision and recall: Kynkaanniemi et al. 2019 (1904.06991), k = 3. Density and coverage: Naeem et al. 2020 (2002.09797), k = 5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opticus.structures import MetricError

Floats = npt.NDArray[np.float64]
PRECISION_K, COVERAGE_K = 3, 5


def frechet(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two sets of vectors (N, D), with unbiased covariances."""
    _check(one, other)
    first, second = one.astype(np.float64), other.astype(np.float64)
    gap = first.mean(0) - second.mean(0)
    a, b = _centred(first), _centred(second)
    # tr (S1 S2)^1/2 is the sum of the singular values of A B^T, where S1 = A^T A and S2 = B^T B
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum() if min(len(a), len(b)) <= a.shape[1] else _root_trace(a, b)
    return float(max(gap @ gap + np.square(a).sum() + np.square(b).sum() - 2 * shared, 0.0))


def _centred(rows: Floats) -> Floats:
    return (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)


def _root_trace(a: Floats, b: Floats) -> float:
    values, vectors = np.linalg.eigh(a.T @ a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return float(np.sqrt(np.linalg.eigvalsh(root @ (b.T @ b) @ root).clip(min=0)).sum())


def kernel_distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """The unbiased squared maximum mean discrepancy of two sets of vectors (N, D); may be slightly negative."""
    _check(one, other)
    x, y = one.astype(np.float64), other.astype(np.float64)
    d, n, m = x.shape[1], len(x), len(y)
    xx, yy, xy = ((p @ q.T / d + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def precision_recall(real: npt.NDArray[Any], fake: npt.NDArray[Any], k: int = PRECISION_K) -> tuple[float, float]:
    """Shares of fakes inside the manifold of the real ones and the other way round: closer to some point than its k-th neighbour."""
    _check(real, fake, k)
    between = _distances(real, fake)
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    precision = (between <= real_radius[:, None]).any(0).mean()
    recall = (between <= fake_radius[None]).any(1).mean()
    return float(precision), float(recall)


def density_coverage(real: npt.NDArray[Any], fake: npt.NDArray[Any], k: int = COVERAGE_K) -> tuple[float, float]:
    """In how many real neighbourhoods a fake lies, divided by k; and the share of real points with a fake in their neighbourhood."""
    _check(real, fake, k)
    inside = _distances(real, fake) < _radii(real, k)[:, None]
    return float(inside.sum() / (k * len(fake))), float(inside.any(1).mean())


def _distances(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Floats:
    x, y = one.astype(np.float64), other.astype(np.float64)
    squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(squared.clip(min=0))


def _radii(rows: npt.NDArray[Any], k: int) -> Floats:
    """The distance of every row to its k-th nearest other row."""
    distances = _distances(rows, rows)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, k - 1, axis=1)[:, k - 1]


def _check(one: npt.NDArray[Any], other: npt.NDArray[Any], k: int = 1) -> None:
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise MetricError(f"two sets of vectors of one width are needed, found shapes {one.shape} and {other.shape}")
    if min(len(one), len(other)) <= max(k, 1):
        raise MetricError(f"more than {max(k, 1)} vectors on each side are needed, found {len(one)} and {len(other)}")
    for rows in (one, other):
        if not np.isfinite(rows).all():
            raise MetricError("the vectors are not all finite")


def distances(real: npt.NDArray[Any], fake: npt.NDArray[Any]) -> dict[str, float]:
    """FID, KID, precision, recall, density and coverage of fake vectors against real ones."""
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    return {
        "FID": frechet(real, fake),
        "KID": kernel_distance(real, fake),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def class_figures(probs: npt.NDArray[Any]) -> dict[str, float]:
    """What a classifier says about drawn pictures (N, K): its mean confidence, and how evenly its classes occur.

    "confidence" is the mean largest probability; "evenness" the entropy of the classes that it names, divided by log K (1 = all
    equally often); "inception score" is exp of the mean divergence of each answer from the mean answer (Salimans et al. 2016).
    """
    p = probs.astype(np.float64)
    named = np.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)
    entropy = -(named[named > 0] * np.log(named[named > 0])).sum()
    mean = p.mean(0)
    divergence = (p * (np.log(p.clip(min=1e-12)) - np.log(mean.clip(min=1e-12)))).sum(1).mean()
    return {
        "confidence": float(p.max(1).mean()),
        "evenness": float(entropy / np.log(p.shape[1])),
        "inception score": float(np.exp(divergence)),
    }
