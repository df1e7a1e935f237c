"""Overlap measures of boxes: IoU, generalised, distance and complete IoU, and COCO's crowd rule.

Boxes are xyxy. A box of no width or height has area 0, and an overlap whose denominator is 0 is 0: degenerate boxes give numbers,
never NaN, in values and gradients. Coordinates are scaled by one power of two, which changes no rounding and lets 1e30 px through.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opticus.ops.boxes import area


def iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union of every box of `a` with every box of `b`, in [0, 1]."""
    return paired_iou(*_grid(a, b))


def giou(a: Float[Tensor, "N 4"], b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Generalised IoU of every pair, in [-1, 1]: IoU - (hull - union) / hull (Rezatofighi 2019)."""
    return paired_giou(*_grid(a, b))


def crowd_iou(boxes: Float[Tensor, "N 4"], truth: Float[Tensor, "M 4"], crowd: Bool[Tensor, "M"]) -> Float[Tensor, "N M"]:
    """IoU, but intersection over the area of `boxes` in the columns where `truth` marks a crowd (COCO's rule)."""
    a, b = _scaled(*_grid(boxes, truth))
    inter, union = _overlap(a, b)
    return _ratio(inter, torch.where(crowd, area(a).expand_as(union), union))


def paired_iou(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> Float[Tensor, "..."]:
    """IoU of a[i] with b[i]; leading dimensions broadcast."""
    return _ratio(*_overlap(*_scaled(a, b)))


def paired_giou(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> Float[Tensor, "..."]:
    """Generalised IoU of a[i] with b[i]; a hull of area 0 costs nothing."""
    a, b = _scaled(a, b)
    inter, union = _overlap(a, b)
    hull = area(_hull(a, b))
    return _ratio(inter, union) - _ratio(hull - union, hull)


def paired_diou(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> Float[Tensor, "..."]:
    """Distance IoU of a[i] with b[i]: IoU - (distance of centres)^2 / (diagonal of the hull)^2 (Zheng 2020)."""
    a, b = _scaled(a, b)
    return _ratio(*_overlap(a, b)) - _distance(a, b)


def paired_ciou(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> Float[Tensor, "..."]:
    """Complete IoU of a[i] with b[i]: DIoU - alpha v, v = 4/pi^2 (atan(w_b/h_b) - atan(w_a/h_a))^2 (Zheng 2020).

    alpha = v / (1 - IoU + v) is a constant for the gradient, as in the authors' code.
    """
    a, b = _scaled(a, b)
    overlap = _ratio(*_overlap(a, b))
    v = (4 / math.pi**2) * (_slope(b) - _slope(a)) ** 2
    with torch.no_grad():
        alpha = _ratio(v, 1 - overlap + v)
    return overlap - _distance(a, b) - alpha * v


def _grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a[:, None], b[None]


def _scaled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one floating type of at least 32 bits, times the power of two that brings the largest coordinate near 1.

    A reversed box is shrunk to nothing at its first corner; else it could "intersect" others by the min/max rule.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    with torch.no_grad():
        largest = torch.cat([a.detach().abs().flatten(), b.detach().abs().flatten(), a.new_full((1,), 1e-30)]).amax()
        scale = torch.exp2(-torch.floor(torch.log2(largest)).clamp(max=126))
    return _upright(a * scale), _upright(b * scale)


def _upright(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # x and y apart: planes (N, M) are faster than pairs (N, M, 2)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    inter = width * (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    return inter, area(a) + area(b) - inter


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; every `part` here is 0 where its `whole` is, so dividing by 1 there gives the 0 that is wanted."""
    return part / torch.where(whole > 0, whole, 1.0)


def _hull(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    hull = _hull(a, b)
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return _ratio(apart.square().sum(-1), (hull[..., 2:] - hull[..., :2]).square().sum(-1))


def _slope(boxes: Tensor) -> Tensor:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    flat = sides[..., 1] <= 0
    return torch.atan(sides[..., 0] / torch.where(flat, torch.ones_like(sides[..., 1]), sides[..., 1]))
