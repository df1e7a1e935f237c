"""Literal loops of RoIAlign and RoIPool, as the compiled operators' sources state them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bilinear(plane: Array, y: float, x: float) -> Array:
    """(C,) of `plane` (C, H, W) at pixel coordinates with centres at integers; 0 more than a pixel outside."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(plane.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = plane[:, top, left] * (1 - (x - left)) + plane[:, top, right] * (x - left)
    lower = plane[:, bottom, left] * (1 - (x - left)) + plane[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def roi_align(plane: Array, box: Array, size: tuple[int, int], scale: float, samples: int, aligned: bool) -> Array:
    """(C, h, w) of one region (x1, y1, x2, y2) of one map (C, H, W)."""
    out = np.zeros((plane.shape[0], *size))
    x1, y1, x2, y2 = box * scale - (0.5 if aligned else 0.0)
    wide, high = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    bin_y, bin_x = high / size[0], wide / size[1]
    rows, columns = (samples, samples) if samples > 0 else (max(math.ceil(bin_y), 0), max(math.ceil(bin_x), 0))
    for p in range(size[0]):
        for q in range(size[1]):
            for i in range(rows):
                for j in range(columns):
                    y, x = y1 + p * bin_y + (i + 0.5) * bin_y / rows, x1 + q * bin_x + (j + 0.5) * bin_x / columns
                    out[:, p, q] += bilinear(plane, y, x) / (rows * columns)
    return out


def roi_pool(plane: Array, box: Array, size: tuple[int, int], scale: float) -> Array:
    """(C, h, w) of one region (x1, y1, x2, y2) of one map (C, H, W)."""
    height, width = plane.shape[1:]
    out = np.zeros((plane.shape[0], *size))
    x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(v) + 0.5), v)) for v in (box * scale).tolist())
    bin_y, bin_x = max(y2 - y1 + 1, 1) / size[0], max(x2 - x1 + 1, 1) / size[1]
    for p in range(size[0]):
        for q in range(size[1]):
            top, bottom = max(math.floor(p * bin_y) + y1, 0), min(math.ceil((p + 1) * bin_y) + y1, height)
            left, right = max(math.floor(q * bin_x) + x1, 0), min(math.ceil((q + 1) * bin_x) + x1, width)
            if bottom > top and right > left:
                out[:, p, q] = plane[:, top:bottom, left:right].max((1, 2))
    return out
