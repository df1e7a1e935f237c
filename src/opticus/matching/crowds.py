"""Crowd regions: what a detector says inside them is neither right nor wrong, as the evaluation has it, so nothing there is background.

Regions are those of `Truth.ignored`. Objects that lie in one are learned all the same. An answer that stands for a box is inside if at
least half of its area is (COCO's rule for detections), an answer of a place if the place is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opticus.ops.iou import crowd_iou

SHARE = 0.5  # of a detection's area: IoU with a crowd from which pycocotools leaves it out at its first threshold


def boxes_crowded(boxes: Float[Tensor, "N 4"], regions: Float[Tensor, "M 4"], share: float = SHARE) -> Bool[Tensor, "N"]:
    """Which boxes lie in one of the regions by at least `share` of their own area, those without area by their middle; xyxy pixels."""
    if regions.shape[0] == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    boxes, crowd = boxes.detach(), torch.ones(len(regions), dtype=torch.bool, device=boxes.device)
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (crowd_iou(boxes, regions, crowd).amax(1) >= share) | (flat & points_crowded(middles, regions))


def points_crowded(points: Float[Tensor, "N 2"], regions: Float[Tensor, "M 4"]) -> Bool[Tensor, "N"]:
    """Which points (x, y) lie in one of the regions, or on its border."""
    low, high = points[:, None] - regions[:, :2], regions[:, 2:] - points[:, None]
    return (torch.minimum(low, high) >= 0).all(-1).any(1)


def cells_crowded(regions: Sequence[Float[Tensor, "_ 4"]], size: tuple[int, int]) -> Bool[Tensor, "B 1 h w"] | None:
    """Which cells of maps of `size` (h, w) hold a point of one of their picture's regions, xyxy in cells; None without any region."""
    if not any(len(boxes) for boxes in regions):
        return None
    rows, columns = (torch.arange(length, device=regions[0].device) for length in size)
    marked: list[Tensor] = []
    for boxes in regions:
        left, top, right, bottom = (side[:, None] for side in boxes.unbind(1))
        across, down = (columns >= left.floor()) & (columns <= right), (rows >= top.floor()) & (rows <= bottom)
        marked.append((down[:, :, None] & across[:, None]).any(0))
    return torch.stack(marked)[:, None]
