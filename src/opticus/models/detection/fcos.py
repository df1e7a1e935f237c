"""FCOS: Fully Convolutional One-Stage Object Detection.

Tian, Shen, Chen and He, ICCV 2019, arXiv 1904.01355; with the improvements of the journal version, 2006.09214.
Reference: torchvision 0.28 (BSD-3-Clause), fcos_resnet50_fpn.

*Differs*, as torchvision: a place is the corner of its cell, not its middle (eq. under 3.1); distances are in strides and pass a
ReLU instead of exp(s_i x); the box loss is GIoU, and not weighted by centre-ness; scores are geometric means (2006.09214) above
0.2. Of our own: boxes that lie wholly in the padding are left out; "tiny" is a small configuration for the demo data, whose levels
share objects of its sizes.
*Map*: eq. 1 -> `distances_of`; eq. 2 -> `criterion`; eq. 3 -> `centreness_of`; section 3.2 "limit the range" -> `FCOS.places`;
centre sampling (2006.09214) -> `assigned`; figure 2 -> `FCOS`; section 3.1 "Inference" -> `FCOS.results`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.layers.fpn import FPN, CoarserLevels
from opticus.losses.boxes import giou_loss, object_count
from opticus.losses.focal import sigmoid_focal
from opticus.losses.supervised import Supervised, widened
from opticus.matching.anchors import NEGATIVE
from opticus.matching.crowds import points_crowded
from opticus.matching.detections import best_of, in_original, level_sizes, pyramid_maps, suppressed, windows
from opticus.matching.objects import truth_of
from opticus.ops.boxes import area
from opticus.structures import Backbone, Batch, DataError, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="scaled", size=(800, 1333), antialias=False, stride=32)
PRIOR = 0.01  # what every place says of every class at the start
SCORE, CANDIDATES, OVERLAP = 0.2, 1000, 0.6  # of an answer, of a level, of two results of one class
GROUPS = 32
_R50 = Part("resnet/50", classes=0, norm="frozen")


@dataclass(frozen=True)
class Config:
    """`finest` is the stride of the first level; an object is learned on a level if the farthest of its sides is less than `reach`
    strides away (and not less than on the level below), at places up to `radius` strides from its centre.

    `coarser` says what P6 is made of; `side` is the shorter side of inputs in pixels.
    """

    classes: int = 91
    backbone: Part = _R50
    width: int = 256
    depth: int = 4
    coarser: Literal["p5", "c5"] = "p5"
    finest: int = 8
    reach: float = 8.0
    radius: float = 1.5
    side: int = 800
    detections: int = 100


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One answer per place, levels fine to coarse, then rows, then columns.

    `logits` (B,N,K); `distances` (B,N,4) >= 0 to the left, top, right and bottom side, in strides; `centreness` (B,N,1) logits.
    """

    logits: Tensor
    distances: Tensor
    centreness: Tensor


class Places(NamedTuple):
    """Where answers stand: `points` (N,2) x and y in pixels, `strides` (N,), and the range of distances `low`, `high` (N,) learned."""

    points: Tensor
    strides: Tensor
    low: Tensor
    high: Tensor


