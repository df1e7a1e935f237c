"""Position embeddings of feature maps."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class SinePositions(nn.Module):
    """2-D sine position embedding of DETR (Carion 2020, appendix A.4): `features` channels for y, then as many for x.

    Positions count valid pixels, so padding does not shift them; `normalise` maps the last valid row and column to `scale`.
    Channel 2i is sin(p / temperature^(2i / features)), channel 2i + 1 the cosine of the same angle.
    """

    def __init__(
        self, features: int, *, temperature: float = 10000.0, normalise: bool = True, scale: float = 2 * math.pi, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.features, self.temperature, self.normalise, self.scale, self.eps = features, temperature, normalise, scale, eps

    def forward(self, valid: Bool[Tensor, "B H W"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "B D H W"]:
        """(B, 2 * features, H, W) from the mask of valid pixels; all arithmetic is in `dtype`."""
        y, x = valid.cumsum(1, dtype=dtype), valid.cumsum(2, dtype=dtype)
        if self.normalise:
            y = y / (y[:, -1:, :] + self.eps) * self.scale
            x = x / (x[:, :, -1:] + self.eps) * self.scale
        index = torch.arange(self.features, dtype=dtype, device=valid.device)
        periods = self.temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / self.features)
        return torch.cat([_waves(y[..., None] / periods), _waves(x[..., None] / periods)], -1).permute(0, 3, 1, 2)


def _waves(angles: Tensor) -> Tensor:
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)
