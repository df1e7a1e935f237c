"""Anchors for a data set: k-means of box sides under the distance 1 - IoU (YOLOv2, Redmon and Farhadi 2017, 1612.08242, section 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opticus.structures import DataError, UsageError

CHUNK = 1 << 18  # boxes compared at once: bounds the memory for a million boxes


class Clusters(NamedTuple):
    """`sides` (K, 2) width and height by rising area, each box's `overlaps` (N,) with its cluster, and its `owners` (N,)."""

    sides: Tensor
    overlaps: Tensor
    owners: Tensor


def cluster_sides(sides: Float[Tensor, "N 2"], count: int, *, seed: int = 0, rounds: int = 300) -> Clusters:
    """`count` typical (width, height) of N boxes, in float64: Lloyd's rounds from spread-out boxes, best mean IoU kept.

    IoU is that of boxes with a common centre. A cluster's sides are the means of its boxes' sides; one that loses all its boxes
    starts again at the worst covered box. DataError for sides that are not positive, UsageError for more clusters than sizes.
    """
    values = sides.double()
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise DataError(f"anchors: {int((~(values > 0)).any(1).sum())} of {len(values)} boxes have a side that is not positive")
    different = len(values.unique(dim=0)) if count > 0 else 0
    if not 0 < count <= different:
        raise UsageError(f"anchors: {count} clusters were asked for, the boxes have {len(values.unique(dim=0))} different sizes")
    centres = _spread(values, count, seed)
    best, owners = _nearest(values, centres)
    found = Clusters(centres, best, owners)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, owners, values)
        counts = owners.bincount(minlength=count)
        centres = sums / counts.clamp(min=1)[:, None]
        lost = (counts == 0).nonzero()[:, 0]
        centres[lost] = values[best.argsort(stable=True)[: len(lost)]]
        before = owners
        best, owners = _nearest(values, centres)
        if best.mean() > found.overlaps.mean():
            found = Clusters(centres, best, owners)
        if torch.equal(before, owners):
            break
    order = found.sides.prod(1).argsort(stable=True)
    return Clusters(found.sides[order], found.overlaps, order.argsort()[found.owners])


def _spread(values: Tensor, count: int, seed: int) -> Tensor:
    """Boxes drawn with a chance that grows with the squared distance to those drawn before (k-means++)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = values[torch.randint(len(values), (1,), generator=generator)]
    for _ in range(count - 1):
        distance = (1 - _nearest(values, chosen)[0]).clamp(min=0).square().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * distance[-1]
        chosen = torch.cat([chosen, values[torch.searchsorted(distance, draw, right=True).clamp(max=len(values) - 1)]])
    return chosen


def _nearest(values: Tensor, centres: Tensor) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    best: list[Tensor] = []
    owners: list[Tensor] = []
    for part in values.split(CHUNK):
        common = torch.minimum(part[:, None], centres).prod(2)
        overlap, owner = (common / (part.prod(1)[:, None] + centres.prod(1) - common)).max(1)
        best.append(overlap)
        owners.append(owner)
    return torch.cat(best), torch.cat(owners)
