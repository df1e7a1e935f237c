"""Anchors: boxes laid out in advance over the cells of a feature map, which of them stand for which object, and which are learned from.

A match is a number per anchor: the index of the object it stands for, NEGATIVE for background, IGNORED for neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opticus.matching.crowds import SHARE, boxes_crowded

NEGATIVE, IGNORED = -1, -2


class Picked(NamedTuple):
    """Indices of the anchors that a loss looks at: `positives` (P,) and `negatives` (M,), both rising."""

    positives: Tensor
    negatives: Tensor


def base_anchors(sizes: Sequence[float], ratios: Sequence[float], *, whole: bool = True) -> Float[Tensor, "A 4"]:
    """Anchors around the origin, xyxy in pixels: every ratio (height / width) of every size (square root of the area), sizes fastest.

    `whole` rounds the corners to whole pixels (halves to even), as torchvision's generator does; float32.
    """
    scales, root = torch.tensor(sizes, dtype=torch.float32), torch.tensor(ratios, dtype=torch.float32).sqrt()
    widths, heights = ((1 / root)[:, None] * scales).flatten(), (root[:, None] * scales).flatten()
    anchors = torch.stack([-widths, -heights, widths, heights], 1) / 2
    return anchors.round() if whole else anchors


def grid_anchors(
    base: Float[Tensor, "A 4"], size: tuple[int, int], stride: tuple[float, float], offset: float = 0.0
) -> Float[Tensor, "N 4"]:
    """`base` at every cell of a map of `size` (h, w), N = h * w * A: rows outermost, anchors of a cell innermost.

    `stride` (y, x) is pixels per cell; a cell's place is (its number + `offset`) strides: 0 its corner, 0.5 its middle.
    """
    y = (torch.arange(size[0], device=base.device, dtype=base.dtype) + offset) * stride[0]
    x = (torch.arange(size[1], device=base.device, dtype=base.dtype) + offset) * stride[1]
    places = torch.stack(torch.broadcast_tensors(x, y[:, None], x, y[:, None]), -1)
    return (places[:, :, None] + base).reshape(-1, 4)


def max_iou(overlaps: Float[Tensor, "M N"], positive: float, negative: float, *, rescue: bool = True) -> Int[Tensor, "N"]:
    """The object that each of N anchors overlaps most: at least `positive` stands for it, below `negative` is background.

    Between the two an anchor is ignored. `rescue` gives every object also the anchors that overlap it most (all of them on ties,
    even a tie at a low overlap), each kept for the object it overlaps most itself (Faster R-CNN, 1506.01497, section 3.1.2).
    `overlaps` is IoU; without objects every anchor is background.
    """
    if overlaps.shape[0] == 0:
        return torch.full(overlaps.shape[1:], NEGATIVE, dtype=torch.int64, device=overlaps.device)
    if overlaps.shape[1] == 0:
        return torch.zeros(0, dtype=torch.int64, device=overlaps.device)
    best, nearest = overlaps.max(0)
    matches = nearest.masked_fill(best < positive, IGNORED).masked_fill(best < negative, NEGATIVE)
    if rescue:
        saved = (overlaps == overlaps.amax(1, keepdim=True)).any(0)
        matches = torch.where(saved, nearest, matches)
    return matches


def ignore_inside(
    matches: Int[Tensor, "N"], anchors: Float[Tensor, "N 4"], regions: Float[Tensor, "M 4"], share: float = SHARE
) -> Int[Tensor, "N"]:
    """`matches` where background anchors of which at least `share` lies in one of the regions (xyxy pixels) are ignored instead.

    For crowds and for objects that are not to be learned: what covers them is neither right nor wrong.
    """
    if regions.shape[0] == 0:
        return matches
    return matches.masked_fill(boxes_crowded(anchors, regions, share) & (matches == NEGATIVE), IGNORED)


def balanced_sample(matches: Int[Tensor, "N"], count: int, share: float) -> Picked:
    """At most `count` anchors drawn at random (torch's own generator), at most `share` of them positives, the rest background.

    Source: Fast R-CNN, 1504.08083, section 2.3 (128 regions, 25 % positives).
    """
    positives, negatives = (matches >= 0).nonzero()[:, 0], (matches == NEGATIVE).nonzero()[:, 0]
    most = min(int(count * share), len(positives))
    return Picked(_some(positives, most), _some(negatives, min(count - most, len(negatives))))


def _some(among: Tensor, count: int) -> Tensor:
    if count == len(among):
        return among
    return among[torch.randperm(len(among), device=among.device)[:count]].sort().values


def hard_negatives(
    loss: Float[Tensor, "B N"], positive: Bool[Tensor, "B N"], ratio: float = 3.0, ignored: Bool[Tensor, "B N"] | None = None
) -> Bool[Tensor, "B N"]:
    """The background anchors of greatest loss, `ratio` times as many in each picture as it has positives; none that is `ignored`.

    Equal losses are taken by rising index. Source: SSD, 1512.02325, section 2.2 ("hard negative mining").
    """
    out = positive if ignored is None else positive | ignored
    masked = loss.detach().masked_fill(out, -torch.inf)
    rank = masked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < (positive.sum(1, keepdim=True) * ratio)) & ~out
