"""Losses of matched boxes and the count that normalises them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from opticus.ops.collectives import all_reduce, world_size
from opticus.ops.iou import paired_giou


def object_count(count: int | Tensor, like: Tensor) -> Float[Tensor, ""]:
    """Objects per process, averaged over all processes, as a number of `like`'s type; at least one object over all of them.

    A loss divided by it has, after the processes' gradients are averaged, the gradient of one process with all the objects.
    """
    total = torch.as_tensor(count, device=like.device).to(like.dtype if like.dtype == torch.float64 else torch.float32)
    return all_reduce(total.detach(), "mean").clamp(min=1 / world_size())


def box_l1(a: Float[Tensor, "N 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    """Sum of the four absolute differences of each pair, in the unit of the boxes (DETR eq. 5 adds it to the GIoU loss)."""
    return (a - b).abs().sum(-1)


def giou_loss(a: Float[Tensor, "N 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    """1 - generalised IoU of each pair of xyxy boxes, in [0, 2] (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    return 1 - paired_giou(a, b)
