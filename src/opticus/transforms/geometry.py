"""Geometric transforms: each is one 3x3 matrix that moves pixels, boxes, masks, keypoints and label maps together.

A transform is called `transform(sample, draw)`; its fields are its parameters, so that a recipe can be written down and read back.
Resizing is antialiased (Pillow's filter, within one grey level); `Affine` is bilinear without antialiasing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from opticus.structures import Sample, UsageError
from opticus.transforms.draw import Draw
from opticus.transforms.pixels import Interpolation, framed, resize, warp
from opticus.transforms.prepare import centred, fitted_size, shortest_size
from opticus.transforms.targets import KEEP, moved_sample, permuted_keypoints


def matrix_of(scale_x: float = 1, scale_y: float = 1, left: float = 0, top: float = 0) -> Tensor:
    """The matrix (3, 3) float64 that scales about the origin and then shifts by (left, top) pixels."""
    return torch.tensor([[scale_x, 0, left], [0, scale_y, top], [0, 0, 1]], dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Resize:
    """Resample the whole picture.

    `rule` "fixed": to `size` (H, W); "shortest": shorter side to size[0], longer at most size[1] (0 = no limit); "letterbox":
    fit into `size`, bars of grey level `fill` on both sides. `shorts`: with "shortest", one of these is drawn in place of size[0].
    """

    size: tuple[int, int]
    rule: Literal["fixed", "shortest", "letterbox"] = "fixed"
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    fill: float = 114
    shorts: tuple[int, ...] = ()

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        height, width = sample.size
        if self.rule == "shortest":
            short = self.shorts[draw.integer(0, len(self.shorts))] if self.shorts else self.size[0]
            inner = shortest_size((height, width), short, self.size[1])
        else:
            inner = fitted_size((height, width), self.size) if self.rule == "letterbox" else self.size
        frame = self.size if self.rule == "letterbox" else inner
        top, left = (frame[0] - inner[0]) // 2, (frame[1] - inner[1]) // 2

        def move(pixels: Tensor) -> Tensor:
            small = resize(pixels, inner, self.interpolation, self.antialias)
            return framed(small, -top, -left, frame, self.fill)

        return moved_sample(sample, matrix_of(inner[1] / width, inner[0] / height, left, top), frame, move, None)


@dataclass(frozen=True, slots=True)
class MultiScale:
    """Resize by `rule` (see `Resize`) to one of `sizes`, drawn anew for a whole batch every `every` optimiser steps.

    YOLOv2 (arXiv 1612.08242) draws a multiple of 32 from 320 to 608 every 10 batches. `every=0` draws for each sample alone; the
    batch is then padded to its largest. All processes and micro-batches of a step draw the same size.
    """

    sizes: tuple[tuple[int, int], ...]
    rule: Literal["fixed", "shortest", "letterbox"] = "letterbox"
    every: int = 1
    fill: float = 114

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not self.sizes or self.every < 0:
            raise UsageError(f"multi-scale: expected at least one size and every >= 0, found {self}")
        number = (draw.common(self.every) if self.every else draw).integer(0, len(self.sizes))
        return Resize(self.sizes[number], self.rule, fill=self.fill)(sample, draw)


@dataclass(frozen=True, slots=True)
class Crop:
    """A window of `size` (H, W) at a random place; where the picture is smaller it is first padded on all sides with `fill`."""

    size: tuple[int, int]
    fill: float = 0
    keep: float = KEEP

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        top, left = (_random_start(have, want, draw) for have, want in zip(sample.size, self.size))
        return windowed(sample, top, left, self.size, self.fill, self.keep)


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The central window of `size` (H, W), padded with `fill` where the picture is smaller."""

    size: tuple[int, int]
    fill: float = 0
    keep: float = KEEP

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        top, left = (centred(have, want) for have, want in zip(sample.size, self.size))
        return windowed(sample, top, left, self.size, self.fill, self.keep)


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """A window whose sides are drawn from `low`..`high` pixels (cut to the picture), at a random place: DETR's "RandomSizeCrop"."""

    low: int = 384
    high: int = 600
    keep: float = KEEP

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        height, width = (draw.integer(min(self.low, side), min(side, self.high) + 1) for side in sample.size)
        top, left = (_random_start(have, want, draw) for have, want in zip(sample.size, (height, width)))
        return windowed(sample, top, left, (height, width), 0, self.keep)


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A random part of the picture, of `scale` of its area and of aspect ratio `ratio`, resized to `size` (Szegedy et al. 2015).

    As torchvision draws it: ten attempts, then the largest central part of a permitted ratio. The part is cut out before it is
    resized, so that only its pixels are read.
    """

    size: tuple[int, int] = (224, 224)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    keep: float = KEEP

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        top, left, height, width = self.window(sample.size, draw)

        def move(pixels: Tensor) -> Tensor:
            part = pixels[top : top + height, left : left + width]
            return resize(part, self.size, self.interpolation, self.antialias).contiguous()

        scale_x, scale_y = self.size[1] / width, self.size[0] / height
        return moved_sample(sample, matrix_of(scale_x, scale_y, -left * scale_x, -top * scale_y), self.size, move, self.keep)

    def window(self, size: tuple[int, int], draw: Draw) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part of a picture of `size` (H, W) that is taken."""
        full_height, full_width = size
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = full_height * full_width * draw.uniform(*self.scale)
            ratio = math.exp(draw.uniform(low, high))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= full_width and 0 < height <= full_height:
                return draw.integer(0, full_height - height + 1), draw.integer(0, full_width - width + 1), height, width
        ratio = full_width / full_height
        width = min(full_width, max(round(full_height * self.ratio[1]), 1)) if ratio > self.ratio[1] else full_width
        height = min(full_height, max(round(full_width / self.ratio[0]), 1)) if ratio < self.ratio[0] else full_height
        return (full_height - height) // 2, (full_width - width) // 2, height, width


