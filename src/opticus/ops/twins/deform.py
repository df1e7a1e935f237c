"""A literal loop of deformable convolution, as the compiled operator's source states it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bilinear(plane: Array, y: float, x: float) -> float:
    """The value of `plane` (H, W) at pixel coordinates with centres at integers; pixels outside count as 0."""
    top, left, value = math.floor(y), math.floor(x), 0.0
    for i, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for j, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
                value += share_y * share_x * plane[i, j]
    return value


def deform_conv(x: Array, offsets: Array, weight: Array, modulation: Array, stride: int, padding: int, dilation: int) -> Array:
    """(O, h, w) of one picture `x` (C, H, W); `offsets` (2 G kh kw, h, w), `modulation` (G kh kw, h, w)."""
    outputs, inputs, rows, columns = weight.shape
    groups = len(modulation) // (rows * columns)
    out = np.zeros((outputs, *offsets.shape[1:]))
    for o, p, q in np.ndindex(*out.shape):
        for i, r, s in np.ndindex(inputs, rows, columns):
            channel = o // (outputs // (len(x) // inputs)) * inputs + i
            tap = (channel // (len(x) // groups) * rows + r) * columns + s
            y = p * stride - padding + r * dilation + offsets[2 * tap, p, q]
            x_at = q * stride - padding + s * dilation + offsets[2 * tap + 1, p, q]
            out[o, p, q] += weight[o, i, r, s] * modulation[tap, p, q] * bilinear(x[channel], y, x_at)
    return out
