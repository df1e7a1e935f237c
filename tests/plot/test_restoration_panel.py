import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from opticus.plot.restoration import fidelity, luminance, restoration
from opticus.structures import DataError, Picture


def noise(side: int = 24, seed: int = 0) -> Picture:
    return Picture(torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8))


def test_luminance_is_that_of_super_resolution_papers() -> None:
    corners = Picture(torch.tensor([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], dtype=torch.uint8))
    np.testing.assert_allclose(luminance(corners)[0], [16, 235, 16 + 65.481], atol=1e-3)
    assert luminance(Picture(torch.full((2, 2, 1), 7, dtype=torch.uint8))).tolist() == [[7.0, 7.0], [7.0, 7.0]]


def test_psnr_is_scikit_image_s_and_borders_are_left_out() -> None:
    one = noise()
    other = Picture(one.pixels.clone())
    other.pixels[:3] = 0
    psnr, ssim = fidelity(other, one)
    assert psnr == pytest.approx(peak_signal_noise_ratio(luminance(one), luminance(other), data_range=255)) and 0 < ssim < 1
    assert fidelity(other, one, 3) == (math.inf, 1.0)


def test_the_sheet_has_a_row_per_original_and_a_column_per_answer() -> None:
    small = restoration([{"bicubic": noise(24, 1)}], [noise()], cell=50)
    large = restoration([{"bicubic": noise(24, 1), "SRResNet": noise(24, 2)}] * 2, [noise(), noise(24, 5)], cell=50)
    assert large.width > small.width and large.height > 1.7 * small.height - 40
    assert len(np.unique(np.asarray(large).reshape(-1, 3), axis=0)) > 500


@pytest.mark.parametrize(
    ("words", "answers", "originals"),
    [
        ("1 originals need as many rows", [], [noise()]),
        (r"\(24, 24\) and \(20, 20\)", [{"a": noise()}], [noise(20)]),
        ("every row needs the answers a, found b", [{"a": noise()}, {"b": noise()}], [noise(), noise()]),
        ("too small for SSIM", [{"a": noise(6)}], [noise(6)]),
    ],
)
def test_bad_sheets(words: str, answers, originals) -> None:
    with pytest.raises(DataError, match=words):
        restoration(answers, originals)
