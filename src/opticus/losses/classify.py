"""Image classification: labels become a target distribution, cross-entropy compares, and logits become ranked classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.ops.collectives import all_reduce
from opticus.structures import Batch, CapabilityError, Classes, DataError, Result, Target


def logits_of(out: Any) -> Tensor:
    """What a classifier says: the output itself, or its field `logits`. CapabilityError for anything else."""
    found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise CapabilityError(f"expected a classifier's logits (B, K), but the network returns {type(out).__name__}")
    return found


def distribution(targets: Sequence[Target | None], classes: int, ids: Sequence[str] = ()) -> Float[Tensor, "B K"]:
    """Target probabilities (B, K) float32: one-hot for a single label, `Classes.scores` at the labels otherwise.

    DataError names the sample whose target is not `Classes`, has several labels without scores, or a label outside 0..K-1.
    """
    names = tuple(ids) or tuple(f"sample {i}" for i in range(len(targets)))
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    for name, target in zip(names, targets, strict=True):
        if not isinstance(target, Classes):
            found = "none" if target is None else type(target).__name__
            raise DataError(f"{name}: classification needs a target of type Classes, found {found}")
        if target.scores is None and len(target) != 1:
            raise DataError(f"{name}: expected one label, or several with scores, found {len(target)} labels without scores")
        labels.append(target.labels)
        scores.append(torch.ones_like(target.labels, dtype=torch.float32) if target.scores is None else target.scores.float())
    rows = torch.cat([torch.full_like(label, i) for i, label in enumerate(labels)])
    columns = torch.cat(labels)
    wrong = (columns < 0) | (columns >= classes)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise DataError(f"{names[int(rows[at])]}: label {int(columns[at])} is outside 0..{classes - 1}")
    dense = torch.zeros(len(names), classes, device=columns.device)
    return dense.index_put((rows, columns), torch.cat(scores), accumulate=True)


def cross_entropy(
    logits: Float[Tensor, "B K"],
    target: Float[Tensor, "B K"],
    *,
    smoothing: float = 0.0,
    class_weights: Float[Tensor, "K"] | None = None,
    sample_weights: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy with soft targets, label smoothing (Szegedy et al. 2016, 1512.00567, eq. 3), class and sample weights.

    sum_i w_i sum_k c_k t'_ik (-log p_ik) / sum_i sum_k c_k t_ik with t' = (1 - smoothing) t + smoothing / K. A sample's weight
    scales its own term only. For hard labels it equals `torch.nn.functional.cross_entropy`, class weights included. The divisor
    is averaged over processes, so that their averaged gradients are those of one process with all samples.
    """
    smooth = target if smoothing == 0.0 else target * (1 - smoothing) + smoothing / target.shape[1]
    terms = -smooth * logits.log_softmax(1)
    if class_weights is not None:
        terms = terms * class_weights
        total = (target * class_weights).sum()
    else:
        total = target.sum()
    each = terms.sum(1)
    if sample_weights is not None:
        each = each * sample_weights
    return each.sum() / all_reduce(total.detach(), "mean").clamp(min=torch.finfo(target.dtype).tiny)


class CrossEntropy(nn.Module):
    """The criterion of classifiers: `cross_entropy` on a batch whose targets are `Classes`, under the name "classify"."""

    class_weights: Tensor | None

    def __init__(self, *, smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.smoothing = smoothing
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, out: Float[Tensor, "B K"], batch: Batch) -> dict[str, Tensor]:
        """{"classify": loss}."""
        weights = self.class_weights
        if weights is not None and weights.shape[0] != out.shape[1]:
            raise DataError(f"{weights.shape[0]} class weights were given for a network with {out.shape[1]} classes")
        target = distribution(batch.targets, out.shape[1], batch.ids).to(out.device, out.dtype)
        loss = cross_entropy(out, target, smoothing=self.smoothing, class_weights=weights, sample_weights=batch.weights)
        return {"classify": loss}


def ranked(logits: Float[Tensor, "B K"]) -> list[Result]:
    """One `Classes` per row: all labels, best first, with softmax probabilities in `scores` and the distribution in `probs`."""
    probs = logits.detach().softmax(1)
    scores, labels = probs.sort(dim=1, descending=True, stable=True)
    return [Classes(labels[i], scores[i], probs[i]) for i in range(probs.shape[0])]
