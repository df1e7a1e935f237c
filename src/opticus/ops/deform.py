"""Deformable convolution: a convolution whose taps look where learned offsets send them (Dai et al. 2017, arXiv 1703.06211).

With `modulation` each tap also has a learned weight (version 2, Zhu et al. 2018, arXiv 1811.11168): what DLA-34 and ResNet-DCN use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opticus.structures import UsageError


def deform_conv(
    x: Float[Tensor, "B C H W"],
    offsets: Float[Tensor, "B J h w"],
    weight: Float[Tensor, "O I kh kw"],
    bias: Float[Tensor, "O"] | None = None,
    modulation: Float[Tensor, "B M h w"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Float[Tensor, "B O h w"]:
    """sum over taps k of weight_k * m_k(p) * x(p + k + offset_k(p)), x bilinear and 0 outside.

    `offsets` holds, for each of G groups of input channels and each of kh * kw taps, dy then dx in input pixels: J = 2 G kh kw;
    `modulation` one factor each: M = G kh kw (None = 1). Gradients flow to all inputs. UsageError where the shapes do not fit.
    """
    batch, channels, height, width = x.shape
    outputs, inputs, rows, columns = weight.shape
    taps = rows * columns
    h, w = (
        (side + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for side, k in zip((height, width), (rows, columns), strict=True)
    )
    groups = offsets.shape[1] // (2 * taps)
    if offsets.shape != (batch, 2 * groups * taps, h, w) or groups < 1 or channels % groups or channels % inputs:
        raise UsageError(
            f"deform_conv: offsets {tuple(offsets.shape)} and weight {tuple(weight.shape)} do not fit {tuple(x.shape)}"
        )
    if modulation is not None and modulation.shape != (batch, groups * taps, h, w):
        raise UsageError(
            f"deform_conv: expected modulation of shape {(batch, groups * taps, h, w)}, found {tuple(modulation.shape)}"
        )
    moved = offsets.view(batch * groups, taps, 2, h, w)
    span_y, span_x = (torch.arange(n, device=x.device, dtype=x.dtype) for n in (h, w))
    tap_y, tap_x = (torch.arange(n, device=x.device, dtype=x.dtype) * dilation for n in (rows, columns))
    y = moved[:, :, 0] + (span_y * stride - padding)[:, None] + tap_y.repeat_interleave(columns)[:, None, None]
    x_at = moved[:, :, 1] + (span_x * stride - padding) + tap_x.repeat(rows)[:, None, None]
    # grid_sample counts pixel centres as (2 i + 1) / side - 1
    grid = torch.stack([(2 * x_at + 1) / width - 1, (2 * y + 1) / height - 1], -1).view(batch * groups, taps * h, w, 2)
    seen = F.grid_sample(x.reshape(batch * groups, channels // groups, height, width), grid, align_corners=False)
    seen = seen.view(batch, groups, channels // groups, taps, h * w)
    if modulation is not None:
        seen = seen * modulation.view(batch, groups, 1, taps, h * w)
    shares = channels // inputs  # groups of the convolution itself
    table = weight.view(shares, outputs // shares, inputs * taps)
    out = torch.einsum("goi,bgil->bgol", table, seen.reshape(batch, shares, inputs * taps, h * w)).reshape(batch, outputs, h, w)
    return out if bias is None else out + bias[:, None, None]
