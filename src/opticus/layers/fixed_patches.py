"""Patches of pictures that all have one size, for networks whose token-mixing weights belong to positions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from opticus.structures import UsageError


class FixedPatches(nn.Module):
    """Cuts (B, C, size, size) into patches and projects each linearly: tokens (B, N, D) row by row, N = (size / patch)^2.

    Keys `proj.weight`, `proj.bias`: a convolution whose stride is its kernel. UsageError for pixels of another size, since the
    layers behind have one weight per position, and for a size that is no multiple of the patch.
    """

    def __init__(self, channels: int, width: int, *, patch: int, size: int) -> None:
        super().__init__()
        if patch < 1 or size < patch or size % patch:
            raise UsageError(f"size {size} must be a positive multiple of patch {patch}")
        self.size = size
        self.grid = size // patch
        self.tokens = self.grid**2
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        if pixels.shape[2:] != (self.size, self.size):
            raise UsageError(
                f"the input must be {self.size}x{self.size} pixels, as the weights that mix its {self.tokens} patches belong to "
                f"positions; found {pixels.shape[2]}x{pixels.shape[3]} (size={pixels.shape[2]} builds a network for other pictures)"
            )
        return self.proj(pixels).flatten(2).transpose(1, 2)

    def as_map(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D h w"]:
        """Tokens at their places in the picture, at the stride of the patches."""
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def extra_repr(self) -> str:
        return f"size={self.size}, tokens={self.tokens}"
