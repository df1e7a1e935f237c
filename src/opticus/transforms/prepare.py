"""From pictures to network inputs, exactly as the published weights saw them (`Prepare` is data, this is its one interpreter).

Sizes follow the published code: "shortest" is torchvision's and timm's `Resize(n)` (longer side floored) and, with a limit, DETR's
rule (shorter side rounded, longer side floored); "scaled" and "rounded" are those of torchvision's
detectors and Detectron2. Resampling works on uint8 and equals
Pillow's but for single grey levels (`opticus.transforms.pixels.resize`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opticus.structures import ImageError, Images, Picture, Prepare, UsageError
from opticus.transforms.pixels import channelled, checked, framed, resize


class Placed(NamedTuple):
    """One picture in the network's frame: `pixels` (h, w, C) uint8, `matrix` (3,3) original -> frame, `window` of real picture.

    `window` is (top, left, bottom, right) in pixels of the frame; what lies outside it is padding.
    """

    pixels: Tensor
    matrix: Tensor
    window: tuple[int, int, int, int]


def prepare(pictures: Sequence[Picture], rule: Prepare) -> Images:
    """A normalised batch from pictures of any sizes.

    Every picture is converted to `rule.channels` (grey <-> RGB only), resized, cropped, normalised, and padded with zeros at the
    right and bottom to the largest size of the batch, rounded up to `rule.stride`. `valid` exists only if there is padding of any
    kind (also letterbox bars and crops larger than the picture, both filled with the raw grey level `rule.fill`).
    `to_input` holds the true scale of each axis, new / old, after sizes were rounded to whole pixels.

    Raises:
        ImageError: no picture, an empty one, or one whose channels cannot be converted; the message names its number.
    """
    if not pictures:
        raise ImageError("prepare: expected at least one picture, found none")
    placed = [place(picture.pixels, rule, f"picture {i}") for i, picture in enumerate(pictures)]
    size = padded_size([p.pixels for p in placed], rule.stride)
    pixels = normalised([p.pixels for p in placed], rule, size)
    valid = valid_mask([p.window for p in placed], size)
    return Images(pixels, valid, torch.stack([p.matrix for p in placed]), tuple(picture.size for picture in pictures))


def place(pixels: Tensor, rule: Prepare, name: str = "picture") -> Placed:
    """Convert channels, resize and crop one picture (H, W, C) uint8 according to `rule`; nothing is normalised yet."""
    pixels = channelled(checked(pixels, name), rule.channels, name)
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    inner = resized_size((height, width), rule)
    pixels = resize(pixels, inner, rule.interpolation, rule.antialias)
    window = (0, 0, *inner)
    if rule.resize == "letterbox":
        window = _letterbox_window(inner, rule.size)
        pixels = framed(pixels, -window[0], -window[1], rule.size, rule.fill)
    shift = (window[0], window[1])
    if rule.crop is not None:
        h, w = int(pixels.shape[0]), int(pixels.shape[1])
        top, left = centred(h, rule.crop[0]), centred(w, rule.crop[1])
        pixels = framed(pixels, top, left, rule.crop, rule.fill)
        shift = (shift[0] - top, shift[1] - left)
        window = (
            max(window[0] - top, 0),
            max(window[1] - left, 0),
            min(window[2] - top, rule.crop[0]),
            min(window[3] - left, rule.crop[1]),
        )
    scale_y, scale_x = inner[0] / height, inner[1] / width
    matrix = torch.tensor([[scale_x, 0, shift[1]], [0, scale_y, shift[0]], [0, 0, 1]], dtype=torch.float64)
    return Placed(pixels, matrix, window)


def resized_size(size: tuple[int, int], rule: Prepare) -> tuple[int, int]:
    """(h, w) in whole pixels that a picture of `size` (H, W) is resampled to (before letterbox bars or a crop); at least 1 each."""
    if rule.resize == "none":
        return size
    if rule.resize == "fixed":
        return rule.size
    if rule.resize == "letterbox":
        return fitted_size(size, rule.size)
    rules = {"shortest": shortest_size, "scaled": scaled_size, "rounded": rounded_size}
    return rules[rule.resize](size, rule.size[0], rule.size[1])


def shortest_size(size: tuple[int, int], short: int, limit: int = 0) -> tuple[int, int]:
    """(h, w) whose shorter side is `short`, the longer one floored; with `limit` > 0 both shrink until the longer side obeys it.

    The limit lowers the shorter side to round(limit * shorter / longer), as in DETR's transforms (facebookresearch/detr), so the
    longer side may pass the limit by the rounding of the shorter one.
    """
    low, high = min(size), max(size)
    if limit > 0 and high / low * short > limit:
        short = max(round(limit * low / high), 1)
    long = max(int(short * high / low), 1)
    return (short, long) if size[0] <= size[1] else (long, short)


def scaled_size(size: tuple[int, int], short: int, limit: int) -> tuple[int, int]:
    """(h, w): both sides times min(short / shorter, limit / longer), floored: torchvision's GeneralizedRCNNTransform to the pixel.

    The product may fall a rounding error below `short`, so some pictures end one row or column short of it.
    """
    factor = min(short / min(size), limit / max(size) if limit else math.inf)
    return max(math.floor(size[0] * factor), 1), max(math.floor(size[1] * factor), 1)


def rounded_size(size: tuple[int, int], short: int, limit: int) -> tuple[int, int]:
    """(h, w): both sides times short / shorter, and once more times limit / longer if that is passed, rounded half up (Detectron2)."""
    factor = short / min(size)
    sides = [side * factor if side != min(size) else float(short) for side in size]
    if limit and max(sides) > limit:
        shrink = limit / max(sides)
        sides = [side * shrink for side in sides]
    return max(int(sides[0] + 0.5), 1), max(int(sides[1] + 0.5), 1)


def fitted_size(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """(h, w), rounded, of the largest picture of `size`'s shape inside `frame`."""
    ratio = min(frame[0] / size[0], frame[1] / size[1])
    return (min(max(round(size[0] * ratio), 1), frame[0]), min(max(round(size[1] * ratio), 1), frame[1]))


