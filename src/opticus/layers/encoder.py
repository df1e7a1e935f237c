"""A backbone as the network of a method that learns without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.structures import Embedding, Images, Result


class Encoder(nn.Module):
    """One vector per picture from a backbone (a Part): what the published files of such methods contain.

    State keys are `backbone.*`; `embed`, `features`, `strides`, `widths` and the preparation are the backbone's. What a method needs
    only while it learns (heads, teachers, queues) belongs to its objective.
    """

    def __init__(self, config: Any, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        inner = cast(Any, backbone)
        self.prepare = inner.prepare
        self.strides: tuple[int, ...] = inner.strides
        self.widths: tuple[int, ...] = inner.widths

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The backbone's maps, fine to coarse."""
        return cast(Any, self.backbone).features(pixels)

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The backbone's own vector per picture, else the average of its last map."""
        own = getattr(self.backbone, "embed", None)
        return self.features(pixels)[-1].mean((2, 3)) if own is None else own(pixels)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B D"]:
        return self.embed(pixels)

    def results(self, out: Float[Tensor, "B D"], images: Images) -> list[Result]:
        """An Embedding per picture."""
        return [Embedding(vector) for vector in out.detach()]


def width_of(encoder: nn.Module) -> int:
    """Length of the vectors of an encoder or backbone that embeds by its last map or token."""
    return int(cast(Any, encoder).widths[-1])


def by_size(network: Callable[[Tensor], Tensor], views: Sequence[Float[Tensor, "B C H W"]]) -> Float[Tensor, "VB D"]:
    """The vectors of all views, view by view; neighbouring views of one size go through the network as one batch."""
    found: list[Tensor] = []
    first = 0
    while first < len(views):
        last = first
        while last < len(views) and views[last].shape == views[first].shape:
            last += 1
        found.append(network(torch.cat(list(views[first:last]))))
        first = last
    return torch.cat(found)
