"""Nearest Neighbor Pattern Classification.

Cover and Hart, IEEE Transactions on Information Theory 13(1), 1967; on raw pixels, with the L1 or L2 distance of pictures.
Reference: scikit-learn 1.9 (BSD-3-Clause), `KNeighborsClassifier(algorithm="brute")`, whose `_fit_X` and `_y` load by name.

*Differs*: ties are ruled, where scikit-learn leaves them to chance: of equally distant pictures the one stored first is nearer, of
classes with equal votes the one with the lower label wins (scikit-learn has the latter rule too). Distances are exact: grey levels
are whole numbers, and their sums and squares fit the arithmetic.
*Map*: d(I1, I2) = sum over pixels of |I1 - I2| -> `Neighbours.distances`; the NN rule -> `Neighbours.nearest`; the k-NN vote ->
`Neighbours.forward`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.classify import distribution
from opticus.structures import (
    Batch,
    CapabilityError,
    Classes,
    DataError,
    Embedding,
    Images,
    Picture,
    Prepare,
    Progress,
    Result,
    Task,
    UsageError,
    Weights,
)
from opticus.weights.names import Names, chain, rename

TASK: Task = "classify"
# grey levels as they are: whole numbers 0..255, which the memory keeps as bytes
PREPARE = Prepare(resize="fixed", size=(32, 32), scale=1.0, mean=(0.0,), std=(1.0,))
BLOCK = 1 << 23  # numbers held at once in a block of the memory, or of the distances: 64 MB as float64
EXACT = 1 << 24  # whole numbers up to here are exact in float32
EMPTY = -1  # the label of a place in the memory that holds no picture yet


@dataclass(frozen=True)
class Config:
    """`k` neighbours vote; `capacity` pictures can be stored (its recipe makes that the length of the data); `classes=0`: no vote."""

    classes: int = 10
    channels: int = 3
    size: int = 32
    k: int = 10
    distance: Literal["l1", "l2"] = "l1"
    capacity: int = 64


# --- network -----------------------------------------------------------------------------------------------------------


class Neighbours(nn.Module):
    """A memory of labelled training pictures and the vote of those nearest to a picture.

    `forward` returns the classes' shares of the vote (B, classes); while the memory is empty all shares are equal.
    """

    pixels: Tensor
    labels: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if not 1 <= config.k <= config.capacity:
            raise UsageError(f"knn: k must be in 1..capacity, found k={config.k} and capacity={config.capacity}")
        self.config = config
        side = (config.size, config.size)
        self.prepare = Prepare(config.channels, "fixed", side, scale=1.0, mean=(0.0,), std=(1.0,))
        self.register_buffer("pixels", torch.zeros(config.capacity, config.channels * config.size**2, dtype=torch.uint8))
        self.register_buffer("labels", torch.full((config.capacity,), EMPTY))

    # --- learning ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of stored pictures; they fill the memory from its first place on."""
        return int((self.labels != EMPTY).sum())

    def store(self, pixels: Float[Tensor, "B C H W"], labels: Int[Tensor, "B"]) -> None:
        """Keep pictures (grey levels 0..255) with their labels; UsageError if the memory is too small."""
        first = len(self)
        last = first + len(labels)
        if last > len(self.labels):
            raise UsageError(f"knn: {last} pictures do not fit into a memory of capacity={len(self.labels)}")
        self.pixels[first:last] = self.embed(pixels).round().clamp(0, 255).to(torch.uint8)
        self.labels[first:last] = labels

    def arrange(self, order: Sequence[int]) -> None:
        """Put the stored pictures into another order, which decides between equally distant ones."""
        places = torch.tensor(list(order), device=self.labels.device)
        count = len(places)
        self.pixels[:count], self.labels[:count] = self.pixels[places], self.labels[places]

    # --- looking up -------------------------------------------------------------------------------------------------

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The flattened grey levels, which are compared; UsageError for pictures of another size."""
        wanted = (self.config.channels, self.config.size, self.config.size)
        if tuple(pixels.shape[1:]) != wanted:
            raise UsageError(f"knn: pictures must have the one common shape {wanted}, found {tuple(pixels.shape[1:])}")
        return pixels.flatten(1)

    def distances(self, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B N"]:
        """Distances to every place of the memory, infinite to empty ones: L1, or the square of L2 (which has the same order)."""
        wide = rows.shape[1] * 255 >= EXACT or self.config.distance == "l2" or rows.dtype == torch.float64
        rows = rows.to(torch.float64 if wide else torch.float32)
        measure = manhattan if self.config.distance == "l1" else squared_euclidean
        parts = self.pixels.split(max(BLOCK // rows.shape[1], 1))
        apart = torch.cat([measure(rows, part.to(rows.dtype)) for part in parts], 1)
        return apart.masked_fill(self.labels == EMPTY, torch.inf)

    def nearest(self, rows: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
        """Distances (as `distances` gives them) and places in the memory of the k nearest pictures, nearest first."""
        found = [smallest(self.distances(some), self.config.k) for some in rows.split(max(BLOCK // len(self.labels), 1))]
        return torch.cat([values for values, _ in found]), torch.cat([places for _, places in found])

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        rows = self.embed(pixels)
        if not self.config.classes:
            return rows
        labels = self.labels[self.nearest(rows)[1]]
        votes = rows.new_zeros(len(rows), self.config.classes)
        votes = votes.scatter_add(1, labels.clamp(min=0), (labels != EMPTY).to(votes.dtype))
        total = votes.sum(1, keepdim=True)
        return torch.where(total > 0, votes / total.clamp(min=1), 1 / self.config.classes)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """All classes, most votes first, scored by their share of the vote; of equal votes the lower label first."""
        if not self.config.classes:
            return [Embedding(vector) for vector in out]
        scores, labels = out.sort(dim=1, descending=True, stable=True)
        return [Classes(labels[i], scores[i], out[i]) for i in range(len(out))]

    def neighbours(self, pixels: Float[Tensor, "B C H W"]) -> list[list[Picture]]:
        """For every picture the k stored ones nearest to it, nearest first: the rows of a neighbour sheet."""
        shape = (self.config.channels, self.config.size, self.config.size)
        found = self.pixels[self.nearest(self.embed(pixels))[1]].unflatten(2, shape).permute(0, 1, 3, 4, 2).cpu()
        return [[Picture(one.contiguous()) for one in row] for row in found]


def manhattan(a: Float[Tensor, "B D"], b: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
    """L1 distances: sum over pixels of |a - b|."""
    return torch.cdist(a, b, p=1)


def squared_euclidean(a: Float[Tensor, "B D"], b: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
    """Squares of L2 distances, |a|^2 - 2 a b + |b|^2; exact for grey levels in float64."""
    return a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)


def smallest(values: Float[Tensor, "B N"], k: int) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """The k smallest values of every row, ascending, and their columns; of equal values the lower column first."""
    bound = values.topk(k, 1, largest=False).values[:, -1:]  # which of several equal ones `topk` takes is left to chance
    below, equal = values < bound, values == bound
    chosen = below | (equal & (equal.cumsum(1) <= k - below.sum(1, keepdim=True)))
    columns = chosen.to(torch.int8).topk(k, 1).indices.sort(1).values
    ordered, order = values.gather(1, columns).sort(dim=1, stable=True)
    return ordered, columns.gather(1, order)


NETWORK = Neighbours


# --- objective ---------------------------------------------------------------------------------------------------------


class Memorise(nn.Module):
    """Learning without a gradient: every batch is stored as it is, there is no loss and no parameter."""

    def __init__(self, network: Neighbours) -> None:
        super().__init__()
        self.network = network

    def phases(self, step: int) -> tuple[str, ...]:
        """("all",) at every step."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """None."""
        return ()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Store the batch and return no terms; DataError for a sample without one plain label."""
        if batch.images is None:
            raise CapabilityError(f"knn stores images, but batch {batch.ids[:1]} has none")
        shares = distribution(batch.targets, self.network.config.classes, batch.ids)
        for name, share in zip(batch.ids, shares.amax(1).tolist()):
            if share != 1:
                raise DataError(f"{name}: k-NN stores pictures with one label, found a mixture of labels")
        self.network.store(batch.images.pixels, shares.argmax(1).to(batch.images.pixels.device))
        return {}

    def before_update(self, at: Progress) -> None:
        """Nothing: there are no gradients."""

    def after_step(self, at: Progress) -> None:
        """Nothing: there is no training-only state."""


def objective(network: Neighbours) -> Memorise:
    """Storing the training pictures; there are no options."""
    return Memorise(network)


# --- variants and weights ------------------------------------------------------------------------------------------------

# the nearest-neighbour rule, and the vote of ten under either distance
VARIANTS: dict[str, Config] = {"nn": Config(k=1), "l1": Config(distance="l1"), "l2": Config(distance="l2")}
PARAMETERS: dict[str, int] = {"nn": 0, "l1": 0, "l2": 0}


def _whole(values: Tensor) -> Tensor:
    """Refuse what the memory's bytes cannot hold: pixels scaled to [0, 1], or any other real numbers."""
    if (
        not values.is_meta
        and values.is_floating_point()
        and not bool(((values == values.round()) & (values >= 0) & (values <= 255)).all())
    ):
        raise ValueError("expected whole grey levels 0..255")
    return values


FORMATS: dict[str, Names] = {"sklearn": Names(rename("_fit_X", "pixels", chain(_whole)), rename("_y", "labels"))}
WEIGHTS: dict[str, Weights] = {}
