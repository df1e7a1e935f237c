"""CornerNet: Detecting Objects as Paired Keypoints.

Law and Deng, ECCV 2018, arXiv 1808.01244.
Reference: github.com/princeton-vl/CornerNet (BSD-3-Clause).

*Differs*: crowd regions are not learned; pull and push are means over pictures (the authors' code sums them over the pictures of
a device, about five, at 0.1: hence 0.5 here); pictures are padded at the right and bottom instead of all around, are not
mirrored and averaged at test time, and soft-NMS measures boxes without the extra pixel; pairs of corners one of which is no
peak are no candidates; "tiny" is a small hourglass for the demo data.
*Map*: eq. 1 -> `losses.focal.penalty_reduced_focal`; eq. 2-3 -> offsets in `criterion`; eq. 4-5 -> `pull_and_push`; eq. 6-7 ->
`ops.corner`; figure 7 -> `CornerPool`; section 3.5 -> the hourglass, a Part; section 4.2 "Testing Details" -> `CornerNet.results`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.focal import penalty_reduced_focal
from opticus.losses.supervised import Supervised, widened
from opticus.matching.crowds import cells_crowded
from opticus.matching.detections import cut, in_original, windows
from opticus.matching.heatmaps import cells_inside, gaussian_radius, peaks, place, values_at
from opticus.matching.objects import ignored_of, objects_of
from opticus.ops.corner import bottom_pool, left_pool, right_pool, top_pool
from opticus.ops.nms import nms_per_class, soft_nms
from opticus.structures import Backbone, Batch, CapabilityError, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="none", order="bgr", mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278), stride=128)
SMALL = Prepare(resize="letterbox", size=(128, 128), mean=(0.470, 0.447, 0.408), std=(0.278, 0.274, 0.289))
CANDIDATES, OVERLAP = 1000, 0.5  # pairs of corners, before suppression; IoU of plain suppression
RADIUS_OVERLAP = 0.3  # of the object with a box whose corners are off: the authors' configuration, where the paper has 0.7
_HOURGLASS = Part("hourglass/104", classes=0)


@dataclass(frozen=True)
class Config:
    """`pool` is the width of the pooled branches, `head` of the heads' hidden layers. `corners` are looked at, and a pair whose
    embeddings differ by at most `distance` is a box.

    A map of h cells stands for 4 h - `border` pixels: the authors' inputs have one pixel less than a multiple of 128.
    """

    classes: int = 80
    backbone: Part = _HOURGLASS
    pool: int = 128
    head: int = 256
    corners: int = 100
    distance: float = 0.5
    suppression: Literal["soft", "plain"] = "soft"
    detections: int = 100
    border: int = 1
    side: int = 0


# --- network -----------------------------------------------------------------------------------------------------------


class Corners(NamedTuple):
    """Maps of the last stack, at the backbone's stride, for top-left and bottom-right corners; training has `earlier` stacks' too.

    `tl_heat`, `br_heat` (B,K,h,w) logits; `tl_tag`, `br_tag` (B,1,h,w) embeddings; `tl_offset`, `br_offset` (B,2,h,w) x, y in cells.
    """

    tl_heat: Tensor
    br_heat: Tensor
    tl_tag: Tensor
    br_tag: Tensor
    tl_offset: Tensor
    br_offset: Tensor
    earlier: tuple[Corners, ...] | None = None


Pool = Callable[[Tensor], Tensor]


class CornerPool(nn.Module):
    """Figure 7: two pooled branches are added, brought back to the input's width, and added to a projection of the input."""

    def __init__(self, width: int, pool: int, vertical: Pool, horizontal: Pool) -> None:
        super().__init__()
        self.vertical, self.horizontal = vertical, horizontal
        self.p1_conv1 = _convolution(width, pool)
        self.p2_conv1 = _convolution(width, pool)
        self.p_conv1 = nn.Conv2d(pool, width, 3, 1, 1, bias=False)
        self.p_bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        pooled = self.vertical(self.p1_conv1(x)) + self.horizontal(self.p2_conv1(x))
        return self.conv2(F.relu(self.p_bn1(self.p_conv1(pooled)) + self.bn1(self.conv1(x))))


