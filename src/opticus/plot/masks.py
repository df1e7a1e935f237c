"""Object masks over pictures: every object in its colour, with a contour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.draw import to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


def tinted(picture: Any, ids: npt.NDArray[Any], colours: npt.NDArray[np.uint8], strength: float = 0.55) -> Image:
    """A picture with object `ids` (H, W) of its size laid over in `colours` (256, 3); 0 stays as it is, contours are opaque."""
    from PIL import Image as image_module

    pixels = to_pixels(picture).astype(np.float32)
    tint = colours[ids].astype(np.float32)
    alpha = np.where(ids > 0, np.float32(strength), np.float32(0))
    inner = ids > 0
    edge = np.zeros_like(inner)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[:, :-1] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:-1] |= ids[1:] != ids[:-1]
    alpha[edge & inner] = 1
    mixed = pixels * (1 - alpha[..., None]) + tint * alpha[..., None]
    return image_module.fromarray(mixed.round().astype(np.uint8))
