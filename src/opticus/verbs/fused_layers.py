"""The layers that `fusion` puts into a network: a convolution or linear map with what follows it, and an instance norm, channels-last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opticus.ops import fused
from opticus.ops.fused import Activation, Window

SHAPES = 2  # layouts kept per layer; each is a copy of its weight, and a further input shape costs a new packing
FEW = 16  # up to so many rows oneDNN wants a linear weight in another layout


class FusedConv(nn.Module):
    """activation(scale * conv(x) + shift + other): a convolution with what follows it; channels-last out, weights without gradient.

    `inplace` allows overwriting `other`, which a transposed convolution does not take.
    The plain weight stays: for gradients to the input, other devices and other layouts.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, window: Window, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.window, self.dtype = window, dtype
        self.activation: Activation | None = None
        self.inplace = False
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def fold(self, norm: nn.Module) -> None:
        """Take the affine map of a batch norm in evaluation mode into weight and bias."""
        scale, shift = affine(norm)
        first = self.weight if self.window.grown is None else self.weight.transpose(0, 1)  # outputs first
        weight, bias = fused.fold_scale(first, self.bias, scale, shift)
        weight = weight if self.window.grown is None else weight.transpose(0, 1)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)

    def settle(self) -> None:
        """Round the weights to the computing type, after the last fold."""
        self.weight.data = self.weight.to(self.dtype, memory_format=torch.channels_last)
        if self.bias is not None:
            self.bias.data = self.bias.to(self.dtype)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = x.to(self.dtype, memory_format=torch.channels_last)
        if not runs_fused(x, other):
            return _without_autocast(
                x, lambda: fused.conv_eager(x, self.weight, self.bias, self.window, activation=self.activation, other=other)
            )
        packed = self._layout(tuple(x.shape))
        if other is None:
            return fused.conv_fused(x, packed, self.bias, self.window, activation=self.activation)
        if other.dtype != self.dtype or other.shape != fused.conv_shape(x.shape, self.weight.shape, self.window):
            out = fused.conv_fused(x, packed, self.bias, self.window) + other
            return out if self.activation is None else self.activation(out)
        other = other.contiguous(memory_format=torch.channels_last)
        return fused.conv_fused(x, packed, self.bias, self.window, activation=self.activation, other=other, inplace=self.inplace)

    def _layout(self, shape: tuple[int, ...]) -> Tensor:
        packed = self._packed.get(shape)
        if packed is None:
            while len(self._packed) >= SHAPES:
                self._packed.pop(next(iter(self._packed)))
            packed = self._packed[shape] = fused.pack_conv(self.weight, self.window, shape)
        return packed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # oneDNN's tensors cannot be copied or pickled

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {self.window}, {self.activation}, {self.dtype}"


class FusedLinear(nn.Module):
    """activation(linear(x)), or linear(x) + other; the plain weight stays, as in FusedConv."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        bias = cast("Tensor | None", linear.bias)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.dtype = dtype
        self.activation: Activation | None = None
        self._packed: dict[bool, Tensor] = {}

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = x.to(self.dtype)
        if not runs_fused(x, other):
            return _without_autocast(x, lambda: fused.linear_eager(x, self.weight, self.bias, self.activation, other))
        rows = x.numel() // self.in_features
        packed = self._packed.get(rows <= FEW)
        if packed is None:
            packed = self._packed[rows <= FEW] = fused.pack_linear(self.weight, rows)
        if other is None:
            return fused.linear_fused(x, packed, self.bias, self.activation)
        if other.dtype != self.dtype or other.shape != (*x.shape[:-1], self.out_features):
            return fused.linear_fused(x, packed, self.bias) + other
        return fused.linear_fused(x, packed, self.bias, None, other.contiguous())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.activation}, {self.dtype}"


class FusedInstanceNorm(nn.Module):
    """activation(instance norm(x)) with statistics of the input, in the layout of the input; `inplace` allows overwriting the input."""

    def __init__(self, eps: float, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = None if weight is None else nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.activation: Activation | None = None
        self.inplace = False

    def forward(self, x: Tensor) -> Tensor:
        free = not (torch.is_grad_enabled() and x.requires_grad)
        weight, bias = (None if value is None else value.to(x.dtype) for value in (self.weight, self.bias))
        out = fused.instance_norm(x, weight, bias, self.eps, inplace=self.inplace and free)
        if self.activation is None:
            return out
        if free and self.activation.name == "relu":  # the norm's output is nobody else's
            return out.relu_()
        return (
            F.leaky_relu_(out, *self.activation.numbers) if free and self.activation.name == "leaky_relu" else self.activation(out)
        )

    def extra_repr(self) -> str:
        return f"{self.eps}, {self.activation}"


def runs_fused(x: Tensor, other: Tensor | None) -> bool:
    """Whether the fused operators take these tensors here and now."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0 or not fused.available(x.dtype):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or (other is not None and other.requires_grad)))


def _without_autocast(x: Tensor, function: Callable[[], Tensor]) -> Tensor:
    """Autocast would overrule the type chosen for a layer."""
    if not torch.is_autocast_enabled(x.device.type):
        return function()
    with torch.autocast(x.device.type, enabled=False):
        return function()


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift (float64) of a batch norm in evaluation mode."""
    values = cast(Any, norm)
    mean, var = values.running_mean.double(), values.running_var.double()
    scale = torch.rsqrt(var + values.eps)
    if values.weight is not None:
        scale = scale * values.weight.detach().double()
    shift = -mean * scale
    return scale, shift if values.bias is None else shift + values.bias.detach().double()
