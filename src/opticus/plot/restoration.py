"""Restored pictures side by side: what a system made of a degraded picture beside the original, with PSNR and SSIM below each."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.draw import to_pixels
from opticus.plot.panels import Panel, panels
from opticus.structures import DataError, Picture

if TYPE_CHECKING:
    from PIL.Image import Image

Values = npt.NDArray[Any]


def luminance(picture: Any) -> Values:
    """The Y channel (H, W) of ITU-R BT.601 in 16..235 of an RGB picture, as super-resolution is measured; grey pictures as they are."""
    if isinstance(picture, Picture) and picture.pixels.shape[2] == 1:
        return picture.pixels[..., 0].numpy().astype(np.float64)
    return 16 + to_pixels(picture).astype(np.float64) @ np.asarray([65.481, 128.553, 24.966]) / 255


def fidelity(made: Any, original: Any, border: int = 0) -> tuple[float, float]:
    """PSNR in dB and SSIM (scikit-image, range 255) on the Y channel, without `border` pixels at every side; equal pictures: infinity.

    DataError if the sizes differ or nothing is left to compare.
    """
    one, two = luminance(made), luminance(original)
    if one.shape != two.shape:
        raise DataError(f"the pictures to compare have {one.shape} and {two.shape} pixels")
    if min(one.shape) - 2 * border < 7:
        raise DataError(f"pictures of {one.shape} pixels without {border} at each side are too small for SSIM, which looks at 7x7")
    inside = (slice(border, one.shape[0] - border), slice(border, one.shape[1] - border))
    one, two = one[inside], two[inside]
    error = float(np.square(one - two).mean())
    alike = importlib.import_module("skimage.metrics").structural_similarity
    psnr = math.inf if error == 0 else 10 * math.log10(255**2 / error)
    return psnr, float(alike(one, two, data_range=255))


def restoration(
    answers: Sequence[Mapping[str, Any]], originals: Sequence[Any], *, border: int = 0, cell: int = 220, title: str = ""
) -> Image:
    """A sheet with a row per original: each answer under its name (such as "bicubic", "SRResNet", "SRGAN") with PSNR and SSIM, and
    the original at the end. All rows have the same names; an answer of another size is a DataError."""
    if not answers or len(answers) != len(originals):
        raise DataError(f"restoration: {len(originals)} originals need as many rows of answers, found {len(answers)}")
    names = list(answers[0])
    rows: list[list[Panel | None]] = []
    for found, original in zip(answers, originals):
        if list(found) != names:
            raise DataError(f"restoration: every row needs the answers {', '.join(names)}, found {', '.join(found)}")
        row: list[Panel | None] = []
        for name in names:
            psnr, ssim = fidelity(found[name], original, border)
            row.append(Panel(found[name], f"{psnr:.2f} dB / {ssim:.4f}"))
        rows.append([*row, Panel(original, "PSNR / SSIM on Y")])
    return panels(rows, cell=cell, title=title, column_titles=[*names, "original"])
