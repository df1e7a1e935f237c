"""Transforms that make one sample of several: mosaic, mix-up and CutMix. Each source keeps its own matrix in `Sample.sources`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opticus.structures import Classes, Instances, LabelMap, Sample, Target, UsageError
from opticus.transforms.chain import Transform, apply
from opticus.transforms.draw import Draw
from opticus.transforms.geometry import Resize, matrix_of
from opticus.transforms.pixels import channelled, framed, resize
from opticus.transforms.prepare import fitted_size
from opticus.transforms.targets import KEEP, clip, joined, moved_sample, moved_target, warped_boxes

Window = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Four pictures around a random point of a frame `size` (H, W) (Bochkovskiy et al. 2020, YOLOv4), with probability `p`.

    Each picture is resized to fit into `size` and laid with one corner on the point, drawn from `centre` (shares of both sides);
    what reaches over its quarter's edge is cut off, what it leaves free has grey level `fill`. Instances and label maps are
    joined; the first picture is the sample's own, the others come from `draw.another()` after `before`.

    Boxes are clipped to their quarter. An object is dropped if less than `keep` of its box is left, or if the box has been cut and a
    side of the rest is below `least` pixels: a sliver shows nothing to learn from.
    """

    size: tuple[int, int]
    centre: tuple[float, float] = (0.25, 0.75)
    p: float = 1
    fill: float = 114
    keep: float = KEEP
    before: tuple[Transform, ...] = ()
    least: float = 2

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        height, width = self.size
        if min(self.size) < 2:
            raise UsageError(f"mosaic: the frame must be at least 2 x 2 pixels, found {self.size}")
        y, x = (max(1, min(side - 1, round(side * draw.uniform(*self.centre)))) for side in self.size)
        parts = [sample, *(apply(self.before, draw.another(), draw) for _ in range(3))]
        windows: list[Window] = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
        laid = [self._laid(part, window, i, sample) for i, (part, window) in enumerate(zip(parts, windows))]
        pixels = torch.empty(height, width, int(sample.picture.pixels.shape[2]), dtype=torch.uint8)
        for part, (top, left, bottom, right) in zip(laid, windows):
            pixels[top:bottom, left:right] = part.picture.pixels
        targets = [_placed(part.target, window, self.size) for part, window in zip(laid, windows)]
        sources = tuple(
            (id, matrix_of(1, 1, window[1], window[0]) @ matrix)
            for part, window in zip(laid, windows)
            for id, matrix in sources_of(part)
        )
        return _mixed(sample, pixels, _united(targets, self.size), sources, sum(part.weight for part in parts) / 4)

    def _laid(self, part: Sample, window: Window, quarter: int, like: Sample) -> Sample:
        """`part` resized and cut to the size of its window, in the window's own coordinates."""
        size = (window[2] - window[0], window[3] - window[1])
        inner = fitted_size(part.size, self.size)
        top = size[0] - inner[0] if quarter < 2 else 0
        left = size[1] - inner[1] if quarter % 2 == 0 else 0
        scale_y, scale_x = inner[0] / part.size[0], inner[1] / part.size[1]
        channels = int(like.picture.pixels.shape[2])

        def move(pixels: Tensor) -> Tensor:
            return framed(resize(channelled(pixels, channels, part.id), inner), -top, -left, size, self.fill)

        matrix = matrix_of(scale_x, scale_y, left, top)
        whole = part.target
        if isinstance(whole, Instances) and len(whole):
            boxes = warped_boxes(whole.boxes, matrix)
            cut = clip(boxes, size)
            sliver = (boxes != cut).any(1) & ((cut[:, 2:] - cut[:, :2]) < self.least).any(1)
            part = replace(part, target=whole[~sliver])
        return moved_sample(part, matrix, size, move, self.keep)


@dataclass(frozen=True, slots=True)
class MixUp:
    """Blend two pictures with a share drawn from Beta(alpha, alpha) (Zhang et al. 2017, arXiv 1710.09412), with probability `p`.

    Class labels become soft in the same shares; instances of both pictures are joined at full weight, as detectors use it. The
    other picture comes from `draw.another()` after `before`, and is resized to this one's size if it differs.
    """

    alpha: float = 0.2
    p: float = 1
    before: tuple[Transform, ...] = ()

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        share = float(draw.rng.beta(self.alpha, self.alpha))
        other = _other(sample, self.before, draw)
        blend = torch.lerp(other.picture.pixels.float(), sample.picture.pixels.float(), share).round_().to(torch.uint8)
        if isinstance(sample.target, Classes) or isinstance(other.target, Classes):
            target: Target | None = blended_classes(sample.target, other.target, share)
        else:
            target = _united([sample.target, other.target], sample.size)
        weight = share * sample.weight + (1 - share) * other.weight
        return _mixed(sample, blend, target, (*sources_of(sample), *sources_of(other)), weight)


