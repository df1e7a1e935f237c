"""Several labels a picture: one sigmoid per class, binary cross-entropy or the asymmetric loss, and ranked tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import logits_of
from opticus.ops.collectives import all_reduce
from opticus.structures import Batch, Classes, DataError, Result, Target, UnknownNameError, UsageError

Kind = Literal["bce", "asymmetric"]
KINDS = ("bce", "asymmetric")


def multi_hot(targets: Sequence[Target | None], classes: int, ids: Sequence[str] = ()) -> Float[Tensor, "B K"]:
    """What is true of every picture (B, K) float32: 1 (or `Classes.scores`) at its labels, 0 elsewhere; no label is legal.

    DataError names the sample whose target is not `Classes`, has a label outside 0..K-1, or a score outside [0, 1].
    """
    names = tuple(ids) or tuple(f"sample {i}" for i in range(len(targets)))
    device = next((t.labels.device for t in targets if isinstance(t, Classes)), torch.device("cpu"))
    dense = torch.zeros(len(targets), classes, device=device)
    for i, (name, target) in enumerate(zip(names, targets, strict=True)):
        if not isinstance(target, Classes):
            found = "none" if target is None else type(target).__name__
            raise DataError(f"{name}: classification needs a target of type Classes, found {found}")
        if len(target) == 0:
            continue
        low, high = int(target.labels.min()), int(target.labels.max())
        if low < 0 or high >= classes:
            raise DataError(f"{name}: label {low if low < 0 else high} is outside 0..{classes - 1}")
        values = 1.0 if target.scores is None else target.scores.float()
        if isinstance(values, Tensor) and not bool(((values >= 0) & (values <= 1)).all()):
            raise DataError(f"{name}: scores of several labels must be in [0, 1], found {values.tolist()}")
        dense[i, target.labels] = values
    return dense


def bce(logits: Float[Tensor, "B K"], target: Float[Tensor, "B K"], positive: Float[Tensor, "K"] | None = None) -> Tensor:
    """Binary cross-entropy of every class (B, K); `positive` weighs the terms of labels that are there."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=positive)


def asymmetric(
    logits: Float[Tensor, "B K"],
    target: Float[Tensor, "B K"],
    *,
    positive: float = 1.0,
    negative: float = 4.0,
    margin: float = 0.05,
) -> Float[Tensor, "B K"]:
    """The asymmetric loss (Ridnik et al., ICCV 2021, 2009.14119, eq. 6-7): focusing by (1-p)^positive and p_m^negative.

    p_m = max(p - margin, 0) is the shifted probability of absent labels, so that easy ones cost nothing at all.
    """
    probs = logits.sigmoid()
    shifted = (probs - margin).clamp(min=0)
    there = (1 - probs) ** positive * F.logsigmoid(logits)
    absent = shifted**negative * torch.log1p(-shifted.clamp(max=1 - 1e-7))
    return -(target * there + (1 - target) * absent)


class MultiLabel(nn.Module):
    """The criterion of multi-label classifiers, {"classify": loss}: the sum over classes, averaged over pictures.

    `class_weights` multiply the terms of labels that are there (for "bce"; n_absent / n_present balances a rare class);
    `smoothing` moves targets towards 1/2.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        loss: Kind = "bce",
        smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        positive: float = 1.0,
        negative: float = 4.0,
        margin: float = 0.05,
    ) -> None:
        super().__init__()
        if loss not in KINDS:
            raise UnknownNameError("multi-label loss", str(loss), KINDS)
        if loss == "asymmetric" and class_weights is not None:
            raise UsageError("the asymmetric loss balances by focusing; class_weights go with loss='bce'")
        self.kind, self.smoothing = loss, smoothing
        self.focus: dict[str, Any] = {"positive": positive, "negative": negative, "margin": margin}
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, out: Any, batch: Batch) -> dict[str, Tensor]:
        """{"classify": loss}."""
        logits = logits_of(out)
        weights = self.class_weights
        if weights is not None and weights.shape[0] != logits.shape[1]:
            raise DataError(f"{weights.shape[0]} class weights were given for a network with {logits.shape[1]} classes")
        target = multi_hot(batch.targets, logits.shape[1], batch.ids).to(logits.device, logits.dtype)
        target = target * (1 - self.smoothing) + self.smoothing / 2
        terms = bce(logits, target, weights) if self.kind == "bce" else asymmetric(logits, target, **self.focus)
        each = terms.sum(1)
        if batch.weights is not None:
            each = each * batch.weights.to(each)
        count = all_reduce(each.new_tensor(float(len(each))), "mean")
        return {"classify": each.sum() / count}


def tagged(logits: Float[Tensor, "B K"]) -> list[Result]:
    """One `Classes` per row: all labels by probability, each its own sigmoid, in `scores` and `probs`."""
    probs = logits.detach().sigmoid()
    scores, labels = probs.sort(dim=1, descending=True, stable=True)
    return [Classes(labels[i], scores[i], probs[i]) for i in range(probs.shape[0])]
