"""Focal Loss for Dense Object Detection.

Lin, Goyal, Girshick, He and Dollár, ICCV 2017, arXiv 1708.02002 (RetinaNet).
Reference: torchvision 0.28 (BSD-3-Clause), retinanet_resnet50_fpn and retinanet_resnet50_fpn_v2.

*Differs*: the loss is divided by the positives of all pictures, as in the paper (torchvision: picture by picture); it is L1, or
GIoU under "v2" recipes, where the paper has smooth L1; "r50" makes P6 from P5 and rounds its anchors as the published file does
(the paper and "r50-v2": from C5); boxes that lie wholly in the padding are left out; "tiny" is a small configuration for the demo data.
*Map*: eq. 5 -> `losses.focal.sigmoid_focal`; section 4 "Feature Pyramid Network Backbone" -> `layers.fpn`, "Anchors" ->
`RetinaNet.anchors`, "Classification Subnet" -> `classification`, "Box Regression Subnet" -> `regression`; section 4.1
"Inference" -> `RetinaNet.results`, "Initialization" -> `PRIOR`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.fpn import FPN, CoarserLevels
from opticus.losses.boxes import box_l1, giou_loss, object_count
from opticus.losses.focal import sigmoid_focal
from opticus.losses.supervised import Supervised, widened
from opticus.matching.anchors import IGNORED, base_anchors, grid_anchors, ignore_inside, max_iou
from opticus.matching.detections import best_of, in_original, level_sizes, pyramid_maps, suppressed, windows
from opticus.matching.objects import truth_of
from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.ops.iou import iou
from opticus.structures import Backbone, Batch, DataError, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="scaled", size=(800, 1333), antialias=False, stride=32)
PRIOR = 0.01  # what every anchor says of every class at the start
_R50 = Part("resnet/50", classes=0, norm="frozen", norm_eps=0.0)
SCORE, CANDIDATES, OVERLAP = 0.05, 1000, 0.5  # of an answer, of a level, of two results of one class


@dataclass(frozen=True)
class Config:
    """`finest` is the stride of the first level; anchors of a level are `scale` strides long, and `octave` sizes up to twice that.

    `ratios` are height / width; `coarser` says what P6 is made of; `side` is the shorter side of inputs in pixels.
    """

    classes: int = 91
    backbone: Part = _R50
    width: int = 256
    depth: int = 4
    norm: Literal["none", "group"] = "none"
    coarser: Literal["p5", "c5"] = "p5"
    finest: int = 8
    scale: float = 4.0
    octave: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 800
    detections: int = 300


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One answer per anchor, levels fine to coarse, then rows, columns, anchors of a cell: `logits` (B,N,K), `deltas` (B,N,4)."""

    logits: Tensor
    deltas: Tensor


