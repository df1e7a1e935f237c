"""YOLOv5: a scaled CSP network whose anchors are taught by side ratios and neighbouring cells.

Jocher and contributors, Ultralytics, 2020 (layout of release 6, 2021): published as code, without a paper. It is described in prose at
docs.ultralytics.com/yolov5/tutorials/architecture_description; parts come from Wang et al., CSPNet, CVPRW 2020, arXiv 1911.11929, Liu
et al., PANet, CVPR 2018, 1803.01534, Redmon and Farhadi, YOLOv3, 2018, 1804.02767, and Zheng et al., Complete IoU, 2005.03572.
Reference: a transcription of that layout (tools/references/yolov5.py). Key names, eps and decoding as wang-xinyu/tensorrtx (MIT) reads
them from published files. The original code (AGPL-3.0) was not consulted.

*Differs*: where several objects teach one anchor of one cell, its objectness is the largest overlap, not the last one written;
objectness starts at 0.01 and all classes at 1 / K everywhere; the losses are not multiplied by the batch size; "tiny" is a small
configuration with anchors of the demo data (`opticus anchors scenes`).
*Map*: "Model Structure": `Conv`, `C3`, `SPPF` -> the classes of these names, backbone -> `CSPNet`, neck -> `PAN`, YOLOv3 head -> `Head`;
"Eliminate Grid Sensitivity" (bx = 2 sigmoid(tx) - 0.5 + cx, bw = pw (2 sigmoid(tw))^2) -> `decoded`; "Build Targets" -> `matched`;
"Compute Losses" and "Balance Losses" (4.0, 1.0, 0.4) -> `criterion`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.supervised import Supervised, widened
from opticus.matching.crowds import boxes_crowded
from opticus.matching.detections import best_of, in_original, suppressed, windows
from opticus.matching.objects import Truth, truth_of
from opticus.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from opticus.ops.iou import paired_ciou
from opticus.structures import Batch, DataError, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="letterbox", size=(640, 640), antialias=False, mean=(0, 0, 0), std=(1, 1, 1), fill=114, stride=32)
STRIDES = (8, 16, 32)
PRIOR = 0.01  # objectness of every anchor at the start
SCORE, CANDIDATES, OVERLAP = 0.001, 3000, 0.6  # of an answer, of a picture, of two results of one class
EPS = 1e-3  # of every batch norm
_COCO = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),  # as in YOLOv3, section 2.3
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)


@dataclass(frozen=True)
class Config:
    """Maps are 64, 128, 256, 512 and 1,024 times `width` wide, stages 3, 6, 9 and 3 times `depth` blocks deep, at least one.

    `anchors` are width and height in pixels for each of the levels at strides 8, 16 and 32. `side` is that of the square frame of
    inputs in pixels; `momentum` is how fast batch norms forget.
    """

    classes: int = 80
    width: float = 0.5
    depth: float = 0.33
    anchors: tuple[tuple[tuple[float, float], ...], ...] = _COCO
    side: int = 640
    momentum: float = 0.03
    detections: int = 300


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One answer per anchor, levels fine to coarse, then rows, then columns, then the cell's anchors.

    `boxes` (B,N,4) raw tx, ty, tw, th; `objectness` (B,N,1) logits; `logits` (B,N,K) of the classes of an object.
    """

    boxes: Tensor
    objectness: Tensor
    logits: Tensor


