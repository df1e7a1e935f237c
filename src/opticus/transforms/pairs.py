"""Pairs of pictures, and pictures of several domains: what moves both alike, and what acts on each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from opticus.structures import Picture, Sample, UsageError
from opticus.transforms.chain import Transform, apply
from opticus.transforms.draw import Draw


def scale_of(sample: Sample) -> int:
    """How many times larger the target picture is than the input, a whole number alike on both sides; UsageError otherwise."""
    if not isinstance(sample.target, Picture):
        raise UsageError(f"{sample.id}: a pair needs a target picture, found {type(sample.target).__name__}")
    (height, width), (tall, wide) = sample.size, sample.target.size
    scale = tall // height
    if scale < 1 or (height * scale, width * scale) != (tall, wide):
        raise UsageError(f"{sample.id}: the target picture is {tall}x{wide}, not a whole multiple of the input's {height}x{width}")
    return scale


@dataclass(frozen=True, slots=True)
class CropPair:
    """A random window of `size` (H, W) of the input and the same part of its target picture, which may be a whole multiple larger."""

    size: tuple[int, int]

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        scale, (height, width), (h, w) = scale_of(sample), sample.size, self.size
        if h > height or w > width:
            raise UsageError(f"{sample.id}: the picture is {height}x{width}, a window of {h}x{w} does not fit")
        top, left = draw.integer(0, height - h + 1), draw.integer(0, width - w + 1)
        target = sample.target
        assert isinstance(target, Picture)
        part = target.pixels[top * scale : (top + h) * scale, left * scale : (left + w) * scale].contiguous()
        matrix = torch.tensor([[1, 0, -left], [0, 1, -top], [0, 0, 1]], dtype=torch.float64)
        return sample.with_picture(sample.picture.pixels[top : top + h, left : left + w].contiguous(), Picture(part), matrix)


@dataclass(frozen=True, slots=True)
class FlipPair:
    """Input and target picture mirrored with probability `p` each way; `turn` also exchanges rows and columns of square pictures."""

    p: float = 0.5
    vertical: float = 0.0
    turn: float = 0.0

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        scale_of(sample)
        one, two = sample.picture.pixels, sample.target
        assert isinstance(two, Picture)
        other = two.pixels
        height, width = sample.size
        matrix = torch.eye(3, dtype=torch.float64)
        if draw.rng.random() < self.p:
            one, other = one.flip(1), other.flip(1)
            matrix = torch.tensor([[-1, 0, width], [0, 1, 0], [0, 0, 1]], dtype=torch.float64) @ matrix
        if draw.rng.random() < self.vertical:
            one, other = one.flip(0), other.flip(0)
            matrix = torch.tensor([[1, 0, 0], [0, -1, height], [0, 0, 1]], dtype=torch.float64) @ matrix
        if draw.rng.random() < self.turn and height == width:
            one, other = one.transpose(0, 1), other.transpose(0, 1)
            matrix = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64) @ matrix
        return sample.with_picture(one.contiguous(), Picture(other.contiguous()), matrix)


@dataclass(frozen=True, slots=True)
class InEach:
    """`transforms` on every view of a sample (the domains of unpaired data), each with its own chance; the picture is the first view."""

    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not sample.views:
            raise UsageError(f"{sample.id}: the sample has no views; is the data of two domains?")
        views = tuple((role, apply(self.transforms, view, draw)) for role, view in sample.views)
        first = views[0][1]
        return replace(
            sample, inputs={**sample.inputs, "image": first.picture}, matrix=first.matrix, original=first.original, views=views
        )


@dataclass(frozen=True, slots=True)
class Apart:
    """A pair becomes two views, "a" the picture and "b" its target, for methods that do not use which belongs to which."""

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not isinstance(sample.target, Picture):
            raise UsageError(f"{sample.id}: a pair needs a target picture, found {type(sample.target).__name__}")
        one = replace(sample, target=None)
        return replace(one, views=(("a", one), ("b", Sample.of(sample.target.pixels, None, sample.id))))
