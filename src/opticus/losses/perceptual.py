"""Distances of pictures in the feature space of a network that was trained for something else.

`FeatureDistance`: Johnson, Alahi and Fei-Fei, ECCV 2016, arXiv 1603.08155 (eq. 2: mean squared difference of the maps), and the L1 form
that pix2pixHD and its followers use. `LPIPS`: Zhang, Isola, Efros, Shechtman and Wang, CVPR 2018, arXiv 1801.03924, eq. 1; reference:
richzhang/PerceptualSimilarity (BSD-2-Clause). Both are given the network: opticus' `vgg/16` has the maps of the published distance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.structures import Backbone, CapabilityError, UsageError, WeightsError
from opticus.weights.fetch import fetch
from opticus.weights.read import read

# lpips/weights/v0.1/vgg.pth of the repository, at commit 082bb24f84c091ea94de2867d34c4544f68e0963
LINEAR = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth"
LINEAR_DIGEST = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
# the mean and deviation of ImageNet's colours, for pixels in [-1, 1], as published
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10
_LINEAR_KEY = re.compile(r"lin(\d)\.(?:model\.1\.)?weight")


class Trunk(nn.Module):
    """A frozen network's maps of pictures in [-1, 1]; grey pictures are looked at as colour ones.

    The first `levels` maps of its `features` are used, all of them if it is None. CapabilityError if the network has none.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, levels: int | None = None) -> None:
        super().__init__()
        if not isinstance(network, Backbone):
            raise CapabilityError(f"a perceptual distance needs a network with feature maps, {type(network).__name__} has none")
        self.network = cast(nn.Module, network).eval().requires_grad_(False)
        self.widths = tuple(cast(Backbone, network).widths[:levels])
        if levels is not None and len(self.widths) != levels:
            raise CapabilityError(f"{type(network).__name__} has {len(self.widths)} feature maps, the distance needs {levels}")
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> Trunk:
        """Stays in evaluation mode: the network measures, it does not learn."""
        return super().train(False)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        if pixels.shape[1] not in (1, 3):
            raise UsageError(f"a perceptual distance compares pictures of 1 or 3 channels, found {pixels.shape[1]}")
        maps = cast(Any, self.network).features((pixels.expand(-1, 3, -1, -1) - self.shift) / self.scale)
        return maps[: len(self.widths)]

    def pair(self, one: Tensor, other: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The maps of both batches, which go through the network together."""
        if one.shape != other.shape:
            raise UsageError(
                f"a perceptual distance compares pictures of one shape, found {tuple(one.shape)}, {tuple(other.shape)}"
            )
        return [(a[: len(one)], a[len(one) :]) for a in self(torch.cat([one, other]))]


class FeatureDistance(nn.Module):
    """sum_l weights[l] x mean difference of the l-th maps, one value a picture: squared (Johnson 2016), or absolute with `absolute`.

    `weights`: one for each map of `network`, finest first, 0 leaves one out; None weighs the first maps, all before the last
    pooled one of VGG, with one.
    """

    def __init__(self, network: nn.Module, *, weights: Sequence[float] | None = None, absolute: bool = False) -> None:
        super().__init__()
        self.trunk, self.absolute = Trunk(network, None if weights is None else len(weights)), absolute
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.trunk.widths)
        if min(self.weights, default=0) < 0 or not any(self.weights):
            raise UsageError(f"weights of feature maps must be at least 0 and not all 0, found {list(self.weights)}")

    def forward(self, one: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        total = one.new_zeros(len(one))
        for weight, (a, b) in zip(self.weights, self.trunk.pair(one, other)):
            difference = a - b
            if weight:
                each = difference.abs() if self.absolute else difference.square()
                total = total + weight * each.flatten(1).mean(1)
        return total


class LPIPS(nn.Module):
    """Eq. 1: unit vectors of the maps at every place, squared differences weighed channel by channel, averaged over places, summed.

    `network` is VGG-16 with ImageNet's weights for the published distance (`opticus.load("vgg/16:...")`); its first five maps count.
    `linear` are the learned channel weights: a file such as `lpips/weights/v0.1/vgg.pth`, one tensor a map, "published" (downloads
    that file), or None: all ones, the paper's variant without training. Pictures are in [-1, 1]; one value a picture, 0 = the same.
    The figures are the published ones for sides that are multiples of 16; others our VGG halves upwards, the published one downwards.
    """

    def __init__(self, network: nn.Module, linear: str | Path | Sequence[Tensor] | None = None, *, levels: int = 5) -> None:
        super().__init__()
        self.trunk = Trunk(network, levels)
        weights = [torch.ones(width) for width in self.trunk.widths]
        if isinstance(linear, str | Path):
            weights = linear_weights(fetch(LINEAR, LINEAR_DIGEST) if linear == "published" else linear)
        elif linear is not None:
            weights = [tensor.detach().flatten().float() for tensor in linear]
        found = tuple(len(weight) for weight in weights)
        if found != self.trunk.widths:
            raise WeightsError(
                f"the network's maps have {list(self.trunk.widths)} channels, the linear weights are for {list(found)}"
            )
        self.linear = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def forward(self, one: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        total = one.new_zeros(len(one))
        for weight, (a, b) in zip(self.linear, self.trunk.pair(one, other)):
            squares = (unit(a) - unit(b)).square().flatten(2).mean(2)
            total = total + squares @ weight.to(squares)
        return total


def unit(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The vector of every place divided by its length."""
    # the length's gradient does not exist at 0, where a ReLU may have left nothing: 0 / (0 + eps) there, as published
    squares = maps.square().sum(1, keepdim=True)
    length = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
    return maps / (length + EPS)


def linear_weights(file: str | Path) -> list[Tensor]:
    """The channel weights of a published file, one vector a map; WeightsError if it holds others."""
    state: Mapping[str, Tensor] = read(Path(file)).state
    found = {int(match[1]): tensor for key, tensor in state.items() if (match := _LINEAR_KEY.fullmatch(key))}
    if not found or sorted(found) != list(range(len(found))):
        keys = ", ".join(list(state)[:3])
        raise WeightsError(f"{file}: expected LPIPS's linear weights lin0.model.1.weight, lin1..., found {keys}")
    return [found[i].flatten().float() for i in range(len(found))]
