"""Bottom-up Object Detection by Grouping Extreme and Center Points (ExtremeNet).

Zhou, Zhuo and Krähenbühl, CVPR 2019, arXiv 1901.08043.
Reference: github.com/xingyizhou/ExtremeNet (BSD-3-Clause).

*Differs*: crowd regions are not learned; targets without masks have their extreme points in the middles of the box's sides, and
points found in masks keep the box's own sides (the authors' annotations are made from COCO's polygons); pictures are padded at
the right and bottom instead of all around and not mirrored at test time; soft-NMS measures boxes without the extra pixel; ghost
boxes are found all at once, with the scores from before (the code halves them one after another); "tiny" is a small hourglass.
*Map*: section 3.1 -> the hourglass, a Part; section 4 -> `Extremes`, `criterion`; section 4.1 and algorithm 1 -> `grouped`; section
4.2 -> `without_ghosts`; section 4.3 -> `aggregated`; section 5.1 "extreme point annotations" -> `extreme_points`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.focal import penalty_reduced_focal
from opticus.losses.supervised import Supervised, widened
from opticus.matching.crowds import cells_crowded
from opticus.matching.detections import cut, in_original, windows
from opticus.matching.heatmaps import cells_inside, gaussian_radius, peaks, place, values_at
from opticus.matching.objects import ignored_of, objects_of
from opticus.ops.masks import decode
from opticus.ops.nms import nms_per_class, soft_nms
from opticus.structures import Backbone, Batch, CapabilityError, Images, Instances, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="none", order="bgr", mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278), stride=128)
SMALL = Prepare(resize="letterbox", size=(128, 128), mean=(0.470, 0.447, 0.408), std=(0.278, 0.274, 0.289))
CANDIDATES, OVERLAP = 1000, 0.5  # groups, before suppression; IoU of plain suppression
NEAR_EDGE = 0.02  # of an object's size: pixels this close to its side belong to it (3 degrees)
_HOURGLASS = Part("hourglass/104", classes=0)
SIDES = ("t", "l", "b", "r")  # top, left, bottom, right


@dataclass(frozen=True)
class Config:
    """`points` of each kind that reach `point_score` are grouped; a group needs `centre_score` at its centre.

    `edge` weighs what is gathered along edges. A map of h cells stands for 4 h - `border` pixels, as in CornerNet.
    """

    classes: int = 80
    backbone: Part = _HOURGLASS
    head: int = 256
    points: int = 40
    point_score: float = 0.1
    centre_score: float = 0.1
    edge: float = 0.1
    suppression: Literal["soft", "plain"] = "soft"
    detections: int = 100
    border: int = 1
    side: int = 0


# --- network -----------------------------------------------------------------------------------------------------------


class Extremes(NamedTuple):
    """Maps of the last stack, at the backbone's stride; training has `earlier` stacks' too.

    `top`, `left`, `bottom`, `right`, `centre` (B,K,h,w) logits; `top_offset` to `right_offset` (B,2,h,w) x and y in cells.
    """

    top: Tensor
    left: Tensor
    bottom: Tensor
    right: Tensor
    centre: Tensor
    top_offset: Tensor
    left_offset: Tensor
    bottom_offset: Tensor
    right_offset: Tensor
    earlier: tuple[Extremes, ...] | None = None


def _head(width_in: int, width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(width, channels, 1))


class ExtremeNet(nn.Module):
    """On every map of the backbone: heat-maps of four extreme points and the centre, offsets of the four (figure 3)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if len(set(backbone.strides)) != 1 or len(set(backbone.widths)) != 1:
            found = f"strides {backbone.strides} and widths {backbone.widths}"
            raise CapabilityError(
                f"extremenet: expected a backbone whose maps have one stride and width, as stacks have, found {found}"
            )
        if config.points < 1 or config.detections < 1 or config.edge < 0:
            found = f"points={config.points}, detections={config.detections}, edge={config.edge}"
            raise UsageError(f"extremenet: expected at least one point and detection and no negative edge, found {found}")
        self.config = config
        self.prepare = replace(SMALL, size=(config.side, config.side)) if config.side else PREPARE
        self.backbone = backbone
        self.stride, width = backbone.strides[0], backbone.widths[0]
        for kind in (*SIDES, "ct"):
            heads = nn.ModuleList(_head(width, config.head, config.classes) for _ in backbone.strides)
            for head in heads:
                nn.init.constant_(head.get_parameter("2.bias"), -2.19)  # every cell starts at probability 0.1
            self.add_module(f"{kind}_heats", heads)
        for kind in SIDES:
            self.add_module(f"{kind}_regrs", nn.ModuleList(_head(width, config.head, 2) for _ in backbone.strides))

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Extremes:
        maps = self.backbone.features(pixels)
        if not self.training:
            return self._extremes(len(maps) - 1, maps[-1])
        stacks = [self._extremes(i, x) for i, x in enumerate(maps)]
        return stacks[-1]._replace(earlier=tuple(stacks[:-1]))

    def _extremes(self, i: int, x: Tensor) -> Extremes:
        names = [*(f"{kind}_heats" for kind in (*SIDES, "ct")), *(f"{kind}_regrs" for kind in SIDES)]
        return Extremes(*(self.get_submodule(f"{name}.{i}")(x) for name in names))

    def cell(self, size: tuple[int, int]) -> tuple[float, float]:
        """Pixels from one cell to the next of maps of `size` (h, w), in x and y."""
        height, width = (self.stride - self.config.border / side for side in size)
        return width, height

    def results(self, out: Extremes, images: Images) -> list[Result]:
        """Boxes of grouped points, suppressed per class (softly: Gaussian, sigma 0.5) and rid of ghosts, best first."""
        out = widened(out)
        size = (out.top.shape[-2], out.top.shape[-1])
        near = None
        if images.valid is not None:  # the bottom and right points may lie a cell beyond the picture
            near = F.max_pool2d(cells_inside(images.valid, size, self.stride).to(out.top), 3, 1, 1)
        sides = self._points(out, near)
        centre = out.centre.detach().sigmoid()
        found: list[Result] = []
        for i, window in enumerate(windows(images, centre)):
            picked = [Points(*(part[i] for part in points)) for points in sides]
            boxes, labels, scores = grouped(picked, centre[i], self.config.point_score, self.config.centre_score)
            boxes = cut(boxes * boxes.new_tensor(self.cell(size) * 2), window)
            keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
            found.append(in_original(*self._suppressed(boxes[keep], labels[keep], scores[keep]), images, i))
        return found

    def _points(self, out: Extremes, near: Tensor | None) -> list[Points]:
        """The best points of each kind, strengthened along their edge: rows for top and bottom, columns for left and right."""
        found: list[Points] = []
        maps = out[:9]
        for n in range(4):
            heat = maps[n].detach().sigmoid()
            heat = heat + self.config.edge * aggregated(heat, -1 if n % 2 == 0 else -2)
            best = peaks(heat if near is None else heat * near, self.config.points)
            offsets = values_at(maps[5 + n].detach(), best.y * heat.shape[-1] + best.x)
            places = torch.stack([best.x, best.y], -1)
            found.append(Points(places, places + offsets, best.labels, best.scores.clamp(max=1)))
        return found

    def _suppressed(self, boxes: Tensor, labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.suppression == "soft":
            kept, scores = soft_nms(boxes, scores, labels, method="gaussian")
        else:
            kept = nms_per_class(boxes, scores, labels, OVERLAP)
            scores = scores[kept]
        kept, scores = kept[: self.config.detections], scores[: self.config.detections]
        scores = without_ghosts(boxes[kept], labels[kept], scores)
        scores, order = scores.sort(descending=True, stable=True)
        return boxes[kept[order]], labels[kept[order]], scores


NETWORK = ExtremeNet
OVERFIT = {"samples": 1, "lr": 4e-3}


# --- decoding ----------------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """Points of one kind: their cells `places` (...,P,2), `exact` (...,P,2) in cells, `labels` and `scores` (...,P)."""

    places: Tensor
    exact: Tensor
    labels: Tensor
    scores: Tensor


def aggregated(heat: Float[Tensor, "*S H W"], axis: int) -> Float[Tensor, "*S H W"]:
    """Section 4.3: what climbs towards each place from either side along `axis`, itself not counted.

    A place's sum goes back as far as values do not rise with distance. Values must not be negative.
    """

    def climbing(x: Tensor) -> Tensor:
        before = x.cumsum(axis) - x
        starts = torch.ones_like(x, dtype=torch.bool)
        length = x.shape[axis] - 1
        starts.narrow(axis, 1, length).copy_(x.narrow(axis, 1, length) < x.narrow(axis, 0, length))
        # sums only grow along the axis: the largest one at a start is that of the last start
        return before - torch.where(starts, before, 0.0).cummax(axis).values

    return climbing(heat) + climbing(heat.flip(axis)).flip(axis)


def grouped(
    sides: list[Points], centre: Float[Tensor, "K h w"], point_score: float, centre_score: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1: boxes (G,4) in cells, labels and scores of up to 1,000 groups of one class whose centre is seen, best first."""
    top, left, bottom, right = (Points(*(part[side.scores >= point_score] for part in side)) for side in sides)
    # a top and a bottom, a left and a right point: far fewer than all groups of four
    t, b = ((top.labels[:, None] == bottom.labels) & (top.places[:, None, 1] <= bottom.places[:, 1])).nonzero().unbind(1)
    s, r = ((left.labels[:, None] == right.labels) & (left.places[:, None, 0] <= right.places[:, 0])).nonzero().unbind(1)
    high, low = top.places[t, 1][:, None], bottom.places[b, 1][:, None]
    fits = top.labels[t][:, None] == left.labels[s]
    for points, index in ((left, s), (right, r)):
        fits &= (high <= points.places[index, 1]) & (points.places[index, 1] <= low)
    for points, index in ((top, t), (bottom, b)):
        x = points.places[index, 0][:, None]
        fits &= (left.places[s, 0] <= x) & (x <= right.places[r, 0])
    one, two = fits.nonzero().unbind(1)
    t, b, s, r = t[one], b[one], s[two], r[two]
    x, y = (left.places[s, 0] + right.places[r, 0]) // 2, (top.places[t, 1] + bottom.places[b, 1]) // 2
    middle = centre[top.labels[t], y, x]
    scores = (top.scores[t] + left.scores[s] + bottom.scores[b] + right.scores[r] + 2 * middle) / 6
    seen = (middle >= centre_score).nonzero()[:, 0]
    scores, order = scores[seen].topk(min(CANDIDATES, len(seen)))
    index = seen[order]
    corners = (left.exact[s, 0], top.exact[t, 1], right.exact[r, 0], bottom.exact[b, 1])
    return torch.stack(corners, 1)[index], top.labels[t][index], scores


def without_ghosts(boxes: Float[Tensor, "M 4"], labels: Tensor, scores: Tensor) -> Tensor:
    """Section 4.2: a box that spans several of its class has half its score: those inside it, itself included, sum to over three
    times its own, and that is above 0.2."""
    inside = (boxes[:, None, :2] <= boxes[:, :2]).all(-1) & (boxes[:, None, 2:] >= boxes[:, 2:]).all(-1)
    total = ((inside & (labels[:, None] == labels)).to(scores) * scores).sum(1)
    return torch.where((scores > 0.2) & (total > 3 * scores), scores / 2, scores)


# --- objective ---------------------------------------------------------------------------------------------------------


def extreme_points(target: Instances) -> Float[Tensor, "N 4 2"]:
    """Top, left, bottom and right point of every object: on the sides of its box, where its mask comes within 2 % of its size.

    Without masks, or where nothing of an object is visible, they are the sides' middles.
    """
    x1, y1, x2, y2 = target.boxes.unbind(1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    if target.masks is not None and len(target):
        masks = (target.masks if isinstance(target.masks, Tensor) else decode(target.masks)).bool().to(target.boxes.device)
        seen = masks.any((1, 2))
        (top, bottom), (left, right) = (_span(masks.any(axis)) for axis in (2, 1))
        rows, columns = (torch.arange(n, device=masks.device) for n in masks.shape[1:])
        high, wide = NEAR_EDGE * (bottom - top + 1), NEAR_EDGE * (right - left + 1)

        def middle(near: Tensor, axis: int, instead: Tensor) -> Tensor:
            first, last = _span((masks & near).any(axis))
            return torch.where(seen, ((first + last) // 2 + 0.5).to(instead), instead)

        top_x = middle((rows <= (top + high)[:, None])[:, :, None], 1, x)
        bottom_x = middle((rows >= (bottom - high)[:, None])[:, :, None], 1, x)
        left_y = middle((columns <= (left + wide)[:, None])[:, None], 2, y)
        right_y = middle((columns >= (right - wide)[:, None])[:, None], 2, y)
        top_x, bottom_x = (v.maximum(x1).minimum(x2) for v in (top_x, bottom_x))
        left_y, right_y = (v.maximum(y1).minimum(y2) for v in (left_y, right_y))
    else:
        top_x = bottom_x = x
        left_y = right_y = y
    points = (top_x, y1, x1, left_y, bottom_x, y2, x2, right_y)
    return torch.stack(points, 1).view(-1, 4, 2)


def _span(lines: Tensor) -> tuple[Tensor, Tensor]:
    """First and last True of every row (N, L)."""
    lines = lines.to(torch.uint8)
    return lines.argmax(1), lines.shape[1] - 1 - lines.flip(1).argmax(1)


def criterion(network: ExtremeNet, *, offset_weight: float = 1.0) -> Callable[[Extremes, Batch], dict[str, Tensor]]:
    """Focal loss of the five heat-maps per point of the batch, smooth L1 of the four offsets per object; the mean over stacks.

    Cells inside crowds are no background.
    """

    def terms(out: Extremes, batch: Batch) -> dict[str, Tensor]:
        size, like, classes = (out.top.shape[-2], out.top.shape[-1]), out.top_offset, network.config.classes
        weights = like.new_ones(len(batch)) if batch.weights is None else batch.weights.to(like)
        points, sizes, labels, image = _objects(batch, classes, like.new_tensor(network.cell(size)))
        radii, planes = gaussian_radius(sizes), image * classes + labels
        truths = [place(points[:, n], radii, planes, len(batch) * classes, size) for n in range(5)]
        cell = like.new_tensor(network.cell(size) * 2)
        ignored = cells_crowded([regions.to(cell) / cell for regions in ignored_of(batch.targets)], size)
        objects = object_count(len(image), like)
        rows: list[Tensor] = []
        for stack in (*(widened(stack)[:9] for stack in out.earlier or ()), out[:9]):
            heat, offset = like.new_zeros(()), like.new_zeros(())
            for n, truth in enumerate(truths):
                wanted, (x, y) = truth.heat.to(stack[n]).view_as(stack[n]), truth.cells.unbind(1)
                focal = (penalty_reduced_focal(stack[n], wanted, ignored=ignored) * weights).sum()
                heat = heat + focal / object_count((wanted == 1).sum(), like)
                if n < 4:
                    found, right = stack[5 + n][image, :, y, x], truth.offsets.to(like)
                    misses = F.smooth_l1_loss(found, right, reduction="none").sum(1)
                    offset = offset + (misses * weights[image]).sum() / objects
            rows.append(torch.stack([heat, offset_weight * offset]))
        return dict(zip(("heat", "offset"), torch.stack(rows).mean(0).unbind(0), strict=True))

    return terms


def _objects(batch: Batch, classes: int, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points (N,5,2), the centre last, and sizes (N,2) in cells, labels (N,) and pictures (N,) of all objects of a batch."""
    parts: list[tuple[Tensor, ...]] = []
    for i, (target, objects) in enumerate(zip(batch.targets, objects_of(batch.targets, classes, batch.ids))):
        assert isinstance(target, Instances)  # objects_of has looked
        usable = (target.boxes[:, 2:] > target.boxes[:, :2]).all(1)
        if target.crowd is not None:
            usable &= ~target.crowd.bool()
        boxes, points = objects.boxes, extreme_points(target[usable])
        points = torch.cat([points, ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]], 1)
        parts.append((points, boxes[:, 2:] - boxes[:, :2], objects.labels, torch.full_like(objects.labels, i)))
    points, sizes, labels, image = (torch.cat(part) for part in zip(*parts))
    return (points / cell).clamp(min=0), sizes / cell, labels, image


def objective(network: ExtremeNet, **options: Any) -> Supervised:
    """Targets are boxes, with or without masks, in network-input pixels; option of `criterion`: offset_weight."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(classes=10, backbone=Part("hourglass/tiny", classes=0, stacks=1, width=48, side=0), head=24, border=0, side=128),
    "hourglass104": Config(),
}
HEAD = r"(?:t|l|b|r|ct)_heats\.\d+\.2\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_ANY = r"(?:module\.)?"
FORMATS: dict[str, Names] = {
    "xingyizhou": Names(
        rename(_ANY + r"((?:pre|kps|cnvs|inters|inters_|cnvs_)\..*)", r"backbone.\1"),
        rename(_ANY + r"((?:t|l|b|r|ct)_(?:heats|regrs)\.\d+)\.0\.conv\.(\w+)", r"\1.0.\2"),
        rename(_ANY + r"((?:t|l|b|r|ct)_(?:heats|regrs)\.\d+)\.1\.(\w+)", r"\1.2.\2"),
    )
}
WEIGHTS: dict[str, Weights] = {}  # published on Google Drive only, which hands none out by address
PARAMETERS: dict[str, int] = {"hourglass104": 198_531_504}  # counted in the reference
