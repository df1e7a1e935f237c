"""Sheets of explained pictures: panels under titles, heat over photographs, signed weights, grids of numbers, thumbnails in a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.colours import INK, PAPER, Colour, colour, font, ink_on
from opticus.plot.draw import to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Values = npt.NDArray[Any]
Key = tuple[str, Colour]  # a legend's line: a name and its colour
SOFT: Colour = (93, 96, 104)
_GAP = 10


@dataclass(slots=True)
class Panel:
    """One picture of a sheet: a caption below it (one line per "\\n"), a frame in the colour of its class."""

    picture: Any
    caption: str = ""
    frame: Colour | None = None


def panels(
    rows: Sequence[Sequence[Panel | None]],
    *,
    cell: int = 200,
    title: str = "",
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    legend: Sequence[Key] = (),
    bar: tuple[str, str] | None = None,
) -> Image:
    """A sheet of panels, each fitted into `cell` x `cell` pixels; `bar` = (text of 0, text of 1) adds the colour scale of `heat`.

    Rows may have unlike lengths; None leaves a place empty. Row titles stand at the left, column titles on top.
    """
    from PIL import Image as image_module
    from PIL import ImageDraw

    letters, head = font(14), font(17)
    columns = max((len(row) for row in rows), default=0)
    side = 0 if not row_titles else min(240, round(max(_longest(letters, text) for text in row_titles)) + 2 * _GAP)
    lines = [max((one.caption.count("\n") + 1 for one in row if one and one.caption), default=0) for row in rows]
    rooms = [max((_height(one, cell) for one in row if one is not None), default=cell) for row in rows]
    heights = [room + 19 * count + _GAP + (4 if count else 0) for room, count in zip(rooms, lines, strict=True)]
    top = _GAP + (34 if title else 0) + (24 if column_titles else 0)
    width = max(side + columns * (cell + _GAP) + _GAP, round(_longest(head, title)) + 3 * _GAP)
    keys = _legend_lines(letters, legend, width)
    below = 26 * len(keys) + (_GAP if keys else 0) + (44 if bar else 0)
    sheet = image_module.new("RGB", (width, top + sum(heights) + below), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_GAP + 2, _GAP), title, INK, head)
    for column, text in enumerate(column_titles):
        x = side + _GAP + column * (cell + _GAP) + cell / 2
        pen.text((x, top - 14), _fitted(text, letters, cell), INK, letters, anchor="mm")
    y = top
    for number, row in enumerate(rows):
        if number < len(row_titles):
            pen.multiline_text(
                (_GAP, y + rooms[number] / 2), _wrapped(row_titles[number], letters, side - _GAP), INK, letters, anchor="lm"
            )
        for column, one in enumerate(row):
            if one is not None:
                _put(sheet, one, (side + _GAP + column * (cell + _GAP), y), (cell, rooms[number]), letters)
        y += heights[number]
    for line in keys:
        _write_keys(sheet, line, (side + _GAP, y + 4), letters)
        y += 26
    if bar is not None:
        _write_bar(sheet, bar, (side + _GAP, y + _GAP), letters)
    return sheet


def in_rows(parts: Sequence[Panel], most: int = 6) -> list[list[Panel]]:
    """Panels in rows of nearly equal length, at most `most` beside each other."""
    columns = math.ceil(len(parts) / max(1, math.ceil(len(parts) / most)))
    return [list(parts[i : i + columns]) for i in range(0, len(parts), max(1, columns))]


def heat(values: npt.ArrayLike) -> Values:
    """(H, W) in [0, 1] -> (H, W, 3) uint8 on matplotlib's "inferno": black, purple, orange, pale yellow."""
    return (_inferno()[np.clip(np.asarray(values, float) * 255, 0, 255).round().astype(int)] * 255).round().astype(np.uint8)


