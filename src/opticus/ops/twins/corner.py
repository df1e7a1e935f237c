"""Literal loops of corner pooling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pool(plane: Array, side: str) -> Array:
    """The maximum from each place of a plane (H, W) on, in the direction that the pooling called `side` looks."""
    height, width = plane.shape
    out = np.empty_like(plane)
    for i in range(height):
        for j in range(width):
            best = plane[i, j]
            y, x = i, j
            while 0 <= y < height and 0 <= x < width:
                if plane[y, x] > best:
                    best = plane[y, x]
                y += {"top": 1, "bottom": -1}.get(side, 0)
                x += {"left": 1, "right": -1}.get(side, 0)
            out[i, j] = best
    return out
