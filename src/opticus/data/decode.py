"""The one place where image files become pixels: RGB, EXIF orientation applied once, a pixel budget, the file named in errors."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from opticus.structures import ImageError, Picture

PIXEL_BUDGET = 178_956_970  # pixels; above it Pillow itself refuses to open a file
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jfif"})
_ORIENTATION = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error)


class Header(NamedTuple):
    """What an image file says about itself before any pixel is decoded."""

    size: tuple[int, int]  # (H, W) after EXIF orientation
    orientation: int  # EXIF tag 0x0112, 1 when absent
    format: str  # Pillow's name of the format, "JPEG", "PNG", ...
    mode: str


def decode(source: Path | str | bytes | IO[bytes], name: str = "", *, budget: int = PIXEL_BUDGET) -> Picture:
    """Decode one image to (H, W, 3) uint8 RGB, or (H, W, 1) never: gray, palette, CMYK and 16-bit files become 8-bit RGB.

    EXIF orientation is applied exactly once and alpha is dropped. 16-bit gray is scaled by 1/257. Raises ImageError naming the
    file when it is missing, empty, not an image, truncated, of float pixels, or larger than `budget` pixels.
    """
    label = name or (str(source) if isinstance(source, (str, Path)) else "the picture")
    with _opened(source, label, budget) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
            rgb = _to_rgb(upright, label)
            array = np.array(rgb)
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(f"{label}: {error}") from error
        except _BROKEN as error:
            raise ImageError(f"{label}: the picture is corrupt or truncated ({error})") from error
    return Picture(torch.from_numpy(array))


def decode_indices(source: Path | str, *, budget: int = PIXEL_BUDGET) -> torch.Tensor:
    """The indices (H, W) uint8 of a palette picture, or the values of an 8-bit grey one: what annotations are written as.

    Raises ImageError like `decode`, and for a file in colour, whose indices are lost.
    """
    with _opened(source, str(source), budget) as image:
        if image.mode not in ("P", "L", "1"):
            raise ImageError(f"{source}: expected a palette or 8-bit grey picture of ids, found mode {image.mode}")
        try:
            return torch.from_numpy(np.array(image, np.uint8))
        except _BROKEN as error:
            raise ImageError(f"{source}: the picture is corrupt or truncated ({error})") from error


def from_pil(image: Image.Image, name: str = "the picture") -> Picture:
    """An open Pillow image by the rules of `decode`: EXIF orientation applied if it still has one, 16 bits scaled, alpha dropped."""
    try:
        upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
        return Picture(torch.from_numpy(np.array(_to_rgb(upright, name))))
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(f"{name}: the picture is corrupt or truncated ({error})") from error


def header(source: Path | str | bytes | IO[bytes], name: str = "", *, budget: int = PIXEL_BUDGET) -> Header:
    """Size, EXIF orientation, format and mode of an image without decoding its pixels; raises ImageError like `decode`."""
    label = name or (str(source) if isinstance(source, (str, Path)) else "the picture")
    with _opened(source, label, budget) as image:
        try:
            orientation = int(image.getexif().get(_ORIENTATION, 1) or 1)
        except _BROKEN as error:
            raise ImageError(f"{label}: the EXIF block is corrupt ({error})") from error
        width, height = image.size
        size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
        return Header(size, orientation, image.format or "", image.mode)


def _opened(source: Path | str | bytes | IO[bytes], label: str, budget: int) -> Image.Image:
    try:
        if isinstance(source, bytes):
            if not source:
                raise ImageError(f"{label}: the file is empty")
            image = Image.open(io.BytesIO(source))
        else:
            if isinstance(source, (str, Path)) and Path(source).stat().st_size == 0:
                raise ImageError(f"{label}: the file is empty")
            image = Image.open(source)
    except FileNotFoundError as error:
        raise ImageError(f"{label}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{label}: more pixels than the budget of {budget} allows ({error})") from error
    except _BROKEN as error:
        raise ImageError(f"{label}: the picture cannot be opened ({error})") from error
    width, height = image.size
    if width * height > budget:
        image.close()
        raise ImageError(f"{label}: {width}x{height} = {width * height} pixels, more than the budget of {budget}")
    return image


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError(f"{label}: integer pixels must lie in 0..65535, found {values.min()}..{values.max()}")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8), "L")
    elif image.mode == "F":
        raise ImageError(f"{label}: pixels are floating-point numbers without a stated range, expected 8- or 16-bit integers")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about byte transparency otherwise
    return image.convert("RGB")
