"""Pooling of regions of interest: RoIPool (Girshick 2015) and RoIAlign (He 2017), with the rules of torchvision's compiled operators.

Regions are xyxy in picture pixels; `pictures` (K,) says which feature map of the batch each region belongs to; `scale` is feature
pixels per picture pixel (1/16 for stride 16). Gradients flow to the features, not to the regions, as in the published systems.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

ENTRIES = 1 << 22  # samples looked up at once; bounds the memory of adaptive sampling


def roi_align(
    features: Float[Tensor, "B C H W"],
    boxes: Float[Tensor, "K 4"],
    pictures: Int[Tensor, "K"],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
    samples: int = 2,
    aligned: bool = True,
) -> Float[Tensor, "K C h w"]:
    """Each region cut into size = (h, w) bins, each bin the mean of bilinear samples on a regular grid inside it.

    `samples` per bin and axis; 0 takes ceil(region side / bins) of them. `aligned` shifts by half a pixel, so that pixel centres are at
    +0.5 as everywhere in opticus (Detectron2); False is the first version, whose regions are at least one feature pixel wide.
    A sample below -1 or beyond H (W) counts as 0, one between is moved to the nearest pixel centre. A region of no size gives 0 where
    `samples` is 0. Channels-last features save a copy.
    """
    batch, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels).contiguous()
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    corners = boxes.detach().to(dtype) * scale - (0.5 if aligned else 0.0)
    start, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    bins = sides / sides.new_tensor([size[1], size[0]])
    if samples > 0:
        pooled = _regular(rows, (height, width), start, bins, pictures, size, samples)
    else:
        pooled = _adaptive(rows, (height, width), start, bins, pictures, size)
    return pooled.reshape(boxes.shape[0], *size, channels).permute(0, 3, 1, 2)


def roi_pool(
    features: Float[Tensor, "B C H W"],
    boxes: Float[Tensor, "K 4"],
    pictures: Int[Tensor, "K"],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "K C h w"]:
    """Each region, rounded to whole feature pixels (its last row and column included), cut into (h, w) bins; the maximum of each.

    Bins overlap by up to a pixel; a bin wholly outside the map is 0.
    """
    batch, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels).contiguous()
    corners = _rounded(boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32)) * scale)
    x, x_count = _edges(corners[:, 0], corners[:, 2], size[1], width)
    y, y_count = _edges(corners[:, 1], corners[:, 3], size[0], height)
    counts = y_count[:, :, None] * x_count[:, None]
    pooled: list[Tensor] = []
    for part in _parts(counts.sum((1, 2))):
        owner, index = _members(counts[part].flatten())
        roi, row, column = _bins(owner, size)
        across = x_count[part][roi, column]
        y_at = y[part][roi, row] + torch.div(index, across, rounding_mode="floor")
        x_at = x[part][roi, column] + index % across
        place = (pictures[part][roi] * height + y_at) * width + x_at
        pooled.append(F.embedding_bag(place, rows, _offsets(counts[part].flatten()), mode="max"))
    return torch.cat([rows[:0], *pooled]).reshape(boxes.shape[0], *size, channels).permute(0, 3, 1, 2)


def _regular(
    rows: Tensor, extent: tuple[int, int], start: Tensor, bins: Tensor, pictures: Tensor, size: tuple[int, int], samples: int
) -> Tensor:
    """(K h w, C): samples x samples points in every bin."""
    steps = (torch.arange(samples, device=start.device) + 0.5).to(start.dtype)
    places: list[Tensor] = []
    weights: list[Tensor] = []
    for axis in (1, 0):
        bin = bins[:, axis, None, None]
        number = torch.arange(size[1 - axis], device=start.device, dtype=start.dtype)[:, None]
        place, weight = neighbours(start[:, axis, None, None] + number * bin + steps * bin / samples, extent[1 - axis])
        places.append(place.flatten(2))
        weights.append(weight.flatten(2))
    base = pictures[:, None] * extent[0] * extent[1]
    y = (base[:, None] + places[0] * extent[1])[:, :, None, :, None]
    index = (y + places[1][:, None, :, None]).reshape(-1)
    weight = (weights[0] / samples**2)[:, :, None, :, None] * weights[1][:, None, :, None]
    offsets = torch.arange(pictures.shape[0] * size[0] * size[1], device=start.device) * (2 * samples) ** 2
    return F.embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weight.reshape(-1).to(rows.dtype))


def _adaptive(
    rows: Tensor, extent: tuple[int, int], start: Tensor, bins: Tensor, pictures: Tensor, size: tuple[int, int]
) -> Tensor:
    """(K h w, C): ceil(bin side) points per axis in every bin, so the number of samples differs between regions."""
    grid = bins.ceil().clamp(min=0).to(torch.int64)
    counts = grid.prod(1)
    pooled: list[Tensor] = [rows[:0]]
    for part in _parts(counts * (4 * size[0] * size[1])):
        each = counts[part].repeat_interleave(size[0] * size[1])
        owner, index = _members(each)
        roi, row, column = _bins(owner, size)
        side = grid[part][roi]
        steps = torch.stack([index % side[:, 0], torch.div(index, side[:, 0], rounding_mode="floor")], 1)
        bin, number = bins[part][roi], torch.stack([column, row], 1)
        points = start[part][roi] + number * bin + (steps + 0.5) * bin / side
        (x, x_weight), (y, y_weight) = (neighbours(points[:, axis], extent[1 - axis]) for axis in (0, 1))
        place = ((pictures[part][roi] * extent[0])[:, None] + y)[:, :, None] * extent[1] + x[:, None]
        weight = (y_weight / counts[part][roi][:, None])[:, :, None] * x_weight[:, None]
        weight = weight.reshape(-1).to(rows.dtype)
        pooled.append(F.embedding_bag(place.reshape(-1), rows, _offsets(each) * 4, mode="sum", per_sample_weights=weight))
    return torch.cat(pooled)


def neighbours(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each position and their weights, in a new last axis of 2; both weights 0 outside [-1, length]."""
    inside = (position >= -1) & (position <= length)
    position = position.clamp(0, length - 1)
    low = position.floor()
    share = position - low
    low = low.to(torch.int64)
    pair = torch.stack([low, (low + 1).clamp(max=length - 1)], -1)
    return pair, torch.stack([1 - share, share], -1) * inside[..., None]


