"""Linear classification by one matrix of class templates: softmax regression and the multiclass SVM.

Cox, "The Regression Analysis of Binary Sequences", J. Royal Statistical Society B, 1958 (softmax regression); Weston and Watkins,
"Support Vector Machines for Multi-Class Pattern Recognition", ESANN 1999 (the hinge loss summed over wrong classes).
Reference: scikit-learn 1.9 (BSD-3-Clause): `LogisticRegression` and `LinearSVC`, whose `coef_` and `intercept_` load by name.

*Differs*: trained by stochastic gradient descent on mini-batches, where scikit-learn solves the same problem to the end; the penalty
on the squared weights is the optimiser's weight decay.
*Map*: s = W x + b -> `Linear.forward`; the bias trick -> `Linear.matrix` and `extended`; the templates -> `Linear.templates`; the
separating hyperplanes s_k = 0 -> `Linear.distances`; the multiclass SVM loss -> `hinge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, distribution, ranked
from opticus.losses.supervised import Supervised
from opticus.ops.collectives import all_reduce
from opticus.structures import Batch, Embedding, Images, Picture, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "classify"
PREPARE = Prepare(resize="fixed", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Config:
    """Pictures of one common `size` (side in pixels); `loss` is what `objective` minimises; `classes=0` leaves the head away."""

    classes: int = 10
    channels: int = 3
    size: int = 32
    loss: Literal["softmax", "hinge"] = "softmax"


# --- network -----------------------------------------------------------------------------------------------------------


def extended(rows: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
    """Every row with a 1 appended (E = D + 1), so that one matrix product adds the bias."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


class Linear(nn.Module):
    """Class scores W x + b of the flattened pixels x (channel after channel, row after row)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rule = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(rule.channels, "fixed", (config.size, config.size), mean=rule.mean, std=rule.std)
        self.head = nn.Linear(config.channels * config.size**2, config.classes) if config.classes else None
        if self.head is not None:  # the problem is convex: a start near zero leaves no noise in the templates
            nn.init.normal_(self.head.weight, std=1e-3)
            nn.init.zeros_(self.head.bias)

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The flattened pixels, which the matrix classifies; UsageError for another size."""
        wanted = (self.config.channels, self.config.size, self.config.size)
        if tuple(pixels.shape[1:]) != wanted:
            raise UsageError(f"linear: pictures must have the one common shape {wanted}, found {tuple(pixels.shape[1:])}")
        return pixels.flatten(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        rows = self.embed(pixels)
        return rows if self.head is None else self.head(rows)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes, scored by the softmax of the class scores (probabilities after softmax training only)."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]

    def matrix(self) -> Float[Tensor, "K E"]:
        """Weights with the bias as last column (E = D + 1): `extended(rows) @ matrix().T` are the scores."""
        head = self._head()
        return torch.cat([head.weight, head.bias[:, None]], 1)

    def distances(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Signed distances of the pictures from the hyperplanes where a class's score is 0, in units of normalised pixels."""
        return self(pixels) / self._head().weight.norm(dim=1)

    def templates(self) -> list[Picture]:
        """Every class's weights as a picture: grey is 0, a class's largest weight is black or white (or a full colour)."""
        weight = self._head().weight.detach().cpu().unflatten(1, (self.config.channels, self.config.size, self.config.size))
        peaks = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        levels = (127.5 * (1 + weight / peaks)).round().to(torch.uint8)
        return [Picture(level.permute(1, 2, 0).contiguous()) for level in levels]

    def _head(self) -> nn.Linear:
        if self.head is None:
            raise UsageError("linear: a network with classes=0 has no matrix")
        return self.head


NETWORK = Linear


# --- objective ---------------------------------------------------------------------------------------------------------


def hinge(
    scores: Float[Tensor, "B K"], target: Float[Tensor, "B K"], *, margin: float = 1.0, squared: bool = False
) -> Float[Tensor, "B"]:
    """The multiclass SVM loss of every sample: sum over k != y of max(0, s_k - s_y + margin), each term squared on demand.

    `target` holds probabilities of y (one-hot rows for plain labels); the loss is then its expectation over y.
    """
    rows, labels = target.nonzero(as_tuple=True)
    terms = (scores[rows] - scores[rows, labels][:, None] + margin).clamp(min=0)
    terms = terms.square() if squared else terms
    own = max(margin, 0.0) ** (2 if squared else 1)  # the term of y itself, which the sum leaves out
    each = (terms.sum(1) - own) * target[rows, labels]
    return torch.zeros_like(scores[:, 0]).index_add(0, rows, each)


class Hinge(nn.Module):
    """The criterion of the SVM: the mean of `hinge` over the samples, under the name "hinge"."""

    def __init__(self, *, margin: float = 1.0, squared: bool = False) -> None:
        super().__init__()
        self.margin, self.squared = margin, squared

    def forward(self, out: Float[Tensor, "B K"], batch: Batch) -> dict[str, Tensor]:
        """{"hinge": loss}."""
        target = distribution(batch.targets, out.shape[1], batch.ids).to(out.device, out.dtype)
        each = hinge(out, target, margin=self.margin, squared=self.squared)
        if batch.weights is not None:
            each = each * batch.weights
        return {"hinge": each.sum() / all_reduce(target.sum().detach(), "mean").clamp(min=torch.finfo(target.dtype).tiny)}


def objective(network: Linear, **options: Any) -> Supervised:
    """The Config's loss; options of `Hinge` or of `losses.classify.CrossEntropy`."""
    return Supervised(network, Hinge(**options) if network.config.loss == "hinge" else CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {"softmax": Config(), "svm": Config(loss="hinge")}
# CS231n, "Linear Classification", for CIFAR-10: W of 10 x 3072 and b of 10 numbers
PARAMETERS: dict[str, int] = {"softmax": 30_720 + 10, "svm": 30_720 + 10}
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"sklearn": Names(rename("coef_", "head.weight"), rename("intercept_", "head.bias"))}
WEIGHTS: dict[str, Weights] = {}
