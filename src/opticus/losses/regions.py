"""Losses of a two-stage detector: of its anchors and of the regions that its head looks at (Faster R-CNN, 1506.01497, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opticus.losses.boxes import object_count
from opticus.matching.anchors import IGNORED, balanced_sample, ignore_inside, max_iou
from opticus.matching.objects import Truth, truth_of
from opticus.matching.proposals import Regions
from opticus.ops.boxes import encode_boxes
from opticus.ops.iou import iou
from opticus.structures import Batch, DataError


def learned_from(batch: Batch, like: Tensor, classes: int) -> tuple[tuple[int, int], list[Truth], Tensor]:
    """Size (H, W) of a batch's inputs, the objects and crowds of each picture, and the pictures' weights, in `like`'s type."""
    if batch.images is None:
        raise DataError("a two-stage detector is trained on images, found a batch without")
    truth = truth_of(batch.targets, classes, batch.ids, like)
    weights = like.new_ones(len(batch)) if batch.weights is None else batch.weights.to(like)
    return (int(batch.images.pixels.shape[-2]), int(batch.images.pixels.shape[-1])), truth, weights


def anchor_losses(
    objectness: Tensor,
    shifts: Tensor,
    levels: Sequence[Tensor],
    truth: Sequence[Truth],
    weights: Float[Tensor, "B"],
    samples: int,
    smooth: float,
    aside: Sequence[Float[Tensor, "_ 4"]] | None = None,
) -> dict[str, Tensor]:
    """Binary cross-entropy of sampled anchors and smooth L1 of the positive ones, both divided by the sampled ones.

    Background inside crowds is not sampled, nor is any anchor that overlaps a box set `aside` in its picture by more than 0.3.
    """
    anchors = torch.cat(list(levels))
    objects: list[Tensor] = []
    boxes: list[Tensor] = []
    count = 0
    for i, t in enumerate(truth):
        matches = ignore_inside(max_iou(iou(t.boxes, anchors), 0.7, 0.3), anchors, t.ignored)
        if aside is not None and len(aside[i]):
            matches = matches.masked_fill(iou(aside[i], anchors).amax(0) > 0.3, IGNORED)
        positives, negatives = balanced_sample(matches, samples, 0.5)
        places = torch.cat([positives, negatives])
        wanted = (torch.arange(len(places), device=places.device) < len(positives)).to(objectness)
        objects.append(F.binary_cross_entropy_with_logits(objectness[i, places], wanted, reduction="sum"))
        goals = encode_boxes(t.boxes[matches[positives]], anchors[positives])
        boxes.append(F.smooth_l1_loss(shifts[i, positives], goals, beta=smooth, reduction="sum"))
        count += len(places)
    total = object_count(count, shifts)
    return {
        "objectness": (torch.stack(objects) * weights).sum() / total,
        "proposal": (torch.stack(boxes) * weights).sum() / total,
    }


def region_losses(
    logits: Float[Tensor, "R K"],
    moves: Float[Tensor, "R 4"],
    regions: Regions,
    weights: Float[Tensor, "B"],
    coder: tuple[float, float, float, float],
    smooth: float,
) -> dict[str, Tensor]:
    """Cross-entropy of all regions, and smooth L1 of the `moves` (deltas of the region's own class) of those that hold an object."""
    share, count = weights[regions.pictures], object_count(len(regions.labels), moves)
    hits = (regions.labels > 0).nonzero()[:, 0]
    goals = encode_boxes(regions.objects[hits], regions.boxes[hits], coder)
    box = F.smooth_l1_loss(moves[hits], goals, beta=smooth, reduction="none").sum(1)
    return {
        "class": (F.cross_entropy(logits, regions.labels, reduction="none") * share).sum() / count,
        "box": (box * share[hits]).sum() / count,
    }
