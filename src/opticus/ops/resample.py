"""Bilinear sampling, warps by 3x3 matrices, resizing, and resizing of position embeddings.

Coordinates are those of the whole library: x right, y down, pixel corners at integers, pixel centres at +0.5 (torch's
align_corners=False). Between two centres values are blended; "zeros" blends towards 0 outside the picture, "border" repeats the edge.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Outside = Literal["zeros", "border"]


def sample(
    features: Float[Tensor, "B C H W"], points: Float[Tensor, "B N 2"], *, outside: Outside = "zeros", nearest: bool = False
) -> Float[Tensor, "B C N"]:
    """`features` at `points` (x, y) in their own pixels; differentiable in both (in `features` only where `nearest`)."""
    height, width = features.shape[2:]
    grid = 2 * points / points.new_tensor([width, height]) - 1
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(features, grid[:, None].to(features.dtype), mode, outside, align_corners=False)[:, :, 0]


def warp(
    pixels: Float[Tensor, "B C H W"],
    matrix: Float[Tensor, "B 3 3"],
    size: tuple[int, int],
    *,
    outside: Outside = "zeros",
    nearest: bool = False,
) -> Float[Tensor, "B C h w"]:
    """The pictures moved by `matrix`, which maps input (x, y, 1) to output coordinates, into a frame of `size` (h, w).

    Every output pixel centre is mapped back and sampled: there is no antialiasing, so shrink with `resize` first.
    """
    height, width = size
    back = torch.linalg.inv(matrix.to(torch.float64)).to(pixels.device)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=pixels.device) + 0.5,
        torch.arange(width, dtype=torch.float64, device=pixels.device) + 0.5,
        indexing="ij",
    )
    centres = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    found = centres @ back.transpose(1, 2)
    points = (found[..., :2] / found[..., 2:]).to(torch.promote_types(pixels.dtype, torch.float32))
    return sample(pixels, points, outside=outside, nearest=nearest).unflatten(-1, size)


def resize(
    pixels: Float[Tensor, "B C H W"],
    size: tuple[int, int],
    *,
    mode: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
    antialias: bool = True,
) -> Float[Tensor, "B C h w"]:
    """Pictures or features at `size` (h, w). `antialias` widens the kernel when shrinking, as Pillow does (nearest never does)."""
    if mode == "nearest":
        return F.interpolate(pixels, size, mode="nearest-exact")
    return F.interpolate(pixels, size, mode=mode, align_corners=False, antialias=antialias)


def resize_positions(
    table: Float[Tensor, "1 L D"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    prefix: int = 1,
    antialias: bool = True,
    offset: float = 0.0,
) -> Float[Tensor, "1 M D"]:
    """A position embedding of `prefix` special tokens and an old = (h, w) grid, at another grid, bicubic in float32.

    timm shrinks and enlarges with antialiasing; DINO without it and, with `offset` 0.1, by the scale factor (new + 0.1) / old instead
    of by the two sizes. The same table comes back where the grids are equal.
    """
    if old == new:
        return table
    special, grid = table[:, :prefix], table[:, prefix:]
    grid = grid.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    if offset:
        factors = ((new[0] + offset) / old[0], (new[1] + offset) / old[1])
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False, antialias=antialias)
    else:
        grid = F.interpolate(grid, new, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([special, grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], 1)
