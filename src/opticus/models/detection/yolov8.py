"""YOLOv8: an anchor-free YOLO with task-aligned assignment and distributions over box sides.

Jocher, Chaurasia and Qiu, Ultralytics, 2023: published as code, without a paper. The layout is that of the public diagram by RangeKing
(github.com/ultralytics/ultralytics/issues/189); head and losses are those of Feng et al., TOOD, ICCV 2021, arXiv 2108.07755, of Li et
al., Generalized Focal Loss, NeurIPS 2020, arXiv 2006.04388, and of Zheng et al., Complete IoU, arXiv 2005.03572.
Reference: a transcription of that layout (tools/references/yolov8.py). Key names and constants as wang-xinyu/tensorrtx (MIT) reads
them from published files; weights of the box and class losses, widths of the head and preparation as in keras-cv (Apache-2.0) and
tinygrad (MIT). The original code (AGPL-3.0) was not consulted.

*Differs*: an object whose predictions are all poor keeps its best places (published code drops alignments below 1e-9); every class starts
at probability 0.01 everywhere and every box at two strides to each side; any backbone with maps at three strides can carry the neck
("backbone, neck, head", YOLOv4, 2004.10934, section 2); "tiny" is a small configuration for the demo data.
*Map*: diagram "Conv", "C2f", "SPPF" -> `Conv`, `C2f`, `SPPF`; "Backbone" -> `CSPNet`; "Neck" -> `PAN`; "Head" -> `Decoupled`;
GFL eq. 3-5 (general distribution) -> `expected`, eq. 6 (distribution focal loss) -> `distribution_focal`; TOOD section 3.3 ->
`matching.aligned`; eq. 6 and 7 of TOOD, as public descriptions of YOLOv8 weigh them -> `criterion`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.supervised import Supervised, widened
from opticus.matching.aligned import task_aligned
from opticus.matching.crowds import points_crowded
from opticus.matching.detections import best_of, in_original, pyramid_maps, suppressed, windows
from opticus.matching.objects import truth_of
from opticus.ops.iou import paired_ciou
from opticus.structures import Backbone, Batch, CapabilityError, DataError, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="letterbox", size=(640, 640), antialias=False, mean=(0, 0, 0), std=(1, 1, 1), fill=114, stride=32)
BINS = 16  # distances 0, 1, ..., 15 strides
PRIOR = 0.01  # what every place says of every class at the start
SCORE, CANDIDATES, OVERLAP = 0.001, 3000, 0.7  # of an answer, of a picture, of two results of one class
EPS = 1e-3  # of every batch norm


@dataclass(frozen=True)
class Config:
    """Maps are 64, 128, 256, 512 and 512 `ratio` times `width` wide, stages 3, 6, 6 and 3 times `depth` blocks deep, at least one.

    With a `backbone` its maps at strides `finest`, 2 `finest` and 4 `finest` enter the neck instead of the own network's, which
    start at 8. `side` is that of the square frame of inputs in pixels; `momentum` is how fast batch norms forget.
    """

    classes: int = 80
    width: float = 0.25
    depth: float = 0.33
    ratio: float = 2.0
    backbone: Part | None = None
    finest: int = 8
    side: int = 640
    momentum: float = 0.03
    detections: int = 300


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One answer per place, levels fine to coarse, then rows, then columns.

    `logits` (B,N,K); `sides` (B,N,4,16) logits of the distance to the left, top, right and bottom side, in strides.
    """

    logits: Tensor
    sides: Tensor


