"""Class colours, contrast and type: what every picture of opticus shares."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

# Okabe & Ito's set for colour-blind readers (grey for black), widened by Tol's "vibrant" and "muted" sets where they stay apart
_NAMED = (
    "#E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7 #882255 "
    "#EE3377 #999933 #808080 #44AA99 #332288 #DDCC77 #117733 #AA4499"
)
PALETTE: tuple[Colour, ...] = tuple((int(c[1:3], 16), int(c[3:5], 16), int(c[5:7], 16)) for c in _NAMED.split())
INK: Colour = (6, 6, 8)
PAPER: Colour = (255, 255, 255)


def colour(index: int) -> Colour:
    """The colour of class `index`: the same in every picture, figure and table of a run."""
    if 0 <= index < len(PALETTE):
        return PALETTE[index]
    step = max(index - len(PALETTE), 0)
    hue = (0.08 + step * 0.61803398875) % 1.0  # the golden ratio keeps any number of hues apart
    red, green, blue = colorsys.hls_to_rgb(hue, (0.62, 0.42, 0.52)[step % 3], (0.85, 0.7)[step // 3 % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def luminance(value: Colour) -> float:
    """Relative luminance in [0, 1] (WCAG 2.2)."""
    parts = [c / 255 for c in value]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: Colour, b: Colour) -> float:
    """Contrast ratio of two colours in [1, 21] (WCAG 2.2)."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def ink_on(background: Colour) -> Colour:
    """Dark or white text, whichever is easier to read on `background`."""
    return max((INK, PAPER), key=lambda ink: contrast(ink, background))


@lru_cache(maxsize=64)
def font(size: int, path: str | None = None) -> FreeTypeFont:
    """A scalable font: the file `path`, else DejaVu Sans out of matplotlib's package data, without importing matplotlib."""
    from PIL import ImageFont

    if path is None:
        spec = find_spec("matplotlib")
        bundled = Path(spec.origin or "").parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" if spec else None
        path = str(bundled) if bundled and bundled.is_file() else "DejaVuSans.ttf"
    return ImageFont.truetype(path, size)
