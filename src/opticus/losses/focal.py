"""Focal losses: cross-entropy that looks away from what is already easy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def sigmoid_focal(
    logits: Float[Tensor, "*S"], targets: Float[Tensor, "*S"], *, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, "*S"]:
    """Focal loss of independent binary decisions, per element: -alpha_t (1 - p_t)^gamma log p_t.

    `targets` are in [0, 1]; `alpha` weighs the positives and 1 - alpha the negatives, a negative `alpha` weighs neither.
    Source: RetinaNet, Lin et al. 2017, arXiv 1708.02002, eq. 5.
    """
    probs = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    loss = loss * (1 - (probs * targets + (1 - probs) * (1 - targets))) ** gamma
    return loss if alpha < 0 else loss * (alpha * targets + (1 - alpha) * (1 - targets))


def penalty_reduced_focal(
    logits: Float[Tensor, "B K H W"],
    heat: Float[Tensor, "B K H W"],
    *,
    alpha: float = 2.0,
    beta: float = 4.0,
    clamp: float = 1e-4,
    ignored: Bool[Tensor, "B 1 H W"] | None = None,
) -> Float[Tensor, "B"]:
    """Focal loss against a Gaussian heat map, summed over each picture; the caller divides by the number of objects.

    Cells that are `ignored` (in a crowd) cost nothing unless they stand for an object.
    Where `heat` is exactly 1: -(1 - p)^alpha log p; elsewhere: -(1 - heat)^beta p^alpha log(1 - p), with p = sigmoid(logits)
    kept inside [clamp, 1 - clamp], beyond which there is no gradient. Computed in float32 at least.
    Source: CornerNet, Law and Deng 2018, 1808.01244, eq. 1; CenterNet, Zhou et al. 2019, 1904.07850, eq. 1.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    p = wide.sigmoid().clamp(clamp, 1 - clamp)
    hit = heat == 1
    confidence = torch.where(hit, p, 1 - p)
    weight = torch.where(hit, 1.0, (1 - heat) ** beta)
    if ignored is not None:
        weight = weight.masked_fill(ignored & ~hit, 0.0)
    return -(weight * (1 - confidence) ** alpha * confidence.log()).flatten(1).sum(1)
