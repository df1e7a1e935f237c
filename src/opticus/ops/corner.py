"""Corner pooling: each place takes the maximum over everything in one direction from it (Law and Deng 2018, arXiv 1808.01244).

What says that a box has a top side to the right of a place lies far from that place; these four bring it there (eq. 4 and 5).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def bottom_pool(x: Float[Tensor, "*S H W"]) -> Float[Tensor, "*S H W"]:
    """out[i, j] = the maximum of x[0..i, j]: looks up. The gradient goes to one of the places that hold the maximum."""
    return x.cummax(-2).values


def right_pool(x: Float[Tensor, "*S H W"]) -> Float[Tensor, "*S H W"]:
    """out[i, j] = the maximum of x[i, 0..j]: looks left."""
    return x.cummax(-1).values


def top_pool(x: Float[Tensor, "*S H W"]) -> Float[Tensor, "*S H W"]:
    """out[i, j] = the maximum of x[i..H-1, j]: looks down."""
    return x.flip(-2).cummax(-2).values.flip(-2)


def left_pool(x: Float[Tensor, "*S H W"]) -> Float[Tensor, "*S H W"]:
    """out[i, j] = the maximum of x[i, j..W-1]: looks right."""
    return x.flip(-1).cummax(-1).values.flip(-1)
