"""Literal loops of run-length codes, mask boxes, bilinear sampling, warps, heat-maps, peaks and keypoint similarity."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def runs(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the alternating runs of a mask (H, W), columns first, background first."""
    lengths, value = [0], False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if bool(mask[y, x]) != value:
                lengths.append(0)
                value = not value
            lengths[-1] += 1
    return lengths


def text(lengths: list[int]) -> bytes:
    """COCO's string of run lengths: differences from the fourth on, five bits a character, low bits first."""
    out = bytearray()
    for index, length in enumerate(lengths):
        rest, more = length - (lengths[index - 2] if index > 2 else 0), True
        while more:
            digit = rest & 31
            rest >>= 5
            more = rest != (-1 if digit & 16 else 0)
            out.append(digit + 48 + (32 if more else 0))
    return bytes(out)


def box(mask: NDArray[np.bool_]) -> list[float]:
    """The tight xyxy box of a mask (H, W), zeros for an empty one."""
    spots = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not spots:
        return [0.0] * 4
    xs, ys = [x for x, _ in spots], [y for _, y in spots]
    return [float(min(xs)), float(min(ys)), float(max(xs) + 1), float(max(ys) + 1)]


def sample(plane: Array, x: float, y: float, border: bool) -> float:
    """A plane (H, W) at (x, y), pixel centres at +0.5; outside 0, or the nearest edge value if `border`."""
    height, width = plane.shape
    x, y = x - 0.5, y - 0.5
    if border:
        x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(plane[row, column])
    return total


def warp(plane: Array, matrix: Array, size: tuple[int, int], border: bool) -> Array:
    """A plane (H, W) moved by `matrix` (input to output): every output centre looked up in the input."""
    out, back = np.zeros(size), np.linalg.inv(matrix)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y, w = back @ np.array([column + 0.5, row + 0.5, 1.0])
            out[row, column] = sample(plane, x / w, y / w, border)
    return out


def render(centres: Array, radii: list[int], labels: list[int], shape: tuple[int, int, int]) -> Array:
    """CenterNet's heat-maps, object by object and pixel by pixel."""
    heat = np.zeros(shape)
    for (x, y), radius, label in zip(centres, radii, labels, strict=True):
        sigma = (2 * radius + 1) / 6
        for row in range(math.floor(y) - radius, math.floor(y) + radius + 1):
            for column in range(math.floor(x) - radius, math.floor(x) + radius + 1):
                if 0 <= row < shape[1] and 0 <= column < shape[2]:
                    square = (row - math.floor(y)) ** 2 + (column - math.floor(x)) ** 2
                    heat[label, row, column] = max(heat[label, row, column], math.exp(-square / (2 * sigma**2)))
    return heat


def peaks(heat: Array, count: int) -> list[float]:
    """The `count` highest values of (K, H, W) that no neighbour of the 3x3 window exceeds; 0 where there are fewer."""
    found = []
    for label in range(heat.shape[0]):
        for y in range(heat.shape[1]):
            for x in range(heat.shape[2]):
                window = heat[label, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                found.append(float(heat[label, y, x]) if heat[label, y, x] >= window.max() else 0.0)
    return sorted(found, reverse=True)[:count]


def oks(found: Array, truth: Array, box: Array, area: float, sigmas: Array) -> float:
    """Similarity of one found (K, 3) and one true (K, 3) set of points."""
    terms: list[float] = []
    some = bool((truth[:, 2] > 0).any())
    for (x, y, _), (u, v, seen), sigma in zip(found, truth, sigmas, strict=True):
        dx, dy = x - u, y - v
        if not some:
            wide, high = box[2] - box[0], box[3] - box[1]
            dx = max(0.0, box[0] - wide - x) + max(0.0, x - box[2] - wide)
            dy = max(0.0, box[1] - high - y) + max(0.0, y - box[3] - high)
        if seen > 0 or not some:
            terms.append(math.exp(-(dx**2 + dy**2) / (2 * sigma) ** 2 / (area + 2.220446049250313e-16) / 2))
    return sum(terms) / len(terms)
