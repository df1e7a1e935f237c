"""Convolution, transposed or not, and linear map with their epilogue (bias, addition, activation) in one oneDNN call.

Weights are in oneDNN's own layout. PyTorch reaches its post-operations only through private operators, those that its own compiler emits
on CPU (torch/_inductor/fx_passes/mkldnn_fusion.py); a convolution's weights are laid out anew at every eager call. Both are worth
1.4-1.5x on a ResNet in float32, and a transposed convolution is 2-3 times faster channels-last than in the usual layout. Everything
here is behind `available`: elsewhere (another device or torch version, a gradient asked for, a compiler tracing) the same functions are
the plain eager operations, differentiable and exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Activation(NamedTuple):
    """An elementwise function by its oneDNN name, with its numbers and its algorithm ("none" or "tanh" for gelu)."""

    name: str
    numbers: tuple[float, ...] = ()
    algorithm: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        """The function itself, in eager mode."""
        if self.name == "gelu":
            return F.gelu(x, approximate=self.algorithm)
        return _EAGER[self.name](x, *self.numbers)


_EAGER: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "swish": F.silu,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
}


class Window(NamedTuple):
    """How a convolution slides: padding, stride, dilation (each height, width) and the number of groups.

    `grown` is the output padding of a transposed convolution, whose weight is (I, O, kh, kw); None for an ordinary one.
    """

    padding: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    grown: tuple[int, int] | None = None


@functools.cache
def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch, on this CPU, has the private operators and they give the eager result on a small problem."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 6, 5, generator=generator).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(8, 8, 3, 3, generator=generator).to(dtype), torch.randn(8, generator=generator).to(dtype)
    window, relu = Window((1, 1), (1, 1), (1, 1), 1), Activation("relu")
    widening = Window((1, 1), (2, 2), (1, 1), 1, (1, 1))
    rows, matrix = x.permute(0, 2, 3, 1).contiguous(), weight[:, :, 0, 0].contiguous()
    try:
        with torch.inference_mode():
            packed = pack_conv(weight, window, x.shape)
            pairs = [
                (
                    _conv_relu(x, pack_conv(weight, widening, x.shape), bias, widening),
                    relu(conv_eager(x, weight, bias, widening)),
                ),
                (_conv_relu(x, packed, bias, window), relu(conv_eager(x, weight, bias, window))),
                (conv_fused(x, packed, bias, window, other=x.clone(), inplace=True), conv_eager(x, weight, bias, window, other=x)),
                (
                    linear_fused(rows, pack_linear(matrix, 60), bias, Activation("gelu", (), "none")),
                    F.gelu(F.linear(rows, matrix, bias)),
                ),
                (linear_fused(rows, pack_linear(matrix, 60), bias, other=rows), F.linear(rows, matrix, bias) + rows),
            ]
        tolerance = 1e-4 if dtype == torch.float32 else 0.25
        return all(a.shape == b.shape and bool((a.float() - b.float()).abs().max() < tolerance) for a, b in pairs)
    except Exception:  # a private operator that is gone or has other arguments may raise anything: eager is always right
        return False


def _conv_relu(x: Tensor, packed: Tensor, bias: Tensor, window: Window) -> Tensor:
    return conv_fused(x, packed, bias, window, activation=Activation("relu"))


# --- folding -----------------------------------------------------------------------------------------------------------


def fold_scale(
    weight: Float[Tensor, "O ..."], bias: Float[Tensor, " O"] | None, scale: Float[Tensor, " O"], shift: Float[Tensor, " O"]
) -> tuple[Float[Tensor, "O ..."], Float[Tensor, " O"]]:
    """Weight and bias of x -> scale * (weight x + bias) + shift, computed in float64 and rounded once.

    A batch norm in evaluation mode has scale = gamma / sqrt(var + eps) and shift = beta - scale * mean.
    """
    factor = scale.double()
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
    offset = shift.double() if bias is None else bias.double() * factor + shift.double()
    return folded.to(weight.dtype), offset.to(weight.dtype)


# --- convolution -------------------------------------------------------------------------------------------------------


def pack_conv(weight: Float[Tensor, "O J kh kw"], window: Window, shape: Sequence[int]) -> Tensor:
    """The weight in the layout oneDNN prefers for an input of `shape` (B, C, H, W); another shape may be slower, never wrong."""
    if window.grown is not None:
        slide = (list(window.padding), list(window.grown), list(window.stride), list(window.dilation), window.groups)
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *slide, list(shape))
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight, list(window.padding), list(window.stride), list(window.dilation), window.groups, list(shape)
    )


def conv_fused(
    x: Float[Tensor, "B I H W"],
    packed: Tensor,
    bias: Float[Tensor, " O"] | None,
    window: Window,
    *,
    activation: Activation | None = None,
    other: Float[Tensor, "B O h w"] | None = None,
    inplace: bool = False,
) -> Float[Tensor, "B O h w"]:
    """activation(conv(x) + bias + other) in one call; with `other` the activation is ReLU or none, `inplace` may overwrite `other`.

    A transposed convolution takes no `other`.
    """
    if window.grown is not None:
        slide = (list(window.padding), list(window.grown), list(window.stride), list(window.dilation), window.groups)
        name, numbers, algorithm = activation or Activation("none")
        return torch.ops.mkldnn._convolution_transpose_pointwise(x, packed, bias, *slide, name, list(numbers), algorithm)
    slide = (list(window.padding), list(window.stride), list(window.dilation), window.groups)
    if other is None:
        name, numbers, algorithm = activation or Activation("none")
        return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *slide, name, list(numbers), algorithm)
    tail = ("add", 1.0, None if activation is None else activation.name, [], "")
    if inplace:
        return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, packed, bias, *slide, *tail)
    return torch.ops.mkldnn._convolution_pointwise.binary(x, other, packed, bias, *slide, *tail)


def conv_eager(
    x: Float[Tensor, "B I H W"],
    weight: Float[Tensor, "O J kh kw"],
    bias: Float[Tensor, " O"] | None,
    window: Window,
    *,
    activation: Activation | None = None,
    other: Float[Tensor, "B O h w"] | None = None,
) -> Float[Tensor, "B O h w"]:
    """What `conv_fused` computes, in plain operations and with the plain weight."""
    padding, stride, dilation, groups, grown = window
    if grown is None:
        out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    else:
        out = F.conv_transpose2d(x, weight, bias, stride, padding, grown, groups, dilation)
    return _epilogue(out, activation, other)


def conv_shape(shape: Sequence[int], weight: Sequence[int], window: Window) -> tuple[int, int, int, int]:
    """(B, O, h, w) of the ordinary convolution of an input (B, I, H, W) with a weight (O, I, kh, kw)."""
    (p0, p1), (s0, s1), (d0, d1), *_ = window
    height = (shape[2] + 2 * p0 - d0 * (weight[2] - 1) - 1) // s0 + 1
    return shape[0], weight[0], height, (shape[3] + 2 * p1 - d1 * (weight[3] - 1) - 1) // s1 + 1


def widening_kernel(weight: Float[Tensor, "O I 3 3"]) -> Float[Tensor, "I O 4 4"]:
    """The kernel of the transposed convolution (stride 2, padding 1) that equals doubling by nearest neighbour, then convolving.

    Of the 36 products that four new pixels take, those with the same old pixel become one: 16 remain.
    """
    rows = weight.double().transpose(0, 1).flip(2, 3)
    doubled = F.pad(rows, (1, 1, 1, 1))
    parts = [doubled[..., i : i + 4, j : j + 4] for i in (0, 1) for j in (0, 1)]
    return torch.stack(parts).sum(0).to(weight.dtype)


# --- instance norm -----------------------------------------------------------------------------------------------------


def instance_norm(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, " C"] | None,
    bias: Float[Tensor, " C"] | None,
    eps: float,
    *,
    inplace: bool = False,
) -> Float[Tensor, "B C H W"]:
    """F.instance_norm with statistics of the input, in the layout of the input: torch's copies a channels-last one, twice.

    torch's group norm, which stays channels-last, takes the variance as E[x^2] - E[x]^2, so channels are centred first.
    `inplace` may overwrite `x`.
    """
    batch, width, height, breadth = x.shape
    if height * breadth == 1 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
    rows = x.permute(0, 2, 3, 1).view(batch, height * breadth, width)
    mean = rows.new_full((batch, 1, height * breadth), 1 / (height * breadth)) @ rows
    rows = rows.sub_(mean) if inplace else rows - mean
    centred = rows.view(batch, height, breadth, width).permute(0, 3, 1, 2)
    return F.group_norm(centred, width, weight, bias, eps)


# --- linear ------------------------------------------------------------------------------------------------------------


def pack_linear(weight: Float[Tensor, "O I"], rows: int) -> Tensor:
    """The weight in the layout oneDNN prefers for inputs of `rows` vectors."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def linear_fused(
    x: Float[Tensor, "... I"],
    packed: Tensor,
    bias: Float[Tensor, " O"] | None,
    activation: Activation | None = None,
    other: Float[Tensor, "... O"] | None = None,
) -> Float[Tensor, "... O"]:
    """activation(x weight' + bias), or x weight' + bias + other, in one call."""
    if other is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, "add")
    name, numbers, algorithm = activation or Activation("none")
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, list(numbers), algorithm)


def linear_eager(
    x: Float[Tensor, "... I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    activation: Activation | None = None,
    other: Float[Tensor, "... O"] | None = None,
) -> Float[Tensor, "... O"]:
    """What `linear_fused` computes, in plain operations."""
    return _epilogue(F.linear(x, weight, bias), activation, other)


def _epilogue(out: Tensor, activation: Activation | None, other: Any) -> Tensor:
    if other is not None:
        out = out + other
    return out if activation is None else activation(out)
