"""One-to-one assignment of predictions to objects at least cost (DETR and every set predictor after it)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opticus.ops.boxes import cxcywh_to_xyxy
from opticus.ops.iou import giou


class Pairs(NamedTuple):
    """Matched pairs of one picture: prediction `queries` (M,) in rising order and the objects `objects` (M,) they answer for."""

    queries: Tensor
    objects: Tensor


def assign(cost: Float[Tensor, "Q N"]) -> Pairs:
    """The min(Q, N) pairs of least total cost (SciPy's Jonker-Volgenant solver), int64 on the cost's device.

    Entries that are not finite count as a very large cost, so that a diverged network fails in its loss and not here.
    """
    from scipy.optimize import linear_sum_assignment

    safe = torch.nan_to_num(cost.detach().double(), nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()
    rows, columns = linear_sum_assignment(safe)
    return Pairs(torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device))


def detection_cost(
    probs: Float[Tensor, "Q K"],
    boxes: Float[Tensor, "Q 4"],
    labels: Int[Tensor, "N"],
    truth: Float[Tensor, "N 4"],
    *,
    class_weight: float = 1.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
) -> Float[Tensor, "Q N"]:
    """Matching cost of DETR (2005.12872, section 3.1, eq. 1): -p(class) + L1 - GIoU, weighted. Boxes are cxcywh fractions."""
    l1 = (boxes[:, None] - truth[None]).abs().sum(-1)
    overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
    return l1_weight * l1 - class_weight * probs[:, labels] - giou_weight * overlap
