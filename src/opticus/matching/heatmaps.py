"""Objects as points on a heat map: Gaussian targets for training, local maxima as detections (CornerNet, CenterNet)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opticus.matching.crowds import cells_crowded
from opticus.matching.objects import ignored_of, objects_of
from opticus.ops.boxes import clip
from opticus.structures import Target


class PointTargets(NamedTuple):
    """What a point detector learns from a batch; lengths are in cells of the heat map.

    `heat` (B,K,H,W) float32, 1 at the cell of each object's centre; for each of the N objects: `image` (N,) its picture,
    `cells` (N,2) int64 the x and y of its cell, `sizes` (N,2) width and height, `offsets` (N,2) centre minus cell, in [0, 1).
    `ignored` (B,1,H,W) marks the cells of crowds, which are no background; None without crowds.
    """

    heat: Tensor
    image: Tensor
    cells: Tensor
    sizes: Tensor
    offsets: Tensor
    ignored: Tensor | None = None


class Peaks(NamedTuple):
    """The P strongest local maxima of each map, best first: `scores`, `labels`, and the cells' `x` and `y`, all (B, P)."""

    scores: Tensor
    labels: Tensor
    x: Tensor
    y: Tensor


def gaussian_radius(sizes: Float[Tensor, "N 2"], overlap: float = 0.7) -> Int[Tensor, "N"]:
    """How many cells an object's centre may be off before a box of its size falls below IoU `overlap`, rounded down.

    `sizes` are widths and heights in cells, rounded up before use. The three cases (both corners outside, both inside, one of
    each) solve quadratics; as in the published code the last two lack their leading coefficient's division, so that their
    radius is larger than the derivation's. Source: CornerNet (1808.01244) section 3.2 and the authors' repository.
    """
    width, height = sizes.ceil().double().unbind(1)
    total, area = width + height, width * height
    shifted = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inside = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).sqrt()) / 2
    linear = 2 * overlap * total
    outside = (-linear + (linear**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    return torch.stack([shifted, inside, outside]).amin(0).clamp(min=0).long()


def gaussian_planes(
    cells: Int[Tensor, "N 2"],
    radii: Int[Tensor, "N"],
    planes: Int[Tensor, "N"],
    count: int,
    size: tuple[int, int],
) -> Float[Tensor, "P H W"]:
    """`count` planes of `size` (H, W); plane p is the maximum of the Gaussians of the points whose `planes` entry is p.

    A Gaussian has sigma (2 radius + 1) / 6 cells and is cut off outside the square of +-radius around its cell (x, y).
    """
    height, width = size
    sigma = (2 * radii + 1).float() / 6

    def profile(centre: Tensor, length: int) -> Tensor:
        distance = torch.arange(length, device=cells.device) - centre[:, None]
        values = torch.exp(-(distance.float() ** 2) / (2 * sigma[:, None] ** 2))
        return values * (distance.abs() <= radii[:, None])

    points = profile(cells[:, 1], height)[:, :, None] * profile(cells[:, 0], width)[:, None, :]
    heat = points.new_zeros(count, height * width)
    index = planes[:, None].expand(-1, height * width)
    return heat.scatter_reduce_(0, index, points.flatten(1), "amax").view(count, height, width)


def point_targets(
    targets: Sequence[Target | None],
    classes: int,
    size: tuple[int, int],
    stride: int,
    ids: Sequence[str] = (),
    overlap: float = 0.7,
) -> PointTargets:
    """Heat maps and regression targets of boxes given in network-input pixels, for maps of `size` (H, W) at `stride`.

    Boxes are clipped to the map; what then has no area is left out; crowd regions are `ignored`. Errors as in `objects_of`.
    """
    boxes: list[Tensor] = []
    labels: list[Tensor] = []
    for box, label in objects_of(targets, classes, ids):
        cut = clip(box / stride, size)
        keep = (cut[:, 2:] > cut[:, :2]).all(1)
        boxes.append(cut[keep])
        labels.append(label[keep])
    image = torch.cat([torch.full_like(label, i) for i, label in enumerate(labels)])
    box, label = torch.cat(boxes), torch.cat(labels)
    sizes = box[:, 2:] - box[:, :2]
    points = (box[:, :2] + box[:, 2:]) / 2
    planes = image * classes + label
    placed = place(points, gaussian_radius(sizes, overlap), planes, len(labels) * classes, size)
    ignored = cells_crowded([regions / stride for regions in ignored_of(targets)], size)
    return PointTargets(placed.heat.view(len(labels), classes, *size), image, placed.cells, sizes, placed.offsets, ignored)


class Placed(NamedTuple):
    """Points on maps: `heat` (P,H,W) with a Gaussian around each, `cells` (N,2) int64 x and y, `offsets` (N,2) point minus cell."""

    heat: Tensor
    cells: Tensor
    offsets: Tensor


def place(
    points: Float[Tensor, "N 2"], radii: Int[Tensor, "N"], planes: Int[Tensor, "N"], count: int, size: tuple[int, int]
) -> Placed:
    """Put points (x and y in cells, not negative) onto `count` planes of `size` (H, W); those beyond the end get the last cell."""
    cells = torch.minimum(points.long(), torch.tensor([size[1] - 1, size[0] - 1], device=points.device))
    return Placed(gaussian_planes(cells, radii, planes, count, size), cells, points - cells)


def peaks(heat: Float[Tensor, "B K H W"], count: int) -> Peaks:
    """The `count` best cells that are the maximum of their 3x3 neighbourhood in their own plane (CenterNet section 4).

    A place of the answer that no peak fills has score 0. Cells of a plateau are all peaks.
    """
    height, width = heat.shape[-2:]
    best = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    scores, index = best.flatten(1).topk(min(count, heat[0].numel()), dim=1)
    cell = index % (height * width)
    return Peaks(scores, index // (height * width), cell % width, cell // width)


def values_at(maps: Float[Tensor, "B C H W"], cells: Int[Tensor, "B P"]) -> Float[Tensor, "B P C"]:
    """The vectors of maps at flat cell numbers y W + x."""
    return maps.flatten(2).gather(2, cells[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)


def cells_inside(valid: Bool[Tensor, "B H W"], size: tuple[int, int], stride: int) -> Bool[Tensor, "B 1 h w"]:
    """Which cells of maps of `size` (h, w) have a middle pixel that is picture; cells beyond the mask are padding."""
    inside = valid[:, None, stride // 2 :: stride, stride // 2 :: stride]
    return F.pad(inside, (0, size[1] - inside.shape[-1], 0, size[0] - inside.shape[-2]))
