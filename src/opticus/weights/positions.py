"""Position embeddings at another grid: a network trained at 224 px used at 384 px."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from opticus.structures import WeightsError


def prefix_of(tokens: int, prefix: int | tuple[int, ...]) -> int:
    """How many of `tokens` are no positions: `prefix`, or the first of several numbers that leaves a square grid."""
    options = (prefix,) if isinstance(prefix, int) else prefix
    return next((n for n in options if tokens > n and math.isqrt(tokens - n) ** 2 == tokens - n), options[0])


def resize_positions(
    embedding: Tensor, shape: tuple[int, ...], prefix: int, grid: tuple[int, int] | None = None, *, antialias: bool = True
) -> Tensor:
    """Resample a position embedding ((1,) prefix + rows * columns, D) to `shape` by bicubic interpolation (ViT, section 3.2).

    The first `prefix` tokens (class, distillation) are not positions and stay. The old grid is square; the new one is `grid`
    (rows, columns) or square. `antialias` (default, as timm does) acts only where the grid shrinks. Works on the meta device.
    Raises WeightsError if a grid cannot be told from the shapes.
    """
    tokens = embedding.shape[-2] - prefix
    wanted = shape[-2] - prefix
    side = math.isqrt(max(tokens, 0))
    rows, columns = grid or (math.isqrt(max(wanted, 0)),) * 2
    if embedding.ndim != len(shape) or embedding.shape[-1] != shape[-1] or side * side != tokens or rows * columns != wanted:
        raise WeightsError(
            f"position embeddings of shape {tuple(embedding.shape)} cannot be resized to {shape} "
            f"({prefix} prefix tokens, then {tokens} positions for a {rows}x{columns} grid)"
        )
    flat = embedding.reshape(-1, embedding.shape[-1])
    head, body = flat[:prefix], flat[prefix:]
    picture = body.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    small = picture.dtype in (torch.float16, torch.bfloat16)
    resized = F.interpolate(
        picture.float() if small else picture, size=(rows, columns), mode="bicubic", antialias=antialias, align_corners=False
    )
    body = resized.to(flat.dtype).permute(0, 2, 3, 1).reshape(rows * columns, -1)
    return torch.cat([head, body]).reshape(shape)
