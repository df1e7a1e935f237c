"""Projection heads: the perceptrons between a backbone's vectors and the space in which views are compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def projection(widths: Sequence[int], *, norm: bool = True, last_norm: bool = False, bias: bool = True) -> nn.Sequential:
    """Linear layers (B, widths[0]) -> (B, widths[-1]), ReLU between them, batch norm before each ReLU if `norm`.

    `last_norm` puts a batch norm without scale and shift after the last layer; `bias` is that of the linear layers.
    """
    parts: list[nn.Module] = []
    for index, (a, b) in enumerate(pairwise(widths)):
        parts.append(nn.Linear(a, b, bias=bias))
        if index < len(widths) - 2:
            parts += [nn.BatchNorm1d(b), nn.ReLU()] if norm else [nn.ReLU()]
    if last_norm:
        parts.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*parts)
