"""YOLOv4: Optimal Speed and Accuracy of Object Detection.

Bochkovskiy, Wang and Liao, 2020, arXiv 2004.10934 (YOLOv4); its "backbone, neck, head" is the pattern of the detectors since.
Reference: Tianxiaomo/pytorch-YOLOv4 (Apache-2.0), which builds the network of the authors' yolov4.cfg (AlexeyAB/darknet, YOLO licence:
public domain); losses as in the authors' src/yolo_layer.c.

*Differs*: background answers are ignored by the overlap of their boxes alone (the authors also ask for the object's class), several
objects of one answer add their losses (the authors' average), and gradients are not cut; objectness starts at 0.01 and boxes as
their anchors; suppression is by IoU (the authors' "greedynms" takes a power of the centres' distance off first); "tiny" is a small
network for the demo data.
*Map*: section 3.1 CSPDarknet53 -> `CSPDarknet`, Mish -> `Conv`; SPP -> `SPP`; PAN, whose additions are concatenations (figure 6) ->
`Up`, `Down`; YOLOv3 head -> `Head`; section 3.4 "Eliminate grid sensitivity" -> `boxes_of`, "Using multiple anchors for a single
ground truth" -> `matched`, "CIoU-loss" -> `criterion`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.layers.darknet import ConvUnit, he_normal
from opticus.losses.boxes import object_count
from opticus.losses.supervised import Supervised, widened
from opticus.matching.cells import LIMIT, Cells, Survival, cells_of, rows_of, survivors
from opticus.matching.crowds import boxes_crowded
from opticus.matching.detections import in_original, pyramid_maps, windows
from opticus.matching.objects import truth_of
from opticus.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from opticus.ops.iou import iou, paired_ciou
from opticus.structures import (
    Backbone,
    Batch,
    CapabilityError,
    DataError,
    Images,
    Part,
    Prepare,
    Result,
    Task,
    UsageError,
    Weights,
    WeightsError,
)
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="fixed", size=(608, 608), antialias=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), stride=32)
PRIOR = 0.01  # what every answer says of an object at the start
SURVIVAL = Survival(score=0.001, candidates=5000, overlap=0.6, keep=300)  # `detector valid` of the authors: 0.001 and 0.6
_ANCHORS = (12, 16, 19, 36, 40, 28, 36, 75, 76, 55, 72, 146, 142, 110, 192, 243, 459, 401)


@dataclass(frozen=True)
class Config:
    """`widths` of the first convolution and of each stage, `blocks` residual blocks a stage; the last three maps carry the neck.

    With a `backbone` its maps at strides `finest`, 2 `finest` and 4 `finest` do, each twice as wide as the one before.

    `anchors` are widths and heights in pixels, small to large, in equal parts for the three levels, fine to coarse; `scales` stretch
    the sigmoid of the centre on each level. `size` is that of the square input in pixels.
    """

    classes: int = 80
    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    blocks: tuple[int, ...] = (1, 2, 8, 8, 4)
    anchors: tuple[float, ...] = _ANCHORS
    scales: tuple[float, float, float] = (1.2, 1.1, 1.05)
    backbone: Part | None = None
    finest: int = 8
    size: int = 608


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One row an anchor of a cell, levels fine to coarse: `boxes` (B,N,4) tx ty tw th, `objects` (B,N), `logits` (B,N,K)."""

    boxes: Tensor
    objects: Tensor
    logits: Tensor


class Conv(nn.Module):
    """Convolution, batch norm, Mish (1908.08681): the unit of the backbone; the neck and head have leaky ones."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        he_normal(self.conv)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D i j"]:
        return F.mish(self.bn(self.conv(x)), inplace=True)


class Residual(nn.Module):
    """A 1x1 and a 3x3 convolution, added."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.squeeze = Conv(width, inner, 1)
        self.expand = Conv(inner, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.squeeze(x))


