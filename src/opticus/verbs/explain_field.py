"""What part of the picture a unit can see, and what part it does: theoretical and effective receptive fields.

Luo et al., NIPS 2016, arXiv 1701.04128: the effective field is the gradient of the central unit with respect to the pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opticus.plot.panels import Panel, boxed, overlay, panels
from opticus.structures import CapabilityError, UsageError
from opticus.verbs.explain_layers import (
    Field,
    as_maps,
    chosen_layer,
    field_of,
    grid_of,
    layer_named,
    output_of,
    theoretical_side,
    title_of,
)
from opticus.verbs.explain_request import Answer, Request, Values, as_pixels, at_least, batch_of, rounded

STRONG = 1 - 0.9545  # Luo et al. count pixels above this share of the largest value (two standard deviations)


def effective_field(
    network: nn.Module,
    layer: nn.Module,
    pixels: Tensor,
    cell: tuple[int, int],
    grid: tuple[int, int] | None,
    unit: int | None = None,
) -> Tensor:
    """Mean over pictures of |d unit / d pixel|, summed over channels: (H, W), its largest value 1.

    The unit at `cell` is channel `unit` of the layer's maps, or the sum of all channels.
    """
    leaf = pixels.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        maps = as_maps(output_of(network, layer, leaf), grid)
        assert maps is not None
        column = maps[:, :, cell[0], cell[1]]
        (gradient,) = torch.autograd.grad(column.sum() if unit is None else column[:, unit].sum(), leaf)
    total = gradient.abs().sum(1).mean(0)
    if float(total.max()) == 0:
        raise CapabilityError(
            f"{title_of(network)}: the gradient of this unit is zero, it has no effective field on these pictures"
        )
    return total / total.max()


def receptive_field(
    request: Request,
    *,
    layer: str | None = None,
    unit: int | None = None,
    cell: tuple[int, ...] | None = None,
    limit: int = 32,
    index: int = 0,
) -> Answer:
    """Where a unit of any layer can look (theoretical) and where it does (gradient), drawn on a picture.

    `cell` = (row, column) of the layer's map, by default its centre; `unit` a channel, by default all; the gradient is averaged over
    `limit` pictures of data=, else over noise.
    """
    at_least("limit", limit, 1)
    network, rule = request.model, request.rule
    given = request.source is not None or request.data is not None
    images = batch_of(network, [request.items(1, index)[0].picture]) if given else None
    pixels = images.pixels if images is not None else _noise(request, 1)
    name = chosen_layer(network, pixels, layer, request.kind)
    module, grid = layer_named(network, name), grid_of(network, pixels)
    with torch.no_grad():
        maps = as_maps(output_of(network, module, pixels), grid)
    assert maps is not None
    rows, columns = int(maps.shape[2]), int(maps.shape[3])
    at = _cell(cell, rows, columns, name)
    if unit is not None and not 0 <= unit < maps.shape[1]:
        raise UsageError(f"layer {name} has the channels 0..{maps.shape[1] - 1}, found unit={unit}")
    field = field_of(network, module, pixels, at, grid)
    side = theoretical_side(network, module, pixels)
    if request.data is not None:
        items = [sample.picture for sample in request.samples(limit)]
        parts = (
            [effective_field(network, module, batch_of(network, [one]).pixels, at, grid, unit) for one in items]
            if _ragged(request)
            else [effective_field(network, module, batch_of(network, items).pixels, at, grid, unit)]
        )
        averaged = f"{len(items)} pictures"
    else:
        parts = [effective_field(network, module, _noise(request, limit, pixels), at, grid, unit)]
        averaged = f"{limit} pictures of noise"
    effective = torch.stack(parts).mean(0)
    effective = (effective / effective.max()).cpu().double().numpy()
    numbers = _numbers(effective, field, side)
    ground = as_pixels(pixels[0], rule) if images is not None else np.full((*effective.shape, 3), 150, np.uint8)
    picture = _drawn(request, ground, effective, field, name, numbers)
    size = numbers["theoretical"]
    return Answer(
        picture,
        f"Frame: the theoretical field, {'the whole picture' if size is None else f'{size[0]}x{size[1]} px'}; "
        f"colour: the mean gradient over {averaged}.",
        {"layer": name, "cell": list(at), "map": [rows, columns], "unit": unit, **numbers, "effective": rounded(effective, 3)},
        ["Luo et al. 2016: the effective field is the gradient of the unit with respect to the pixels. Its size counts pixels above "
         f"{100 * STRONG:.2f} % of the largest value. The theoretical field is measured by sending NaN through the network."],
        {"Field": [{"layer": name, "theoretical height": None if size is None else size[0],
                    "theoretical width": None if size is None else size[1], "effective side": numbers["effective_side"],
                    "share of the theoretical area": numbers["share"]}]},
    )  # fmt: skip


def _numbers(effective: Values, field: Field, side: tuple[int, int] | None) -> dict[str, Any]:
    strong = float((effective > STRONG).sum())
    area = (field.right - field.left) * (field.bottom - field.top)
    return {
        "window": list(field),
        "theoretical": None if side is None else list(side),
        "effective_side": round(math.sqrt(strong), 2),
        "share": round(strong / area, 4),
        "outside": float(effective.sum() - effective[field.top : field.bottom, field.left : field.right].sum()),
    }


def _drawn(request: Request, ground: Values, effective: Values, field: Field, name: str, numbers: dict[str, Any]) -> Any:
    factor = max(1, round(400 / max(effective.shape)))
    large = ground.repeat(factor, 0).repeat(factor, 1)
    heat = effective.repeat(factor, 0).repeat(factor, 1)
    box = [value * factor for value in field]
    size = numbers["theoretical"]
    theory = "the whole picture" if size is None else f"{size[0]} x {size[1]} px"
    orange = (230, 159, 0)
    parts = [
        Panel(boxed(large, box, orange), f"theoretical field: {theory}\nunit {_word(numbers)}"),
        Panel(boxed(overlay(large, heat), box, orange), f"effective field: about {numbers['effective_side']:.1f} px a side"),
        Panel(_profile(effective, field), "gradient along the row and the column\nthrough the strongest pixel"),
    ]
    return panels([parts], cell=400, title=f"{request.title}: what a unit of {name} sees", bar=("no gradient", "largest gradient"))


def _word(numbers: dict[str, Any]) -> str:
    left, top, right, bottom = numbers["window"]
    return f"sees x {left}..{right - 1}, y {top}..{bottom - 1} of this picture"


def _profile(effective: Values, field: Field) -> Any:
    """A graph of the field's profiles, drawn with the frame's edges."""
    from PIL import Image, ImageDraw

    from opticus.plot.colours import INK, PAPER, font
    from opticus.plot.panels import SOFT

    side, pad = 400, 34
    sheet = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(sheet)
    y0, x0 = np.unravel_index(int(effective.argmax()), effective.shape)
    length = max(effective.shape)
    pen.line((pad, side - pad, side - 6, side - pad), fill=INK)
    pen.line((pad, 6, pad, side - pad), fill=INK)

    def place(position: float, value: float) -> tuple[float, float]:
        return pad + (position + 0.5) / length * (side - pad - 6), side - pad - value * (side - pad - 16)

    for values, fill, edges in (
        (effective[int(y0)], (0, 114, 178), (field.left, field.right)),
        (effective[:, int(x0)], (213, 94, 0), (field.top, field.bottom)),
    ):
        pen.line([place(i, float(value)) for i, value in enumerate(values)], fill=fill, width=2)
        for edge in edges:
            x = place(edge - 0.5, 0)[0]
            for y in range(10, side - pad, 12):
                pen.line((x, y, x, y + 5), fill=fill)
    letters = font(15)
    pen.text((side - 10, 12), "row", (0, 114, 178), letters, anchor="ra")
    pen.text((side - 10, 32), "column", (213, 94, 0), letters, anchor="ra")
    pen.text((side - 8, side - pad + 6), f"{length} px", SOFT, letters, anchor="ra")
    pen.text((pad, side - pad + 6), "0", SOFT, letters, anchor="ma")
    pen.text((pad - 6, 16), "1", SOFT, letters, anchor="rm")
    return sheet


def _ragged(request: Request) -> bool:
    """Whether prepared pictures may differ in size, so that they must not share a batch."""
    return request.rule.resize in ("none", "shortest", "scaled", "rounded") and request.rule.crop is None


def _noise(request: Request, count: int, like: Tensor | None = None) -> Tensor:
    from opticus.verbs.explain_weights import blank

    pixels = blank(request.model) if like is None else like
    drawn = request.generator().standard_normal((count, *pixels.shape[1:]))
    return torch.from_numpy(drawn).to(pixels)


def _cell(cell: tuple[int, ...] | None, rows: int, columns: int, name: str) -> tuple[int, int]:
    if cell is None:
        return rows // 2, columns // 2
    if len(cell) != 2 or not (0 <= cell[0] < rows and 0 <= cell[1] < columns):
        raise UsageError(
            f"cell must be a row in 0..{rows - 1} and a column in 0..{columns - 1} of layer {name}, found {list(cell)}"
        )
    return cell[0], cell[1]
