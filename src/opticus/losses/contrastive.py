"""Losses that compare views of pictures: contrastive, predictive, and by cross-correlation.

Means are over the batches of all processes, each of which holds the same number of pictures.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from opticus.ops.collectives import all_gather, all_reduce, rank
from opticus.structures import Batch, DataError, UsageError


def views_of(batch: Batch, role: str = "global") -> list[Tensor]:
    """Pixels of the views of a role, at least two; DataError if the batch lacks them.

    Raises UsageError for weighted samples: what compares pictures of a batch with each other has no loss of a single one.
    """
    views = [view.pixels for view, own in zip(batch.views, batch.roles) if own == role]
    if len(views) < 2:
        raise DataError(
            f"two {role} views of every picture are compared, found {', '.join(batch.roles) or 'none'}; recipes make them by transforms.views"
        )
    if batch.weights is not None:
        raise UsageError("sample weights have no meaning where the pictures of a batch are compared with each other")
    return views


def info_nce(
    queries: Float[Tensor, "B D"], positives: Float[Tensor, "B D"], negatives: Float[Tensor, "N D"], temperature: float = 0.2
) -> Float[Tensor, ""]:
    """-log exp(q k+ / t) / (exp(q k+ / t) + sum_k- exp(q k- / t)) of unit vectors, averaged; MoCo, 1911.05722, eq. 1."""
    near = (queries * positives).sum(1, keepdim=True)
    logits = torch.cat([near, queries @ negatives.T], 1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@torch.no_grad()
def confusion(queries: Float[Tensor, "B D"], keys: Float[Tensor, "B D"], temperature: float = 0.2) -> Tensor:
    """The loss of finding a query's own key among those of its batch, averaged over all processes: log B where all look the same.

    A figure for logs: unlike the loss, it does not depend on what a queue happens to hold.
    """
    logits = queries @ keys.T / temperature
    return all_reduce(F.cross_entropy(logits, torch.arange(len(logits), device=logits.device)), "mean")


def nt_xent(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], temperature: float = 0.5) -> Float[Tensor, ""]:
    """SimCLR's loss (2002.05709, eq. 1): of 2B - 1 other views of all processes, find the other view of the same picture.

    Takes any vectors, normalises them, and averages over both views of all pictures.
    """
    a, b = F.normalize(first, dim=1), F.normalize(second, dim=1)
    every = torch.cat([all_gather(a).flatten(0, 1), all_gather(b).flatten(0, 1)])
    count, total = len(a), len(every) // 2
    here = torch.arange(count, device=a.device) + rank() * count
    own = torch.cat([here, here + total])
    logits = torch.cat([a, b]) @ every.T / temperature
    logits = logits.masked_fill(F.one_hot(own, 2 * total).bool(), -torch.inf)
    return F.cross_entropy(logits, (own + total) % (2 * total))


def regression(predicted: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """|p/|p| - z/|z||^2 = 2 - 2 cos, averaged; no gradient reaches `target`. BYOL, 2006.07733, eq. 2."""
    cosine = (F.normalize(predicted, dim=1) * F.normalize(target.detach(), dim=1)).sum(1)
    return (2 - 2 * cosine).mean()


def cross_correlation(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], off_weight: float = 0.0051) -> Float[Tensor, ""]:
    """Barlow Twins (2103.03230, eq. 1): the two views' cross-correlation matrix towards the identity.

    sum_i (1 - C_ii)^2 + off_weight sum_{i != j} C_ij^2; the arguments are standardised over the batch already (batch norm without
    scale and shift). The matrix is that of all processes' batches together.
    """
    count = all_reduce(first.new_tensor(float(len(first))))
    matrix = all_reduce(first.T @ second) / count
    on = (torch.diagonal(matrix) - 1).square().sum()
    return on + off_weight * (matrix.square().sum() - torch.diagonal(matrix).square().sum())