class Stage(nn.Module):
    """Cross-stage partial connection: half the map; residual blocks on one projection of it, the other beside them, both mixed."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, first: bool) -> None:
        super().__init__()
        part = outputs if first else outputs // 2  # the first stage splits nothing; its blocks narrow instead
        self.down = Conv(inputs, outputs, 3, 2)
        self.skip = Conv(outputs, part, 1)
        self.enter = Conv(outputs, part, 1)
        self.blocks = nn.Sequential(*(Residual(part, part // 2 if first else part) for _ in range(blocks)))
        self.leave = Conv(part, part, 1)
        self.merge = Conv(2 * part, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.merge(torch.cat([self.leave(self.blocks(self.enter(x))), self.skip(x)], 1))


class CSPDarknet(nn.Module):
    """Darknet-53 with partial stages; `features` are the maps of the last three."""

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = Conv(3, widths[0], 3)
        self.stages = nn.ModuleList(
            Stage(before, after, count, first=i == 0)
            for i, (before, after, count) in enumerate(zip(widths, widths[1:], blocks, strict=False))
        )
        self.strides, self.widths = tuple(2 ** (len(blocks) - i) for i in (2, 1, 0)), widths[-3:]

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x, maps = self.stem(pixels), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-3:]


class SPP(nn.Module):
    """Maxima over windows of 13, 9 and 5 beside the map itself, between two times three convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.before = nn.Sequential(ConvUnit(width, half, 1), ConvUnit(half, width, 3), ConvUnit(width, half, 1))
        self.after = nn.Sequential(ConvUnit(4 * half, half, 1), ConvUnit(half, width, 3), ConvUnit(width, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(torch.cat([*(F.max_pool2d(x, size, 1, size // 2) for size in (13, 9, 5)), x], 1))


class Up(nn.Module):
    """A map of the backbone beside the coarser one, both narrowed to half the backbone's width, and five convolutions."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.reduce = ConvUnit(coarse, fine // 2, 1)
        self.lateral = ConvUnit(fine, fine // 2, 1)
        self.mix = _five(fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        fine = self.lateral(fine)
        return self.mix(torch.cat([fine, F.interpolate(self.reduce(coarse), size=fine.shape[-2:], mode="nearest")], 1))


class Down(nn.Module):
    """A finer map, halved, beside the coarser one, and five convolutions."""

    def __init__(self, fine: int) -> None:
        super().__init__()
        self.down = ConvUnit(fine, 2 * fine, 3, 2)
        self.mix = _five(4 * fine)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return self.mix(torch.cat([self.down(fine), coarse], 1))


class Head(nn.Module):
    """A 3x3 convolution, and a 1x1 one that gives every anchor of a cell its answer."""

    def __init__(self, width: int, per: int, classes: int) -> None:
        super().__init__()
        self.expand = ConvUnit(width, 2 * width, 3)
        self.answer = nn.Conv2d(2 * width, per * (5 + classes), 1)
        nn.init.normal_(self.answer.weight, std=0.01)  # boxes start as their anchors
        nn.init.constant_(self.answer.get_parameter("bias").view(per, -1)[:, 4], -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.expand(x))


def _five(width: int) -> nn.Sequential:
    """1x1 and 3x3 convolutions in turn, from `width` to half of it."""
    half = width // 2
    pairs = (ConvUnit(width, half, 1), ConvUnit(half, width, 3), ConvUnit(width, half, 1), ConvUnit(half, width, 3))
    return nn.Sequential(*pairs, ConvUnit(width, half, 1))


class YOLOv4(nn.Module):
    """Backbone, neck (`spp`, `ups` coarse to fine, `downs` back) and a head for each level."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.prepare = _prepare(config.size)
        self.per = len(config.anchors) // 6
        self.backbone = CSPDarknet(config.widths, config.blocks) if backbone is None else backbone
        finest = self.backbone.strides[0] if backbone is None else config.finest
        self.maps = pyramid_maps(self.backbone, finest, "yolov4")[:3]
        self.strides = tuple(self.backbone.strides[i] for i in self.maps)
        fine, middle, coarse = _widths(config, self.backbone, self.maps)
        self.spp = SPP(coarse)
        self.ups = nn.ModuleList([Up(coarse // 2, middle), Up(middle // 2, fine)])
        self.downs = nn.ModuleList([Down(fine // 2), Down(middle // 2)])
        self.heads = nn.ModuleList(Head(width // 2, self.per, config.classes) for width in (fine, middle, coarse))

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Answers:
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        fine, middle, coarse = (every[i] for i in self.maps)
        coarse = self.spp(coarse)
        middle = self.ups[0](coarse, middle)
        fine = self.ups[1](middle, fine)
        middle = self.downs[0](fine, middle)
        levels = (fine, middle, self.downs[1](middle, coarse))
        rows = torch.cat([rows_of(head(x), self.per) for head, x in zip(self.heads, levels, strict=True)], 1)
        boxes, objects, logits = rows.split([4, 1, self.config.classes], -1)
        return Answers(boxes, objects[..., 0], logits)

    def cells(self, size: tuple[int, int], like: Tensor) -> Cells:
        """The cells and anchors of every answer for inputs of `size` (H, W)."""
        return cells_of(size, self.strides, list(torch.tensor(self.config.anchors).reshape(3, self.per, 2)), like)

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Objectness times class probability above 0.001, suppressed per class at IoU 0.6, best first."""
        answers = Answers(*(part.detach() for part in widened(out)))
        height, width = images.pixels.shape[-2:]
        boxes = boxes_of(answers.boxes, self.cells((height, width), answers.boxes), self.config.scales)
        scores = answers.objects.sigmoid()[..., None] * answers.logits.sigmoid()
        found: list[Result] = []
        for i, window in enumerate(windows(images, boxes)):
            found.append(in_original(*survivors(boxes[i], scores[i], window, SURVIVAL), images, i))
        return found


def _check(config: Config) -> None:
    if not 3 <= len(config.blocks) == len(config.widths) - 1:
        found = f"{len(config.blocks)} and {len(config.widths)}"
        raise UsageError(f"yolov4: expected blocks for three stages or more and one width more than stages, found {found}")
    fine, middle, coarse = config.widths[-3:]
    if min(config.widths) < 2 or any(width % 2 for width in config.widths) or (2 * fine, 2 * middle) != (middle, coarse):
        raise UsageError(f"yolov4: expected even widths, the last three each twice the one before, found {config.widths}")
    if not config.anchors or len(config.anchors) % 6 or min(config.anchors) <= 0:
        count = len(config.anchors)
        raise UsageError(f"yolov4: anchors are positive widths and heights, as many for each of 3 levels; found {count} numbers")
    if min(config.scales) < 1:
        raise UsageError(f"yolov4: scales stretch the sigmoid of the centre, expected 1 or more, found {config.scales}")
    if config.size < 1 or config.size % 2 ** len(config.blocks):
        raise UsageError(f"yolov4: the side must be a multiple of {2 ** len(config.blocks)}, found {config.size}")


def _widths(config: Config, backbone: Backbone, maps: tuple[int, ...]) -> tuple[int, ...]:
    """Of the three maps that carry the neck."""
    strides, widths = tuple(backbone.strides[i] for i in maps), tuple(backbone.widths[i] for i in maps)
    first = (strides[0], widths[0])
    if [*zip(strides, widths, strict=True)] != [(first[0] * n, first[1] * n) for n in (1, 2, 4)] or first[1] % 2:
        found = f"strides {tuple(backbone.strides)} and widths {tuple(backbone.widths)}"
        raise CapabilityError(
            f"yolov4: expected a backbone with three maps from stride {config.finest} on, of even width, each half the size and twice "
            f"the width of the one before, found {found}"
        )
    if config.size % strides[-1]:
        raise UsageError(f"yolov4: the side must be a multiple of {strides[-1]}, found {config.size}")
    return widths


def _prepare(size: int) -> Prepare:
    """The authors stretch pictures to a square; small ones keep their shape, as the recipe of "tiny" shows them in training."""
    rule = replace(PREPARE, size=(size, size))
    return replace(rule, resize="letterbox", fill=128, antialias=True) if size <= 128 else rule


NETWORK = YOLOv4
OVERFIT = {"samples": 2, "lr": 3e-3}


# --- encoding ----------------------------------------------------------------------------------------------------------


def boxes_of(answers: Float[Tensor, "*b N 4"], cells: Cells, scales: tuple[float, ...]) -> Float[Tensor, "*b N 4"]:
    """The boxes, xyxy pixels, of raw answers: a stretched sigmoid reaches both borders of the cell (section 3.4)."""
    counts = [h * w * count for (h, w), count in zip(cells.sizes, cells.counts, strict=True)]
    scale = torch.cat([answers.new_full((count, 1), value) for count, value in zip(counts, scales, strict=True)])
    centre = (cells.corner + answers[..., :2].sigmoid() * scale - (scale - 1) / 2) * cells.stride
    return cxcywh_to_xyxy(torch.cat([centre, answers[..., 2:].clamp(max=LIMIT).exp() * cells.prior], -1))


class Matched(NamedTuple):
    """P pairs of an object and an answer that learns it: `objects` (P,) and `places` (P,) in the row."""

    objects: Tensor
    places: Tensor


def matched(boxes: Float[Tensor, "M 4"], cells: Cells, threshold: float) -> Matched:
    """The anchor of all levels that is most of an object's shape, and every other one that overlaps it by more than `threshold`.

    Overlap is that of boxes with a common centre; the cell is the one that holds the object's centre.
    """
    centre, sides = xyxy_to_cxcywh(boxes).split(2, -1)
    common = torch.minimum(sides[:, None], cells.priors).prod(2)
    overlap = common / (sides.prod(1)[:, None] + cells.priors.prod(1) - common)
    chosen = overlap > threshold
    chosen |= F.one_hot(overlap.argmax(1), overlap.shape[1]).bool()
    places: list[Tensor] = []
    first = 0
    for (h, w), stride, count in zip(cells.sizes, cells.strides, cells.counts, strict=True):
        column = (centre[:, 0] / stride).long().clamp(0, w - 1)
        row = (centre[:, 1] / stride).long().clamp(0, h - 1)
        places.append(first + (row * w + column)[:, None] * count + torch.arange(count, device=row.device))
        first += h * w * count
    return Matched(chosen.nonzero()[:, 0], torch.cat(places, 1)[chosen])


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: YOLOv4, *, box_weight: float = 0.07, threshold: float = 0.213, ignore: float = 0.7
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Sums over a picture's answers, averaged over pictures: CIoU loss times `box_weight`, entropies of objectness and classes.

    `threshold` is that of `matched`; answers whose box overlaps an object by more than `ignore`, or
    lies in a crowd, are not told that they are background.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("YOLOv4 is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        cells = network.cells((height, width), out.boxes)
        decoded = boxes_of(out.boxes, cells, network.config.scales)
        weights = out.boxes.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.boxes)
        sums: list[Tensor] = []
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, out.boxes)):
            wanted = truth.boxes
            known, classes = torch.zeros_like(out.objects[i]), torch.zeros_like(out.logits[i])
            counted = ~boxes_crowded(decoded[i], truth.ignored)
            regression = decoded.new_zeros(())
            if len(wanted):
                found = matched(wanted, cells, threshold)
                counted &= iou(decoded[i].detach(), wanted).amax(1) <= ignore
                counted[found.places], known[found.places] = True, 1
                classes[found.places, truth.labels[found.objects]] = 1
                regression = (1 - paired_ciou(decoded[i, found.places], wanted[found.objects])).sum()
            places = known.nonzero()[:, 0]
            presence = F.binary_cross_entropy_with_logits(out.objects[i], known, reduction="none") * counted
            kinds = F.binary_cross_entropy_with_logits(out.logits[i, places], classes[places], reduction="sum")
            sums.append(torch.stack([box_weight * regression, presence.sum(), kinds]))
        box, objects, classes = (torch.stack(sums) * weights[:, None]).sum(0) / object_count(len(batch), out.boxes)
        return {"box": box, "object": objects, "class": classes}

    return terms


def objective(network: YOLOv4, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: box_weight, threshold, ignore."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        finest=4,
        anchors=(16, 23, 18, 29, 22, 34, 25, 41, 30, 45, 33, 54, 40, 60, 45, 71, 49, 86),  # of the scenes, by `opticus anchors`
        size=128,
    ),
    "608": Config(),
}
_NECK = (  # layers of yolov4.cfg behind the backbone's 105, between them pools, routes and upsamplings
    *((105 + i, f"spp.before.{i}") for i in range(3)),
    *((114 + i, f"spp.after.{i}") for i in range(3)),
    *((117, "ups.0.reduce"), (120, "ups.0.lateral"), *((122 + i, f"ups.0.mix.{i}") for i in range(5))),
    *((127, "ups.1.reduce"), (130, "ups.1.lateral"), *((132 + i, f"ups.1.mix.{i}") for i in range(5))),
    *((137, "heads.0.expand"), (138, "heads.0.answer"), (141, "downs.0.down")),
    *(*((143 + i, f"downs.0.mix.{i}") for i in range(5)), (148, "heads.1.expand"), (149, "heads.1.answer")),
    *((152, "downs.1.down"), *((154 + i, f"downs.1.mix.{i}") for i in range(5))),
    *((159, "heads.2.expand"), (160, "heads.2.answer")),
)


def _units() -> Iterator[tuple[int, str]]:
    """Number of a layer in yolov4.cfg -> the module that it is, in the order of the file."""
    yield 0, "backbone.stem"
    layer = 1
    for stage, blocks in enumerate(Config().blocks):
        place = f"backbone.stages.{stage}"
        yield from ((layer, f"{place}.down"), (layer + 1, f"{place}.skip"), (layer + 3, f"{place}.enter"))  # a [route] between
        layer += 4
        for block in range(blocks):
            yield from ((layer, f"{place}.blocks.{block}.squeeze"), (layer + 1, f"{place}.blocks.{block}.expand"))
            layer += 3  # a [shortcut] ends the block
        yield from ((layer, f"{place}.leave"), (layer + 2, f"{place}.merge"))
        layer += 3
    yield from _NECK


_PLACES = dict(_units())


def _port_units() -> Iterator[str]:
    """The same units in the same order, as pytorch-YOLOv4 calls them."""
    yield "down1.conv1"
    for stage, blocks in enumerate(Config().blocks):
        shift, place = 1 if stage == 0 else 0, f"down{stage + 1}"
        yield from (f"{place}.conv{i + shift}" for i in (1, 2, 3))
        for block in range(blocks):
            pair = ("conv5", "conv6") if stage == 0 else (f"resblock.module_list.{block}.{i}" for i in (0, 1))
            yield from (f"{place}.{name}" for name in pair)
        yield from (f"{place}.conv{i}" for i in ((7, 8) if stage == 0 else (4, 5)))
    yield from (f"neek.conv{i}" for i in range(1, 21))
    yield from (f"head.conv{i}" for i in range(1, 19))


_PORT = dict(zip(_port_units(), _PLACES.values(), strict=True))


def _of_layer(found: re.Match[str]) -> str:
    place = _PLACES.get(int(found[1]), f"layer {found[1]}")
    return f"{place}.{found[3]}" if place.endswith(".answer") and found[2] == "conv" else f"{place}.{found[2]}.{found[3]}"


def _of_port(found: re.Match[str]) -> str:
    place = _PORT.get(found[1].replace("neck", "neek"), found[1])  # older files misspell it
    return f"{place}.{found[3]}" if place.endswith(".answer") else f"{place}.{('conv', 'bn')[int(found[2])]}.{found[3]}"


HEAD = r"heads\.\d+\.answer\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "darknet": Names(rename(r"(\d+)\.(conv|bn)\.(weight|bias|running_mean|running_var)", _of_layer)),
    "tianxiaomo": Names(rename(r"(?:module\.)?((?:down\d|neck|neek|head)\..+)\.conv\.([01])\.(\w+)", _of_port)),
}


def classes_of(rows: int) -> tuple[int, ...]:
    """Classes of a file whose convolution of answers has so many rows: three anchors a cell."""
    return (rows // 3 - 5,) if rows % 3 == 0 else ()


def check_cfg(config: Config, cfg: str, file: str) -> None:
    """Compare what a cfg says and shapes do not: WeightsError unless every [yolo] section has the network's anchors and scales."""
    sections = [options for kind, options in json.loads(cfg) if kind == "yolo"]
    for options, scale in zip(sections, config.scales, strict=False):
        found = tuple(float(number) for number in options.get("anchors", "").split(",") if number)
        if found != tuple(map(float, config.anchors)):
            raise WeightsError(
                f"{file}: the cfg beside it has the anchors {found}, the network {config.anchors}; pass anchors=... to load it"
            )
        if float(options.get("scale_x_y", 1)) != scale:
            said = options.get("scale_x_y", 1)
            raise WeightsError(f"{file}: the cfg beside it has scale_x_y={said}, the network {scale}; pass scales=... to load it")


WEIGHTS: dict[str, Weights] = {
    "608:coco": Weights(
        url="https://github.com/AlexeyAB/darknet/releases/download/darknet_yolo_v3_optimal/yolov4.weights",
        format="darknet",
        license="YOLO licence (public domain)",
        source="github.com/AlexeyAB/darknet: README.md",
        prepare=PREPARE,
        labels="coco80",
        reports={"AP": 43.5, "AP50": 65.7},
    )
}
PARAMETERS: dict[str, int] = {"608": 64_363_101}  # counted in the reference
