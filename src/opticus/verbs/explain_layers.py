"""Layers of any network: found by name, watched while it runs, read as maps over the picture, and their receptive fields."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opticus.structures import CapabilityError, Error, UnknownNameError
from opticus.verbs.explain_request import hooked

WIDEST = 2048  # pixels: theoretical fields beyond this are reported as the whole picture


class Reached(Exception):
    """The wanted layer has computed; what follows need not run."""


class Field(NamedTuple):
    """A square of input pixels [left, right) x [top, bottom) that can move one unit."""

    left: int
    top: int
    right: int
    bottom: int


def layer_named(network: nn.Module, name: str) -> nn.Module:
    """The module called `name`; UnknownNameError with the nearest names if there is none."""
    modules = {key: module for key, module in network.named_modules() if key}
    if name not in modules:
        raise UnknownNameError(f"layer of {title_of(network)}", name, modules)
    return modules[name]


def title_of(network: nn.Module) -> str:
    """The name on the model's card, else its class."""
    return str(getattr(getattr(network, "card", None), "name", type(network).__name__))


def outputs(network: nn.Module, pixels: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """(name, module, output) of every module whose output is a tensor, in the order in which they finish."""
    found: list[tuple[str, nn.Module, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, _, out: found.append((name, module, out)) if isinstance(out, Tensor) else None

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    with hooked(*handles), torch.no_grad():
        network(pixels)
    return found


def output_of(network: nn.Module, layer: nn.Module, pixels: Tensor) -> Tensor:
    """The output of `layer` the first time it runs; nothing after that is computed. CapabilityError if it does not run or gives no tensor."""
    kept: list[Any] = []

    def stop(_: nn.Module, __: Any, out: Any) -> None:
        kept.append(out)
        raise Reached

    with hooked(layer.register_forward_hook(stop)), contextlib.suppress(Reached):
        network(pixels)
    if not kept or not isinstance(kept[0], Tensor):
        what = "does not run in a forward pass" if not kept else f"gives a {type(kept[0]).__name__}, not a tensor"
        raise CapabilityError(f"{title_of(network)}: this layer {what}")
    return kept[0]


def as_maps(out: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
    """A layer's output as maps (B, C, h, w): maps as they are, tokens (B, N, C) without those that are no patch; else None."""
    if out.ndim == 4:
        return out
    if out.ndim == 3 and grid is not None and out.shape[1] >= grid[0] * grid[1]:
        patches = out[:, out.shape[1] - grid[0] * grid[1] :]
        return patches.transpose(1, 2).unflatten(2, grid)
    return None


def grid_of(network: nn.Module, pixels: Tensor) -> tuple[int, int] | None:
    """The patch grid of a transformer: the map of its last convolution before the first layer on tokens; None without one."""
    size: tuple[int, int] | None = None
    for _, module, out in outputs(network, pixels):
        if isinstance(module, nn.Conv2d):
            size = (int(out.shape[2]), int(out.shape[3]))
        elif out.ndim == 3 and size is not None and out.shape[1] >= size[0] * size[1]:
            return size
    return None


def map_layers(network: nn.Module, pixels: Tensor) -> list[str]:
    """Names of the layers whose output is maps of more than one cell, or patch tokens, in the order of computation."""
    grid = grid_of(network, pixels)
    names: list[str] = []
    for name, _, out in outputs(network, pixels):
        maps = as_maps(out, grid)
        if maps is not None and maps.shape[2] * maps.shape[3] > 1 and name not in names:
            names.append(name)
    return names


def chosen_layer(network: nn.Module, pixels: Tensor, name: str | None, kind: str) -> str:
    """The layer asked for, else the last one that gives maps; CapabilityError if no layer does, or this one does not."""
    if name is not None:
        layer_named(network, name)
    known = map_layers(network, pixels)
    if not known:
        raise CapabilityError(f"{title_of(network)} has no layer that gives maps: explain {kind} needs one")
    if name is not None and name not in known:
        raise CapabilityError(
            f"{title_of(network)}: the output of layer {name!r} is no map over the picture; among those that are: {_some(known)}"
        )
    return name or known[-1]


def _some(names: list[str]) -> str:
    step = max(1, len(names) // 8)
    return ", ".join(names[::step])


def field_of(network: nn.Module, layer: nn.Module, pixels: Tensor, cell: tuple[int, int], grid: tuple[int, int] | None) -> Field:
    """The input pixels that can move the unit at `cell` = (row, column), cut to the picture of the size of `pixels` (1, C, H, W).

    Measured, not derived: a band of NaN reaches the unit exactly if the band meets its field, so four bisections find its edges.
    """
    height, width = int(pixels.shape[2]), int(pixels.shape[3])

    def reached(box: tuple[slice, slice]) -> bool:
        probe = torch.zeros_like(pixels)
        probe[:, :, box[0], box[1]] = float("nan")
        with torch.inference_mode():
            maps = as_maps(output_of(network, layer, probe), grid)
        assert maps is not None
        return bool(maps[0, :, cell[0], cell[1]].isnan().any())

    whole = slice(None)

    def first(length: int, hit: Callable[[int], bool]) -> int:
        """The smallest count in 1..length of lines, from one side on, that reaches the unit."""
        low, high = 0, length
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if hit(middle) else (middle, high)
        return high

    left = first(width, lambda n: reached((whole, slice(0, n)))) - 1
    right = width - first(width, lambda n: reached((whole, slice(width - n, None)))) + 1
    top = first(height, lambda n: reached((slice(0, n), whole))) - 1
    bottom = height - first(height, lambda n: reached((slice(height - n, None), whole))) + 1
    return Field(left, top, right, bottom)


def theoretical_side(network: nn.Module, layer: nn.Module, pixels: Tensor) -> tuple[int, int] | None:
    """(height, width) of the receptive field of a central unit of maps when no border cuts it; None = any picture's whole.

    The input grows from the size of `pixels` until the field lies inside; networks that take one size only give None.
    """
    side, before = max(int(pixels.shape[2]), int(pixels.shape[3])), (0, 0)
    while side <= WIDEST:
        wide = pixels.new_zeros(1, pixels.shape[1], side, side)
        try:
            with torch.inference_mode():
                out = output_of(network, layer, wide)
        except (RuntimeError, ValueError, Error):  # a fixed grid, or a paper's own refusal of this size
            return None
        if out.ndim != 4:
            return None
        field = field_of(network, layer, wide, (out.shape[2] // 2, out.shape[3] // 2), None)
        inside = field.left > 0 and field.top > 0 and field.right < side and field.bottom < side
        found = field.bottom - field.top, field.right - field.left
        if inside and found == before:  # once more in a larger picture: a field with holes may be cut and still not touch a border
            return found
        side, before = side * 2, found if inside else (0, 0)
    return None