def _tower(config: Config) -> nn.Sequential:
    """Figure 2: 3x3 convolutions, each with group norm and ReLU, the same for every level."""
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers += [_conv(config.width, config.width), nn.GroupNorm(GROUPS, config.width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _conv(width_in: int, width: int) -> nn.Conv2d:
    conv = nn.Conv2d(width_in, width, 3, 1, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def _flat(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N C"]:
    return x.flatten(2).transpose(1, 2)


class FCOS(nn.Module):
    """A backbone's maps, a feature pyramid of them with two more levels, and two towers that visit every level (figure 2)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if config.width % GROUPS:
            raise UsageError(f"fcos: its norms have {GROUPS} groups, expected a width that they divide, found {config.width}")
        self.config = config
        self.prepare = _prepare(config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "fcos")
        widths = [backbone.widths[i] for i in self.maps]
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        self.fpn = FPN(widths, config.width)
        self.coarser = CoarserLevels(config.width if config.coarser == "p5" else widths[-1], config.width)
        self.class_tower = _tower(config)
        self.box_tower = _tower(config)
        self.cls_logits = _conv(config.width, config.classes)
        self.bbox_reg = _conv(config.width, 4)
        self.bbox_ctrness = _conv(config.width, 1)
        nn.init.constant_(self.cls_logits.get_parameter("bias"), -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        # channels-last maps: the answers of a place lie side by side already, and convolutions are faster on CPU
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = [every[i] for i in self.maps]
        levels = self.fpn(maps)
        levels += self.coarser(levels[-1] if self.config.coarser == "p5" else maps[-1])
        logits = [_flat(self.cls_logits(self.class_tower(x))) for x in levels]
        boxes = [self.box_tower(x) for x in levels]
        distances = [_flat(F.relu(self.bbox_reg(x))) for x in boxes]
        centreness = [_flat(self.bbox_ctrness(x)) for x in boxes]
        return Answers(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(centreness, 1))

    def places(self, size: tuple[int, int], like: Tensor) -> list[Places]:
        """Every level's places for inputs of `size` (H, W); a cell is size / map pixels wide, rounded down."""
        found: list[Places] = []
        sizes = level_sizes(size, self.strides, 2)
        stride = self.strides[0]
        for i, (h, w) in enumerate(sizes):
            stride = self.strides[i] if i < len(self.strides) else 2 * stride
            y = torch.arange(h, device=like.device) * (size[0] // h)
            x = torch.arange(w, device=like.device) * (size[1] // w)
            points = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1).reshape(-1, 2).to(like)
            high = math.inf if i == len(sizes) - 1 else self.config.reach * stride
            low = 0.0 if i == 0 else found[-1].high[0].item()
            found.append(Places(points, *(like.new_full((h * w,), value) for value in (stride, low, high))))
        return found

    def results(self, out: Answers, images: Images) -> list[Result]:
        """The 1,000 best answers of each level that reach 0.2, suppressed per class at IoU 0.6, best first."""
        logits, distances, centreness = (part.detach() for part in widened(out))
        scores = (logits.sigmoid() * centreness.sigmoid()).sqrt()
        height, width = images.pixels.shape[-2:]
        levels = self.places((height, width), scores)
        places = _joined(levels)
        found: list[Result] = []
        for i, window in enumerate(windows(images, scores)):
            parts = [best_of(level, SCORE, CANDIDATES) for level in scores[i].split([len(p.points) for p in levels])]
            starts = torch.tensor([0, *(len(p.points) for p in levels)]).cumsum(0).tolist()
            index = torch.cat([part.places + start for part, start in zip(parts, starts)])
            boxes = boxes_of(distances[i, index], places.points[index], places.strides[index])
            labels, best = torch.cat([part.labels for part in parts]), torch.cat([part.scores for part in parts])
            kept = suppressed(boxes, labels, best, window, overlap=OVERLAP, count=self.config.detections)
            found.append(in_original(*kept, images, i))
        return found


def _joined(levels: list[Places]) -> Places:
    return Places(*(torch.cat(parts) for parts in zip(*levels)))


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="scaled", size=(side, side * 1333 // 800), antialias=False, stride=32)


NETWORK = FCOS
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- encoding ----------------------------------------------------------------------------------------------------------


def distances_of(boxes: Float[Tensor, "*#n 4"], points: Float[Tensor, "*#n 2"]) -> Float[Tensor, "... 4"]:
    """Eq. 1: pixels from each point to the left, top, right and bottom side of its box, negative outside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def boxes_of(distances: Float[Tensor, "N 4"], points: Float[Tensor, "N 2"], strides: Float[Tensor, "N"]) -> Float[Tensor, "N 4"]:
    """The boxes that answers mean: distances are in strides."""
    pixels = distances * strides[:, None]
    return torch.cat([points - pixels[:, :2], points + pixels[:, 2:]], 1)


def centreness_of(distances: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    """Eq. 3: 1 at the centre of a box, towards 0 at its sides; all distances must be positive."""
    low, high = (distances[:, :2], distances[:, 2:])
    ratio = torch.minimum(low, high) / torch.maximum(low, high)
    return ratio.prod(1).sqrt()


def assigned(places: Places, boxes: Float[Tensor, "M 4"], radius: float) -> Int[Tensor, "N"]:
    """The object that each place stands for: the smallest of those it lies in, near whose centre and in whose range it is."""
    if len(boxes) == 0:
        return torch.full(places.strides.shape, NEGATIVE, dtype=torch.int64, device=boxes.device)
    distances = distances_of(boxes, places.points[:, None])
    farthest = distances.amax(-1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    fits = (places.points[:, None] - centres).abs().amax(-1) < radius * places.strides[:, None]
    fits &= (distances.amin(-1) > 0) & (farthest > places.low[:, None]) & (farthest < places.high[:, None])
    areas = torch.where(fits, area(boxes), torch.inf)
    smallest, objects = areas.min(1)
    return objects.masked_fill(smallest == torch.inf, NEGATIVE)


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: FCOS, *, box_weight: float = 1.0, centre_weight: float = 1.0, alpha: float = 0.25, gamma: float = 2.0
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Eq. 2: focal loss of all places, GIoU loss and the entropy of centre-ness of the positive ones, all per positive place.

    Places inside a crowd are no background.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("FCOS is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        places = _joined(network.places((height, width), out.distances))
        weights = out.distances.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.distances)
        rows: list[Tensor] = []
        count = 0
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, places.points)):
            wanted = truth.boxes
            matches = assigned(places, wanted, network.config.radius)
            index = (matches >= 0).nonzero()[:, 0]
            objects, points = matches[index], places.points[index]
            classes = torch.zeros_like(out.logits[i])
            classes[index, truth.labels[objects]] = 1
            counted = (matches >= 0) | ~points_crowded(places.points, truth.ignored)
            focal = (sigmoid_focal(out.logits[i], classes, alpha=alpha, gamma=gamma) * counted[:, None]).sum()
            boxes = giou_loss(boxes_of(out.distances[i, index], points, places.strides[index]), wanted[objects]).sum()
            centre = centreness_of(distances_of(wanted[objects], points))
            entropy = F.binary_cross_entropy_with_logits(out.centreness[i, index, 0], centre, reduction="sum")
            rows.append(torch.stack([focal, box_weight * boxes, centre_weight * entropy]))
            count += len(index)
        total = (torch.stack(rows) * weights[:, None]).sum(0) / object_count(count, out.distances)
        return dict(zip(("class", "box", "centre"), total.unbind(0), strict=True))

    return terms


def objective(network: FCOS, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: box_weight, centre_weight, alpha, gamma."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        width=64,
        depth=2,
        reach=3.0,
        side=128,
    ),
    "r50": Config(),
}
HEAD = r"cls_logits\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_NAMES = Names(
    rename(r"backbone\.body\.(.*)", r"backbone.\1"),
    rename(r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.inner.\1.\2"),
    rename(r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.outer.\1.\2"),
    rename(r"backbone\.fpn\.extra_blocks\.(.*)", r"coarser.\1"),
    rename(r"head\.classification_head\.conv\.(.*)", r"class_tower.\1"),
    rename(r"head\.regression_head\.conv\.(.*)", r"box_tower.\1"),
    rename(r"head\.(?:classification|regression)_head\.((?:cls_logits|bbox_reg|bbox_ctrness)\..*)", r"\1"),
)
FORMATS: dict[str, Names] = {
    "torchvision": _NAMES,
    "torchvision-v1": _NAMES,
}  # older files number the pyramid's convolutions plainly
WEIGHTS: dict[str, Weights] = {
    "r50:coco": Weights(
        url="https://download.pytorch.org/models/fcos_resnet50_fpn_coco-99b0c9b7.pth",
        format="torchvision-v1",
        license="BSD-3-Clause",
        source="torchvision 0.28: models/detection/fcos.py",
        prepare=PREPARE,
        digest="99b0c9b7",
        labels="coco91",
        reports={"AP": 39.2},
    )
}
PARAMETERS: dict[str, int] = {"r50": 32_269_600}  # as torchvision states them
