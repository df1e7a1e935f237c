"""Perceptual path length: how much pictures change along short steps between two latent vectors (Karras et al. 2019, section 4.1).

l = E[ d(G(x(t)), G(x(t + epsilon))) / epsilon^2 ], where x(t) goes from one latent vector to another: on the sphere in the space Z that
vectors are drawn from, on a line in the space W of styles. t is uniform in [0, 1] ("full") or 0 ("end"). Lower is smoother.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from opticus.structures import CapabilityError, Latent, MetricError, Noise, UnknownNameError, UsageError

Space = Literal["z", "w"]
EPSILON = 1e-4
TRIM = 0.01  # share of the samples at either end that is left out: a few jumps would otherwise rule the mean


@runtime_checkable
class Styled(Protocol):
    """A generator with an intermediate space W: z -> `styles` -> `spread` over its layers -> `synthesize`."""

    mean_style: Tensor

    def styles(self, latents: Tensor) -> Tensor:
        """w (N, D) of z (N, D)."""
        ...

    def spread(self, styles: Tensor, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        """The style of every layer (N, L, D), nearer to `mean_style` in the first `cutoff` layers where `truncation` is below 1."""
        ...

    def synthesize(self, styles: Tensor) -> Tensor:
        """The pictures (N, C, s, s) of a style for every layer, without further chance."""
        ...

    def finished(self, pixels: Tensor) -> Tensor:
        """Pictures at the full size (N, C, H, W)."""
        ...


def lerp(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Points (N, D) at `share` (N,) of the line from the first to the second."""
    return first + share[:, None] * (second - first)


def slerp(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Points (N, D) of length 1 at `share` (N,) of the great circle from the first's direction to the second's.

    Vectors in exactly the same or opposite direction have no such circle; the first's direction is answered.
    """
    start, end = (nn.functional.normalize(one, dim=1) for one in (first, second))
    cosine = (start * end).sum(1, keepdim=True).clamp(-1, 1)
    across = nn.functional.normalize(end - cosine * start, dim=1)
    angle = share[:, None] * cosine.acos()
    return nn.functional.normalize(start * angle.cos() + across * angle.sin(), dim=1)


class PathLength:
    """The mean of squared-distance rates without the extreme ones.

    `update` takes d / epsilon^2 (B,); `compute` leaves out a share `trim` at either end.
    """

    def __init__(self, trim: float = TRIM) -> None:
        if not 0 <= trim < 0.5:
            raise UsageError(f"path length: trim must be in [0, 0.5), found {trim}")
        self.trim = trim
        self.rates: list[Tensor] = []

    def update(self, rates: Tensor) -> None:
        """Add rates (B,); MetricError if one is negative or not finite."""
        rates = rates.detach().double().cpu().flatten()
        if not bool(torch.isfinite(rates).all()) or bool((rates < 0).any()):
            raise MetricError("path length: distances must be finite and not negative")
        self.rates.append(rates)

    def compute(self) -> dict[str, float]:
        """The mean over the rates between the percentiles `trim` and 1 - `trim`, both included."""
        if not self.rates:
            raise MetricError("path length: no sample was seen")
        rates = torch.cat(self.rates).sort().values
        low, high = (rates.quantile(q, interpolation=how) for q, how in ((self.trim, "lower"), (1 - self.trim, "higher")))
        kept = rates[(rates >= low) & (rates <= high)]
        return {"path length": float(kept.mean())}


@torch.no_grad()
def path_length(
    network: nn.Module,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    space: Space = "w",
    ends: bool = False,
    samples: int = 1000,
    seed: int = 0,
    epsilon: float = EPSILON,
    batch: int = 32,
    trim: float = TRIM,
) -> dict[str, float]:
    """{"path length": l} of a generator; `distance(a, b)` -> (N,) compares pictures (N, C, H, W) in the network's normalisation.

    The distance of the paper is a squared one of deep features. `space` "z" walks between latent vectors, "w" between their styles;
    `ends`: the first step of every path only. Sample i depends on `seed` and i alone, not on `batch`.

    CapabilityError if the network has no latent vectors, or no styles for "w".
    """
    if space not in ("z", "w"):
        raise UnknownNameError("space", space, ("z", "w"))
    if samples < 1 or batch < 1 or epsilon <= 0:
        raise UsageError(f"path length: samples, batch and epsilon must be positive, found {samples}, {batch} and {epsilon}")
    if not isinstance(network, Latent) or (space == "w" and not isinstance(network, Styled)):
        what = "latents() and render()" if not isinstance(network, Latent) else "styles(); space='z' has a path length for it"
        raise CapabilityError(f"{type(network).__name__} has no {what}: it has no path in {space.upper()}")
    metric, training = PathLength(trim), network.training
    network.eval()
    for first in range(0, samples, batch):
        noise = Noise(seed, min(batch, samples - first), first=first)
        one, two = network.latents(noise), network.latents(noise)
        share = torch.zeros(len(noise)) if ends else noise.uniform()
        metric.update(distance(*_steps(network, space, one, two, share.to(one.device), epsilon)) / epsilon**2)
    network.train(training)
    return metric.compute()


def _steps(network: nn.Module, space: Space, one: Tensor, two: Tensor, share: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The pictures at `share` and a step further; the points are found in float64, as the step is short."""
    later, dtype = share.double() + epsilon, one.dtype
    if space == "z":
        points = (slerp(one.double(), two.double(), at) for at in (share.double(), later))
        here, there = (cast(Latent, network).render(point.to(dtype)) for point in points)
        return here, there
    styled = cast(Styled, network)
    start, end = (styled.styles(each).double() for each in (one, two))
    points = (lerp(start, end, at).to(dtype) for at in (share.double(), later))
    here, there = (styled.finished(styled.synthesize(styled.spread(point))) for point in points)
    return here, there
