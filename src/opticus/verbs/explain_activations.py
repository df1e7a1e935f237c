"""Which pictures excite a map most, and what in them does: top-9 patches with their projections back to pixels.

Zeiler and Fergus, ECCV 2014, arXiv 1311.2901 (deconvnet); Springenberg et al., ICLR workshop 2015, arXiv 1412.6806 (guided
backpropagation, for networks without pooling). A projection is a backward pass of the unit's own activation whose rectifiers act
on the signal that runs down; convolutions are transposed, max pooling puts the signal back where its switch points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from opticus.plot.panels import Panel, mosaic, panels, stretched
from opticus.structures import CapabilityError, Sample, UsageError
from opticus.verbs.explain_layers import (
    Field,
    as_maps,
    chosen_layer,
    field_of,
    grid_of,
    layer_named,
    output_of,
    title_of,
)
from opticus.verbs.explain_request import Answer, Request, Row, as_pixels, at_least, batch_of, label_of, name_of, rounded

Rule = Literal["deconvnet", "guided"]
TOP = 9
RECTIFIERS = ("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish")


class _Rectified(torch.autograd.Function):
    """The identity forward; backward lets through what is positive in the signal that runs down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.clamp(min=0)


class _Straight(torch.autograd.Function):
    """A rectifier forward, without a mask of its own backward: `y` takes the place of `x`, the gradient goes to `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.clamp(min=0), None


class _Projection(TorchFunctionMode):
    """While it is on, every rectifier of a network projects by `rule`: "deconvnet" forgets the forward mask, "guided" keeps it."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in RECTIFIERS:
            return func(*args, **kwargs)
        x, rest = args[0], {key: value for key, value in kwargs.items() if key != "inplace"}
        if self.rule == "guided":
            return _Rectified.apply(func(x.clone(), *args[1:], **rest))
        with torch.no_grad():
            y = func(x.clone(), *args[1:], **rest)
        return _Straight.apply(x, y)