def _rounded(value: Tensor) -> Tensor:
    """To whole numbers, halves away from zero as C's round (torch.round takes halves to even)."""
    whole = value.trunc()
    return whole + value.sign() * ((value - whole).abs() >= 0.5)


def _edges(low: Tensor, high: Tensor, bins: int, length: int) -> tuple[Tensor, Tensor]:
    """First pixel (K, bins) and number of pixels of each bin inside [0, length), for rounded first and last pixels (K,)."""
    side = (high - low + 1).clamp(min=1) / bins
    number = torch.arange(bins, device=low.device, dtype=low.dtype)
    first = ((number * side[:, None]).floor() + low[:, None]).clamp(0, length)
    last = (((number + 1) * side[:, None]).ceil() + low[:, None]).clamp(0, length)
    return first.to(torch.int64), (last - first).clamp(min=0).to(torch.int64)


def _parts(entries: Tensor) -> list[slice]:
    """Stretches of regions with about ENTRIES entries together, at least one region each."""
    group = torch.div(entries.cumsum(0) - entries, ENTRIES, rounding_mode="floor")
    ends = torch.unique_consecutive(group, return_counts=True)[1].cumsum(0).tolist()
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def _members(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For groups of `counts` members: the group of every member, and its number inside the group."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) - _offsets(counts)[owner]


def _offsets(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts


def _bins(number: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Region, row and column of a bin's running number."""
    row = torch.div(number, size[1], rounding_mode="floor")
    return torch.div(row, size[0], rounding_mode="floor"), row % size[0], number % size[1]
