"""What tells whether representations still say anything about their pictures: figures for logs and for the collapse alarm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from opticus.ops.collectives import all_reduce

LEAST_SPREAD = 0.05
LEAST_INFORMATION = 0.01  # of log K


class Entropies(NamedTuple):
    """Of a batch of distributions over K: `each`, the mean entropy; `whole`, the entropy of the mean; both in nats, at most log K.

    whole - each is the mutual information between picture and output: 0 where all pictures have one answer, be it sharp (each = 0)
    or uniform (each = log K), the two ways in which a teacher and a student can agree on nothing.
    """

    each: Tensor
    whole: Tensor

    @property
    def information(self) -> Tensor:
        """whole - each."""
        return self.whole - self.each


@torch.no_grad()
def entropies(probs: Float[Tensor, "B K"]) -> Entropies:
    """The entropies of a batch over all processes."""
    mean = all_reduce(probs.mean(0), "mean")
    return Entropies(all_reduce(torch.special.entr(probs).sum(1).mean(), "mean"), torch.special.entr(mean).sum())


@torch.no_grad()
def spread(vectors: Float[Tensor, "B D"]) -> Tensor:
    """Deviation of unit vectors about their mean, per axis and times sqrt(D): 1 for directions spread evenly, 0 for one direction."""
    unit = F.normalize(vectors.float(), dim=1)
    variance = (1 - all_reduce(unit.mean(0), "mean").square().sum()).clamp(min=0)  # E|u|^2 - |E u|^2, and |u| = 1
    return variance.sqrt()


@torch.no_grad()
def alignment(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"]) -> Tensor:
    """1 - cosine of the two views of a picture, averaged over the batches of all processes: 0 where views do not matter.

    Half of what Wang and Isola (2020, arXiv 2005.10242) call alignment with alpha = 2.
    """
    a, b = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    return all_reduce((1 - (a * b).sum(1)).mean(), "mean")


def sentence(figures: dict[str, float], outputs: int) -> str | None:
    """What to tell the user when `spread` or `information` (of `outputs` values) is as small as in a collapsed run, else None."""
    if figures.get("spread", 1.0) < LEAST_SPREAD:
        return f"all pictures are described by nearly the same vector (spread {figures['spread']:.3f}, 1 = evenly spread)"
    floor = LEAST_INFORMATION * math.log(max(outputs, 2))
    if figures.get("information", math.inf) < floor:
        kind = "uniform" if figures.get("entropy", 0.0) > math.log(outputs) / 2 else "one and the same output"
        return f"the teacher's answers say nothing about the picture ({kind}: information {figures['information']:.4f} nat)"
    return None
