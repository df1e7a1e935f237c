"""Position-sensitive pooling of regions: bin (i, j) of a region looks only at the maps that were made for (i, j).

PS-RoIPool is R-FCN's (Dai et al. 2016, arXiv 1605.06409, eq. 1) with the rules of the authors' Caffe layer (daijifeng001/caffe-rfcn, MIT),
PS-RoIAlign its bilinear form (torchvision's operator). Regions, `pictures` and `scale` as in `ops.roi`; channels C * h * w go class by
class, and within a class bin by bin, row by row. Gradients flow to the features, not to the regions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from opticus.ops.roi import neighbours
from opticus.structures import UsageError


def psroi_pool(
    features: Float[Tensor, "B D H W"],
    boxes: Float[Tensor, "K 4"],
    pictures: Int[Tensor, "K"],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "K C h w"]:
    """The mean of every bin's own map over the bin, D = C * h * w -> C; a bin wholly outside the map is 0.

    Corners are rounded to whole picture pixels (the last one is inside), a region is at least 0.1 feature pixels wide, and a bin reaches
    from the feature pixel that holds its start to the one that holds its end. UsageError if D is no multiple of h * w.
    """
    height, width = features.shape[2:]
    rows = _tables(_by_bin(features, size).double())  # differences of large sums: float64
    corners = boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32))
    corners = corners.sign() * (corners.abs() + 0.5).floor()
    start, end = corners[:, :2] * scale, (corners[:, 2:] + 1) * scale
    sides = (end - start).clamp(min=0.1)
    x_low, x_high = _edges(start[:, 0], sides[:, 0], size[1], width)
    y_low, y_high = _edges(start[:, 1], sides[:, 1], size[0], height)
    # a sum over a rectangle is four entries of the table of sums over everything above and to the left
    y = torch.stack([y_high, y_high, y_low, y_low], -1)[:, :, None]
    x = torch.stack([x_high, x_low, x_high, x_low], -1)[:, None]
    table = pictures[:, None, None, None] * (size[0] * size[1]) + _numbers(size, boxes)[None, :, :, None]
    index = (table * (height + 1) + y) * (width + 1) + x
    counts = (y_high - y_low)[:, :, None] * (x_high - x_low)[:, None]
    signs = rows.new_tensor([1.0, -1.0, -1.0, 1.0]) / counts.clamp(min=1)[..., None]
    weights = signs * (counts > 0)[..., None]
    pooled = F.embedding_bag(index.reshape(-1, 4), rows, mode="sum", per_sample_weights=weights.reshape(-1, 4))
    return pooled.to(features.dtype).reshape(boxes.shape[0], *size, rows.shape[1]).permute(0, 3, 1, 2)


def psroi_align(
    features: Float[Tensor, "B D H W"],
    boxes: Float[Tensor, "K 4"],
    pictures: Int[Tensor, "K"],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
    samples: int = 2,
) -> Float[Tensor, "K C h w"]:
    """The mean of samples x samples bilinear samples of every bin's own map, D = C * h * w -> C; borders as in aligned `roi_align`.

    UsageError if D is no multiple of h * w.
    """
    height, width = features.shape[2:]
    maps = _by_bin(features, size)
    rows = maps.permute(0, 1, 3, 4, 2).reshape(-1, maps.shape[2])
    corners = boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32)) * scale - 0.5
    start, bins = corners[:, :2], (corners[:, 2:] - corners[:, :2]) / corners.new_tensor([size[1], size[0]])
    steps = (torch.arange(samples, device=boxes.device) + 0.5).to(corners.dtype)
    found: list[Tensor] = []
    for axis, count, length in ((1, size[0], height), (0, size[1], width)):
        bin, number = bins[:, axis, None, None], torch.arange(count, device=boxes.device, dtype=corners.dtype)[:, None]
        found += neighbours(start[:, axis, None, None] + number * bin + steps * bin / samples, length)
    y, y_share, x, x_share = (v.flatten(2) for v in found)
    table = pictures[:, None, None] * (size[0] * size[1]) + _numbers(size, boxes)
    index = (table[..., None, None] * height + y[:, :, None, :, None]) * width + x[:, None, :, None]
    weight = y_share[:, :, None, :, None] * x_share[:, None, :, None] / samples**2
    entries = 4 * samples**2
    weights = weight.reshape(-1, entries).to(rows.dtype)
    pooled = F.embedding_bag(index.reshape(-1, entries), rows, mode="sum", per_sample_weights=weights)
    return pooled.reshape(boxes.shape[0], *size, maps.shape[2]).permute(0, 3, 1, 2)


def _by_bin(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C * bins, H, W) -> (B, bins, C, H, W)."""
    bins = size[0] * size[1]
    if features.shape[1] % bins:
        raise UsageError(
            f"position-sensitive pooling: expected a multiple of {bins} maps for {size} bins, found {features.shape[1]}"
        )
    return features.unflatten(1, (-1, bins)).transpose(1, 2)


def _tables(maps: Tensor) -> Tensor:
    """(B, bins, C, H, W) -> (B * bins * (H + 1) * (W + 1), C): sums over everything above and to the left of a corner."""
    sums = F.pad(maps, (1, 0, 1, 0)).cumsum(-1).cumsum(-2)
    return sums.permute(0, 1, 3, 4, 2).reshape(-1, maps.shape[2])


def _numbers(size: tuple[int, int], like: Tensor) -> Tensor:
    return torch.arange(size[0] * size[1], device=like.device).reshape(size)


def _edges(start: Tensor, side: Tensor, bins: int, length: int) -> tuple[Tensor, Tensor]:
    """First pixel and the one after the last (K, bins) of each bin, inside [0, length]."""
    number = torch.arange(bins, device=start.device, dtype=start.dtype)
    bin = (side / bins)[:, None]
    first = (number * bin + start[:, None]).floor().clamp(0, length)
    last = ((number + 1) * bin + start[:, None]).ceil().clamp(0, length)
    return first.to(torch.int64), last.maximum(first).to(torch.int64)
