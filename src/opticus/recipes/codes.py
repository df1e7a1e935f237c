"""Uses of a code: finding pictures that do not fit (anomalies) and storing pictures in few bits (compression), with PCA as yardstick.

Everything here works on any network that encodes and decodes (the `Autoencoder` protocol) and on pixels (N, C, H, W) in its normalisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from opticus.structures import Autoencoder, UsageError

BLOCK = 256  # pictures that go through a network at once


@dataclass(frozen=True)
class Principal:
    """PCA as an autoencoder: the code of a picture is where it lies along the training pictures' first principal axes."""

    middle: Tensor  # (C, H, W)
    axes: Tensor  # (code, C * H * W), of unit length

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, code)."""
        return (pixels - self.middle).flatten(1) @ self.axes.T

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return (latents @ self.axes).unflatten(1, self.middle.shape) + self.middle


def principal(pixels: Tensor, code: int) -> Principal:
    """PCA fitted to pictures; UsageError for more axes than there are pictures or values."""
    most = min(len(pixels), pixels[0].numel())
    if not 1 <= code <= most:
        raise UsageError(f"a code of PCA must have 1..{most} numbers for {len(pixels)} pictures, found {code}")
    middle = pixels.mean(0)
    return Principal(middle, torch.linalg.svd((pixels - middle).flatten(1), full_matrices=False)[2][:code])


@torch.no_grad()
def encoded(coder: Autoencoder, pixels: Tensor) -> Tensor:
    """Codes (N, ...) of pictures, block by block; a network should be in evaluation mode."""
    return torch.cat([coder.encode(block) for block in pixels.split(BLOCK)])


@torch.no_grad()
def decoded(coder: Autoencoder, codes: Tensor) -> Tensor:
    """Pictures of codes, block by block."""
    return torch.cat([coder.decode(block) for block in codes.split(BLOCK)])


# --- anomalies -----------------------------------------------------------------------------------------------------------


def misfit(coder: Autoencoder, pixels: Tensor) -> Tensor:
    """(N,): the mean squared error of every picture's reconstruction; large where a picture is unlike those of the training."""
    return (decoded(coder, encoded(coder, pixels)) - pixels).square().flatten(1).mean(1)


def auroc(usual: Tensor, odd: Tensor) -> float:
    """The chance that an odd picture's score is above a usual one's, equal ones counting half: the area under the ROC curve."""
    if not len(usual) or not len(odd):
        raise UsageError(
            f"an area under the ROC curve needs scores of both kinds, found {len(usual)} usual and {len(odd)} odd ones"
        )
    ranks = np.asarray(rankdata(torch.cat([odd, usual]).double().numpy()))
    return float((ranks[: len(odd)].sum() - len(odd) * (len(odd) + 1) / 2) / (len(odd) * len(usual)))


# --- compression ---------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """Pictures that were stored as whole numbers: bits per picture, PSNR in dB (of the mean squared error), the step, the pictures."""

    bits: float
    psnr: float
    step: float
    pixels: Tensor


def stored(coder: Autoencoder, known: Tensor, pixels: Tensor, step: float, *, span: float = 2.0) -> Stored:
    """Codes rounded to multiples of `step` (in deviations of the `known` pictures' codes), one number after the other.

    Bits are those that an arithmetic coder needs whose table for each number is counted on the known pictures, every value between
    theirs, one more on either side and the value "elsewhere" (then 16 bits follow) counted once more. `span` is the range of a pixel.
    """
    if not step > 0:
        raise UsageError(f"a step must be positive, found {step}")
    before, codes = (encoded(coder, some).flatten(1) for some in (known, pixels))
    middle, scale = before.mean(0), before.std(0).clamp(min=1e-8) * step
    table, whole = (((some - middle) / scale).round() for some in (before, codes))
    bits = float(sum(_bits(table[:, i].long().numpy(), whole[:, i].long().numpy()) for i in range(whole.shape[1])))
    restored = decoded(coder, (whole * scale + middle).reshape(len(pixels), *encoded(coder, pixels[:1]).shape[1:]))
    error = float((restored - pixels).square().mean())
    return Stored(bits / len(pixels), 10 * math.log10(span**2 / max(error, 1e-12)), step, restored)


def _bits(known: np.ndarray, new: np.ndarray) -> float:
    """Bits for all of `new` with a table counted on `known`."""
    low, high = int(known.min()) - 1, int(known.max()) + 1
    counts = np.bincount(known - low, minlength=high - low + 1) + 1
    total = counts.sum() + 1  # the value "elsewhere"
    inside = (new >= low) & (new <= high)
    cost = np.log2(total) - np.log2(counts[new[inside] - low])
    return float(cost.sum() + (~inside).sum() * (np.log2(total) + 16))


def stored_at(coder: Autoencoder, known: Tensor, pixels: Tensor, psnr: float, *, span: float = 2.0) -> Stored:
    """The fewest bits at which pictures still have a PSNR of `psnr`, found by halving the interval of the step 20 times.

    UsageError naming the best PSNR if the code does not reach it at any step.
    """
    fine, coarse = 1e-3, 8.0
    best = stored(coder, known, pixels, fine, span=span)
    if best.psnr < psnr:
        raise UsageError(f"the code reaches {best.psnr:.2f} dB at most, a PSNR of {psnr:g} dB was asked for")
    for _ in range(20):
        step = math.sqrt(fine * coarse)
        tried = stored(coder, known, pixels, step, span=span)
        fine, coarse, best = (step, coarse, tried) if tried.psnr >= psnr else (fine, step, best)
    return best
