"""Results drawn on their pictures: boxes with legible tags, masks, keypoints, label maps, and panels for classes and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from opticus.ops import masks
from opticus.plot.colours import INK, PAPER, Colour, colour, font, ink_on
from opticus.structures import RLE, Classes, Instances, LabelMap, Panoptic, Picture, Result, Text, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Pixels = npt.NDArray[np.uint8]
READABLE = 384  # pixels: a picture whose shorter side is below is enlarged by a whole factor, so that labels can be read
HIDDEN = 0.3  # a tag that would cover more of the better ones than this share of itself is left out; its box stays
CROWDED = 120  # from this many boxes on only the boxes are drawn, no tags


def draw(
    picture: Picture | Image | Tensor | Pixels,
    result: Result | None,
    names: Sequence[str] = (),
    *,
    threshold: float = 0.0,
    limit: int = 300,
    scale: int | None = None,
    text: float = 1.0,
    focus: Sequence[float] | None = None,
    font_file: str | None = None,
) -> Image:
    """`result` on its `picture` (H,W,C) uint8; returns an RGB Pillow image, enlarged `scale` times (None: as much as labels need).

    Detections below `threshold` and beyond the best `limit` are left out. `names[i]` is class i's name; "class i" is written where
    there is none. `text` enlarges tags and lines (for pictures shown small); `focus`, a box in the picture's pixels, is ringed.
    `font_file` names a TrueType font for scripts that DejaVu Sans lacks. Raises UsageError for a kind of result that has no picture.
    """
    from PIL import Image as image_module

    pixels = to_pixels(picture)
    factor = scale or enlargement(pixels.shape[0], pixels.shape[1])
    smooth = image_module.Resampling.BICUBIC if min(pixels.shape[:2]) > 64 else image_module.Resampling.NEAREST
    image = image_module.fromarray(pixels).resize((pixels.shape[1] * factor, pixels.shape[0] * factor), smooth)
    if focus is not None:
        _ring(image, [value * factor for value in focus])
    if result is None or isinstance(result, Picture):
        return image
    if isinstance(result, Instances):
        return _instances(image, _selected(result, threshold, limit), names, factor, _Type(text, font_file))
    if isinstance(result, LabelMap):
        return _label_map(image, result.labels.cpu().numpy(), result.ignore, names, font_file)
    if isinstance(result, Panoptic):
        return _panoptic(image, result, names, font_file)
    if isinstance(result, Classes):
        return _classes(image, result, names, font_file)
    if isinstance(result, Text):
        return _caption(image, result.text, font_file)
    raise UsageError(f"a result of type {type(result).__name__} cannot be drawn on a picture")


def to_pixels(picture: Picture | Image | Tensor | Pixels) -> Pixels:
    """(H, W, 3) uint8 of whatever a picture is given as; UsageError for another shape or type."""
    if isinstance(picture, Picture):
        picture = picture.pixels
    if isinstance(picture, Tensor):
        values: Any = picture.detach().cpu().numpy()
    elif isinstance(picture, np.ndarray):
        values = picture
    else:
        values = np.asarray(picture.convert("RGB"))
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or values.dtype != np.uint8:
        raise UsageError(f"a picture must be (H, W, 3) or (H, W, 1) uint8, found {tuple(values.shape)} {values.dtype}")
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def enlargement(height: int, width: int) -> int:
    """The whole factor that brings the shorter side to READABLE pixels, at most 16; 1 for pictures that are large enough."""
    return min(16, max(1, math.ceil(READABLE / max(1, min(height, width)))))


def label_of(index: int, names: Sequence[str]) -> str:
    """The class's name, or "class 7"."""
    return str(names[index]) if 0 <= index < len(names) else f"class {index}"


@dataclass(slots=True)
class _Tag:
    """A label to be placed: its text, its class colour, the box (x0, y0, x1, y1) it belongs to."""

    text: str
    fill: Colour
    box: tuple[float, float, float, float]


