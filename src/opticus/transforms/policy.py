"""RandAugment (Cubuk, Zoph, Shlens, Le 2019, arXiv 1909.13719): n operations of a fixed list, all at one magnitude.

List and ranges are torchvision's: fourteen operations, magnitude 0..30. Geometric operations move targets with the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opticus.structures import Sample, UsageError
from opticus.transforms.colour import autocontrasted, equalised, jittered_stepwise, posterised, sharpened, solarised
from opticus.transforms.draw import Draw
from opticus.transforms.geometry import affine_matrix
from opticus.transforms.pixels import Interpolation, warp
from opticus.transforms.targets import KEEP, moved_sample

TOP = 30  # the largest magnitude
# the strength of each operation at the largest magnitude; all but the last group draw a sign
GEOMETRIC = {
    "shear_x": 0.3,  # pixels sideways per pixel down
    "shear_y": 0.3,
    "translate_x": 150 / 331,  # share of the width
    "translate_y": 150 / 331,
    "rotate": 30.0,  # degrees
}
ENHANCING = {"brightness": 0.9, "saturation": 0.9, "contrast": 0.9, "sharpness": 0.9}  # factor 1 + strength
OTHERS = ("identity", "posterise", "solarise", "autocontrast", "equalise")
OPERATIONS = (*GEOMETRIC, *ENHANCING, *OTHERS)


@dataclass(frozen=True, slots=True)
class RandAugment:
    """`n` operations drawn from OPERATIONS with replacement, each at magnitude `m` of 0..30, of random sign, with probability `p`."""

    n: int = 2
    m: int = 9
    interpolation: Interpolation = "nearest"
    fill: float = 0
    keep: float = KEEP
    p: float = 1.0

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not 0 <= self.m <= TOP:
            raise UsageError(f"RandAugment: the magnitude m must be 0..{TOP}, found {self.m}")
        for _ in range(self.n):
            if self.p < 1 and not draw.chance(self.p):
                continue
            name = OPERATIONS[draw.integer(0, len(OPERATIONS))]
            sign = -1.0 if draw.chance(0.5) else 1.0
            sample = self.operate(sample, name, sign)
        return sample

    def operate(self, sample: Sample, name: str, sign: float) -> Sample:
        """`sample` after the operation `name` of OPERATIONS at this magnitude."""
        if name in GEOMETRIC:
            matrix = geometric_matrix(name, sign * GEOMETRIC[name] * self.m / TOP, sample.size)
            size = sample.size

            def move(pixels: Tensor) -> Tensor:
                return warp(pixels, matrix, size, self.fill, self.interpolation)

            return moved_sample(sample, matrix, size, move, self.keep)
        return sample.with_picture(recoloured(sample.picture.pixels, name, sign, self.m), sample.target)


def geometric_matrix(name: str, amount: float, size: tuple[int, int]) -> Tensor:
    """The matrix (3, 3) of a geometric operation on a frame `size` (H, W): shears keep the upper left corner, turns the centre."""
    height, width = size
    matrix = torch.eye(3, dtype=torch.float64)
    if name == "rotate":
        centre = (width / 2, height / 2)
        return affine_matrix(amount, 1, (0, 0), centre, centre)
    if name == "shear_x":
        matrix[0, 1] = amount
    elif name == "shear_y":
        matrix[1, 0] = amount
    elif name == "translate_x":
        matrix[0, 2] = math.trunc(amount * width)
    else:
        matrix[1, 2] = math.trunc(amount * height)
    return matrix


def recoloured(pixels: Tensor, name: str, sign: float, m: int) -> Tensor:
    """(H, W, C) uint8 pixels after a photometric operation of OPERATIONS at magnitude `m` of 0..30."""
    if name in ENHANCING:
        factor = 1 + sign * ENHANCING[name] * m / TOP
        return sharpened(pixels, factor) if name == "sharpness" else jittered_stepwise(pixels, [(name, factor)])
    if name == "posterise":
        return posterised(pixels, 8 - round(m / (TOP / 4)))
    if name == "solarise":
        return solarised(pixels, 255 - 255 * m / TOP)
    if name == "autocontrast":
        return autocontrasted(pixels)
    return equalised(pixels) if name == "equalise" else pixels