@dataclass(frozen=True, slots=True)
class Flip:
    """Mirror with probability `p`, left-right or top-bottom; `swap` lists pairs of keypoint indices that change sides."""

    p: float = 0.5
    axis: Literal["horizontal", "vertical"] = "horizontal"
    swap: tuple[tuple[int, int], ...] = ()

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        height, width = sample.size
        across = self.axis == "horizontal"
        matrix = matrix_of(-1, 1, width, 0) if across else matrix_of(1, -1, 0, height)
        flipped = moved_sample(sample, matrix, (height, width), lambda pixels: pixels.flip(1 if across else 0), None)
        flipped.target = permuted_keypoints(flipped.target, self.swap)
        return flipped


@dataclass(frozen=True, slots=True)
class Pad:
    """Add `left`, `top`, `right`, `bottom` pixels of grey level `fill`; with `stride` then right and bottom to a multiple of it."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    stride: int = 1
    fill: float = 0

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if min(self.left, self.top, self.right, self.bottom) < 0 or self.stride < 1:
            raise UsageError(f"pad: expected sides >= 0 and a stride >= 1, found {self}")
        height, width = sample.size
        height, width = height + self.top + self.bottom, width + self.left + self.right
        size = (-(-height // self.stride) * self.stride, -(-width // self.stride) * self.stride)
        return windowed(sample, -self.top, -self.left, size, self.fill, None)


@dataclass(frozen=True, slots=True)
class Affine:
    """Rotate, scale, shear and shift about the picture's centre, with probability `p`.

    `degrees`, `shear` (degrees, along x and y): drawn from +-value, counter-clockwise as seen; `scale`: drawn from the range;
    `translate`: drawn from +-share of (height, width). `size` is the new frame (None = unchanged); centre goes to centre.
    """

    degrees: float = 0
    translate: tuple[float, float] = (0, 0)
    scale: tuple[float, float] = (1, 1)
    shear: tuple[float, float] = (0, 0)
    p: float = 1
    size: tuple[int, int] | None = None
    fill: float = 0
    interpolation: Interpolation = "bilinear"
    keep: float = field(default=KEEP)

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        size = self.size or sample.size
        matrix = self.matrix(sample.size, size, draw)

        def move(pixels: Tensor) -> Tensor:
            return warp(pixels, matrix, size, self.fill, self.interpolation)

        return moved_sample(sample, matrix, size, move, self.keep)

    def matrix(self, old: tuple[int, int], new: tuple[int, int], draw: Draw) -> Tensor:
        """The drawn matrix (3, 3) from a frame `old` (H, W) to a frame `new`."""
        angle = draw.uniform(-self.degrees, self.degrees)
        scale = draw.uniform(*self.scale)
        lean_x, lean_y = (draw.uniform(-value, value) for value in self.shear)
        down, right = (draw.uniform(-share, share) * side for share, side in zip(self.translate, new))
        centre, goal = (old[1] / 2, old[0] / 2), (new[1] / 2 + right, new[0] / 2 + down)
        return affine_matrix(angle, scale, (lean_x, lean_y), centre, goal)


def affine_matrix(
    angle: float, scale: float, shear: tuple[float, float], centre: tuple[float, float], goal: tuple[float, float]
) -> Tensor:
    """The matrix (3, 3) that shears, scales and turns counter-clockwise by `angle` degrees, and takes `centre` to `goal` (x, y)."""
    turn = math.radians(angle)
    cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
    rotation = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    lean = torch.tensor([[1, math.tan(math.radians(shear[0]))], [math.tan(math.radians(shear[1])), 1]], dtype=torch.float64)
    linear = rotation @ lean
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = linear
    matrix[:2, 2] = torch.tensor(goal, dtype=torch.float64) - linear @ torch.tensor(centre, dtype=torch.float64)
    return matrix


def _random_start(have: int, want: int, draw: Draw) -> int:
    """Start of a window of `want` in `have` pixels, uniform over all places (negative: the picture lies inside the window)."""
    low, high = min(have - want, 0), max(have - want, 0)
    return draw.integer(low, high + 1)


def windowed(sample: Sample, top: int, left: int, size: tuple[int, int], fill: float, keep: float | None) -> Sample:
    """The window of `size` (H, W) whose upper left corner is (top, left); what lies outside the picture is `fill`."""

    def move(pixels: Tensor) -> Tensor:
        return framed(pixels, top, left, size, fill)

    return moved_sample(sample, matrix_of(1, 1, -left, -top), size, move, keep)
