"""Figures of detectors: many boxes at once, the focal loss, and where the queries of a set detector answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.colours import INK, Colour, colour
from opticus.plot.draw import to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = (("small", (0, 158, 115)), ("large, wide", (213, 94, 0)), ("large, tall", (0, 114, 178)))  # of boxes, with their colours


def outlines(picture: Any, boxes: npt.ArrayLike, fills: Sequence[Colour], width: int = 2, *, cased: bool = True) -> Image:
    """The picture with boxes (N, 4) xyxy in its pixels, each in its colour; `cased` ones have a dark edge and stand out anywhere."""
    from PIL import Image as image_module
    from PIL import ImageDraw

    image = image_module.fromarray(to_pixels(picture))
    pen = ImageDraw.Draw(image)
    for (x0, y0, x1, y1), fill in zip(np.asarray(boxes, float).reshape(-1, 4).tolist(), fills, strict=True):
        if x1 - x0 < 1 or y1 - y0 < 1:
            continue
        if cased:
            pen.rectangle((x0 - 1, y0 - 1, x1, y1), outline=INK, width=width + 2)
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=fill, width=width)
    return image


def size_kinds(boxes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Per box (N, 4) cxcywh in fractions of its picture: 0 small (area below 1/16), 1 wide, 2 tall, as `KINDS` names them."""
    large, tall = boxes[:, 2] * boxes[:, 3] >= 1 / 16, boxes[:, 3] > boxes[:, 2]
    return np.where(large, 1 + tall.astype(np.int64), 0)


def slot_scatter(boxes: npt.NDArray[Any], titles: Sequence[str]) -> Image:
    """One square per slot of `boxes` (S, N, 4) cxcywh in fractions: a dot at every answer's centre, coloured by its box's kind."""
    columns = min(8, len(boxes))
    rows = -(-len(boxes) // columns)

    def fill(figure: Any) -> None:
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for place, axis in enumerate(axes):
            if place >= len(boxes):
                axis.set_visible(False)
                continue
            kinds = size_kinds(boxes[place])
            for kind, (_, tint) in enumerate(KINDS):
                chosen = boxes[place][kinds == kind]
                axis.scatter(chosen[:, 0], chosen[:, 1], s=5, color=_unit(tint), linewidths=0)
            axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
            axis.set_title(titles[place], fontsize=9)
        figure.legend(
            handles=[_dot(name, tint) for name, tint in KINDS], loc="outside lower center", ncols=3, frameon=False, fontsize=9
        )

    return rendered(1.6 * columns + 0.2, 1.85 * rows + 0.5, fill)


def focal_curves(curves: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]], shares: Mapping[str, float]) -> Image:
    """Left: each curve (probability of the truth, loss); right: what share of the loss comes from easy examples."""

    def fill(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1.6, 1.0])
        for i, (name, (x, y)) in enumerate(curves.items()):
            left.plot(x, y, color=_unit(colour((4, 5, 2, 6, 0, 8)[i % 6])), linewidth=2, label=name)
        left.axvspan(0.6, 1.0, color="#888888", alpha=0.12)
        left.text(0.8, 0.92 * 5, "well-classified", ha="center", fontsize=9)
        left.set(xlim=(0, 1), ylim=(0, 5), xlabel="probability of the true class", ylabel="loss")
        left.set_title("focal loss", fontsize=11, loc="left")
        left.legend(frameon=False)
        names = list(shares)
        places = range(len(names))
        right.barh(places, [100 * shares[name] for name in names], color=[_unit(colour((4, 5, 2, 6, 0, 8)[i % 6])) for i in places])
        right.set_yticks(list(places), names)
        right.invert_yaxis()
        right.set(xlim=(0, 100), xlabel="% of the loss")
        right.set_title("from well-classified background", fontsize=11, loc="left")
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)

    return rendered(10.0, 4.2, fill)


def rendered(width: float, height: float, fill: Callable[[Any], None]) -> Image:
    """What `fill` draws on a matplotlib figure (inches), as a picture."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image as image_module

    with matplotlib.rc_context({"font.size": 10, "font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        fill(figure)
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    buffer.seek(0)
    return image_module.open(buffer).convert("RGB")


def _unit(tint: Colour) -> tuple[float, float, float]:
    return tint[0] / 255, tint[1] / 255, tint[2] / 255


def _dot(name: str, tint: Colour) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", color=_unit(tint), label=name, markersize=5)


__all__ = ["KINDS", "focal_curves", "outlines", "rendered", "size_kinds", "slot_scatter"]
