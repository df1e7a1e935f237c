"""Assignment of vectors to prototypes: the targets of clustering methods."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

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


CHUNK = 1 << 16  # vectors compared at once: bounds the memory for a million pictures


class Spherical(NamedTuple):
    """`centres` (K, D) of unit length and each vector's `owners` (N,)."""

    centres: Tensor
    owners: Tensor


@torch.no_grad()
def spherical_kmeans(vectors: Float[Tensor, "N D"], count: int, *, rounds: int = 10, seed: int = 0) -> Spherical:
    """Lloyd's rounds under the cosine from `count` of the vectors (unit length), drawn by `seed` (DeepCluster-v2, 2006.09882).

    A centre is the direction of its vectors' sum; one that loses all of them stays where it is. UsageError for more centres than
    vectors.
    """
    if not 1 <= count <= len(vectors):
        raise UsageError(f"k-means: {count} centres were asked for, there are {len(vectors)} vectors")
    drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:count]
    centres = vectors[drawn.to(vectors.device)]
    for _ in range(rounds):
        owners = _nearest(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, owners, vectors)
        counts = torch.zeros_like(centres[:, 0]).index_add_(0, owners, torch.ones_like(vectors[:, 0]))
        centres = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), centres)
    return Spherical(centres, _nearest(vectors, centres))


def _nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in vectors.split(CHUNK)])
