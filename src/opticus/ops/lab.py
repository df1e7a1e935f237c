"""CIE L*a*b* of sRGB colours under the white of D65 (2 degrees), with the numbers of scikit-image's `rgb2lab` and `lab2rgb`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # from linear RGB
_WHITE = (0.95047, 1.0, 1.08883)


def to_lab(rgb: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """L in [0, 100], a and b (about -86..98 and -108..94) of sRGB values in [0, 1]; differentiable."""
    high = rgb > 0.04045
    linear = torch.where(high, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mixed(linear, rgb.new_tensor(_XYZ)) / rgb.new_tensor(_WHITE)[:, None, None]
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def to_rgb(lab: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """sRGB values of L*a*b* colours, cut to [0, 1] where they are no colours of sRGB; differentiable where they are."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([a / 500 + y, y, (y - b / 200).clamp(min=0)], 1)
    xyz = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787) * lab.new_tensor(_WHITE)[:, None, None]
    inverse = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64, device=lab.device)).to(lab.dtype)
    linear = _mixed(xyz, inverse)
    high = linear > 0.0031308
    return torch.where(high, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, linear * 12.92).clamp(0, 1)


def _mixed(planes: Tensor, matrix: Tensor) -> Tensor:
    """The channels of `planes` (B, 3, H, W) multiplied by a matrix (3, 3), not as a product of matrices: autocast would round those."""
    first, second, third = planes[:, :1], planes[:, 1:2], planes[:, 2:]
    return first * matrix[:, 0, None, None] + second * matrix[:, 1, None, None] + third * matrix[:, 2, None, None]
