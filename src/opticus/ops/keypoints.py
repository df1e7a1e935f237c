"""Heat-maps of points (rendering, radii, peaks) and the object keypoint similarity of COCO."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def radius(sizes: Float[Tensor, "N 2"], overlap: float = 0.7) -> Float[Tensor, "N"]:
    """The Gaussian radius of boxes with `sizes` (height, width), by the formula of the CornerNet and CenterNet code.

    The paper wants the largest shift of both corners that keeps an IoU of `overlap`; the published code takes (b + root) / 2 in all three
    cases without dividing by the leading coefficient, and all published weights were trained so. See `radius_exact`.
    """
    _, _, _, candidates = _cases(sizes, overlap)
    return candidates.amin(0)


def radius_exact(sizes: Float[Tensor, "N 2"], overlap: float = 0.7) -> Float[Tensor, "N"]:
    """The radius that the CornerNet paper describes: corners moved by it, in any combination, leave an IoU of at least `overlap`."""
    a, b, root, _ = _cases(sizes, overlap)
    sign = sizes.new_tensor([-1.0, -1.0, 1.0])[:, None]
    return ((b + sign * root) / (2 * a)).amin(0)


def render(
    centres: Float[Tensor, "N 2"], radii: Int[Tensor, "N"], labels: Int[Tensor, "N"], shape: tuple[int, int, int]
) -> Float[Tensor, "K H W"]:
    """Heat-maps of shape (K, H, W): per object a Gaussian around its centre's pixel floor(x, y), per pixel the maximum over objects.

    CenterNet's rule: sigma = (2 radius + 1) / 6, cut to the square of half side `radius`, exactly 1 at the centre. `labels` in 0..K-1;
    objects whose window lies outside draw nothing.
    """
    classes, height, width = shape
    heat = torch.zeros(classes * height * width, dtype=centres.dtype, device=centres.device)
    if not len(centres):
        return heat.reshape(shape)
    reach = torch.arange(-int(radii.max()), int(radii.max()) + 1, device=centres.device)
    corner = centres.floor().to(torch.int64)
    x, y = corner[:, :1] + reach, corner[:, 1:] + reach
    inside = reach.abs() <= radii[:, None]
    use = (inside & (y >= 0) & (y < height))[:, :, None] & (inside & (x >= 0) & (x < width))[:, None]
    sigma = (2 * radii.to(centres.dtype) + 1) / 6
    squares = reach.square().to(centres.dtype)
    values = torch.exp(-(squares[:, None] + squares) / (2 * sigma.square())[:, None, None])
    place = (labels[:, None, None] * height + y[:, :, None]) * width + x[:, None]
    return heat.scatter_reduce(0, place[use], values[use], "amax").reshape(shape)


def peaks(
    heat: Float[Tensor, "B K H W"], count: int, window: int = 3
) -> tuple[Float[Tensor, "B n"], Int[Tensor, "B n"], Int[Tensor, "B n"], Int[Tensor, "B n"]]:
    """Scores, labels, rows and columns of the `count` highest local maxima of each picture over all classes, best first.

    A pixel is a maximum if none in its window x window neighbourhood is higher: plateaus count with all their pixels. Where there are
    fewer maxima the score is 0.
    """
    classes, height, width = heat.shape[1:]
    top = F.max_pool2d(heat, window, 1, window // 2)
    scores, index = torch.where(heat == top, heat, torch.zeros_like(heat)).flatten(1).topk(min(count, classes * height * width))
    plane = height * width
    labels = torch.div(index, plane, rounding_mode="floor")
    rows = torch.div(index % plane, width, rounding_mode="floor")
    return scores, labels, rows, index % width


def oks(
    found: Float[Tensor, "N K 3"],
    truth: Float[Tensor, "M K 3"],
    boxes: Float[Tensor, "M 4"],
    areas: Float[Tensor, "M"],
    sigmas: Float[Tensor, "K"],
) -> Float[Tensor, "N M"]:
    """Object keypoint similarity of every pair, COCO's evaluation rule: mean of exp(-d^2 / (2 area (2 sigma)^2)) over labelled points.

    Where a truth has no labelled point, d is the distance of each found point from its xyxy box grown by its own size on every side.
    """
    labelled = truth[..., 2] > 0
    apart = found[:, None, :, :2] - truth[None, ..., :2]
    grown = torch.cat([2 * boxes[:, :2] - boxes[:, 2:], 2 * boxes[:, 2:] - boxes[:, :2]], 1)[None, :, None]
    points = found[:, None, :, :2]
    outside = (grown[..., :2] - points).clamp(min=0) + (points - grown[..., 2:]).clamp(min=0)
    some = labelled.any(1)
    apart = torch.where(some[None, :, None, None], apart, outside)
    exponent = apart.square().sum(-1) / (2 * sigmas).square() / (areas[:, None] + torch.finfo(torch.float64).eps) / 2
    use = (labelled | ~some[:, None]).to(exponent.dtype)
    return (torch.exp(-exponent) * use).sum(-1) / use.sum(-1).clamp(min=1)


def _cases(sizes: Tensor, overlap: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coefficients a, b (3, N) of the three quadratics a r^2 - b r + c = 0 (one corner in, both in, both out), root, (b + root) / 2.

    For the third, b is negative: moving both corners outwards.
    """
    total, product = sizes.sum(1), sizes.prod(1)
    a = sizes.new_tensor([1.0, 4.0, 4 * overlap])[:, None].expand(-1, len(sizes))
    b = torch.stack([total, 2 * total, -2 * overlap * total])
    c = torch.stack([product * (1 - overlap) / (1 + overlap), (1 - overlap) * product, (overlap - 1) * product])
    root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
    return a, b, root, (b + root) / 2