def centred(length: int, window: int) -> int:
    """Start of a centred window, rounded half to even as in torchvision and timm; negative if the window is longer."""
    return round((length - window) / 2) if window <= length else -((window - length) // 2)


def padded_size(pixels: Sequence[Tensor], stride: int) -> tuple[int, int]:
    """The common (H, W) of a batch of (h, w, C) pictures: the largest of each side, rounded up to `stride`."""
    height = max(int(p.shape[0]) for p in pixels)
    width = max(int(p.shape[1]) for p in pixels)
    return -(-height // stride) * stride, -(-width // stride) * stride


def valid_mask(windows: Sequence[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor | None:
    """(B, H, W) bool, True inside each (top, left, bottom, right) window; None if every window fills the frame `size`."""
    if all(window == (0, 0, *size) for window in windows):
        return None
    valid = torch.zeros(len(windows), *size, dtype=torch.bool)
    for i, (top, left, bottom, right) in enumerate(windows):
        valid[i, top:bottom, left:right] = True
    return valid


def normalised(pixels: Sequence[Tensor], rule: Prepare, size: tuple[int, int] | None = None) -> Tensor:
    """(B, C, H, W) float32 from (h, w, C) uint8 pictures: (pixel * scale - mean) / std in `rule.order`, zeros where padded.

    One multiplication and one addition per channel, in place; the zeros of the padding are zeros of the *normalised* input.
    `size` (H, W) is the common frame; None = the largest picture, rounded up to `rule.stride`.
    """
    size = size or padded_size(pixels, rule.stride)
    gain, bias = _affine(rule)
    reverse = rule.order == "bgr" and rule.channels == 3
    out = torch.empty(len(pixels), rule.channels, *size)
    for target, source in zip(out, pixels):
        h, w = int(source.shape[0]), int(source.shape[1])
        planes = source.permute(2, 0, 1)
        inner = target[:, :h, :w]
        # unpacking the bytes before widening them to floats moves a quarter of the memory
        inner.copy_(planes.flip(0) if reverse else planes.contiguous())
        inner.mul_(gain).add_(bias)
        if (h, w) != size:
            target[:, h:].zero_()
            target[:, :h, w:].zero_()
    return out


def _affine(rule: Prepare) -> tuple[Tensor, Tensor]:
    """Gain and bias (C, 1, 1) of the normalisation, computed in float64."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (rule.mean, rule.std))
    if len(mean) not in (1, rule.channels) or len(std) not in (1, rule.channels):
        raise UsageError(f"prepare: {rule.channels} channels but {len(mean)} means and {len(std)} standard deviations")
    gain, bias = (rule.scale / std).expand(rule.channels), (-mean / std).expand(rule.channels)
    return gain.float()[:, None, None], bias.float()[:, None, None]


def _letterbox_window(inner: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a picture of size `inner` lies when centred in `frame`; an odd rest puts the extra line at the bottom or right."""
    top, left = (frame[0] - inner[0]) // 2, (frame[1] - inner[1]) // 2
    return top, left, top + inner[0], left + inner[1]