def overlay(picture: Any, values: npt.ArrayLike, tint: Colour | None = None) -> Image:
    """`values` (H, W) in [0, 1] over a picture of that size: warm colours (or one `tint`), the more opaque the larger the value.

    The picture is shown in grey, so that colour means the value and nothing else; NaN marks what the network did not see.
    """
    from PIL import Image as image_module

    pixels, level = to_pixels(picture).astype(float), np.asarray(values, float)
    grey = np.repeat((pixels @ np.array([0.299, 0.587, 0.114]))[..., None], 3, 2)
    unseen = ~np.isfinite(level)
    level = np.clip(np.where(unseen, 0, level), 0, 1)
    over = heat(0.12 + 0.88 * level).astype(float) if tint is None else np.broadcast_to(np.array(tint, float), grey.shape)
    alpha = (0.85 * level**0.7)[..., None]
    mixed = (0.75 * grey + 25) * (1 - alpha) + over * alpha
    mixed[unseen] = 0.35 * grey[unseen] + 160
    return image_module.fromarray(np.clip(mixed, 0, 255).round().astype(np.uint8))


def layered(picture: Any, maps: Sequence[npt.ArrayLike], tints: Sequence[Colour]) -> Image:
    """Several maps (H, W) in [0, 1] over one picture: every pixel takes the colour of the strongest map, as strong as that one."""
    from PIL import Image as image_module

    stack = np.nan_to_num(np.stack([np.asarray(one, float) for one in maps]))
    best, level = stack.argmax(0), np.clip(stack.max(0), 0, 1)
    grey = np.repeat((to_pixels(picture).astype(float) @ np.array([0.299, 0.587, 0.114]))[..., None], 3, 2)
    alpha = (0.85 * level)[..., None]
    mixed = (0.8 * grey + 20) * (1 - alpha) + np.array(tints, float)[best] * alpha
    return image_module.fromarray(np.clip(mixed, 0, 255).round().astype(np.uint8))


def signed(values: npt.ArrayLike, largest: float | None = None) -> Values:
    """Weights as a picture, zero in the middle: (H, W, 3) as colours around mid-grey, (H, W) or (H, W, 1) as blue - white - red."""
    array = np.asarray(values, float)
    scaled = array / max(float(np.abs(array).max()) if largest is None else largest, 1e-12)
    if scaled.ndim == 3 and scaled.shape[2] == 3:
        return np.clip(127.5 + 127.5 * scaled, 0, 255).round().astype(np.uint8)
    level = np.clip(scaled[..., 0] if scaled.ndim == 3 else scaled, -1, 1)[..., None]
    red, blue, white = np.array([178, 24, 43.0]), np.array([33, 80, 172.0]), np.array([247, 247, 247.0])
    return (white + (np.where(level > 0, red, blue) - white) * np.abs(level) ** 0.8).round().astype(np.uint8)


def stretched(values: npt.ArrayLike) -> Values:
    """A projection (H, W, C) as a picture around mid-grey; its 99.5th percentile, not its one largest value, sets the contrast."""
    array = np.asarray(values, float)
    if array.ndim == 3 and array.shape[2] == 1:
        array = np.repeat(array, 3, 2)
    top = max(float(np.quantile(np.abs(array), 0.995)), 1e-12)
    return np.clip(127.5 + 127.5 * array / top, 0, 255).round().astype(np.uint8)