class _Pooling(TorchFunctionMode):
    """Notes whether max pooling is computed."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.found = self.found or "max_pool" in getattr(func, "__name__", "")
        return func(*args, **(kwargs or {}))


def rule_for(network: nn.Module, layer: nn.Module, pixels: Tensor) -> Rule:
    """ "deconvnet" if there is max pooling before the layer, whose switches the projection follows, else "guided"."""
    watch = _Pooling()
    with torch.no_grad(), watch:
        output_of(network, layer, pixels)
    return "deconvnet" if watch.found else "guided"


def project(network: nn.Module, layer: nn.Module, pixels: Tensor, pick: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
    """The projection (B, C, H, W) of one unit per picture: `pick(output)` -> (B,) selects the units; all others are zero.

    The signal that starts at a unit is its own activation. Without rectifiers it is that activation times the plain gradient.
    """
    leaf = pixels.detach().clone().requires_grad_(True)
    with torch.enable_grad(), _Projection(rule):
        units = pick(output_of(network, layer, leaf))
    (gradient,) = torch.autograd.grad((units * units.detach()).sum(), leaf)
    return gradient.detach()


class Peak(NamedTuple):
    """The strongest activation of a map in one picture."""

    value: float
    picture: int
    cell: tuple[int, int]


def peaks(network: nn.Module, layer: nn.Module, samples: Sequence[Sample], grid: Any, batch: int = 64) -> list[list[Peak]]:
    """For every map of the layer its nine strongest pictures, each with the cell of its largest activation, strongest first."""
    values: list[Tensor] = []
    cells: list[Tensor] = []
    sizes: list[int] = []
    with torch.inference_mode():
        for first in range(0, len(samples), batch):
            images = batch_of(network, [sample.picture for sample in samples[first : first + batch]])
            maps = as_maps(output_of(network, layer, images.pixels), grid)
            assert maps is not None
            best, where = maps.flatten(2).max(2)
            values.append(best.float().cpu())
            cells.append(where.cpu())
            sizes += [int(maps.shape[3])] * len(best)
    best, where = torch.cat(values), torch.cat(cells)
    order = best.argsort(dim=0, descending=True, stable=True)[:TOP]
    return [
        [
            Peak(float(best[i, m]), int(i), (int(where[i, m]) // sizes[int(i)], int(where[i, m]) % sizes[int(i)]))
            for i in order[:, m]
        ]
        for m in range(best.shape[1])
    ]


def activations(
    request: Request, *, layer: str | None = None, maps: int = 12, units: tuple[int, ...] | None = None, limit: int = 500
) -> Answer:
    """Top-9 patches of maps of any layer over a data set, beside their projections to pixels.

    `maps` maps are drawn by the seed among those that are active, or `units` names them; `limit` pictures are searched.
    """
    at_least("maps", maps, 1)
    network = request.model
    first = batch_of(network, [request.samples(1)[0].picture])
    name = chosen_layer(network, first.pixels, layer, request.kind)  # a wrong name is an error before pictures are read
    samples = request.samples(limit)
    module, grid = layer_named(network, name), grid_of(network, first.pixels)
    found = peaks(network, module, samples, grid)
    chosen = _chosen(request, found, maps, units, name)
    rule = rule_for(network, module, first.pixels)
    rows: list[Panel] = []
    table: list[Row] = []
    numbers: list[dict[str, Any]] = []
    for unit in chosen:
        top = found[unit]
        images = batch_of(network, [samples[peak.picture].picture for peak in top])
        fields = _fields(network, module, images.pixels, top, grid)

        def pick(out: Tensor, unit: int = unit, top: list[Peak] = top) -> Tensor:
            out_maps = as_maps(out, grid)
            assert out_maps is not None
            return torch.stack([out_maps[i, unit, peak.cell[0], peak.cell[1]] for i, peak in enumerate(top)])

        down = project(network, module, images.pixels, pick, rule)
        patches = [_cut(torch.from_numpy(as_pixels(one, request.rule)), field) for one, field in zip(images.pixels, fields)]
        drawn = [_cut(torch.from_numpy(stretched(_rgb_order(one, request).numpy())), f) for one, f in zip(down, fields)]
        pair = [mosaic([part.numpy() for part in side], 3, 76) for side in (drawn, patches)]
        labels = [name_of(request.names, label_of(samples[peak.picture])) for peak in top]
        rows += [Panel(pair[0], f"map {unit}\nprojections"), Panel(pair[1], f"max {top[0].value:.3g}\n{_counted(labels)}")]
        table.append({"map": unit, "largest": top[0].value, "ninth": top[-1].value, "classes": _counted(labels, 9)})
        numbers.append({
            "map": unit,
            "top": [{"id": samples[p.picture].id, "value": rounded(p.value), "cell": list(p.cell), "field": list(f), "label": text}
                    for p, f, text in zip(top, fields, labels)],
        })  # fmt: skip
    dead = [unit for unit, top in enumerate(found) if top[0].value <= 0]
    how = {
        "deconvnet": "Zeiler and Fergus 2014: max pooling is undone by its switches, rectifiers act on the signal that runs down, "
        "filters are transposed",
        "guided": "there is no max pooling before this layer, hence no switches: guided backpropagation (Springenberg et al. 2015), "
        "which masks by the forward and by the downward signal",
    }[rule]
    picture = panels(
        [[part for pair in zip(rows[i : i + 6 : 2], rows[i + 1 : i + 6 : 2]) for part in pair] for i in range(0, len(rows), 6)],
        cell=240,
        title=f"{request.title}, layer {name}: the nine strongest patches of {len(chosen)} of {len(found)} maps",
    )
    return Answer(
        picture,
        "Left of each pair: projections to pixels, mid-grey is zero; right: the patches of the input that the units see.",
        {"layer": name, "rule": rule, "searched": len(samples), "maps": len(found), "dead": dead, "units": numbers},
        [f"Projections: {how}. Normalisation layers act as fixed scales; every picture counts once per map.",
         f"{len(samples)} pictures of the {request.split} split were searched; {len(dead)} of {len(found)} maps are never positive."],
        {"Maps": table},
    )  # fmt: skip


def _chosen(request: Request, found: list[list[Peak]], maps: int, units: tuple[int, ...] | None, layer: str) -> list[int]:
    if units is not None:
        for unit in units:
            if not 0 <= unit < len(found):
                raise UsageError(f"layer {layer} of {title_of(request.model)} has the maps 0..{len(found) - 1}, found {unit}")
        return list(units)
    alive = [unit for unit, top in enumerate(found) if top[0].value > 0]
    if not alive:
        raise CapabilityError(f"{title_of(request.model)}: no map of layer {layer} is positive on any of these pictures")
    return sorted(int(i) for i in request.generator().permutation(alive)[:maps])


def _fields(network: nn.Module, module: nn.Module, pixels: Tensor, top: Sequence[Peak], grid: Any) -> list[Field]:
    """Receptive fields at the peaks' cells; each cell is measured once."""
    known: dict[tuple[int, int], Field] = {}
    for peak in top:
        if peak.cell not in known:
            known[peak.cell] = field_of(network, module, pixels[:1], peak.cell, grid)
    return [known[peak.cell] for peak in top]


def _cut(picture: Tensor, field: Field) -> Tensor:
    """The part (h, w, 3) of a picture inside a field, padded to a square with a light grey."""
    part = picture[field.top : field.bottom, field.left : field.right]
    side = max(part.shape[0], part.shape[1])
    short = (side - part.shape[0], side - part.shape[1])
    edges = (0, 0, short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2)
    return F.pad(part, edges, value=205)


def _rgb_order(projection: Tensor, request: Request) -> Tensor:
    """(H, W, C) on the CPU, channels in the order red, green, blue."""
    planes = projection.flip(0) if request.rule.order == "bgr" and request.rule.channels == 3 else projection
    return planes.permute(1, 2, 0).float().cpu()


def _counted(labels: Sequence[str], limit: int = 3) -> str:
    """ "7 (5), 1 (4)": the most frequent classes among the nine."""
    counts = {label: labels.count(label) for label in labels if label}
    best = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
    return ", ".join(f"{label} ({count})" for label, count in best)
