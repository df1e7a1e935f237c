"""Progressive growing: the resolution that a network still lacks, and pictures of the resolution that it has (Karras et al. 2018).

What is missing is counted in levels, each a factor of two: 0 is the full size, 2 a quarter of each side, and 1.25 half the side with
a quarter of the level below still mixed in ("lod" in the authors' files).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

GRAIN = 65_536  # parts of a level: the counter in a network is whole, so that a moving average copies it instead of averaging it


def missing(fraction: float, levels: int, growing: float) -> float:
    """Levels that are missing at a fraction of the run: the first `growing` of it alternates between waiting and fading in.

    All `levels` are missing at the start; each in turn waits as long as it then takes to fade in. Rounded to the counter's grain.
    """
    if fraction >= growing or levels == 0:
        return 0.0
    stage, within = divmod(fraction / growing * 2 * levels, 2)
    return round((levels - stage - max(0.0, within - 1)) * GRAIN) / GRAIN


def reduced(pixels: Tensor, lacking: float) -> Tensor:
    """Pictures (B, C, H, W) as a network sees them that lacks so many levels: averaged, and mixed with the level below."""
    whole = math.floor(lacking)
    pixels = F.avg_pool2d(pixels, 2**whole) if whole else pixels
    share = lacking - whole
    return pixels.lerp(doubled(F.avg_pool2d(pixels, 2)), share) if share else pixels


def doubled(pixels: Tensor) -> Tensor:
    """Every pixel becomes four."""
    return F.interpolate(pixels, scale_factor=2.0, mode="nearest")


def enlarged(pixels: Tensor, side: int) -> Tensor:
    """Square pictures at `side` pixels, a multiple of theirs, by repeating pixels."""
    return pixels if pixels.shape[-1] == side else F.interpolate(pixels, size=(side, side), mode="nearest")
