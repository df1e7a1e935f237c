"""PSNR, SSIM and MAE of restored pictures, against scikit-image and constructed cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from opticus.metrics.passport import Passport, compare
from opticus.metrics.pictures import Restoration, luma
from opticus.structures import MetricError, Picture, UnknownNameError


def pair(seed: int, size: tuple[int, int] = (24, 20), channels: int = 3) -> tuple[Picture, Picture]:
    rng = np.random.default_rng(seed)
    right = rng.integers(30, 220, (*size, channels), dtype=np.uint8)
    wrong = (right + rng.integers(-20, 20, right.shape)).clip(0, 255).astype(np.uint8)
    return Picture(torch.from_numpy(wrong)), Picture(torch.from_numpy(right))


def test_equals_scikit_image() -> None:
    metric = Restoration()
    wrong, right = pair(1)
    metric.update(wrong, right, "a")
    a, b = wrong.pixels.numpy(), right.pixels.numpy()
    found = metric.compute()
    assert found["PSNR"] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255))
    options = {"data_range": 255, "channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert found["SSIM"] == pytest.approx(structural_similarity(a, b, **options))
    assert found["MAE"] == pytest.approx(np.abs(a.astype(float) - b).mean())


def test_luma_and_border_are_those_of_super_resolution() -> None:
    metric = Restoration(channel="y", border=4)
    wrong, right = pair(2, (32, 32))
    metric.update(wrong, right, "a")
    a, b = (luma(p.pixels.numpy())[4:-4, 4:-4] for p in (wrong, right))
    assert metric.compute()["PSNR"] == pytest.approx(10 * np.log10(255**2 / np.square(a - b).mean()))
    white, black = (luma(np.full((1, 1, 3), v, np.uint8))[0, 0] for v in (255, 0))
    assert white == pytest.approx(235, abs=0.01) and black == 16


def test_means_counts_and_merging() -> None:
    whole, parts = Restoration(), [Restoration(), Restoration()]
    for i in range(6):
        wrong, right = pair(i, channels=1)
        whole.update(wrong, right, f"{i}")
        whole.update(wrong, right, f"{i}")
        parts[i % 2].update(wrong, right, f"{i}")
    parts[0].merge(parts[1].state())
    assert len(whole) == 6 and whole.compute() == parts[0].compute()
    worst = whole.worst(2)
    assert worst[0][1] == pytest.approx(whole.samples()["PSNR"].min()) and len(worst) == 2


def test_equal_pictures_and_bad_ones() -> None:
    metric = Restoration()
    metric.update(pair(1)[1], pair(1)[1], "same")
    assert metric.compute() == {"PSNR": 100.0, "SSIM": 1.0, "MAE": 0.0}
    with pytest.raises(MetricError, match=r"small: the answer has the shape \(24, 20, 3\), the right picture \(24, 20, 1\)"):
        metric.update(pair(1)[0], pair(1, channels=1)[1], "small")
    with pytest.raises(MetricError, match="at least 11 x 11"):
        metric.update(*pair(1, (8, 8)), "tiny")
    with pytest.raises(UnknownNameError, match="metric"):
        Restoration(channel="lab")  # type: ignore[arg-type]


def test_passport_compares_picture_by_picture(tmp_path: Path) -> None:
    for name, factor in (("one", 1.0), ("two", 0.5)):
        metric = Restoration(data="d", split="test")
        for i in range(30):
            wrong, right = pair(i)
            closer = right.pixels + (wrong.pixels.float() - right.pixels.float()) * factor
            metric.update(Picture(closer.round().clamp(0, 255).to(torch.uint8)), right, f"{i}")
        (tmp_path / name).mkdir()
        Passport.of(metric).write(tmp_path / name)
    rows = {row.name: row for row in compare(tmp_path / "one", tmp_path / "two")}
    assert 5.0 < rows["PSNR"].difference < 7.0 and rows["PSNR"].significant and rows["MAE"].high < 0
