"""Regions of a two-stage detector: anchors of its pyramid, proposals made of them, those a head learns from, and what it detects.

Source: Faster R-CNN, 1506.01497, sections 3.1 and 3.2, and Fast R-CNN, 1504.08083, section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opticus.matching.anchors import IGNORED, balanced_sample, base_anchors, grid_anchors, ignore_inside, max_iou
from opticus.matching.detections import best_of, cut, in_original, level_sizes, suppressed, windows
from opticus.matching.objects import Truth
from opticus.ops.boxes import decode_boxes
from opticus.ops.iou import iou
from opticus.ops.nms import nms_per_class
from opticus.structures import Images, Result

Layout = Callable[[float, Sequence[float], tuple[int, int], tuple[int, int], int, Tensor], Tensor]


def cornered_anchors(
    side: float, ratios: Sequence[float], cells: tuple[int, int], size: tuple[int, int], stride: int, like: Tensor
) -> Float[Tensor, "N 4"]:
    """torchvision's layout: rounded to whole pixels, around the corners of cells that are size / cells pixels wide, rounded down."""
    return grid_anchors(base_anchors([side], ratios).to(like), cells, (float(size[0] // cells[0]), float(size[1] // cells[1])))


def exact_anchors(
    side: float, ratios: Sequence[float], cells: tuple[int, int], size: tuple[int, int], stride: int, like: Tensor
) -> Float[Tensor, "N 4"]:
    """Detectron2's layout: not rounded, around the corners of cells that are exactly `stride` pixels wide."""
    widths = [math.sqrt(side**2 / ratio) for ratio in ratios]
    base = torch.tensor([[-w / 2, -ratio * w / 2, w / 2, ratio * w / 2] for w, ratio in zip(widths, ratios)])
    return grid_anchors(base.to(like), cells, (float(stride), float(stride)))


def pyramid_anchors(
    layout: Layout, size: tuple[int, int], strides: Sequence[int], scale: float, ratios: Sequence[float], like: Tensor
) -> list[Float[Tensor, "N 4"]]:
    """Anchors of side `scale` strides on every level for inputs of `size` (H, W), the level beyond the last stride included."""
    levels = level_sizes(size, strides, 1)
    every = zip(levels, (*strides, 2 * strides[-1]))
    return [layout(scale * stride, ratios, cells, size, stride, like) for cells, stride in every]


def propose(
    objectness: Tensor, shifts: Tensor, anchors: Sequence[Tensor], frames: Float[Tensor, "B 4"], *, among: int, keep: int
) -> tuple[Float[Tensor, "R 4"], Int[Tensor, "R"]]:
    """The `among` best anchors of each level, shifted, cut to the picture, suppressed level by level; the `keep` best of a picture.

    Returns boxes, best first within each picture, and the pictures they belong to. No gradient.
    """
    lengths = [len(level) for level in anchors]
    found: list[Tensor] = []
    for scores, deltas, frame in zip(objectness.detach(), shifts.detach(), frames):
        boxes: list[Tensor] = []
        values: list[Tensor] = []
        for level, s, d in zip(anchors, scores.split(lengths), deltas.split(lengths)):
            value, place = s.topk(min(among, len(s)))
            boxes.append(decode_boxes(d[place], level[place]))
            values.append(value.sigmoid())
        box, value = cut(torch.cat(boxes), frame), torch.cat(values)
        kinds = torch.arange(len(values), device=box.device).repeat_interleave(
            torch.tensor([len(v) for v in values], device=box.device)
        )
        large = ((box[:, 2:] - box[:, :2]) >= 1e-3).all(1)
        box, value, kinds = box[large], value[large], kinds[large]
        found.append(box[nms_per_class(box, value, kinds, 0.7)[:keep]])
    counts = torch.tensor([len(boxes) for boxes in found], device=shifts.device)
    return torch.cat(found), torch.arange(len(found), device=shifts.device).repeat_interleave(counts)


class Regions(NamedTuple):
    """Regions to learn from: `boxes` (R,4) of the `pictures` (R,), `labels` (R,), 0 = background, and the boxes of their objects (R,4).

    The object of a region of background is the region itself.
    """

    boxes: Tensor
    pictures: Tensor
    labels: Tensor
    objects: Tensor


def sampled(boxes: Tensor, pictures: Tensor, truth: Sequence[Truth], count: int, overlap: float = 0.5, low: float = 0.0) -> Regions:
    """At most `count` regions a picture, at most a quarter of them objects, drawn from proposals and the objects themselves.

    Background inside crowds is not drawn; what is drawn overlaps an object by at least `low`, or lies in a picture without.
    """
    found: list[Regions] = []
    for i, t in enumerate(truth):
        among = torch.cat([boxes[pictures == i], t.boxes])
        overlaps = iou(t.boxes, among)
        matches = ignore_inside(max_iou(overlaps, overlap, overlap, rescue=False), among, t.ignored)
        if low and len(t.boxes):
            matches = matches.masked_fill(overlaps.amax(0) < low, IGNORED)
        places = torch.cat(balanced_sample(matches, count, 0.25))
        found.append(labelled(among[places], matches[places], t, i))
    return Regions(*(torch.cat(parts) for parts in zip(*found)))


def matched(boxes: Tensor, pictures: Tensor, truth: Sequence[Truth], overlap: float) -> Regions:
    """All of the given regions, each with the object that it overlaps by at least `overlap`; picture by picture."""
    found: list[Regions] = []
    for i, t in enumerate(truth):
        own = boxes[pictures == i]
        found.append(labelled(own, max_iou(iou(t.boxes, own), overlap, overlap, rescue=False), t, i))
    return Regions(*(torch.cat(parts) for parts in zip(*found)))


def labelled(boxes: Tensor, matches: Tensor, truth: Truth, picture: int) -> Regions:
    """Regions of one picture with what they were matched to (`matching.anchors.max_iou`)."""
    hit = matches >= 0
    labels, objects = torch.zeros_like(matches), boxes.clone()
    labels[hit] = truth.labels[matches[hit]] + 1
    objects[hit] = truth.boxes[matches[hit]]
    return Regions(boxes, torch.full_like(matches, picture), labels, objects)


def detected(
    probs: Float[Tensor, "R K"],
    boxes: Float[Tensor, "R K 4"],
    pictures: Int[Tensor, "R"],
    images: Images,
    count: int,
    *,
    score: float = 0.05,
    overlap: float = 0.5,
) -> list[Result]:
    """Every class's boxes that exceed `score`, suppressed per class at IoU `overlap`, the `count` best of each picture."""
    found: list[Result] = []
    for i, window in enumerate(windows(images, boxes)):
        own = (pictures == i).nonzero()[:, 0]
        best = best_of(probs[own], score, probs.numel())
        chosen = boxes[own[best.places], best.labels]
        kept = suppressed(chosen, best.labels, best.scores, window, overlap=overlap, count=count)
        found.append(in_original(*kept, images, i))
    return found