class Anchors(NamedTuple):
    """Where answers stand, all in pixels: `corners` (N,2) x and y of their cells, `sides` (N,2) width and height, `strides` (N,)."""

    corners: Tensor
    sides: Tensor
    strides: Tensor


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, width_in: int, width: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, (kernel - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)), inplace=True)


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution, around an identity in the backbone."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(width, width)
        self.cv2 = Conv(width, width, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """CSP with three convolutions: a chain of bottlenecks at half the width beside a shortcut, then both mixed."""

    def __init__(self, width_in: int, width: int, depth: int, shortcut: bool = False) -> None:
        super().__init__()
        self.cv1 = Conv(width_in, width // 2)
        self.cv2 = Conv(width_in, width // 2)
        self.cv3 = Conv(width // 2 * 2, width)
        self.m = nn.Sequential(*(Bottleneck(width // 2, shortcut) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: three 5x5 maxima in a row see what windows of 5, 9 and 13 see."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1 = Conv(width, width // 2)
        self.cv2 = Conv(width // 2 * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.cv2(torch.cat(parts, 1))


class CSPNet(nn.Module):
    """A 6x6 stem at stride 2 and four stages that halve the map; `features` are the maps at strides 8, 16 and 32."""

    def __init__(self, widths: tuple[int, ...], depth: float) -> None:
        super().__init__()
        self.strides, self.widths = STRIDES, widths[2:]
        self.stem = Conv(3, widths[0], 6, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(Conv(before, after, 3, 2), C3(after, after, _blocks(blocks, depth), shortcut=True))
            for before, after, blocks in zip(widths, widths[1:], (3, 6, 9, 3), strict=False)
        )
        self.pool = SPPF(widths[-1])

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x, found = self.stem(pixels), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [*found[1:-1], self.pool(x)]


class PAN(nn.Module):
    """Coarse maps, narrowed, are concatenated to fine ones, and the results back to the narrowed ones."""

    def __init__(self, widths: tuple[int, ...], depth: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.from5 = Conv(coarse, middle)
        self.up4 = C3(2 * middle, middle, depth)
        self.from4 = Conv(middle, fine)
        self.up3 = C3(2 * fine, fine, depth)
        self.to4 = Conv(fine, fine, 3, 2)
        self.down4 = C3(2 * fine, middle, depth)
        self.to5 = Conv(middle, middle, 3, 2)
        self.down5 = C3(2 * middle, coarse, depth)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> list[Tensor]:
        five = self.from5(p5)
        four = self.from4(self.up4(torch.cat([_as_large(five, p4), p4], 1)))
        fine = self.up3(torch.cat([_as_large(four, p3), p3], 1))
        middle = self.down4(torch.cat([self.to4(fine), four], 1))
        return [fine, middle, self.down5(torch.cat([self.to5(middle), five], 1))]


class Head(nn.Module):
    """YOLOv3's: a 1x1 convolution per level gives every anchor of a cell a box, an objectness and its classes.

    `anchors` (3,A,2) are in strides, and travel with a file: published networks may have anchors of their own.
    """

    anchors: Tensor

    def __init__(self, widths: tuple[int, ...], config: Config) -> None:
        super().__init__()
        sides, strides = torch.tensor(config.anchors), torch.tensor(STRIDES)
        self.register_buffer("anchors", sides / strides[:, None, None])
        self.m = nn.ModuleList(nn.Conv2d(width, sides.shape[1] * (5 + config.classes), 1) for width in widths)
        for conv in self.m:
            with torch.no_grad():
                bias = conv.get_parameter("bias").view(sides.shape[1], -1)
                bias[:, 4] = -math.log((1 - PRIOR) / PRIOR)
                bias[:, 5:] = -math.log(max(config.classes - 1, 1))

    def forward(self, levels: list[Tensor]) -> Answers:
        count = self.anchors.shape[1]
        found = [conv(x).permute(0, 2, 3, 1).flatten(1, 2) for conv, x in zip(self.m, levels, strict=True)]
        joined = torch.cat(found, 1)
        return Answers(*joined.unflatten(2, (count, -1)).flatten(1, 2).split([4, 1, joined.shape[-1] // count - 5], -1))


def _blocks(count: int, depth: float) -> int:
    return max(round(count * depth), 1)


def _as_large(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


class YOLOv5(nn.Module):
    """Backbone, neck and head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = tuple(int(channels * config.width) for channels in (64, 128, 256, 512, 1024))
        if widths[0] < 2 or config.depth <= 0 or config.side % 32:
            found = f"width={config.width}, depth={config.depth}, side={config.side}"
            raise UsageError(
                f"yolov5: expected maps of two channels or more, a depth > 0 and a side that 32 divides, found {found}"
            )
        counts = [len(level) for level in config.anchors]
        if len(counts) != 3 or len(set(counts)) != 1 or min(side for level in config.anchors for a in level for side in a) <= 0:
            raise UsageError(f"yolov5: expected as many anchors of positive sides on each of three levels, found {config.anchors}")
        self.config = config
        self.prepare = _prepare(config.side)
        self.backbone = CSPNet(widths, config.depth)
        self.neck = PAN(widths[2:], _blocks(3, config.depth))
        self.head = Head(widths[2:], config)
        for norm in (module.bn for module in self.modules() if isinstance(module, Conv)):
            norm.momentum = config.momentum

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Answers:
        # channels-last maps: the answers of a place lie side by side already, and convolutions are faster on CPU
        return self.head(self.neck(*self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))))

    def anchors(self, size: tuple[int, int], like: Tensor) -> list[Anchors]:
        """Every level's anchors for inputs of `size` (H, W), in the order of answers and in `like`'s type."""
        found: list[Anchors] = []
        for stride, (h, w), sides in zip(STRIDES, map_sizes(size), self.head.anchors.to(like), strict=True):
            y, x = (torch.arange(length, device=like.device) * stride for length in (h, w))
            corners = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1).reshape(-1, 1, 2).to(like)
            corners = corners.expand(-1, len(sides), 2).reshape(-1, 2)
            sides = (sides * stride).repeat(len(corners) // len(sides), 1)
            found.append(Anchors(corners, sides, like.new_full((len(corners),), stride)))
        return found

    def results(self, out: Answers, images: Images) -> list[Result]:
        """The 3,000 best products of objectness and class that reach 0.001, suppressed per class at IoU 0.6, best first."""
        raw, objectness, logits = (part.detach() for part in widened(out))
        height, width = images.pixels.shape[-2:]
        anchors = Anchors(*(torch.cat(parts) for parts in zip(*self.anchors((height, width), raw), strict=True)))
        scores = objectness.sigmoid() * logits.sigmoid()
        found: list[Result] = []
        for i, window in enumerate(windows(images, raw)):
            best = best_of(scores[i], SCORE, CANDIDATES)
            boxes = decoded(raw[i, best.places], Anchors(*(part[best.places] for part in anchors)))
            kept = suppressed(boxes, best.labels, best.scores, window, overlap=OVERLAP, count=self.config.detections)
            found.append(in_original(*kept, images, i))
        return found


def map_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(h, w) of the three levels for an input of `size`: the stem drops an odd last line, the stages keep it."""
    return [(-(-(size[0] // 2) // (stride // 2)), -(-(size[1] // 2) // (stride // 2))) for stride in STRIDES]


def _prepare(side: int) -> Prepare:
    return Prepare(resize="letterbox", size=(side, side), antialias=side <= 128, mean=(0, 0, 0), std=(1, 1, 1), fill=114, stride=32)


NETWORK = YOLOv5
OVERFIT = {"samples": 2, "lr": 5e-3}


# --- encoding ----------------------------------------------------------------------------------------------------------


def decoded(raw: Float[Tensor, "N 4"], anchors: Anchors) -> Float[Tensor, "N 4"]:
    """The boxes, xyxy pixels, of raw answers: centres reach half a cell beyond their cell, sides up to four anchors."""
    twice = 2 * raw.sigmoid()
    centres = anchors.corners + (twice[:, :2] - 0.5) * anchors.strides[:, None]
    return cxcywh_to_xyxy(torch.cat([centres, twice[:, 2:].square() * anchors.sides], 1))


class Matched(NamedTuple):
    """P pairs of an object and an anchor that learns it: `objects` (P,) and `places` (P,), numbers of both."""

    objects: Tensor
    places: Tensor


def matched(boxes: Float[Tensor, "M 4"], sides: Float[Tensor, "A 2"], size: tuple[int, int], stride: int, ratio: float) -> Matched:
    """Which anchors of one level learn which objects: those of the object's cell and of the two cells nearest to its centre.

    An anchor fits if no side of the object is `ratio` times or more as long, or as short, as its own; `size` (h, w) is the level's.
    Cells beyond the map do not learn. An anchor may learn several objects.
    """
    height, width = size
    objects = xyxy_to_cxcywh(boxes)
    scale = objects[:, None, 2:] / sides
    fits = torch.maximum(scale, 1 / scale).amax(-1) < ratio
    centre = objects[:, :2] / stride
    limit = centre.new_tensor([width, height])
    # a centre on the right or lower border belongs to the last cell
    cell = torch.minimum(centre.floor(), limit - 1)
    step = torch.where(centre - cell < 0.5, -1.0, 1.0)
    none = torch.zeros_like(step[:, 0])
    offsets = torch.stack([torch.stack([none, none], 1), torch.stack([step[:, 0], none], 1), torch.stack([none, step[:, 1]], 1)], 1)
    cells = cell[:, None] + offsets
    inside = ((cells >= 0) & (cells < limit)).all(-1)
    owner, anchor, which = (fits[:, :, None] & inside[:, None]).nonzero().unbind(1)
    x, y = cells[owner, which].long().unbind(1)
    return Matched(owner, (y * width + x) * len(sides) + anchor)


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: YOLOv5,
    *,
    box_weight: float = 0.05,
    object_weight: float = 1.0,
    class_weight: float = 0.5,
    balance: tuple[float, float, float] = (4.0, 1.0, 0.4),
    ratio: float = 4.0,
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Per level, the mean CIoU loss and class entropy of matched anchors, and the mean entropy of all anchors' objectness.

    An anchor's objectness is to equal the CIoU (at least 0) that its box has reached; levels weigh `balance` in that term.
    An unmatched anchor whose box lies in a crowd costs nothing.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("YOLOv5 is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        levels = network.anchors((height, width), out.boxes)
        weights = out.boxes.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.boxes)
        truths = truth_of(batch.targets, network.config.classes, batch.ids, out.boxes)
        picture = torch.cat([torch.full((len(t.labels),), i, device=weights.device) for i, t in enumerate(truths)])
        boxes, labels = torch.cat([t.boxes for t in truths]), torch.cat([t.labels for t in truths])
        lengths = [len(level.strides) for level in levels]
        parts = zip(*(part.split(lengths, 1) for part in out), strict=True)
        sums = out.boxes.new_zeros(3)
        sizes, scaled = map_sizes((height, width)), network.head.anchors.to(out.boxes)
        for stride, size, sides, level, share, (raw, objectness, logits) in zip(
            STRIDES, sizes, scaled, levels, balance, parts, strict=True
        ):
            found = matched(boxes, sides * stride, size, stride, ratio)
            owner, where = picture[found.objects], found.places
            near = Anchors(*(part[where] for part in level))
            overlap = paired_ciou(decoded(raw[owner, where], near), boxes[found.objects])
            wanted = torch.zeros_like(objectness[..., 0])
            reached = overlap.detach().clamp(min=0).to(wanted)
            wanted = wanted.flatten().scatter_reduce(0, owner * wanted.shape[1] + where, reached, "amax").view_as(wanted)
            classes = F.one_hot(labels[found.objects], network.config.classes).to(out.boxes)
            entropy = F.binary_cross_entropy_with_logits(logits[owner, where], classes, reduction="none").mean(1)
            ignored = _in_crowds(raw, level, truths)
            ignored[owner, where] = False
            presence = F.binary_cross_entropy_with_logits(objectness[..., 0], wanted, reduction="none")
            presence = presence.masked_fill(ignored, 0).mean(1)
            count = object_count(len(owner), out.boxes)
            box = ((1 - overlap) * weights[owner]).sum() / count
            label = (entropy * weights[owner]).sum() / count
            sums = sums + torch.stack([box, share * (presence * weights).mean(), label])
        box, presence, label = sums.unbind()
        return {"box": box_weight * box, "object": object_weight * presence, "class": class_weight * label}

    return terms


def _in_crowds(raw: Float[Tensor, "B N 4"], level: Anchors, truths: Sequence[Truth]) -> Bool[Tensor, "B N"]:
    """Which boxes of one level lie in a crowd of their picture."""
    found = torch.zeros(raw.shape[:2], dtype=torch.bool, device=raw.device)
    for i, truth in enumerate(truths):
        if len(truth.ignored):
            found[i] = boxes_crowded(decoded(raw[i].detach(), level), truth.ignored)
    return found


def objective(network: YOLOv5, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: the three weights, balance and ratio."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

_SCENES = (
    ((16.0, 23.0), (18.0, 29.0), (22.0, 34.0)),
    ((25.0, 41.0), (30.0, 45.0), (33.0, 54.0)),
    ((40.0, 60.0), (45.0, 71.0), (49.0, 86.0)),
)
VARIANTS: dict[str, Config] = {
    "tiny": Config(classes=10, width=0.1875, depth=0.33, anchors=_SCENES, side=128, momentum=0.1),
    "n": Config(width=0.25),
    "s": Config(),
    "m": Config(width=0.75, depth=0.67),
    "l": Config(width=1.0, depth=1.0),
    "x": Config(width=1.25, depth=1.33),
}
_NECK = {"10": "from5", "13": "up4", "14": "from4", "17": "up3", "18": "to4", "20": "down4", "21": "to5", "23": "down5"}


def _of_stage(found: re.Match[str]) -> str:
    """Layers 1 to 8 of a file: a convolution of stride 2 and a C3 for each of four stages."""
    layer = int(found[1]) - 1
    return f"backbone.stages.{layer // 2}.{layer % 2}.{found[2]}"


HEAD = r"head\.m\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_MODEL = r"(?:model\.)?model\."
FORMATS: dict[str, Names] = {
    "ultralytics": Names(
        rename(_MODEL + r"0\.(.*)", r"backbone.stem.\1"),
        rename(_MODEL + r"([1-8])\.(.*)", _of_stage),
        rename(_MODEL + r"9\.(.*)", r"backbone.pool.\1"),
        rename(_MODEL + r"(10|13|14|17|18|20|21|23)\.(.*)", lambda found: f"neck.{_NECK[found[1]]}.{found[2]}"),
        drop(_MODEL + r"24\.anchor_grid"),  # of releases before 6.1: the anchors again, in pixels
        rename(_MODEL + r"24\.(.*)", r"head.\1"),
    )
}
WEIGHTS: dict[str, Weights] = {}  # the published files are pickled objects: a state dict of theirs is loaded from a local file
PARAMETERS: dict[str, int] = {
    "l": 46_563_709,
    "m": 21_190_557,
    "n": 1_872_157,
    "s": 7_235_389,
    "x": 86_749_405,
}  # counted in the layout