class Subnet(nn.Module):
    """Section 4: `depth` 3x3 convolutions with ReLU, then one to `outputs` numbers per anchor; the same for every level."""

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        grouped = config.norm == "group"
        self.outputs = outputs
        self.conv = nn.ModuleList()
        for _ in range(config.depth):
            layers: list[nn.Module] = [nn.Conv2d(config.width, config.width, 3, 1, 1, bias=not grouped)]
            layers += [nn.GroupNorm(32, config.width)] if grouped else []
            self.conv.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
        self.answer = nn.Conv2d(config.width, config.octave * len(config.ratios) * outputs, 3, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N O"]:
        for conv in self.conv:
            x = conv(x)
        return self.answer(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.outputs)


class RetinaNet(nn.Module):
    """A backbone's maps, a feature pyramid of them with two more levels, and two subnets that visit every level (figure 3)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if config.norm == "group" and config.width % 32:
            raise UsageError(f"retinanet: norm='group' has 32 groups, expected a width that they divide, found {config.width}")
        self.config = config
        self.prepare = _prepare(config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "retinanet")
        widths = [backbone.widths[i] for i in self.maps]
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        self.fpn = FPN(widths, config.width)
        self.coarser = CoarserLevels(config.width if config.coarser == "p5" else widths[-1], config.width)
        self.classification = Subnet(config, config.classes)
        self.regression = Subnet(config, 4)
        nn.init.constant_(self.classification.answer.get_parameter("bias"), -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        # channels-last maps: the answers of a cell lie side by side already, and convolutions are faster on CPU
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = [every[i] for i in self.maps]
        levels = self.fpn(maps)
        levels += self.coarser(levels[-1] if self.config.coarser == "p5" else maps[-1])
        logits, deltas = ([subnet(x) for x in levels] for subnet in (self.classification, self.regression))
        return Answers(torch.cat(logits, 1), torch.cat(deltas, 1))

    def anchors(self, size: tuple[int, int], like: Tensor) -> list[Float[Tensor, "N 4"]]:
        """Every level's anchors for inputs of `size` (H, W), xyxy pixels; a cell is size / map pixels wide, rounded down."""
        config, stride = self.config, self.strides[0]
        found: list[Tensor] = []
        for i, (h, w) in enumerate(level_sizes(size, self.strides, 2)):
            stride = self.strides[i] if i < len(self.strides) else 2 * stride
            sides = [float(int(config.scale * stride * 2 ** (step / config.octave))) for step in range(config.octave)]
            base = base_anchors(sides, config.ratios).to(like)
            found.append(grid_anchors(base, (h, w), (float(size[0] // h), float(size[1] // w))))
        return found

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Section 4.1: the 1,000 best answers of each level that reach 0.05, decoded, suppressed per class at IoU 0.5, best first."""
        logits, deltas = (part.detach() for part in widened(out))
        height, width = images.pixels.shape[-2:]
        anchors = self.anchors((height, width), deltas)
        lengths = [len(level) for level in anchors]
        found: list[Result] = []
        for i, window in enumerate(windows(images, deltas)):
            boxes: list[Tensor] = []
            labels: list[Tensor] = []
            scores: list[Tensor] = []
            for level, l, d in zip(anchors, logits[i].split(lengths), deltas[i].split(lengths), strict=True):
                best = best_of(l.sigmoid(), SCORE, CANDIDATES)
                boxes.append(decode_boxes(d[best.places], level[best.places]))
                labels.append(best.labels)
                scores.append(best.scores)
            kept = suppressed(
                torch.cat(boxes), torch.cat(labels), torch.cat(scores), window, overlap=OVERLAP, count=self.config.detections
            )
            found.append(in_original(*kept, images, i))
        return found


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="scaled", size=(side, side * 1333 // 800), antialias=False, stride=32)


NETWORK = RetinaNet
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: RetinaNet,
    *,
    box: Literal["l1", "giou"] = "l1",
    box_weight: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    positive: float = 0.5,
    negative: float = 0.4,
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Focal loss of all anchors but the ignored ones, and the box loss of the positive ones, both per positive anchor.

    An anchor is positive from IoU `positive` with an object (or as its best one), ignored down to `negative` or inside a crowd, else
    background.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("RetinaNet is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        anchors = torch.cat(network.anchors((height, width), out.deltas))
        weights = out.deltas.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.deltas)
        focal: list[Tensor] = []
        boxes: list[Tensor] = []
        count = 0
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, anchors)):
            wanted = truth.boxes
            matches = ignore_inside(max_iou(iou(wanted, anchors), positive, negative), anchors, truth.ignored)
            places = (matches >= 0).nonzero()[:, 0]
            objects = matches[places]
            classes = torch.zeros_like(out.logits[i])
            classes[places, truth.labels[objects]] = 1
            each = sigmoid_focal(out.logits[i], classes, alpha=alpha, gamma=gamma)
            focal.append((each * (matches != IGNORED)[:, None]).sum())
            boxes.append(_box_loss(box, out.deltas[i, places], wanted[objects], anchors[places]))
            count += len(places)
        positives = object_count(count, out.deltas)
        return {
            "class": (torch.stack(focal) * weights).sum() / positives,
            "box": box_weight * (torch.stack(boxes) * weights).sum() / positives,
        }

    return terms


def _box_loss(kind: Literal["l1", "giou"], deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
    """Sum over the positives, of |difference| in the coder's units or of 1 - GIoU."""
    if kind == "l1":
        return box_l1(deltas, encode_boxes(boxes, anchors)).sum()
    return giou_loss(decode_boxes(deltas, anchors), boxes).sum()


def objective(network: RetinaNet, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: box, box_weight, alpha, gamma, positive, negative."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        width=64,
        depth=2,
        norm="group",
        coarser="c5",
        scale=2.0,
        ratios=(0.8, 1.25, 2.0),
        side=128,
        detections=100,
    ),
    "r50": Config(),
    "r50-v2": Config(backbone=Part("resnet/50", classes=0), norm="group", coarser="c5"),
}


def _old_conv(found: re.Match[str]) -> str:
    """Files of torchvision's first layout number the convolutions of a subnet among their ReLUs."""
    return f"{found[1]}.conv.{int(found[2]) // 2}.0.{found[3]}"


HEAD = r"classification\.answer\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_NAMES = Names(
    rename(r"backbone\.body\.(.*)", r"backbone.\1"),
    rename(r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.inner.\1.\2"),
    rename(r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.outer.\1.\2"),
    rename(r"backbone\.fpn\.extra_blocks\.(.*)", r"coarser.\1"),
    rename(r"head\.(classification|regression)_head\.(?:cls_logits|bbox_reg)\.(.*)", r"\1.answer.\2"),
    rename(r"head\.(classification|regression)_head\.(conv\.\d+\.\d+\..*)", r"\1.\2"),
    rename(r"head\.(classification|regression)_head\.conv\.(\d+)\.(weight|bias)", _old_conv),
)
FORMATS: dict[str, Names] = {"torchvision": _NAMES, "torchvision-v1": _NAMES}  # one table: its last rule is for older files


def _published(file: str, layout: str, ap: float) -> Weights:
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        format=layout,
        license="BSD-3-Clause",
        source="torchvision 0.28: models/detection/retinanet.py",
        prepare=PREPARE,
        digest=file.rsplit("-", 1)[1],
        labels="coco91",
        reports={"AP": ap},
    )


WEIGHTS: dict[str, Weights] = {
    "r50:coco": _published("retinanet_resnet50_fpn_coco-eeacb38b", "torchvision-v1", 36.4),
    "r50-v2:coco": _published("retinanet_resnet50_fpn_v2_coco-5905b1c5", "torchvision", 41.5),
}
PARAMETERS: dict[str, int] = {"r50": 34_014_999, "r50-v2": 38_198_935}  # as torchvision states them