class _Type(NamedTuple):
    """How tags are written: their scale and the font file (None: DejaVu Sans)."""

    scale: float
    file: str | None


def _selected(instances: Instances, threshold: float, limit: int) -> Instances:
    if instances.scores is None:
        return instances[: max(limit, 0)]
    order = instances.scores.argsort(descending=True, stable=True)
    return instances[order[instances.scores[order] >= threshold][: max(limit, 0)]]


def _instances(image: Image, found: Instances, names: Sequence[str], factor: int, letters: _Type) -> Image:
    from PIL import ImageDraw

    fills = [colour(int(label)) for label in found.labels]
    if found.masks is not None and len(found):
        image = _with_masks(image, _planes(found.masks), fills, factor)
    canvas = ImageDraw.Draw(image)
    width = max(2, round(max(image.size) / 160 * letters.scale * (0.6 if len(found) > 40 else 1.0)))
    boxes = cast("list[list[float]]", (found.boxes.detach().cpu().double() * factor).tolist())
    tags: list[_Tag] = []
    for index in range(len(found) - 1, -1, -1):  # the best is drawn last, on top
        box = _inside(boxes[index], image.size)
        dashed = found.crowd is not None and bool(found.crowd[index])
        _outline(canvas, box, fills[index], width, dashed)
        text = label_of(int(found.labels[index]), names) + (" (crowd)" if dashed else "")
        score = "" if found.scores is None else f" {float(found.scores[index]):.2f}"
        tags.append(_Tag(text + score, fills[index], box))
        if found.keypoints is not None:
            _points(canvas, found.keypoints[index] * found.keypoints.new_tensor([factor, factor, 1]), width)
    if len(tags) < CROWDED:
        _place(canvas, tags[::-1], image.size, width, letters)
    return image


