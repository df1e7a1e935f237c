"""Formula-made weights and pictures: the reference and the port hold the same numbers without any file and without an RNG.

Every value is an integer hash of (upstream key, flat index), mapped to a uniform number and scaled by what the key says it is,
so that deep networks stay near unit scale and no bias, statistic or gain is left at a trivial value.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opticus.parity.manifests import COUNTER

GAIN = 1.0  # of matrices and kernels: standard deviation GAIN / sqrt(fan_in)
_MEAN = re.compile(r"(.*[./])?(running_mean|moving_mean)")
_VARIANCE = re.compile(r"(.*[./])?(running_var|moving_variance)")
_BIAS = re.compile(r"(.*[._/])?(bias|beta|offset|bias_hh_l\d+|bias_ih_l\d+)")
_NORM = re.compile(r"(.*[._/])?(norm|bn|ln|layernorm|layer_norm|batchnorm|groupnorm)\w*[./](weight|scale|gamma)", re.IGNORECASE)
_TABLE = re.compile(
    r"(.*[._/])?((?!\w*(proj|mlp|conv|fc|net))(pos\w*|\w*token|query_embed|queries|row_embed|col\w*_embed)([./](weight|\w*embedding\w*))?|cls)"
)
_KERNEL = re.compile(r"(.*[._/])?kernel")  # TensorFlow/JAX layout: outputs last
_SPLIT_HEADS = re.compile(r".*(query|key|value)/kernel")  # (width, heads, width per head)


def fill(key: str, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """The tensor that belongs to an upstream key: a fixed formula of key, shape and index; equal on every machine.

    Batch counters are 0, variances in [0.5, 1.5], running means and biases in [-0.1, 0.1], norm weights and other vectors in
    [0.8, 1.2], position tables and tokens in [-0.35, 0.35], matrices and kernels uniform with deviation 1 / sqrt(fan_in).
    """
    shape = tuple(int(n) for n in shape)
    if COUNTER.fullmatch(key):
        return torch.zeros(shape, dtype=torch.int64)
    centre, spread = _range(key, shape)
    values = centre + spread * _uniform(zlib.crc32(key.encode()), math.prod(shape))
    return torch.from_numpy(values).reshape(shape).to(dtype)


def _range(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Centre and half-width of the values of a key."""
    if _MEAN.fullmatch(key) or _BIAS.fullmatch(key):
        return 0.0, 0.1
    if _VARIANCE.fullmatch(key):
        return 1.0, 0.5
    if _NORM.fullmatch(key):
        return 1.0, 0.2
    if _TABLE.fullmatch(key):
        return 0.0, 0.35
    if len(shape) < 2:
        return 1.0, 0.2
    if _SPLIT_HEADS.fullmatch(key) and len(shape) == 3:
        fan = shape[0]
    else:
        fan = math.prod(shape[:-1] if _KERNEL.fullmatch(key) else shape[1:])
    return 0.0, GAIN * math.sqrt(3.0 / max(fan, 1))


def _uniform(seed: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in (-1, 1) with 32 random bits each: a bijective integer hash of seed + index."""
    x = np.arange(count, dtype=np.uint32)  # arithmetic on uint32 arrays wraps, as the hash needs
    x *= np.uint32(0x9E3779B1)
    x += np.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x.astype(np.float64) + 0.5) / 2.0**31 - 1.0


def fill_state(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """`fill` for every key of a manifest."""
    return {key: fill(key, shape, dtype) for key, shape in shapes.items()}


def fill_module(module: nn.Module, rename: Callable[[str], str] = str, skip: str | None = None) -> dict[str, tuple[int, ...]]:
    """Fill every floating-point parameter and saved buffer of a reference module in place; return its key -> shape manifest.

    `rename` maps the module's own keys to those of the published file, `skip` is a regex over published keys that keep their
    values (constants such as anchors). Integer buffers keep their values and are in the manifest; batch counters become 0.
    """
    manifest: dict[str, tuple[int, ...]] = {}
    with torch.no_grad():
        for own, tensor in module.state_dict(keep_vars=True).items():
            key = rename(own)
            manifest[key] = tuple(tensor.shape)
            counter = COUNTER.fullmatch(key) is not None
            if (tensor.is_floating_point() or counter) and not (skip and re.fullmatch(skip, key)):
                tensor.copy_(fill(key, tensor.shape))
    return manifest


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    """A test picture (height, width, channels) uint8: ramps, a checkered patch and noise, in integer arithmetic only."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    ramp = (x * (3 + c) + y * (5 - c) + 40 * c + 29 * seed) % 192
    patch = np.where((x * 8 // max(width, 1) + y * 8 // max(height, 1) + seed) % 3 == 0, 48, 0)
    noise = ((_uniform(seed * 2654435761 % 2**32, height * width * channels) + 1.0) * 8.0).astype(np.int64).reshape(ramp.shape)
    return np.clip(ramp + patch + noise, 0, 255).astype(np.uint8)


def pixels_of(shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A raw input tensor in (-1.7, 1.7) with unit variance, for cases that start behind the preprocessing."""
    values = _uniform(zlib.crc32(f"pixels {seed}".encode()), math.prod(shape)) * math.sqrt(3.0)
    return torch.from_numpy(values).reshape(tuple(shape)).to(dtype)
