"""Whole numbers as continuous ones: what densities over [-1, 1] need to say how likely a picture of 256 (or fewer) levels is.

Level l of `count` stands for the bin [l, l + 1) / count of the 8-bit range. A pixel value x in [-1, 1] is the centre of its 8-bit
bin, so that x in [-1 - 1/255, 1 + 1/255] covers all bins. P(l) is the integral of the density over the bin; with u uniform in the
bin, E[log p(x + u)] + log(width) is a lower bound of log P (Theis, van den Oord and Bethge 2016, arXiv 1511.01844, section 3.1).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opticus.structures import UsageError

STEP = (5**0.5 - 1) / 2  # the golden ratio's fraction: multiples of it fill [0, 1) evenly


def check_levels(paper: str, count: int) -> None:
    """UsageError unless `count` is a power of two in 2..256, so that 8-bit values fall into bins of one size."""
    if count not in (2, 4, 8, 16, 32, 64, 128, 256):
        raise UsageError(f"{paper}: levels must be a power of two in 2..256, found {count}")


def levels_of(pixels: Float[Tensor, "B C H W"], count: int) -> Int[Tensor, "B D"]:
    """The level in 0..count-1 of every value of pictures in [-1, 1], those beyond clipped."""
    bytes_ = ((pixels + 1) * 127.5).round().clamp(0, 255).long()
    return (bytes_ * count // 256).flatten(1)


def width(count: int) -> float:
    """The width of a level's bin in pixel values."""
    return 256 / count / 127.5


def unit(pixels: Tensor) -> Tensor:
    """Pixel values as places in (0, 1), where level l covers [l, l + 1) / count: (byte + 1/2) / 256."""
    return ((pixels + 1) * 127.5 + 0.5) / 256


def from_unit(places: Tensor) -> Tensor:
    """The inverse of `unit`."""
    return (places * 256 - 0.5) / 127.5 - 1


def spread(pixels: Tensor, count: int, uniform: Tensor) -> Tensor:
    """Pictures with every value moved to the place `uniform` in [0, 1) of its level's bin."""
    places = (levels_of(pixels, count).view_as(pixels) + uniform) / count
    return from_unit(places)


def fixed_uniform(like: Tensor, draw: int, draws: int) -> Tensor:
    """Numbers in (0, 1) for every value of a picture, the same for every picture: draw `draw` of `draws`.

    Multiples of the golden ratio over the places of a picture; the draws shift all of them by equal parts of 1, so that each value
    is looked at evenly over its bin. A function of the place alone, so a likelihood is the same in every batch and at every time.
    """
    places = torch.arange(1, like[0].numel() + 1, dtype=torch.float64)
    return ((places * STEP + (draw + 0.5) / draws) % 1).to(like).view_as(like[0])


def bits(nats: float, dimensions: int) -> float:
    """A negative log-likelihood of a picture in nats as bits per dimension."""
    return nats / (dimensions * math.log(2))
