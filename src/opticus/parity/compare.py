"""A recorded tensor in a few numbers, and how far another tensor is from it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SLICE = 24


def summarise(tensor: Tensor, count: int = SLICE) -> dict[str, Any]:
    """A JSON-ready summary in float64: shape, rms, `count` values at equal steps, and a signed sum that every element enters.

    The signed sum (signs from a hash of the flat index, divided by sqrt(n)) sees permutations that rms and slice miss.
    """
    flat = tensor.detach().to(torch.float64).reshape(-1)
    return {
        "shape": list(tensor.shape),
        "rms": float(flat.square().mean().sqrt()) if flat.numel() else 0.0,
        "signed": float((flat * _signs(flat.numel())).sum()) / math.sqrt(max(flat.numel(), 1)),
        "slice": flat[_picks(flat.numel(), count)].tolist(),
    }


def difference(summary: Mapping[str, Any], tensor: Tensor) -> float:
    """The largest difference of slice, rms and signed sum, relative to the recorded rms; infinite for another shape or NaN."""
    found = summarise(tensor, len(summary["slice"]))
    if list(summary["shape"]) != found["shape"]:
        return math.inf
    pairs = [(summary["rms"], found["rms"]), (summary["signed"], found["signed"]), *zip(summary["slice"], found["slice"])]
    worst = max(abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf for a, b in pairs)
    return worst / (summary["rms"] or 1.0)


def agree(summary: Mapping[str, Any], tensor: Tensor, tolerance: float = 1e-9) -> bool:
    """True if the tensor has the recorded shape and `difference` is at most `tolerance`."""
    return difference(summary, tensor) <= tolerance


def named_tensors(value: Any, name: str) -> dict[str, Tensor]:
    """Every tensor inside tensors, NamedTuples, dataclasses, mappings and sequences, by dotted name ("out.aux.0.logits")."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif hasattr(value, "_fields"):
        items = [(field, getattr(value, field)) for field in value._fields]
    elif hasattr(value, "__dataclass_fields__"):
        items = [(field, getattr(value, field)) for field in value.__dataclass_fields__]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {}
    return {key: tensor for field, item in items for key, tensor in named_tensors(item, f"{name}.{field}").items()}


def _picks(numel: int, count: int) -> Tensor:
    if numel <= count:
        return torch.arange(numel)
    return torch.arange(count) * (numel - 1) // (count - 1)


def _signs(numel: int) -> Tensor:
    index = torch.arange(numel, dtype=torch.int64)
    mixed = (index * 0x9E3779B1 + zlib.crc32(b"signs")) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return ((mixed >> 16) & 1).to(torch.float64) * 2 - 1
