"""Boxes told by cells: a cell of a map answers for the boxes whose centre it holds, several priors each (YOLOv2, YOLOv3).

An answer (tx, ty, tw, th) is a box with centre (cell + sigmoid(t)) strides and sides prior * exp(t) (1612.08242, section 2).
Answers of a picture are in one row: levels as given, then rows, columns, priors of a cell. Units are network-input pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opticus.matching.detections import best_of, cut
from opticus.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from opticus.ops.nms import nms_per_class

LIMIT = 20.0  # of tw and th: an exponential beyond it is no box but an overflow in float32


class Cells(NamedTuple):
    """Of N answers: the `corner` (N, 2) of the cell in strides, its `stride` (N, 1), the `prior` (N, 2) width and height.

    `sizes` (h, w), `strides` and the number of priors of the levels, which say where an answer is in the row; `priors` (P, 2) are
    those of all levels, in the order of the levels.
    """

    corner: Tensor
    stride: Tensor
    prior: Tensor
    priors: Tensor
    sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    counts: tuple[int, ...]


def cells_of(size: tuple[int, int], strides: Sequence[int], priors: Sequence[Tensor], like: Tensor) -> Cells:
    """The cells of maps at `strides` of an input of `size` (H, W), with `priors` (A, 2) of every level; `like` gives the type."""
    sizes = tuple((-(-size[0] // stride), -(-size[1] // stride)) for stride in strides)
    corner: list[Tensor] = []
    stride_of: list[Tensor] = []
    prior: list[Tensor] = []
    for (h, w), stride, sides in zip(sizes, strides, priors, strict=True):
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places = torch.stack([columns, rows], -1).reshape(-1, 1, 2).expand(-1, len(sides), -1).reshape(-1, 2)
        corner.append(places)
        stride_of.append(torch.full((len(places), 1), stride))
        prior.append(sides.repeat(h * w, 1))
    corners, widths, shapes, every = (torch.cat(part).to(like) for part in (corner, stride_of, prior, list(priors)))
    return Cells(corners, widths, shapes, every, sizes, tuple(strides), tuple(len(sides) for sides in priors))


def rows_of(answers: Float[Tensor, "B AO h w"], priors: int) -> Float[Tensor, "B N O"]:
    """A map with the answers of all priors in its channels, as one row of answers: rows, columns, priors."""
    batch, channels, h, w = answers.shape
    split = answers.reshape(batch, priors, channels // priors, h, w).permute(0, 3, 4, 1, 2)
    return split.reshape(batch, h * w * priors, channels // priors)


def boxes_of(answers: Float[Tensor, "*b N 4"], cells: Cells) -> Float[Tensor, "*b N 4"]:
    """The boxes that raw answers stand for, xyxy in pixels of the input."""
    centre = (cells.corner + answers[..., :2].sigmoid()) * cells.stride
    return cxcywh_to_xyxy(torch.cat([centre, answers[..., 2:].clamp(max=LIMIT).exp() * cells.prior], -1))


class Answerable(NamedTuple):
    """Which answers stand for objects: `places` (P,) in the row without repetition, the `objects` (P,) they stand for.

    `every` (M,) is the place of each of M objects: two that share a cell and a prior share a place, which stands for the later one.
    """

    places: Tensor
    objects: Tensor
    every: Tensor


def answerable(boxes: Float[Tensor, "M 4"], cells: Cells) -> Answerable:
    """The answer that each object belongs to: the cell that holds its centre, the prior of all levels that is most of its shape."""
    centre, sides = xyxy_to_cxcywh(boxes).split(2, -1)
    common = torch.minimum(sides[:, None], cells.priors).prod(2)
    overlap = common / (sides.prod(1)[:, None] + cells.priors.prod(1) - common)
    best = overlap.argmax(1)
    every = torch.zeros_like(best)
    first, below = 0, 0
    for (h, w), stride, count in zip(cells.sizes, cells.strides, cells.counts, strict=True):
        column = (centre[:, 0] / stride).long().clamp(0, w - 1)
        row = (centre[:, 1] / stride).long().clamp(0, h - 1)
        place = first + (row * w + column) * count + best - below
        every = torch.where((best >= below) & (best < below + count), place, every)
        first, below = first + h * w * count, below + count
    last = torch.full((first,), -1, dtype=torch.int64, device=boxes.device)
    last = last.scatter_reduce(0, every, torch.arange(len(every), device=boxes.device), "amax")
    places = (last >= 0).nonzero()[:, 0]
    return Answerable(places, last[places], every)


def targets_of(boxes: Float[Tensor, "P 4"], places: Int[Tensor, "P"], cells: Cells) -> Float[Tensor, "P 4"]:
    """What the answers at `places` should be for `boxes`: the centre inside the cell in [0, 1], log(sides / prior)."""
    centre, sides = xyxy_to_cxcywh(boxes).split(2, -1)
    inside = (centre / cells.stride[places] - cells.corner[places]).clamp(0, 1)
    return torch.cat([inside, (sides / cells.prior[places]).log()], -1)


def survivors(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N K"], window: Float[Tensor, "4"], rule: Survival
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and scores of the best answers after suppression per class, best first, then cut to `window`.

    darknet suppresses whole boxes and cuts them only when they are drawn; those that keep no area are left out.
    """
    best = best_of(scores, rule.score, rule.candidates)
    chosen = boxes[best.places]
    kept = nms_per_class(chosen, best.scores, best.labels, rule.overlap)[: rule.keep]
    inner = cut(chosen[kept], window)
    inside = (inner[:, 2:] > inner[:, :2]).all(1)
    return inner[inside], best.labels[kept][inside], best.scores[kept][inside]


class Survival(NamedTuple):
    """What becomes a result: scores above `score`, at most `candidates`; IoU `overlap` suppresses; at most `keep` remain."""

    score: float
    candidates: int
    overlap: float
    keep: int
