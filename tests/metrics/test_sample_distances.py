"""FID, KID, precision, recall, density, coverage: literal formulas and cases with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from opticus.metrics.passport import Number, Passport, compare
from opticus.metrics.samples import class_figures, density_coverage, distances, frechet, kernel_distance, precision_recall
from opticus.structures import MetricError


def literal_frechet(a: np.ndarray, b: np.ndarray) -> float:
    s1, s2 = np.cov(a.T), np.cov(b.T)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2))))


@pytest.mark.parametrize("counts", [(200, 150), (200, 5), (6, 7)], ids=str)
def test_frechet_equals_its_formula(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(counts[0], 8)), rng.normal(1.0, 2.0, size=(counts[1], 8))
    assert frechet(a, b) == pytest.approx(literal_frechet(a, b), rel=1e-4)
    assert frechet(a, a) == pytest.approx(0, abs=1e-8)


def test_frechet_of_known_gaussians() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200_000, 2)), rng.normal((3, 0), (2, 1), size=(200_000, 2))
    assert frechet(a, b) == pytest.approx(9 + 1, rel=0.02)  # 3^2 + (2 - 1)^2


def test_kernel_distance_equals_loops() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 3)), rng.normal(0.5, 1, size=(5, 3))
    k = lambda p, q: (p @ q / 3 + 1) ** 3  # noqa: E731
    within = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    within += sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(k(p, q) for p in x for q in y) / 35
    assert kernel_distance(x, y) == pytest.approx(within - 2 * between)


def test_a_dropped_mode_costs_recall_and_a_wrong_one_precision() -> None:
    rng = np.random.default_rng(3)
    near, far = rng.normal(0, 0.1, (200, 4)), rng.normal(10, 0.1, (200, 4))
    real = np.concatenate([near, far])
    collapsed = rng.normal(0, 0.1, (400, 4))
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.05)
    precision, recall = precision_recall(near, np.concatenate([rng.normal(0, 0.1, (200, 4)), far]))
    assert precision == pytest.approx(0.5, abs=0.05) and recall > 0.9
    density, coverage = density_coverage(real, collapsed)
    assert coverage == pytest.approx(0.5, abs=0.05) and 0.5 < density < 1.5


def test_classes_of_samples() -> None:
    sure = np.eye(10)[np.arange(100) % 10]
    assert class_figures(sure) == pytest.approx({"confidence": 1.0, "evenness": 1.0, "inception score": 10.0})
    one = class_figures(np.eye(10)[np.zeros(50, int)])
    assert one["evenness"] == 0 and one["inception score"] == pytest.approx(1.0)


def test_bad_vectors_are_refused() -> None:
    good = np.zeros((9, 3))
    for a, b in ((good, np.zeros((9, 4))), (good, good[:1]), (good, np.full((9, 3), np.nan))):
        with pytest.raises(MetricError):
            distances(a, b)


def test_unlike_protocols_are_refused_and_like_ones_have_no_interval(tmp_path: Path) -> None:
    for name, features, value in (("a", "pixels", 4.0), ("b", "pixels", 3.0), ("c", "lenet/5", 2.0)):
        (tmp_path / name).mkdir()
        Passport({"FID": Number(value, {"metric": "samples", "features": features})}).write(tmp_path / name)
    row = compare(tmp_path / "a", tmp_path / "b")[0]
    assert row.difference == -1.0 and not row.significant and "no interval" in str(row)
    with pytest.raises(MetricError, match="features is 'pixels' and 'lenet/5'"):
        compare(tmp_path / "a", tmp_path / "c")