@dataclass(frozen=True, slots=True)
class CutMix:
    """Paste a rectangle of another picture (Yun et al. 2019, arXiv 1905.04899); class labels mix by area, label maps are pasted.

    The rectangle's area share is 1 - Beta(alpha, alpha) before it is cut off at the border; labels use the true area.
    """

    alpha: float = 1.0
    p: float = 1
    before: tuple[Transform, ...] = ()

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        side = math.sqrt(1 - float(draw.rng.beta(self.alpha, self.alpha)))
        other = _other(sample, self.before, draw)
        height, width = sample.size
        y, x = draw.integer(0, height), draw.integer(0, width)
        h, w = int(height * side / 2), int(width * side / 2)
        rows, columns = slice(max(y - h, 0), min(y + h, height)), slice(max(x - w, 0), min(x + w, width))
        pixels = sample.picture.pixels.clone()
        pixels[rows, columns] = other.picture.pixels[rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        if isinstance(sample.target, LabelMap) and isinstance(other.target, LabelMap):
            labels = sample.target.labels.clone()
            labels[rows, columns] = other.target.labels[rows, columns]
            target: Target | None = LabelMap(labels, sample.target.ignore)
        else:
            target = blended_classes(sample.target, other.target, share)
        weight = share * sample.weight + (1 - share) * other.weight
        return _mixed(sample, pixels, target, (*sources_of(sample), *sources_of(other)), weight)


def sources_of(sample: Sample) -> tuple[tuple[str, Tensor], ...]:
    """The (id, matrix) of every original picture in `sample`; of an unmixed one its own."""
    return sample.sources or ((sample.id, sample.matrix),)


def blended_classes(first: Target | None, second: Target | None, share: float) -> Classes:
    """Soft labels: `share` of `first`, 1 - `share` of `second`; a label of both appears once. UsageError for others."""
    if not isinstance(first, Classes) or not isinstance(second, Classes):
        names = " and ".join(type(t).__name__ for t in (first, second))
        raise UsageError(f"cannot mix the targets of two samples of types {names}; expected class labels in both")
    scores = [torch.ones(len(t)) if t.scores is None else t.scores for t in (first, second)]
    labels, place = torch.cat((first.labels, second.labels)).unique(return_inverse=True)
    joint = torch.cat((scores[0] * share, scores[1] * (1 - share)))
    return Classes(labels, torch.zeros(len(labels)).index_add_(0, place, joint))


def _other(sample: Sample, before: tuple[Transform, ...], draw: Draw) -> Sample:
    other = apply(before, draw.another(), draw)
    if other.size != sample.size:
        other = Resize(sample.size)(other, draw)
    channels = int(sample.picture.pixels.shape[2])
    return other.with_picture(channelled(other.picture.pixels, channels, other.id), other.target)


def _mixed(sample: Sample, pixels: Tensor, target: Target | None, sources: tuple[tuple[str, Tensor], ...], weight: float) -> Sample:
    """The mixed sample; its matrix stays that of the first source, so that `id` and `matrix` go on belonging together."""
    if "regions" in sample.inputs:
        raise UsageError(f"{sample.id}: pictures are mixed before regions are proposed, put Propose after the mix")
    mixed = sample.with_picture(pixels, target)
    return replace(mixed, matrix=sources[0][1], sources=sources, weight=weight)


def _placed(target: Target | None, window: Window, size: tuple[int, int]) -> Target | None:
    """A target of a window's own frame in the frame `size` around it."""
    return moved_target(target, matrix_of(1, 1, window[1], window[0]), size, None, lambda pixels: pixels)


def _united(targets: list[Target | None], size: tuple[int, int]) -> Target | None:
    """The union of all instances, or the label map in which every target that knows a pixel writes it."""
    present = [t for t in targets if t is not None]
    if not present:
        return None
    instances = [t for t in present if isinstance(t, Instances)]
    if len(instances) == len(targets):
        return joined(instances, size)
    maps = [t for t in present if isinstance(t, LabelMap)]
    if len(maps) == len(targets) > 2:
        out = maps[0].labels.clone()
        for part in maps[1:]:
            out = torch.where(part.labels == part.ignore, out, part.labels)
        return LabelMap(out, maps[0].ignore)
    names = ", ".join(type(t).__name__ for t in targets)
    raise UsageError(f"cannot join targets of types {names}; expected instances in all (or, for a mosaic, label maps)")
