"""Masks: run-length codes (by hotcoco, the COCO library), boxes of masks, polygons, and pasting of box-sized masks into a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from opticus.ops.resample import sample
from opticus.structures import RLE, DataError


def encode(masks: Shaped[Tensor, "N H W"]) -> RLE:
    """Masks (non-zero = object) as COCO run lengths."""
    from hotcoco import mask

    size = (int(masks.shape[1]), int(masks.shape[2]))
    if masks.numel() == 0:  # no masks, or masks of no pixels, whose code is the empty string
        return RLE((b"",) * len(masks), size)
    codes: Any = mask.encode((masks != 0).cpu().numpy().transpose(1, 2, 0))
    return RLE(tuple(code["counts"] for code in codes), size)


def decode(codes: RLE) -> Bool[Tensor, "N H W"]:
    """Run lengths as masks. DataError if a code is not valid or does not fill its size."""
    height, width = codes.size
    if not len(codes) or not height * width:
        return torch.zeros(len(codes), height, width, dtype=torch.bool)
    from hotcoco import mask

    for index, counts in enumerate(codes.counts):  # hotcoco decodes malformed codes to something
        lengths = run_lengths(counts)
        if lengths.sum() != height * width or bool((lengths < 0).any()):
            raise DataError(f"run-length mask {index}: expected runs of {height * width} pixels together, found {lengths.sum()}")
    pixels = mask.decode(_records(codes))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).bool()


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """The lengths of the runs, background first, that COCO's compressed string stands for.

    Base-32 digits from character 48, low first, bit 5 = more follow, bit 4 of the last = sign; from the fourth run on the difference to
    the run two before. A string that ends inside a number gives one run of -1.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((digits & 32) == 0)
    if not len(digits) or len(last) == 0 or last[-1] != len(digits) - 1 or bool(((digits < 0) | (digits > 63)).any()):
        return np.full(min(len(digits), 1), -1, np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits & 31) << np.minimum(5 * place, 55), first)
    values -= np.where(digits[last] & 16, np.int64(1) << np.minimum(5 * (last - first + 1), 60), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def areas(codes: RLE) -> Float[Tensor, "N"]:
    """Number of object pixels of each mask, float32."""
    from hotcoco import mask

    values = mask.area(_records(codes)) if len(codes) else []
    return torch.as_tensor(np.asarray(values, np.float32))


def mask_iou(a: RLE, b: RLE, crowd: Bool[Tensor, "M"] | None = None) -> Float[Tensor, "N M"]:
    """IoU of every mask of `a` with every mask of `b` in float64; intersection over the area of `a` where `b` is a crowd.

    DataError if the two are not of one frame size.
    """
    if a.size != b.size:
        raise DataError(f"mask_iou: expected masks of one size, found {a.size} and {b.size}")
    if not len(a) or not len(b):
        return torch.zeros(len(a), len(b), dtype=torch.float64)
    from hotcoco import mask

    flags = [0] * len(b) if crowd is None else crowd.int().tolist()
    return torch.as_tensor(np.asarray(mask.iou(_records(a), _records(b), flags), np.float64))


def boxes_of_masks(masks: Shaped[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """The tight xyxy boxes (pixel corners: one pixel gives a box of side 1); zeros for empty masks."""
    on = masks != 0
    sides: list[Tensor] = []
    for along in (on.any(1), on.any(2)):
        length = along.shape[1]
        number = torch.arange(length, device=masks.device)
        low = torch.where(along, number, length).amin(1) if length else number.new_zeros(len(masks))
        high = torch.where(along, number + 1, 0).amax(1) if length else number.new_zeros(len(masks))
        sides += [torch.where(high > 0, low, 0), high]
    return torch.stack([sides[0], sides[2], sides[1], sides[3]], 1).float()


def boxes_of_codes(codes: RLE) -> Float[Tensor, "N 4"]:
    """The tight xyxy boxes of run-length masks, as `boxes_of_masks` gives them; zeros for empty masks."""
    from hotcoco import mask

    found = np.asarray(mask.toBbox(_records(codes)), np.float32).reshape(-1, 4) if len(codes) else np.zeros((0, 4), np.float32)
    boxes = torch.from_numpy(found.copy())
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def encode_polygons(polygons: Sequence[Sequence[Sequence[float | int]]], size: tuple[int, int]) -> RLE:
    """One mask per object: the union of its polygons [x1, y1, x2, y2, ...] in pixels, by COCO's rasterisation rule.

    DataError for a polygon of fewer than three points or an odd number of coordinates.
    """
    from hotcoco import mask

    counts: list[bytes] = []
    for index, parts in enumerate(polygons):
        for part in parts:
            if len(part) < 6 or len(part) % 2:
                raise DataError(f"object {index}: a polygon needs an even number of at least 6 coordinates, found {len(part)}")
        codes: list[dict[str, Any]] = [mask.frPyObjects([list(map(float, part))], *size)[0] for part in parts]
        empty = [] if codes else [{"size": list(size), "counts": encode(torch.zeros(1, *size)).counts[0]}]
        counts.append(mask.merge(codes + empty)["counts"])
    return RLE(tuple(counts), size)


def polygons_to_masks(polygons: Sequence[Sequence[Sequence[float | int]]], size: tuple[int, int]) -> Bool[Tensor, "N H W"]:
    """`encode_polygons`, decoded."""
    return decode(encode_polygons(polygons, size))


def paste(masks: Float[Tensor, "N h w"], boxes: Float[Tensor, "N 4"], size: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """Box-sized mask probabilities drawn into a frame of `size` (H, W) by bilinear sampling at pixel centres; 0 outside the boxes.

    The rule of Detectron2's Mask R-CNN: the mask's whole area (not its pixel centres) spans the box. A box without area stays empty.
    """
    height, width = size
    count, rows, columns = masks.shape
    y = torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5
    x = torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5
    sides = boxes[:, 2:] - boxes[:, :2]
    safe = torch.where(sides > 0, sides, torch.ones_like(sides))
    y = (y - boxes[:, 1:2]) / safe[:, 1:] * rows
    x = (x - boxes[:, 0:1]) / safe[:, :1] * columns
    points = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1)
    drawn = sample(masks[:, None], points.flatten(1, 2)).reshape(count, height, width)
    return drawn * (sides > 0).all(1)[:, None, None]


def _records(codes: RLE) -> list[dict[str, Any]]:
    return [{"size": list(codes.size), "counts": counts} for counts in codes.counts]
