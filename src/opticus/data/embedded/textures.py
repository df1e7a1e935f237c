"""`textures`: 32x32 patches of photographs whose classes are regions of them: brick, grass, fur, petals, ... (DESIGN 8).

A region is cut into three strips along its longer side, so that the splits share photographs but no pixel: 60 % train, then 20 % each
for val and test. One patch is a pure function of (seed, VERSION, split, index): a square of 22 to 40 pixels of the region, turned by any
angle, reduced to its luminance, with a random tint, gain and offset. What is left to tell classes apart is texture: colour and
brightness mean nothing, and no pixel means anything by its place, so that comparing raw pixels does badly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from opticus.data.decode import decode
from opticus.data.embedded.material import MATERIAL, SPLITS, shipped
from opticus.data.records import Boxes, digest
from opticus.structures import Classes, DataError, Sample, Task

VERSION = 1
SIDE = 32
COUNTS = {"train": 6000, "val": 500, "test": 1000}
SPAN = (22.0, 40.0)  # side of the square that a patch shows, in pixels of its region
_STRIPS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
_NUMBERS = 12

# class -> photograph, region (left, top, right, bottom) in fractions of it
REGIONS: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "brick": ("skimage/data/brick.png", (0.0, 0.0, 1.0, 1.0)),
    "cells": ("skimage/data/ihc.png", (0.0, 0.0, 1.0, 1.0)),
    "coins": ("skimage/data/coins.png", (0.0, 0.0, 1.0, 1.0)),
    "foliage": ("sklearn/datasets/images/china.jpg", (0.0, 0.66, 1.0, 1.0)),
    "fur": ("skimage/data/chelsea.png", (0.08, 0.08, 0.85, 0.92)),
    "galaxies": ("skimage/data/hubble_deep_field.jpg", (0.0, 0.0, 1.0, 1.0)),
    "grass": ("skimage/data/grass.png", (0.0, 0.0, 1.0, 1.0)),
    "gravel": ("skimage/data/gravel.png", (0.0, 0.0, 1.0, 1.0)),
    "lawn": ("skimage/data/camera.png", (0.0, 0.72, 1.0, 1.0)),
    "moon": ("skimage/data/moon.png", (0.0, 0.0, 1.0, 1.0)),
    "motorcycle": ("skimage/data/motorcycle_left.png", (0.15, 0.35, 0.9, 0.88)),
    "pagoda": ("sklearn/datasets/images/china.jpg", (0.1, 0.05, 0.5, 0.75)),
    "petals": ("sklearn/datasets/images/flower.jpg", (0.29, 0.18, 0.67, 0.87)),
    "workshop": ("skimage/data/motorcycle_left.png", (0.0, 0.0, 1.0, 0.34)),
}
NAMES = tuple(REGIONS)


class Textures:
    """Single-label data of fourteen classes; pictures (32, 32, 3) uint8. Class i % 14 is patch i's."""

    task: Task = "classify"
    names: tuple[str, ...] = NAMES
    label_ids: tuple[int, ...] = tuple(range(len(NAMES)))
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "train", *, count: int | None = None, seed: int = 0) -> None:
        if split not in COUNTS:
            raise DataError(f"textures has the splits {', '.join(COUNTS)}, found {split!r}")
        self.split: str = split
        self.seed = seed
        self.count = COUNTS[split] if count is None else count
        self.hash: str = digest(f"textures {VERSION} {MATERIAL} {seed} {split} {self.count} {REGIONS}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"patch {index} of {self.count}")
        pixels = patch(self.seed, self.split, index)
        return Sample.of(torch.from_numpy(pixels), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The split and number of the patch."""
        return f"{self.split}{index:06d}"

    def target_of(self, index: int) -> Classes:
        """The patch's region."""
        return Classes(torch.tensor([index % len(NAMES)]))

    def file_of(self, index: int) -> Path | None:
        """None: patches are drawn, not read."""
        return None


def patch(seed: int, split: str, index: int) -> npt.NDArray[np.uint8]:
    """Patch `index` (32, 32, 3) of a split."""
    strip = strips(NAMES[index % len(NAMES)])[split]
    key = ((seed & 0xFFFFFFFF) << 32) | (VERSION << 8) | 0x40 | SPLITS.index(split)
    raw = np.random.Philox(key=key, counter=[0, 0, index, 0]).random_raw(_NUMBERS)
    u: list[float] = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
    span, angle = SPAN[0] + u[0] * (SPAN[1] - SPAN[0]), 2 * math.pi * u[1]
    reach = span * (abs(math.cos(angle)) + abs(math.sin(angle))) / 2  # half the side of the upright square around the turned one
    x, y = reach + u[2] * (strip.width - 2 * reach), reach + u[3] * (strip.height - 2 * reach)
    a, b = span / SIDE * math.cos(angle), span / SIDE * math.sin(angle)
    matrix = (a, -b, x - (a - b) * SIDE / 2, b, a, y - (a + b) * SIDE / 2)
    grey = np.asarray(strip.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC), np.float32)
    middle, gain = float(grey.mean()), 0.7 + 0.6 * u[4]
    tint = np.asarray(u[5:8], np.float32) * 0.5 + 0.75
    tint /= float(tint @ _LUMA)
    lit = ((grey - middle) * gain + 80.0 + 96.0 * u[8])[..., None] * tint
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


@functools.cache
def strips(name: str) -> dict[str, Image.Image]:
    """The luminance of a region's three strips, by split; they share no pixel."""
    file, (left, top, right, bottom) = REGIONS[name]
    pixels = decode(shipped(file)).pixels.numpy()
    luminance = pixels[..., 0] if pixels.shape[2] == 1 else np.rint(pixels @ _LUMA).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(luminance))
    x0, y0, x1, y1 = (round(f * n) for f, n in zip((left, top, right, bottom), (image.width, image.height) * 2))
    cuts: dict[str, Image.Image] = {}
    for split, (start, end) in _STRIPS.items():
        if x1 - x0 >= y1 - y0:
            box = (x0 + round(start * (x1 - x0)), y0, x0 + round(end * (x1 - x0)), y1)
        else:
            box = (x0, y0 + round(start * (y1 - y0)), x1, y0 + round(end * (y1 - y0)))
        cuts[split] = image.crop(box)
    return cuts