def _inside(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box clipped to the picture, never inverted, so that its whole outline is visible."""
    x0, x1 = sorted(min(max(value, 0.0), size[0] - 1.0) for value in (box[0], box[2]))
    y0, y1 = sorted(min(max(value, 0.0), size[1] - 1.0) for value in (box[1], box[3]))
    return x0, y0, x1, y1


def _outline(canvas: ImageDraw, box: tuple[float, float, float, float], fill: Colour, width: int, dashed: bool) -> None:
    casing = ink_on(fill)  # a thin line of the opposite brightness keeps the box visible on any background
    wide = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
    if not dashed:
        canvas.rectangle(wide, outline=casing, width=width + 2)
        canvas.rectangle(box, outline=fill, width=width)
        return
    x0, y0, x1, y1 = box
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        pieces = max(1, round(length / (6 * width)))
        for piece in range(0, pieces, 2):
            t, u = piece / pieces, min(1.0, (piece + 1) / pieces)
            line = [start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t]
            line += [start[0] + (end[0] - start[0]) * u, start[1] + (end[1] - start[1]) * u]
            canvas.line(line, fill=casing, width=width + 2)
            canvas.line(line, fill=fill, width=width)


def _ring(image: Image, box: Sequence[float]) -> None:
    """A rounded white line in a dark casing around `box`, inside the picture."""
    from PIL import ImageDraw

    width, height = image.size
    margin = max(6, max(width, height) // 50)
    x0, y0, x1, y1 = box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin
    edges = (max(2.0, x0), max(2.0, y0), max(4.0, min(width - 3.0, x1)), max(4.0, min(height - 3.0, y1)))
    for line, fill in ((5, INK), (3, PAPER)):
        ImageDraw.Draw(image).rounded_rectangle(edges, radius=margin, outline=fill, width=line)


def _points(canvas: ImageDraw, points: Tensor, width: int) -> None:
    radius = width * 1.6
    for index, (x, y, visible) in enumerate(cast("list[list[float]]", points.tolist())):
        if visible > 0:
            canvas.ellipse(
                (x - radius, y - radius, x + radius, y + radius), fill=colour(index), outline=PAPER, width=max(1, width // 2)
            )


def _place(canvas: ImageDraw, tags: Sequence[_Tag], size: tuple[int, int], width: int, kind: _Type) -> None:
    """Write the tags, best first, each where it covers the least of those already written, preferably above its box."""
    height = max(10.0, min(26.0, min(size) / 26)) * kind.scale * (0.75 if len(tags) > 40 else 1.0)
    letters = font(round(max(height, 9)), kind.file)
    taken: list[tuple[float, float, float, float]] = []
    placed: list[tuple[_Tag, tuple[float, float, float, float]]] = []
    for tag in tags:
        wide, high = _extent(letters, tag.text)
        spots = _candidates(tag.box, wide, high, size, width)
        covered, best = min(((sum(_shared(spot, one) for one in taken), spot) for spot in spots), key=lambda pair: round(pair[0]))
        if covered <= HIDDEN * wide * high:
            taken.append(best)
            placed.append((tag, best))
    for tag, spot in placed[::-1]:
        canvas.rectangle(spot, fill=tag.fill)
        canvas.text(((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2), tag.text, ink_on(tag.fill), letters, anchor="mm")


def _extent(letters: FreeTypeFont, text: str) -> tuple[float, float]:
    ascent, descent = letters.getmetrics()
    return letters.getlength(text) + 0.6 * letters.size, float(ascent + descent)


def _candidates(
    box: tuple[float, float, float, float], wide: float, high: float, size: tuple[int, int], width: int
) -> list[tuple[float, float, float, float]]:
    """Places for a tag in order of preference: above, below, inside the top, inside the bottom; left and right aligned."""
    x0, y0, x1, y1 = box
    spots: list[tuple[float, float, float, float]] = []
    for top in (y0 - high, y1 + 1, y0 + width, y1 - high - width):
        for left in (x0 - 1, x1 - wide + 1):
            fitted = max(0.0, min(left, size[0] - wide))
            if 0 <= top <= size[1] - high:
                spots.append((fitted, top, fitted + wide, top + high))
    fallback = max(0.0, min(y0, size[1] - high))
    return spots or [(max(0.0, min(x0, size[0] - wide)), fallback, max(0.0, min(x0, size[0] - wide)) + wide, fallback + high)]


def _shared(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _planes(coded: Tensor | RLE) -> npt.NDArray[np.bool_]:
    """Masks (N, H, W) bool."""
    return (masks.decode(coded) if isinstance(coded, RLE) else coded).cpu().numpy() > 0


def _with_masks(image: Image, planes: npt.NDArray[np.bool_], fills: Sequence[Colour], factor: int) -> Image:
    """Each mask as a tint with a solid rim, the best instance on top."""
    from PIL import Image as image_module

    pixels = np.asarray(image).astype(np.float32)
    for plane, fill in list(zip(planes, fills, strict=True))[::-1]:
        large = plane.repeat(factor, 0).repeat(factor, 1)[: pixels.shape[0], : pixels.shape[1]]
        _tint(pixels, large, fill, 0.45)
        _tint(pixels, large & ~_shrunk(large, max(1, factor // 2)), fill, 0.9)
    return image_module.fromarray(pixels.round().astype(np.uint8))


def _tint(pixels: npt.NDArray[np.float32], where: npt.NDArray[np.bool_], fill: Colour, strength: float) -> None:
    pixels[where] = pixels[where] * (1 - strength) + np.array(fill, np.float32) * strength


def _shrunk(plane: npt.NDArray[np.bool_], pixels: int) -> npt.NDArray[np.bool_]:
    for _ in range(pixels):
        padded = np.pad(plane, 1)
        plane = plane & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return plane


def _label_map(image: Image, labels: npt.NDArray[Any], ignore: int, names: Sequence[str], font_file: str | None) -> Image:
    from PIL import Image as image_module

    factor = max(1, image.size[1] // max(1, labels.shape[0]))
    pixels = np.asarray(image).astype(np.float32)
    large = labels.repeat(factor, 0).repeat(factor, 1)[: pixels.shape[0], : pixels.shape[1]]
    present = [int(value) for value in np.unique(labels) if value != ignore]
    for value in present:
        _tint(pixels, large == value, colour(value), 0.55)
    tinted = image_module.fromarray(pixels.round().astype(np.uint8))
    return _beside(tinted, [(label_of(value, names), None, colour(value)) for value in present], font_file)


def _panoptic(image: Image, result: Panoptic, names: Sequence[str], font_file: str | None) -> Image:
    segments = result.segments.cpu().numpy()
    classes = dict(zip(cast("list[int]", result.ids.tolist()), cast("list[int]", result.labels.tolist()), strict=True))
    labels = np.full(segments.shape, -1, np.int64)
    for segment, label in classes.items():
        labels[segments == segment] = label
    factor = max(1, image.size[1] // max(1, segments.shape[0]))
    planes = np.stack([segments == segment for segment in classes]) if classes else np.zeros((0, *segments.shape), bool)
    rims = _with_masks(image, planes, [colour(label) for label in classes.values()], factor)
    present = sorted(set(classes.values()))
    return _beside(rims, [(label_of(value, names), None, colour(value)) for value in present], font_file)


def _classes(image: Image, result: Classes, names: Sequence[str], font_file: str | None, top: int = 5) -> Image:
    labels = cast("list[int]", result.labels[:top].tolist())
    scores: list[float | None] = [None] * len(labels) if result.scores is None else list(result.scores[:top].tolist())
    rows = [(label_of(label, names), score, colour(label)) for label, score in zip(labels, scores, strict=True)]
    return _beside(image, rows, font_file)


def _beside(image: Image, rows: Sequence[tuple[str, float | None, Colour]], font_file: str | None) -> Image:
    """The picture with a panel to its right: one row per class, with a bar where there is a probability."""
    from PIL import Image as image_module
    from PIL import ImageDraw

    if not rows:
        return image
    size = max(11, min(22, round(image.size[1] / max(14, 1.9 * len(rows)))))
    letters = font(size, font_file)
    pad, line = round(size * 0.8), round(size * 2.3) if rows[0][1] is not None else round(size * 1.6)
    panel = round(max(size * 11, *(letters.getlength(name) + 4.2 * size for name, _, _ in rows))) + 2 * pad
    sheet = image_module.new("RGB", (image.size[0] + panel, max(image.size[1], line * len(rows) + 2 * pad)), PAPER)
    sheet.paste(image, (0, 0))
    canvas = ImageDraw.Draw(sheet)
    left, right = image.size[0] + pad, image.size[0] + panel - pad
    for index, (name, score, fill) in enumerate(rows):
        top = pad + index * line
        if score is None:
            canvas.rectangle((left, top + 2, left + size, top + size + 2), fill=fill)
            canvas.text((left + 1.5 * size, top), name, INK, letters)
            continue
        canvas.text((left, top), name, INK, letters)
        canvas.text((right, top), f"{100 * score:.1f} %", INK, letters, anchor="ra")
        bar = (left, top + size * 1.35, right, top + size * 1.75)
        canvas.rectangle(bar, fill=(232, 232, 236))
        canvas.rectangle((bar[0], bar[1], bar[0] + max(1.0, (right - left) * min(max(score, 0.0), 1.0)), bar[3]), fill=fill)
    return sheet


def _caption(image: Image, text: str, font_file: str | None) -> Image:
    from PIL import Image as image_module
    from PIL import ImageDraw

    letters = font(max(14, round(image.size[0] / 28)), font_file)
    room = image.size[0] - letters.size
    lines: list[str] = []
    for word in text.split():
        if lines and letters.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    step = round(letters.size * 1.35)
    sheet = image_module.new("RGB", (image.size[0], image.size[1] + step * len(lines) + round(letters.size)), PAPER)
    sheet.paste(image, (0, 0))
    canvas = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        canvas.text((letters.size / 2, image.size[1] + letters.size / 2 + index * step), line, INK, letters)
    return sheet
