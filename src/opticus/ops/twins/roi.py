"""Literal loops of RoIAlign, RoIPool and their position-sensitive forms, as the compiled operators' sources state them."""

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


def psroi_pool(plane: Array, box: Array, size: tuple[int, int], scale: float) -> Array:
    """(C, h, w) of one region (x1, y1, x2, y2) of one map (C * h * w, H, W)."""
    channels, (height, width) = plane.shape[0] // (size[0] * size[1]), plane.shape[1:]
    out = np.zeros((channels, *size))
    x1, y1, x2, y2 = (math.copysign(math.floor(abs(v) + 0.5), v) for v in box.tolist())
    left, top, right, bottom = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
    bin_y, bin_x = max(bottom - top, 0.1) / size[0], max(right - left, 0.1) / size[1]
    for c in range(channels):
        for p in range(size[0]):
            for q in range(size[1]):
                rows = range(max(math.floor(p * bin_y + top), 0), min(math.ceil((p + 1) * bin_y + top), height))
                columns = range(max(math.floor(q * bin_x + left), 0), min(math.ceil((q + 1) * bin_x + left), width))
                own = plane[(c * size[0] + p) * size[1] + q]
                if len(rows) and len(columns):
                    out[c, p, q] = sum(own[y, x] for y in rows for x in columns) / (len(rows) * len(columns))
    return out


def psroi_align(plane: Array, box: Array, size: tuple[int, int], scale: float, samples: int) -> Array:
    """(C, h, w) of one region (x1, y1, x2, y2) of one map (C * h * w, H, W)."""
    channels = plane.shape[0] // (size[0] * size[1])
    out = np.zeros((channels, *size))
    x1, y1, x2, y2 = box * scale - 0.5
    bin_y, bin_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
    for c in range(channels):
        for p in range(size[0]):
            for q in range(size[1]):
                own = plane[(c * size[0] + p) * size[1] + q][None]
                for i in range(samples):
                    for j in range(samples):
                        y, x = y1 + p * bin_y + (i + 0.5) * bin_y / samples, x1 + q * bin_x + (j + 0.5) * bin_x / samples
                        out[c, p, q] += bilinear(own, y, x)[0] / samples**2
    return out
