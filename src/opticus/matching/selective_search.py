"""Selective search: boxes that may hold an object, from regions merged pair by pair.

Uijlings, van de Sande, Gevers and Smeulders, "Selective Search for Object Recognition", IJCV 2013. Start regions are those of
Felzenszwalb and Huttenlocher 2004 (scikit-image); the two most similar neighbours are merged until one region is left, and the box
of every region that ever existed is a proposal. Colour spaces, start scales and sums of similarities are varied ("diversification").
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from opticus.structures import Picture

Array = npt.NDArray[np.float64]
_COLOURS, _TEXTURES, _ORIENTATIONS = 25, 10, 8  # bins a channel; bins an orientation (section 3.2)


@dataclass
class Regions:
    """Per region: pixels `size` (R,), `box` (R, 4) xyxy, and histograms `colour` (R, 75) and `texture` (R, 240), each of sum 1."""

    size: Array
    box: Array
    colour: Array
    texture: Array


def selective_search(
    picture: Picture,
    *,
    scales: Sequence[float] = (50.0, 100.0),
    spaces: Sequence[str] = ("hsv", "lab"),
    smallest: int = 20,
    limit: int = 2000,
    seed: int = 0,
) -> Array:
    """(N, 4) xyxy boxes in pixels, at most `limit`, without repeats, likeliest first (the paper's "fast" strategy).

    `scales` are the k of the start regions, `smallest` their least size in pixels. A box's rank in its hierarchy, the whole picture
    first, times a random number orders the boxes of all hierarchies (section 4.3); `seed` draws it.
    """
    pixels = picture.pixels.cpu().numpy()
    pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
    rng, found = np.random.default_rng(seed), [np.zeros((0, 5))]
    for space in spaces:
        converted = _in_space(pixels, space)
        for scale in scales:
            regions, pairs = start_regions(converted, scale, smallest)
            for parts in ((1.0, 1.0), (0.0, 1.0)):  # with colour and without: texture, size and fill always count
                boxes = merged(regions, pairs, pixels.shape[0] * pixels.shape[1], *parts)
                rank = np.arange(len(boxes), 0, -1) * rng.random(len(boxes))
                found.append(np.column_stack([rank, boxes]))
    rows = np.concatenate(found)
    rows = rows[rows[:, 0].argsort(kind="stable")]
    first = np.sort(np.unique(rows[:, 1:], axis=0, return_index=True)[1])
    return rows[first[:limit], 1:]


def start_regions(pixels: Array, scale: float, smallest: int) -> tuple[Regions, npt.NDArray[np.int64]]:
    """Graph-based regions of (H, W, 3) values in [0, 1] and the pairs (P, 2) of regions that touch (four-neighbourhood)."""
    from skimage.segmentation import felzenszwalb

    labels = np.asarray(cast(Any, felzenszwalb)(pixels, scale=scale, sigma=0.8, min_size=smallest), np.int64)
    count = int(labels.max()) + 1
    across = np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()], 1)
    down = np.stack([labels[:-1].ravel(), labels[1:].ravel()], 1)
    touching = np.concatenate([across, down])
    pairs = np.unique(np.sort(touching[touching[:, 0] != touching[:, 1]], 1), axis=0)
    y, x = np.indices(labels.shape)
    box = np.zeros((count, 4))
    box[:, :2] = np.inf
    for axis, values in ((0, x), (1, y)):
        np.minimum.at(box[:, axis], labels.ravel(), values.ravel())
        np.maximum.at(box[:, axis + 2], labels.ravel(), values.ravel() + 1)
    size = np.bincount(labels.ravel(), minlength=count).astype(np.float64)
    channels = [_histograms(labels, pixels[:, :, c], _COLOURS, count) for c in range(3)]
    textures = [_histograms(labels, value, _TEXTURES, count) for value in _derivatives(pixels)]
    return Regions(size, box, _unit(np.concatenate(channels, 1)), _unit(np.concatenate(textures, 1))), pairs


def merged(regions: Regions, pairs: npt.NDArray[np.int64], area: int, colour: float, texture: float) -> Array:
    """Boxes (R', 4) of the start regions and of every merge, in order of their making; `colour` and `texture` weigh eq. 1 and 2."""
    count = len(regions.size)
    size, box = list(regions.size), [regions.box[i] for i in range(count)]
    hues, grains = [regions.colour[i] for i in range(count)], [regions.texture[i] for i in range(count)]
    neighbours: list[set[int]] = [set() for _ in range(count)]
    for i, j in pairs.tolist():
        neighbours[i].add(j)
        neighbours[j].add(i)

    def alike(i: int, j: int) -> float:
        around = np.maximum(box[i][2:], box[j][2:]) - np.minimum(box[i][:2], box[j][:2])
        fill = 1 - (around[0] * around[1] - size[i] - size[j]) / area  # eq. 5
        common = colour * np.minimum(hues[i], hues[j]).sum() + texture * np.minimum(grains[i], grains[j]).sum()  # eq. 2, 3
        return float(common + 1 - (size[i] + size[j]) / area + fill)  # eq. 4

    queue = [(-alike(i, j), i, j) for i, j in pairs.tolist()]
    heapq.heapify(queue)
    alive = [True] * count
    while queue:
        _, i, j = heapq.heappop(queue)
        if not (alive[i] and alive[j]):
            continue
        alive[i] = alive[j] = False
        new, whole = len(size), size[i] + size[j]
        box.append(np.concatenate([np.minimum(box[i][:2], box[j][:2]), np.maximum(box[i][2:], box[j][2:])]))
        hues.append((size[i] * hues[i] + size[j] * hues[j]) / whole)  # histograms of a union are weighted means (section 3.2)
        grains.append((size[i] * grains[i] + size[j] * grains[j]) / whole)
        size.append(whole)
        alive.append(True)
        around = {k for k in neighbours[i] | neighbours[j] if alive[k]}
        neighbours.append(around)
        for k in sorted(around):
            neighbours[k].add(new)
            heapq.heappush(queue, (-alike(k, new), k, new))
    return np.stack(box)


def _in_space(pixels: npt.NDArray[np.uint8], space: str) -> Array:
    """(H, W, 3) in about [0, 1]."""
    from skimage import color

    if space == "lab":
        return np.asarray(cast(Any, color).rgb2lab(pixels), np.float64) / [100, 255, 255] + [0, 0.5, 0.5]
    return np.asarray(cast(Any, color).rgb2hsv(pixels), np.float64) if space == "hsv" else pixels / 255.0


def _derivatives(pixels: Array) -> list[Array]:
    """Gaussian derivatives (sigma 1) in eight directions of every channel, (H, W) each."""
    from scipy.ndimage import gaussian_filter

    found: list[Array] = []
    for c in range(3):
        down, across = (np.asarray(cast(Any, gaussian_filter)(pixels[:, :, c], 1.0, order=order)) for order in ((1, 0), (0, 1)))
        for k in range(_ORIENTATIONS):
            angle = 2 * np.pi * k / _ORIENTATIONS
            found.append(np.maximum(np.cos(angle) * across + np.sin(angle) * down, 0))
    return found


def _histograms(labels: npt.NDArray[np.int64], values: Array, bins: int, count: int) -> Array:
    """(R, bins) counts of `values` (H, W) in every region, bins spread over their range."""
    low, high = float(values.min()), float(values.max())
    place = ((values - low) * (bins / max(high - low, 1e-12))).astype(np.int64).clip(0, bins - 1)
    return np.bincount((labels * bins + place).ravel(), minlength=count * bins).reshape(count, bins).astype(np.float64)


def _unit(rows: Array) -> Array:
    return rows / rows.sum(1, keepdims=True)