class Places(NamedTuple):
    """Where answers stand: `points` (N,2), x and y of the middles of cells in pixels, and `strides` (N,)."""

    points: Tensor
    strides: Tensor


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, width_in: int, width: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)), inplace=True)


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, around an identity in the backbone."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(width, width, 3)
        self.cv2 = Conv(width, width, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Half of the channels pass a chain of bottlenecks; both halves and every bottleneck's output are mixed."""

    def __init__(self, width_in: int, width: int, depth: int, shortcut: bool = False) -> None:
        super().__init__()
        half = width // 2
        self.cv1 = Conv(width_in, 2 * half)
        self.cv2 = Conv((2 + depth) * half, width)
        self.m = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


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
    """The own backbone: a stem at stride 2 and four stages that halve the map, the last one with pooled context."""

    def __init__(self, widths: tuple[int, ...], depth: float) -> None:
        super().__init__()
        self.strides, self.widths = (8, 16, 32), widths[2:]
        self.stem = Conv(3, widths[0], 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(Conv(before, after, 3, 2), C2f(after, after, _blocks(blocks, depth), shortcut=True))
            for before, after, blocks in zip(widths, widths[1:], (3, 6, 6, 3), strict=False)
        )
        self.pool = SPPF(widths[-1])

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x, found = self.stem(pixels), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [*found[1:-1], self.pool(x)]


class PAN(nn.Module):
    """Path aggregation (Liu et al. 2018, 1803.01534): coarse maps are concatenated to fine ones, and the results back to coarse ones."""

    def __init__(self, inputs: tuple[int, ...], widths: tuple[int, ...], depth: int) -> None:
        super().__init__()
        (p3, p4, p5), (fine, middle, coarse) = inputs, widths
        self.up4 = C2f(p5 + p4, middle, depth)
        self.up3 = C2f(middle + p3, fine, depth)
        self.to4 = Conv(fine, fine, 3, 2)
        self.down4 = C2f(fine + middle, middle, depth)
        self.to5 = Conv(middle, middle, 3, 2)
        self.down5 = C2f(middle + p5, coarse, depth)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> list[Tensor]:
        four = self.up4(torch.cat([_as_large(p5, p4), p4], 1))
        fine = self.up3(torch.cat([_as_large(four, p3), p3], 1))
        middle = self.down4(torch.cat([self.to4(fine), four], 1))
        return [fine, middle, self.down5(torch.cat([self.to5(middle), p5], 1))]


class Decoupled(nn.Module):
    """Per level, two towers of 3x3 convolutions: one for the four distributions, one for the classes."""

    def __init__(self, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        box, label = max(16, widths[0] // 4, 4 * BINS), max(widths[0], min(classes, 100))
        self.box = nn.ModuleList(_tower(width, box, 4 * BINS) for width in widths)
        self.label = nn.ModuleList(_tower(width, label, classes) for width in widths)
        for box_tower, label_tower in zip(self.box, self.label, strict=True):
            nn.init.constant_(label_tower.get_parameter("2.bias"), -math.log((1 - PRIOR) / PRIOR))
            with torch.no_grad():  # a geometric distribution whose mean is 2
                box_tower.get_parameter("2.bias").copy_(-torch.arange(BINS).repeat(4) * math.log(1.5))

    def forward(self, levels: list[Tensor]) -> Answers:
        logits = [_flat(tower(x)) for tower, x in zip(self.label, levels, strict=True)]
        sides = [_flat(tower(x)) for tower, x in zip(self.box, levels, strict=True)]
        return Answers(torch.cat(logits, 1), torch.cat(sides, 1).unflatten(2, (4, BINS)))


def _tower(width_in: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Conv(width_in, width, 3), Conv(width, width, 3), nn.Conv2d(width, outputs, 1))


def _blocks(count: int, depth: float) -> int:
    return max(round(count * depth), 1)


def _as_large(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def _flat(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N C"]:
    return x.flatten(2).transpose(1, 2)


class YOLOv8(nn.Module):
    """Backbone, neck and head."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        super().__init__()
        widths = tuple(int(channels * config.width) for channels in (64, 128, 256, 512, 512 * config.ratio))
        if min(widths) < 2 or config.depth <= 0 or config.side % 32:
            found = f"width={config.width}, depth={config.depth}, side={config.side}"
            raise UsageError(
                f"yolov8: expected maps of two channels or more, a depth > 0 and a side that 32 divides, found {found}"
            )
        self.config = config
        self.prepare = _prepare(config.side)
        self.backbone = CSPNet(widths, config.depth) if backbone is None else backbone
        self.maps = pyramid_maps(self.backbone, config.finest, "yolov8")[:3]
        self.strides = tuple(self.backbone.strides[i] for i in self.maps)
        if self.strides != (config.finest, 2 * config.finest, 4 * config.finest):
            wanted = f"maps of strides {config.finest}, {2 * config.finest} and {4 * config.finest}"
            raise CapabilityError(f"yolov8: expected a backbone with {wanted}, found {self.backbone.strides}")
        self.neck = PAN(tuple(self.backbone.widths[i] for i in self.maps), widths[2:], _blocks(3, config.depth))
        self.head = Decoupled(widths[2:], config.classes)
        for norm in (module.bn for module in self.modules() if isinstance(module, Conv)):
            norm.momentum = config.momentum

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Answers:
        # channels-last maps: the answers of a place lie side by side already, and convolutions are faster on CPU
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        return self.head(self.neck(*(every[i] for i in self.maps)))

    def places(self, size: tuple[int, int], like: Tensor) -> Places:
        """Every place for inputs of `size` (H, W), in the order of answers and in `like`'s type."""
        points: list[Tensor] = []
        for stride in self.strides:
            y, x = ((torch.arange(-(-length // stride), device=like.device) + 0.5) * stride for length in size)
            points.append(torch.stack(torch.broadcast_tensors(x, y[:, None]), -1).reshape(-1, 2).to(like))
        strides = [like.new_full((len(level),), stride) for level, stride in zip(points, self.strides, strict=True)]
        return Places(torch.cat(points), torch.cat(strides))

    def results(self, out: Answers, images: Images) -> list[Result]:
        """The 3,000 best answers of a picture that reach 0.001, suppressed per class at IoU 0.7, best first."""
        logits, sides = (part.detach() for part in widened(out))
        height, width = images.pixels.shape[-2:]
        places = self.places((height, width), logits)
        found: list[Result] = []
        for i, window in enumerate(windows(images, logits)):
            best = best_of(logits[i].sigmoid(), SCORE, CANDIDATES)
            boxes = boxes_of(sides[i, best.places], Places(*(part[best.places] for part in places)))
            kept = suppressed(boxes, best.labels, best.scores, window, overlap=OVERLAP, count=self.config.detections)
            found.append(in_original(*kept, images, i))
        return found


def _prepare(side: int) -> Prepare:
    return Prepare(resize="letterbox", size=(side, side), antialias=side <= 128, mean=(0, 0, 0), std=(1, 1, 1), fill=114, stride=32)


NETWORK = YOLOv8
OVERFIT = {"samples": 2, "lr": 5e-3}
UNTRAINED = (r"head\.box\.2\..*",)  # of the coarsest level: boxes are learned where they fit best, and small objects fit finer ones


# --- encoding ----------------------------------------------------------------------------------------------------------


def expected(sides: Float[Tensor, "*n 16"]) -> Float[Tensor, "..."]:
    """GFL eq. 5: the mean of the distribution that the logits describe, in strides."""
    return sides.softmax(-1) @ torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)


def boxes_of(sides: Float[Tensor, "*n 4 16"], places: Places) -> Float[Tensor, "*n 4"]:
    """The boxes, xyxy pixels, whose sides are at their expected distances from their places."""
    pixels = expected(sides) * places.strides[:, None]
    return torch.cat([places.points - pixels[..., :2], places.points + pixels[..., 2:]], -1)


def distances_of(boxes: Float[Tensor, "N 4"], places: Places) -> Float[Tensor, "N 4"]:
    """Strides from each place to the left, top, right and bottom side of its box, negative outside."""
    return torch.cat([places.points - boxes[:, :2], boxes[:, 2:] - places.points], 1) / places.strides[:, None]


def distribution_focal(sides: Float[Tensor, "N 4 16"], distances: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    """GFL eq. 6: the entropy of the two bins around each distance, weighted by nearness to it; mean of the four sides.

    Distances are cut to what the bins can say, just below the last one.
    """
    wanted = distances.clamp(0, sides.shape[-1] - 1 - 0.01)
    low = wanted.floor()
    share = wanted - low
    index = low.long()[..., None]
    log = sides.log_softmax(-1)
    below, above = log.gather(-1, index)[..., 0], log.gather(-1, index + 1)[..., 0]
    return -((1 - share) * below + share * above).mean(1)


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: YOLOv8,
    *,
    box_weight: float = 7.5,
    class_weight: float = 0.5,
    side_weight: float = 1.5,
    count: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Entropy of all classes against the soft targets; CIoU and distribution focal loss weighted by them; all per sum of targets.

    `count`, `alpha` and `beta` are those of `task_aligned`, whose overlap is CIoU, at least 0. Places inside a crowd are no background.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("YOLOv8 is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        places = network.places((height, width), out.logits)
        weights = out.logits.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.logits)
        boxes = boxes_of(out.sides, places)
        scores = out.logits.detach().sigmoid()
        rows: list[Tensor] = []
        total = out.logits.new_zeros(())
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, boxes)):
            wanted = truth.boxes
            inside = inside_of(wanted, places)
            with torch.no_grad():
                overlaps = paired_ciou(boxes[i], wanted[:, None]).clamp(min=0)
            found = task_aligned(scores[i].T[truth.labels], overlaps, inside, count=count, alpha=alpha, beta=beta)
            index = (found.matches >= 0).nonzero()[:, 0]
            objects, quality = found.matches[index], found.quality[index].to(boxes)
            classes = torch.zeros_like(out.logits[i])
            classes[index, truth.labels[objects]] = quality
            counted = (found.matches >= 0) | ~points_crowded(places.points, truth.ignored)
            entropy = F.binary_cross_entropy_with_logits(out.logits[i], classes, reduction="none") * counted[:, None]
            near = Places(places.points[index], places.strides[index])
            regression = (quality * (1 - paired_ciou(boxes[i, index], wanted[objects]))).sum()
            distances = distances_of(wanted[objects], near)
            focal = (quality * distribution_focal(out.sides[i, index], distances)).sum()
            rows.append(torch.stack([class_weight * entropy.sum(), box_weight * regression, side_weight * focal]))
            total = total + quality.sum()
        sums = (torch.stack(rows) * weights[:, None]).sum(0) / object_count(total, out.logits)
        return dict(zip(("class", "box", "side"), sums.unbind(0), strict=True))

    return terms


def inside_of(boxes: Float[Tensor, "M 4"], places: Places) -> Tensor:
    """(M, N) True where the place lies inside the box."""
    low, high = places.points - boxes[:, None, :2], boxes[:, None, 2:] - places.points
    return torch.minimum(low, high).amin(-1) > 0


def objective(network: YOLOv8, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: box_weight, class_weight, side_weight, count, alpha, beta."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(classes=10, width=0.25, depth=0.33, ratio=0.5, side=128, momentum=0.1),
    "n": Config(),
    "s": Config(width=0.5),
    "m": Config(width=0.75, depth=0.67, ratio=1.5),
    "l": Config(width=1.0, depth=1.0, ratio=1.0),
    "x": Config(width=1.25, depth=1.0, ratio=1.0),
}
_NECK = {"12": "up4", "15": "up3", "16": "to4", "18": "down4", "19": "to5", "21": "down5"}


def _of_stage(found: re.Match[str]) -> str:
    """Layers 1 to 8 of a file: a convolution of stride 2 and a C2f for each of four stages."""
    layer = int(found[1]) - 1
    return f"backbone.stages.{layer // 2}.{layer % 2}.{found[2]}"


HEAD = r"head\.label\.\d\.2\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_MODEL = r"(?:model\.)?model\."
FORMATS: dict[str, Names] = {
    "ultralytics": Names(
        rename(_MODEL + r"0\.(.*)", r"backbone.stem.\1"),
        rename(_MODEL + r"([1-8])\.(.*)", _of_stage),
        rename(_MODEL + r"9\.(.*)", r"backbone.pool.\1"),
        rename(_MODEL + r"(12|15|16|18|19|21)\.(.*)", lambda found: f"neck.{_NECK[found[1]]}.{found[2]}"),
        rename(_MODEL + r"22\.cv2\.(.*)", r"head.box.\1"),
        rename(_MODEL + r"22\.cv3\.(.*)", r"head.label.\1"),
        drop(_MODEL + r"22\.dfl\.conv\.weight"),  # the numbers 0 to 15
    )
}
WEIGHTS: dict[str, Weights] = {}  # the published files are pickled objects: a state dict of theirs is loaded from a local file
PARAMETERS: dict[str, int] = {
    "l": 43_691_504,
    "m": 25_902_624,
    "n": 3_157_184,
    "s": 11_166_544,
    "x": 68_229_632,
}  # counted in the layout
