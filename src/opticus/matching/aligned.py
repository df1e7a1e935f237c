"""Task-aligned assignment: an object is taught by the places that already see both its class and its box best.

Feng, Zhong, Gao, Scott and Huang, TOOD, ICCV 2021, arXiv 2108.07755, sections 3.2 and 3.3 (eqs. 3 to 5).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opticus.matching.anchors import NEGATIVE
from opticus.structures import UsageError


class Aligned(NamedTuple):
    """What each of N places learns: `matches` (N,) the object it stands for or NEGATIVE, `quality` (N,) its soft target in [0, 1].

    The quality is 0 for background; the best place of an object has the largest overlap that any place of that object reaches.
    """

    matches: Tensor
    quality: Tensor


def task_aligned(
    scores: Float[Tensor, "M N"],
    overlaps: Float[Tensor, "M N"],
    inside: Bool[Tensor, "M N"],
    *,
    count: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Aligned:
    """The places that M objects are learned at; gradients do not pass.

    `scores` are the probabilities that each place gives to each object's class and `overlaps` the IoU of the place's box with the
    object, both in [0, 1]; `inside` says where the place lies in the object. The alignment t = score^alpha IoU^beta (eq. 3) ranks
    the places inside; the `count` best of positive alignment stand for the object, of equal ones those of lower number. A place
    that several objects want goes to the one it overlaps most (the first on ties). Qualities are t scaled per object so that
    its largest one equals the object's largest overlap (section 3.3.1). UsageError for a count below 1.
    """
    if count < 1:
        raise UsageError(f"task-aligned assignment: expected at least 1 place per object, found count={count}")
    objects, places = overlaps.shape
    if objects == 0 or places == 0:
        none = torch.full((places,), NEGATIVE, dtype=torch.int64, device=overlaps.device)
        return Aligned(none, overlaps.new_zeros(places))
    overlaps = overlaps.detach()
    alignment = (scores.detach() ** alpha * overlaps**beta).masked_fill(~inside, 0.0)
    chosen = _best(alignment, min(count, places)) & (alignment > 0)
    nearest = overlaps.masked_fill(~chosen, -1.0).argmax(0)
    wanted = chosen.any(0)
    kept = chosen & (torch.arange(objects, device=nearest.device)[:, None] == nearest)
    alignment, overlaps = alignment.masked_fill(~kept, 0.0), overlaps.masked_fill(~kept, 0.0)
    highest = alignment.amax(1)
    gain = overlaps.amax(1) / torch.where(highest > 0, highest, 1.0)
    quality = (alignment * gain[:, None]).amax(0)
    return Aligned(nearest.masked_fill(~wanted, NEGATIVE), quality)


def _best(values: Float[Tensor, "M N"], count: int) -> Bool[Tensor, "M N"]:
    """The `count` largest of each row; of equal ones at the limit the first: `topk` alone leaves that open."""
    limit = values.topk(count, 1).values[:, -1:]
    above, level = values > limit, values == limit
    return above | (level & (level.cumsum(1) <= count - above.sum(1, keepdim=True)))