def _convolution(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _head(width_in: int, width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(width, channels, 1))


class CornerNet(nn.Module):
    """On every map of the backbone: corner pooling and heat-maps, embeddings and offsets of either kind of corner (figure 4)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if len(set(backbone.strides)) != 1 or len(set(backbone.widths)) != 1:
            found = f"strides {backbone.strides} and widths {backbone.widths}"
            raise CapabilityError(
                f"cornernet: expected a backbone whose maps have one stride and width, as stacks have, found {found}"
            )
        if config.corners < 1 or config.detections < 1 or config.distance < 0:
            found = f"corners={config.corners}, detections={config.detections}, distance={config.distance}"
            raise UsageError(f"cornernet: expected at least one corner and detection and no negative distance, found {found}")
        self.config = config
        self.prepare = replace(SMALL, size=(config.side, config.side)) if config.side else PREPARE
        self.backbone = backbone
        self.stride, width = backbone.strides[0], backbone.widths[0]

        def heads(channels: int) -> nn.ModuleList:
            return nn.ModuleList(_head(width, config.head, channels) for _ in backbone.strides)

        self.tl_cnvs = nn.ModuleList(CornerPool(width, config.pool, top_pool, left_pool) for _ in backbone.strides)
        self.br_cnvs = nn.ModuleList(CornerPool(width, config.pool, bottom_pool, right_pool) for _ in backbone.strides)
        self.tl_heats, self.br_heats = heads(config.classes), heads(config.classes)
        self.tl_tags, self.br_tags = heads(1), heads(1)
        self.tl_regrs, self.br_regrs = heads(2), heads(2)
        for head in (*self.tl_heats, *self.br_heats):
            nn.init.constant_(head.get_parameter("2.bias"), -2.19)  # every cell starts at probability 0.1

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Corners:
        maps = self.backbone.features(pixels)
        if not self.training:
            return self._corners(len(maps) - 1, maps[-1])
        stacks = [self._corners(i, x) for i, x in enumerate(maps)]
        return stacks[-1]._replace(earlier=tuple(stacks[:-1]))

    def _corners(self, i: int, x: Tensor) -> Corners:
        tl, br = self.tl_cnvs[i](x), self.br_cnvs[i](x)
        heats, tags = (self.tl_heats[i](tl), self.br_heats[i](br)), (self.tl_tags[i](tl), self.br_tags[i](br))
        return Corners(*heats, *tags, self.tl_regrs[i](tl), self.br_regrs[i](br))

    def cell(self, size: tuple[int, int]) -> tuple[float, float]:
        """Pixels from one cell to the next of maps of `size` (h, w), in x and y."""
        height, width = (self.stride - self.config.border / side for side in size)
        return width, height

    def results(self, out: Corners, images: Images) -> list[Result]:
        """Boxes of paired corners, suppressed per class (softly: Gaussian, sigma 0.5), the best `config.detections` first."""
        out = widened(out)
        heats = (out.tl_heat.detach().sigmoid(), out.br_heat.detach().sigmoid())
        if images.valid is not None:  # a bottom-right corner may lie a cell beyond the picture
            inside = cells_inside(images.valid, (out.tl_heat.shape[-2], out.tl_heat.shape[-1]), self.stride).to(heats[0])
            near = F.max_pool2d(inside, 3, 1, 1)
            heats = (heats[0] * near, heats[1] * near)
        boxes, labels, scores = paired(out, heats, self.config.corners, self.config.distance)
        boxes = boxes * boxes.new_tensor(self.cell((out.tl_heat.shape[-2], out.tl_heat.shape[-1])) * 2)
        found: list[Result] = []
        for i, window in enumerate(windows(images, boxes)):
            box = cut(boxes[i], window)
            keep = (scores[i] > 0) & (box[:, 2:] > box[:, :2]).all(1)
            found.append(in_original(*self._suppressed(box[keep], labels[i, keep], scores[i, keep]), images, i))
        return found

    def _suppressed(self, boxes: Tensor, labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.suppression == "soft":
            kept, scores = soft_nms(boxes, scores, labels, method="gaussian")
        else:
            kept = nms_per_class(boxes, scores, labels, OVERLAP)
            scores = scores[kept]
        count = self.config.detections
        return boxes[kept[:count]], labels[kept[:count]], scores[:count]


NETWORK = CornerNet
OVERFIT = {"samples": 1, "lr": 4e-3}


def paired(out: Corners, heats: tuple[Tensor, Tensor], count: int, distance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B,C,4) in cells, labels (B,C) and scores (B,C) of up to 1,000 pairs among the `count` best corners of either kind.

    A pair has one class, embeddings that differ by `distance` at most, and its corners in order; its score is their mean. What
    is left of the places has score 0 or less.
    """
    width = out.tl_heat.shape[-1]
    sides: list[tuple[Tensor, ...]] = []
    for heat, tag, offset in zip(heats, (out.tl_tag, out.br_tag), (out.tl_offset, out.br_offset)):
        best = peaks(heat, count)
        cells = best.y * width + best.x
        points = torch.stack([best.x, best.y], -1) + values_at(offset.detach(), cells)
        sides.append((points, best.labels, best.scores, values_at(tag.detach(), cells)[..., 0]))
    (tl, tl_label, tl_score, tl_tag), (br, br_label, br_score, br_tag) = sides
    fits = (tl_label[:, :, None] == br_label[:, None]) & ((tl_tag[:, :, None] - br_tag[:, None]).abs() <= distance)
    fits &= (tl[:, :, None] <= br[:, None]).all(-1) & (tl_score[:, :, None] > 0) & (br_score[:, None] > 0)
    scores = torch.where(fits, (tl_score[:, :, None] + br_score[:, None]) / 2, 0.0).flatten(1)
    scores, index = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    first, second = index // br.shape[1], index % br.shape[1]
    boxes = torch.cat([tl.gather(1, first[..., None].expand(-1, -1, 2)), br.gather(1, second[..., None].expand(-1, -1, 2))], -1)
    return boxes, tl_label.gather(1, first), scores


# --- objective ---------------------------------------------------------------------------------------------------------


def pull_and_push(
    tl: Float[Tensor, "N"], br: Float[Tensor, "N"], image: Int[Tensor, "N"], weights: Float[Tensor, "B"]
) -> tuple[Tensor, Tensor]:
    """Eq. 4 and 5, weighted means over the B pictures: an object's two embeddings meet, those of a picture's objects stay 1 apart."""
    share = (weights / torch.bincount(image, minlength=len(weights)).clamp(min=1).to(weights))[image] / len(weights)
    mean = (tl + br) / 2
    pull = (((tl - mean) ** 2 + (br - mean) ** 2) * share).sum()
    others = (image[:, None] == image).fill_diagonal_(False)
    gaps = F.relu(1 - (mean[:, None] - mean).abs()) * others
    push = (gaps.sum(1) / others.sum(1).clamp(min=1) * share).sum()
    return pull, push


def criterion(
    network: CornerNet, *, pull_weight: float = 0.5, push_weight: float = 0.5, offset_weight: float = 1.0
) -> Callable[[Corners, Batch], dict[str, Tensor]]:
    """Eq. 8: focal loss per corner of the batch, pull and push, smooth L1 of offsets per object; the mean over stacks.

    Cells inside crowds are no background.
    """

    def terms(out: Corners, batch: Batch) -> dict[str, Tensor]:
        size, classes = (out.tl_heat.shape[-2], out.tl_heat.shape[-1]), network.config.classes
        like = out.tl_offset
        weights = like.new_ones(len(batch)) if batch.weights is None else batch.weights.to(like)
        boxes, labels, image = _objects(batch, classes, like.new_tensor(network.cell(size) * 2), size)
        radii, planes = gaussian_radius(boxes[:, 2:] - boxes[:, :2], RADIUS_OVERLAP), image * classes + labels
        truths = [place(points, radii, planes, len(batch) * classes, size) for points in (boxes[:, :2], boxes[:, 2:])]
        ignored = _crowded(batch, like.new_tensor(network.cell(size) * 2), size)
        objects = object_count(len(image), like)
        stacks = [widened(stack) for stack in out.earlier or ()] + [out]
        rows: list[Tensor] = []
        for stack in stacks:
            heat, offset, tags = like.new_zeros(()), like.new_zeros(()), list[Tensor]()
            sides = ((stack.tl_heat, stack.tl_tag, stack.tl_offset), (stack.br_heat, stack.br_tag, stack.br_offset))
            for (heats, tag, offsets), truth in zip(sides, truths):
                wanted, (x, y) = truth.heat.to(heats).view_as(heats), truth.cells.unbind(1)
                focal = (penalty_reduced_focal(heats, wanted, ignored=ignored) * weights).sum()
                heat = heat + focal / object_count((wanted == 1).sum(), like)
                misses = F.smooth_l1_loss(offsets[image, :, y, x], truth.offsets.to(offsets), reduction="none").sum(1)
                offset = offset + (misses * weights[image]).sum() / objects
                tags.append(tag[image, 0, y, x])
            pull, push = pull_and_push(tags[0], tags[1], image, weights)
            rows.append(torch.stack([heat, pull_weight * pull, push_weight * push, offset_weight * offset]))
        return dict(zip(("heat", "pull", "push", "offset"), torch.stack(rows).mean(0).unbind(0), strict=True))

    return terms


def _objects(batch: Batch, classes: int, cell: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N,4) in cells and cut to the map, labels (N,) and pictures (N,) of all objects of a batch."""
    window = cell.new_tensor([0, 0, size[1], size[0]])
    found = [
        (cut(boxes / cell, window), labels, torch.full_like(labels, i))
        for i, (boxes, labels) in enumerate(objects_of(batch.targets, classes, batch.ids))
    ]
    boxes, labels, image = (torch.cat(parts) for parts in zip(*found))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[keep], labels[keep], image[keep]


def _crowded(batch: Batch, cell: Tensor, size: tuple[int, int]) -> Tensor | None:
    """(B,1,H,W) the cells of crowds, None without crowds."""
    return cells_crowded([regions.to(cell) / cell for regions in ignored_of(batch.targets)], size)


def objective(network: CornerNet, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: pull_weight, push_weight, offset_weight."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("hourglass/tiny", classes=0, stacks=1, width=48, side=0),
        pool=24,
        head=32,
        border=0,
        side=128,
    ),
    "hourglass104": Config(),
}
HEAD = r"(?:tl|br)_heats\.\d+\.2\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_ANY = r"(?:module\.)?"
FORMATS: dict[str, Names] = {
    "princeton-vl": Names(
        rename(_ANY + r"((?:pre|kps|cnvs|inters|inters_|cnvs_)\..*)", r"backbone.\1"),
        rename(_ANY + r"((?:tl|br)_cnvs\.\d+\.\w+)\.conv\.(\w+)", r"\1.0.\2"),
        rename(_ANY + r"((?:tl|br)_cnvs\.\d+\.\w+)\.bn\.(\w+)", r"\1.1.\2"),
        rename(_ANY + r"((?:tl|br)_cnvs\..*)", r"\1"),
        rename(_ANY + r"((?:tl|br)_\w+\.\d+)\.0\.conv\.(\w+)", r"\1.0.\2"),
        rename(_ANY + r"((?:tl|br)_\w+\.\d+)\.1\.(\w+)", r"\1.2.\2"),
    )
}
WEIGHTS: dict[str, Weights] = {}  # published as cache files on Google Drive only, which hands none out by address
PARAMETERS: dict[str, int] = {"hourglass104": 201_035_212}  # counted in the reference