def mosaic(pictures: Sequence[Any], columns: int, cell: int, gap: int = 2) -> Image:
    """Pictures edge to edge on black, each `cell` pixels wide and high: a panel made of small ones."""
    from PIL import Image as image_module

    rows = max(1, math.ceil(len(pictures) / columns))
    sheet = image_module.new("RGB", (columns * (cell + gap) - gap, rows * (cell + gap) - gap), INK)
    for index, picture in enumerate(pictures):
        fitted = _scaled(image_module.fromarray(to_pixels(picture)), cell)
        x, y = index % columns * (cell + gap), index // columns * (cell + gap)
        sheet.paste(fitted, (x + (cell - fitted.size[0]) // 2, y + (cell - fitted.size[1]) // 2))
    return sheet


def boxed(picture: Any, box: Sequence[float], fill: Colour, width: int = 3) -> Image:
    """The picture with one rectangle (x0, y0, x1, y1) in its pixels, drawn in a dark casing."""
    from PIL import Image as image_module
    from PIL import ImageDraw

    image = image_module.fromarray(to_pixels(picture))
    pen, edges = ImageDraw.Draw(image), (box[0], box[1], box[2] - 1, box[3] - 1)
    pen.rectangle(edges, outline=INK, width=width + 2)
    pen.rectangle((edges[0] + 1, edges[1] + 1, edges[2] - 1, edges[3] - 1), outline=fill, width=width)
    return image


def number_grid(grey: Values, tint: Colour = PAPER, cell: int = 30) -> Image:
    """(H, W) uint8 as a grid of its numbers, every cell in its own shade of `tint` (white: grey levels)."""
    from PIL import Image as image_module
    from PIL import ImageDraw

    height, width = grey.shape
    letters = font(round(cell * 0.4))
    sheet = image_module.new("RGB", (width * cell + 1, height * cell + 1), (160, 160, 166))
    pen = ImageDraw.Draw(sheet)
    for y in range(height):
        for x in range(width):
            level = int(grey[y, x])
            fill: Colour = (tint[0] * level // 255, tint[1] * level // 255, tint[2] * level // 255)
            pen.rectangle((x * cell + 1, y * cell + 1, (x + 1) * cell - 1, (y + 1) * cell - 1), fill=fill)
            pen.text((x * cell + cell / 2, y * cell + cell / 2), str(level), ink_on(fill), letters, anchor="mm")
    return sheet


def plane(points: Values, pictures: Sequence[Any], fills: Sequence[Colour], legend: Sequence[Key], title: str, thumb: int) -> Image:
    """Thumbnails at their `points` (N, 2), framed in their class colours, with a legend at the right."""
    from PIL import Image as image_module
    from PIL import ImageDraw

    side, letters, head = 1100, font(18), font(20)
    panel = round(max((_longest(letters, name) for name, _ in legend), default=0)) + 70
    sheet = image_module.new("RGB", (side + panel, side + 50), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((16, 14), title, INK, head)
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.maximum(high - low, 1e-12)
    rim = 3
    for (u, v), picture, fill in zip(scaled, pictures, fills, strict=True):
        image = _scaled(image_module.fromarray(to_pixels(picture)), thumb)
        x, y = round(20 + u * (side - 40 - thumb)), round(60 + (1 - v) * (side - 40 - thumb))
        pen.rectangle((x - rim, y - rim, x + image.size[0] + rim - 1, y + image.size[1] + rim - 1), fill=fill)
        sheet.paste(image, (x, y))
    for name, fill in legend:
        mine = [number for number, one in enumerate(fills) if one == fill]
        if len(mine) > 1:  # two colours may be alike: each class's name stands on its middle
            u, v = np.median(scaled[mine], 0)
            at = (20 + u * (side - 40 - thumb) + thumb / 2, 60 + (1 - v) * (side - 40 - thumb) + thumb / 2)
            text = name.split("  ")[0]
            wide = head.getlength(text) / 2 + 9
            pen.rounded_rectangle((at[0] - wide, at[1] - 16, at[0] + wide, at[1] + 16), 8, fill=fill, outline=INK, width=2)
            pen.text(at, text, ink_on(fill), head, anchor="mm")
    for row, (name, fill) in enumerate(legend):
        y = 70 + 30 * row
        pen.rectangle((side + 14, y, side + 34, y + 20), fill=fill)
        pen.text((side + 44, y + 10), name, INK, letters, anchor="lm")
    return sheet


def class_keys(names: Sequence[str], limit: int = 24) -> list[Key]:
    """A legend's lines for the first `limit` classes."""
    return [(str(name), colour(index)) for index, name in enumerate(names[:limit])]


def _height(one: Panel, cell: int) -> int:
    """How high a picture is once it fits into a square of `cell` pixels."""
    height, width = to_pixels(one.picture).shape[:2]
    return max(1, round(cell * min(1.0, height / width)))


def _put(sheet: Image, one: Panel, place: tuple[float, float], box: tuple[int, int], letters: FreeTypeFont) -> None:
    from PIL import Image as image_module
    from PIL import ImageDraw

    cell, high = box
    room = cell - 8 if one.frame is not None else cell
    image = _scaled(image_module.fromarray(to_pixels(one.picture)), room)
    x, y = round(place[0] + (cell - image.size[0]) / 2), round(place[1] + (high - image.size[1]) / 2)
    pen = ImageDraw.Draw(sheet)
    if one.frame is not None:
        pen.rectangle((x - 4, y - 4, x + image.size[0] + 3, y + image.size[1] + 3), fill=one.frame)
    sheet.paste(image, (x, y))
    for number, text in enumerate(one.caption.split("\n") if one.caption else ()):
        at = (place[0] + cell / 2, place[1] + high + 12 + 19 * number)
        pen.text(at, _fitted(text, letters, cell + 4), INK if number == 0 else SOFT, letters, anchor="mm")


def _scaled(image: Image, room: int) -> Image:
    """Fitted into a square of `room` pixels; pixels of small pictures stay squares."""
    from PIL import Image as image_module

    ratio = room / max(image.size)
    kind = image_module.Resampling.NEAREST if ratio >= 2 else image_module.Resampling.LANCZOS
    return image.resize((max(1, round(image.size[0] * ratio)), max(1, round(image.size[1] * ratio))), kind)


def _write_keys(sheet: Image, line: Sequence[Key], at: tuple[float, float], letters: FreeTypeFont) -> None:
    from PIL import ImageDraw

    pen, x = ImageDraw.Draw(sheet), at[0]
    for name, fill in line:
        pen.rectangle((x, at[1] + 2, x + 16, at[1] + 18), fill=fill)
        pen.text((x + 23, at[1] + 10), name, INK, letters, anchor="lm")
        x += letters.getlength(name) + 48


def _legend_lines(letters: FreeTypeFont, legend: Sequence[Key], width: float) -> list[list[Key]]:
    lines: list[list[Key]] = []
    used = math.inf
    for key in legend:
        need = letters.getlength(key[0]) + 48
        if used + need > width:
            lines.append([])
            used = 2 * _GAP
        lines[-1].append(key)
        used += need
    return lines


def _write_bar(sheet: Image, texts: tuple[str, str], at: tuple[float, float], letters: FreeTypeFont) -> None:
    from PIL import Image as image_module
    from PIL import ImageDraw

    pen, x, y = ImageDraw.Draw(sheet), at[0], at[1]
    pen.text((x, y + 9), texts[0], INK, letters, anchor="lm")
    x += letters.getlength(texts[0]) + 10
    wide = round(min(220.0, max(60.0, sheet.size[0] - x - letters.getlength(texts[1]) - 3 * _GAP)))
    ramp = heat(np.linspace(0.12, 1, wide)[None].repeat(18, 0))
    sheet.paste(image_module.fromarray(ramp), (round(x), round(y)))
    pen.text((x + wide + 10, y + 9), texts[1], INK, letters, anchor="lm")


def _inferno() -> Values:
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.arange(256)))[:, :3]


def _longest(letters: FreeTypeFont, text: str) -> float:
    return max(letters.getlength(line) for line in text.split("\n"))


def _fitted(text: str, letters: FreeTypeFont, width: float) -> str:
    while len(text) > 1 and letters.getlength(text) > width:
        text = f"{text[:-2]}…"
    return text


def _wrapped(text: str, letters: FreeTypeFont, width: float) -> str:
    """Lines broken between words; a word that is too long is cut."""
    lines: list[str] = []
    for part in text.split("\n"):
        lines.append("")
        for word in part.split(" "):
            joined = f"{lines[-1]} {word}".strip()
            if lines[-1] and letters.getlength(joined) > width:
                lines.append(word)
            else:
                lines[-1] = joined
    return "\n".join(_fitted(line, letters, width) for line in lines)
