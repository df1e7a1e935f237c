"""Assignment of vectors to prototypes: the targets of clustering methods."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from opticus.ops.collectives import all_gather, all_reduce
from opticus.structures import UsageError


@torch.no_grad()
def sinkhorn(scores: Float[Tensor, "B K"], *, epsilon: float = 0.05, iterations: int = 3) -> Float[Tensor, "B K"]:
    """Soft assignments with rows that sum to 1 and columns of nearly equal weight (Sinkhorn-Knopp; Cuturi 2013, SwAV 2006.09882).

    exp(scores / epsilon), scaled in turn so that every prototype receives 1/K and every picture gives 1/B of all weight, over the
    batches of all processes.
    """
    if epsilon <= 0 or iterations < 1:
        raise UsageError(f"sinkhorn needs epsilon > 0 and at least 1 iteration, found {epsilon} and {iterations}")
    wide = scores.double() / epsilon
    weights = (wide - all_gather(wide.max()).max()).exp()  # one constant for all cancels, and no exponential overflows
    weights = weights / all_reduce(weights.sum())
    count = all_reduce(weights.new_tensor(float(len(weights))))
    for _ in range(iterations):
        # a prototype that no exponential reaches would be 0 / 0
        weights = weights / all_reduce(weights.sum(0)).clamp(min=1e-300) / weights.shape[1]
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-300) / count
    return (weights * count).to(scores.dtype)
