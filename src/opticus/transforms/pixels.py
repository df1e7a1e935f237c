"""Moving and weighing pixels: resampling, cropping, padding and warping of (H, W, C) uint8 pictures and of maps of labels.

Coordinates are those of the whole library: pixel corners at integers, pixel centres at +0.5, so that a resize from (H, W) to (h, w)
is the matrix diag(w / W, h / H, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from opticus.structures import ImageError

Interpolation = Literal["nearest", "bilinear", "bicubic"]

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow and torchvision call grey


def checked(pixels: Tensor, name: str = "picture") -> Tensor:
    """`pixels` if it is a non-empty (H, W, C) uint8 picture, else ImageError naming `name`."""
    if pixels.ndim != 3 or pixels.dtype != torch.uint8:
        raise ImageError(f"{name}: expected (H, W, C) uint8 pixels, found shape {tuple(pixels.shape)} of {pixels.dtype}")
    if pixels.numel() == 0:
        raise ImageError(f"{name}: the picture is empty, its shape is {tuple(pixels.shape)}")
    return pixels


def channelled(pixels: Tensor, channels: int, name: str = "picture") -> Tensor:
    """The picture with `channels` channels: grey is repeated to RGB, RGB becomes luminance; any other change is an ImageError.

    Luminance is Pillow's "L": (19595 R + 38470 G + 7471 B + 2^15) >> 16 (BT.601 in 16-bit fixed point).
    """
    found = int(pixels.shape[2])
    if found == channels:
        return pixels
    if found == 1 and channels == 3:
        return pixels.expand(-1, -1, 3).contiguous()
    if found == 3 and channels == 1:
        # whole numbers below 2^24 are exact in float32, in whichever order they are added
        wide = pixels.to(torch.float32)
        grey = torch.add(wide[..., 0] * 19595, wide[..., 1], alpha=38470).add_(wide[..., 2], alpha=7471).add_(32768).mul_(2**-16)
        return grey.to(torch.int16).to(torch.uint8)[..., None]
    raise ImageError(f"{name}: the network takes {channels} channels and the picture has {found}; only 1 <-> 3 is converted")


def resize(pixels: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear", antialias: bool = True) -> Tensor:
    """Resample (H, W, C) uint8 pixels to `size` (h, w), contiguous.

    With `antialias` the filter widens when shrinking, as in Pillow: both weigh in fixed point, less than one value in fifty
    differs, by one grey level (bicubic enlarging: one value in 100,000 by two). Without it only the 2x2 or 4x4 nearest pixels
    count, as in OpenCV's linear and cubic resize. Nearest takes the pixel that holds the target pixel's centre, as Pillow does.
    """
    if (int(pixels.shape[0]), int(pixels.shape[1])) == size:
        return pixels
    if interpolation == "nearest":
        # in whole numbers: torch's "nearest-exact" works in float32 and errs where a centre falls on a pixel's edge
        rows, columns = ((2 * torch.arange(new) + 1) * old // (2 * new) for old, new in zip(pixels.shape[:2], size))
        return pixels[rows[:, None], columns]
    planes = pixels[None].permute(0, 3, 1, 2)  # in this order torch sees "channels last" and takes its fast path
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    if antialias and size[0] < height and size[1] > width:
        # each pass rounds and clamps: like Pillow shrink first, while torch always goes across, then down
        planes = F.interpolate(planes, size=(size[0], width), mode=interpolation, antialias=True, align_corners=False)
    out = F.interpolate(planes, size=size, mode=interpolation, antialias=antialias, align_corners=False)
    return out[0].permute(1, 2, 0).contiguous()


def interleaved(planes: Tensor) -> Tensor:
    """(H, W, C) contiguous pixels from planes (C, H, W) (stacking is four times faster than copying a transposed view)."""
    return torch.stack(planes.unbind(0), -1)


def framed(pixels: Tensor, top: int, left: int, size: tuple[int, int], fill: float | Sequence[float] = 0) -> Tensor:
    """The window of `size` (h, w) whose upper left corner is (top, left) of `pixels` (H, W, ...); what lies outside is `fill`."""
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    y0, y1, x0, x1 = max(top, 0), min(top + size[0], height), max(left, 0), min(left + size[1], width)
    if (y1 - y0, x1 - x0) == size:
        return pixels[y0:y1, x0:x1].contiguous()
    colour = torch.as_tensor(fill).round().to(pixels.dtype)
    out = colour.expand(*size, *pixels.shape[2:]).clone()
    if y1 > y0 and x1 > x0:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
    return out


def sources(matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the pixel centres of a frame `size` come from: x and y, float64, in the coordinates before `matrix` (3, 3).

    For an axis-aligned matrix x has shape (1, w) and y (h, 1); else both are (h, w).
    """
    inverse = torch.linalg.inv(matrix.to(torch.float64))
    xs = torch.arange(size[1], dtype=torch.float64)[None, :] + 0.5
    ys = torch.arange(size[0], dtype=torch.float64)[:, None] + 0.5
    (a, b, c), (d, e, f) = inverse[0].tolist(), inverse[1].tolist()
    if b == 0 and d == 0:
        return xs * a + c, ys * e + f
    return xs * a + ys * b + c, xs * d + ys * e + f


def warp_nearest(maps: Tensor, matrix: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """Maps of labels or masks (..., H, W) seen through `matrix`: every target pixel takes the source pixel under its centre.

    Pixels whose centre comes from outside are `fill`. Exact for every matrix (no filter), so labels never mix.
    """
    height, width = int(maps.shape[-2]), int(maps.shape[-1])
    x, y = sources(matrix, size)
    # a centre on an edge belongs to the pixel after it, whatever the last bit of the inverse says
    column, row = (x + 1e-9).floor().long(), (y + 1e-9).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    out = maps[..., row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return out if bool(inside.all()) else out.masked_fill(~inside, fill)


def warp(
    pixels: Tensor, matrix: Tensor, size: tuple[int, int], fill: float = 0, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Pixels (H, W, C) uint8 seen through `matrix`, bilinear (or nearest), without antialiasing; outside is `fill`.

    At the border the picture blends into `fill` over one pixel, as if it went on with that colour.
    """
    if interpolation == "nearest":
        return interleaved(warp_nearest(pixels.permute(2, 0, 1), matrix, size, fill))
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    x, y = (part.expand(size) for part in sources(matrix, size))
    grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), -1).to(torch.float32)[None]
    planes = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)[None] - fill
    mode = "bicubic" if interpolation == "bicubic" else "bilinear"
    out = F.grid_sample(planes, grid, mode=mode, padding_mode="zeros", align_corners=False)[0] + fill
    return interleaved(out.round_().clamp_(0, 255).to(torch.int32).to(torch.uint8))
