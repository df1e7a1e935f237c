"""Box formats, areas, clipping, 3x3 maps and the R-CNN box coder.

Boxes are xyxy pixels with corners at integers (a picture of width W spans x in [0, W]) unless a name says otherwise.
A box with x2 <= x1 or y2 <= y1 has area 0; no function here raises for it or returns a NaN because of it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

DELTA_LIMIT = math.log(1000 / 16)  # a decoded side is at most 62.5 anchors long (Fast R-CNN code)


def xyxy_to_xywh(boxes: Shaped[Tensor, "*n 4"]) -> Shaped[Tensor, "*n 4"]:
    """(x1, y1, x2, y2) -> (x1, y1, width, height), the form of COCO's files."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xywh_to_xyxy(boxes: Shaped[Tensor, "*n 4"]) -> Shaped[Tensor, "*n 4"]:
    """(x1, y1, width, height) -> (x1, y1, x2, y2)."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """(x1, y1, x2, y2) -> (centre x, centre y, width, height), the form of DETR and YOLO."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def cxcywh_to_xyxy(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """(centre x, centre y, width, height) -> (x1, y1, x2, y2)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def normalise(boxes: Float[Tensor, "*n 4"], size: tuple[int, int]) -> Float[Tensor, "*n 4"]:
    """Pixels -> fractions of a frame of `size` (H, W); works for xyxy, xywh and cxcywh alike."""
    height, width = size
    return boxes / boxes.new_tensor([width, height, width, height])


def denormalise(boxes: Float[Tensor, "*n 4"], size: tuple[int, int]) -> Float[Tensor, "*n 4"]:
    """Fractions of a frame of `size` (H, W) -> pixels; the inverse of `normalise`."""
    height, width = size
    return boxes * boxes.new_tensor([width, height, width, height])


def area(boxes: Shaped[Tensor, "*n 4"]) -> Shaped[Tensor, "*n"]:
    """Square pixels; 0 for boxes of negative width or height."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Shaped[Tensor, "*n 4"], size: tuple[int, int]) -> Shaped[Tensor, "*n 4"]:
    """Boxes cut to the frame `size` (H, W); a box wholly outside becomes one of area 0 on the border."""
    height, width = size
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        -1,
    )


def map_points(points: Float[Tensor, "*n 2"], matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "*n 2"]:
    """Points (x, y) moved by a 3x3 matrix acting on (x, y, 1), computed in the finer of the two precisions."""
    dtype = torch.promote_types(points.dtype, matrix.dtype)
    rows = matrix.to(points.device, dtype)
    moved = points.to(dtype) @ rows[:, :2].T + rows[:, 2]
    return (moved[..., :2] / moved[..., 2:]).to(points.dtype)


def map_boxes(boxes: Float[Tensor, "*n 4"], matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "*n 4"]:
    """The upright boxes that enclose the four moved corners of each box."""
    corners = boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2))
    moved = map_points(corners, matrix)
    return torch.cat([moved.amin(-2), moved.amax(-2)], -1)


def encode_boxes(
    boxes: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*n 4"], weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Float[Tensor, "*n 4"]:
    """Regression targets (dx, dy, dw, dh) that carry `anchors` to `boxes` (R-CNN, Girshick 2014, eqs. 6-9).

    dx = wx (centre_b - centre_a) / width_a, dw = ww log(width_b / width_a), likewise y and height. Both must have positive sides.
    """
    b, a = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors)
    deltas = torch.cat([(b[..., :2] - a[..., :2]) / a[..., 2:], torch.log(b[..., 2:] / a[..., 2:])], -1)
    return deltas * deltas.new_tensor(weights)


def decode_boxes(
    deltas: Float[Tensor, "*n 4"],
    anchors: Float[Tensor, "*n 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    limit: float = DELTA_LIMIT,
) -> Float[Tensor, "*n 4"]:
    """The inverse of `encode_boxes`; dw and dh are cut at `limit` before the exponential so that no box overflows."""
    a = xyxy_to_cxcywh(anchors)
    d = deltas / deltas.new_tensor(weights)
    centre = d[..., :2] * a[..., 2:] + a[..., :2]
    sides = torch.exp(d[..., 2:].clamp(max=limit)) * a[..., 2:]
    return cxcywh_to_xyxy(torch.cat([centre, sides], -1))
