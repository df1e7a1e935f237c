"""Many small pictures on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.colours import PAPER
from opticus.plot.draw import to_pixels
from opticus.structures import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SEEN, WIDEST = 64, 4096  # pixels: what a small picture is enlarged to at least, and what a sheet is never wider than


def sheet(pictures: Sequence[Any], columns: int, *, enlarge: int | None = None, gap: int = 2) -> Image:
    """Pictures (H, W, 3 or 1) uint8 of one size, row after row of `columns`, each enlarged by a whole factor."""
    from PIL import Image as image_module

    if not pictures or columns < 1:
        raise UsageError(f"a sheet needs pictures and at least one column, found {len(pictures)} and {columns}")
    tiles = [to_pixels(picture) for picture in pictures]
    if len({tile.shape for tile in tiles}) > 1:
        raise UsageError(f"a sheet needs pictures of one size, found {sorted({tile.shape[:2] for tile in tiles})}")
    height, width = tiles[0].shape[:2]
    factor = enlarge or max(1, min(-(-SEEN // min(height, width)), max(WIDEST // (columns * (width + gap)), 1)))
    rows = -(-len(tiles) // columns)
    tall, wide = height * factor + gap, width * factor + gap
    canvas: npt.NDArray[np.uint8] = np.empty((rows * tall + gap, columns * wide + gap, 3), np.uint8)
    canvas[:] = PAPER
    for number, tile in enumerate(tiles):
        top, left = gap + number // columns * tall, gap + number % columns * wide
        canvas[top : top + height * factor, left : left + width * factor] = tile.repeat(factor, 0).repeat(factor, 1)
    return image_module.fromarray(canvas)
