"""YOLOv3: An Incremental Improvement.

Redmon and Farhadi, 2018, arXiv 1804.02767 (YOLOv3).
Reference: pjreddie/darknet (YOLO licence: public domain), cfg/yolov3.cfg and cfg/yolov3-tiny.cfg, src/yolo_layer.c.

*Differs*: the prior of objectness starts at 0.01 and running statistics follow at torch's pace (darknet: 0.5, and a tenth of it);
the norm is that of darknet's GPU code, which trained the published files (its CPU code adds 1e-6 to the deviation instead). Pictures
are letterboxed by the library's resize, whose corners are those of pixels, between bars of grey 128 (darknet: corner pixels'
centres, sides rounded down, grey 127.5). Of one picture at most 5,000 answers are suppressed and 300 kept. "tiny" is a small
network for the demo data; the authors' "YOLOv3-tiny" is "tiny-416".
*Map*: section 2.1 -> `matching.cells`, `criterion`; section 2.2 -> the classes' binary cross-entropies; section 2.3 -> `Branch`,
`YOLOv3.forward`; section 2.4, table 1 -> `Darknet53`.
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

from opticus.layers.darknet import ConvUnit, half_pool, he_normal
from opticus.losses.boxes import object_count
from opticus.losses.supervised import Supervised, widened
from opticus.matching.cells import Cells, Survival, answerable, boxes_of, cells_of, rows_of, survivors, targets_of
from opticus.matching.crowds import boxes_crowded
from opticus.matching.detections import in_original, pyramid_maps, windows
from opticus.matching.objects import truth_of
from opticus.ops.iou import iou
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
PREPARE = Prepare(resize="letterbox", size=(416, 416), antialias=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fill=128)
PRIOR = 0.01  # what every answer says of an object at the start
SURVIVAL = Survival(score=0.005, candidates=5000, overlap=0.45, keep=300)  # `detector valid` of darknet: 0.005 and 0.45
_ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)


@dataclass(frozen=True)
class Config:
    """`width` of the first convolution, `blocks` residual blocks after each halving (none: the pooled network of "tiny-416").

    Predictions are made at the strides 2^len(blocks) and finer, one branch each of `widths` and `depths` pairs of convolutions;
    `anchors` are widths and heights in pixels, small to large, in equal parts for the branches, the largest for the coarsest.
    With a `backbone` its coarsest maps carry the branches in place of Darknet-53's.
    """

    classes: int = 80
    width: int = 32
    blocks: tuple[int, ...] = (1, 2, 8, 8, 4)
    widths: tuple[int, ...] = (1024, 512, 256)
    depths: tuple[int, ...] = (5, 5, 5)
    anchors: tuple[float, ...] = _ANCHORS
    backbone: Part | None = None
    size: int = 416


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One row a prior of a cell, levels coarse to fine: `boxes` (B,N,4) tx ty tw th, `objects` (B,N), `logits` (B,N,K)."""

    boxes: Tensor
    objects: Tensor
    logits: Tensor


class Residual(nn.Module):
    """Table 1: half the width by 1x1, back by 3x3, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = ConvUnit(width, width // 2, 1)
        self.expand = ConvUnit(width // 2, width, 3)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.expand(self.squeeze(x))


class Darknet53(nn.Module):
    """Table 1: every stage halves the size, doubles the width and has `blocks` residual blocks; one map a stage."""

    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = ConvUnit(3, width, 3)
        self.stages = nn.ModuleList()
        for count in blocks:
            self.stages.append(nn.Sequential(ConvUnit(width, 2 * width, 3, 2), *(Residual(2 * width) for _ in range(count))))
            width *= 2

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x, maps = self.stem(pixels), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Pooled(nn.Module):
    """The body of yolov3-tiny.cfg: seven 3x3 convolutions, a pooling before each but the first, the last of them of stride 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(7)]
        self.convs = nn.ModuleList(ConvUnit(a, b, 3) for a, b in zip((3, *widths), widths))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps of strides 16 and 32."""
        x, maps = self.convs[0](pixels), []
        for i, conv in enumerate(self.convs[1:]):
            x = half_pool(x) if i < 5 else F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, 1)
            x = conv(x)
            maps.append(x)
        return [maps[3], maps[5]]


class Branch(nn.Module):
    """Section 2.3: the map that goes on to the finer scale, and the answers of this one."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for i in range(depth):
            wanted, size = (width, 3) if i % 2 else (width // 2, 1)
            self.convs.append(ConvUnit(inputs, wanted, size))
            inputs = wanted
        self.expand = ConvUnit(inputs, width, 3)
        self.answer = nn.Conv2d(width, outputs, 1)
        he_normal(self.answer)

    def forward(self, x: Float[Tensor, "B C h w"]) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = conv(x)
        return x, self.answer(self.expand(x))


class YOLOv3(nn.Module):
    """A body, and a branch a scale: coarse first; each finer one sees the coarser's map, enlarged, beside the body's."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.prepare = _prepare(config.size)
        scales = len(config.widths)
        self.per = len(config.anchors) // 2 // scales
        self.backbone = backbone
        if backbone is not None:
            self.maps = pyramid_maps(backbone, 1, "yolov3")[-scales:]
            self.strides, bodies = tuple(backbone.strides[i] for i in reversed(self.maps)), [backbone.widths[i] for i in self.maps]
            if self.strides != tuple(self.strides[0] // 2**i for i in range(scales)):
                raise CapabilityError(
                    f"yolov3: expected a backbone with {scales} maps, each half the size of the one before, found {backbone.strides}"
                )
        elif config.blocks:
            self.body = Darknet53(config.width, config.blocks)
            bodies = [config.width * 2 ** (i + 1) for i in range(len(config.blocks))]
            self.strides = tuple(2 ** (len(config.blocks) - i) for i in range(scales))
        else:
            self.body, bodies = Pooled(config.width), [config.width * 16, config.width * 64]
            self.strides = (32, 16)
        self.branches, self.laterals = nn.ModuleList(), nn.ModuleList()
        outputs, before = self.per * (5 + config.classes), 0
        for i, (width, depth) in enumerate(zip(config.widths, config.depths)):
            inputs = bodies[-1 - i]
            if i:
                self.laterals.append(ConvUnit(before, before // 2, 1))
                inputs += before // 2
            self.branches.append(Branch(inputs, width, depth, outputs))
            before = width // 2 if depth % 2 else (width if depth else inputs)
        for branch in self.branches:
            bias = branch.get_parameter("answer.bias")
            nn.init.constant_(bias.view(self.per, -1)[:, 4], -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Answers:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.backbone is None:
            maps = self.body(pixels)
        else:
            every = self.backbone.features(pixels)
            maps = [every[i] for i in self.maps]
        rows: list[Tensor] = []
        x = maps[-1]
        for i, branch in enumerate(self.branches):
            if i:
                beside = maps[-1 - i]
                x = F.interpolate(self.laterals[i - 1](x), size=beside.shape[-2:], mode="nearest")
                x = torch.cat([x, beside], 1)
            x, answer = branch(x)
            rows.append(rows_of(answer, self.per))
        boxes, objects, logits = torch.cat(rows, 1).split([4, 1, self.config.classes], -1)
        return Answers(boxes, objects[..., 0], logits)

    def cells(self, size: tuple[int, int], like: Tensor) -> Cells:
        """The cells and priors of every answer for inputs of `size` (H, W)."""
        priors = torch.tensor(self.config.anchors, dtype=torch.float64).reshape(len(self.strides), self.per, 2).flip(0)
        return cells_of(size, self.strides, list(priors), like)

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Objectness times class probability above 0.005, suppressed per class at IoU 0.45, best first."""
        answers = Answers(*(part.detach() for part in widened(out)))
        height, width = images.pixels.shape[-2:]
        boxes = boxes_of(answers.boxes, self.cells((height, width), answers.boxes))
        scores = answers.objects.sigmoid()[..., None] * answers.logits.sigmoid()
        found: list[Result] = []
        for i, window in enumerate(windows(images, boxes)):
            found.append(in_original(*survivors(boxes[i], scores[i], window, SURVIVAL), images, i))
        return found


def _check(config: Config) -> None:
    scales, deepest = len(config.widths), len(config.blocks) or 2
    if not 1 <= scales == len(config.depths) <= deepest:
        raise UsageError(
            f"yolov3: expected a width and a depth for each of 1 to {deepest} branches, found {scales} and {len(config.depths)}"
        )
    if not config.anchors or len(config.anchors) % (2 * scales) or min(config.anchors) <= 0:
        raise UsageError(
            f"yolov3: anchors are positive widths and heights, as many for each of {scales} branches; found {len(config.anchors)} numbers"
        )
    if not config.blocks and (scales, config.depths) != (2, (1, 0)):
        raise UsageError(f"yolov3: without residual blocks there are two branches of depths (1, 0), found {config.depths}")


def _prepare(size: int) -> Prepare:
    return replace(PREPARE, size=(size, size))


NETWORK = YOLOv3
OVERFIT = {"samples": 2, "lr": 4e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(network: YOLOv3, *, ignore: float = 0.5) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Sums over a picture's answers, averaged over pictures: box, objectness, classes.

    Section 2.1: the prior that is most of an object's shape answers for it, in the cell of its centre; answers whose box overlaps an
    object by more than `ignore`, or lies in a crowd, are not told that they are background. Boxes weigh 2 - their share of the
    picture, as in darknet.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("YOLOv3 is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        cells = network.cells((height, width), out.boxes)
        decoded = boxes_of(out.boxes.detach(), cells)
        weights = out.boxes.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.boxes)
        sums: list[Tensor] = []
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, out.boxes)):
            wanted = truth.boxes
            found = answerable(wanted, cells)
            places, boxes = found.places, wanted[found.objects]
            counted = ~boxes_crowded(decoded[i], truth.ignored)
            if len(wanted):
                counted &= iou(decoded[i], wanted).amax(1) <= ignore
            counted[places] = True
            known = torch.zeros_like(out.objects[i])
            known[places] = 1
            classes = torch.zeros_like(out.logits[i])
            classes[found.every, truth.labels] = 1
            share = (boxes[:, 2:] - boxes[:, :2]).prod(1) / (height * width)
            each = _box_loss(out.boxes[i, places], targets_of(boxes, places, cells))
            sums.append(
                torch.stack(
                    [
                        (each * (2 - share)).sum(),
                        (F.binary_cross_entropy_with_logits(out.objects[i], known, reduction="none") * counted).sum(),
                        F.binary_cross_entropy_with_logits(out.logits[i, places], classes[places], reduction="sum"),
                    ]
                )
            )
        box, objects, classes = (torch.stack(sums) * weights[:, None]).sum(0) / object_count(len(batch), out.boxes)
        return {"box": box, "object": objects, "class": classes}

    return terms


def _box_loss(answers: Tensor, targets: Tensor) -> Float[Tensor, "P"]:
    """Cross-entropy of the centre, whose gradient is t - sigmoid, half the squared difference of the logarithms of the sides."""
    centre = F.binary_cross_entropy_with_logits(answers[:, :2], targets[:, :2], reduction="none")
    return (centre + (answers[:, 2:] - targets[:, 2:]).square() / 2).sum(1)


def objective(network: YOLOv3, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; option of `criterion`: ignore."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        widths=(192, 96),
        depths=(3, 3),
        anchors=(16, 24, 21, 33, 27, 41, 32, 52, 41, 63, 49, 81),  # of the scenes, by `opticus anchors`
        size=128,
    ),
    "416": Config(),
    "tiny-416": Config(
        width=16,
        blocks=(),
        widths=(512, 256),
        depths=(1, 0),
        anchors=(10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319),
    ),
}


def _units(config: Config) -> Iterator[tuple[int, str]]:
    """Number of a layer in the cfg -> the module that it is."""
    layer = 0
    if config.blocks:
        yield layer, "body.stem"
        for stage, count in enumerate(config.blocks):
            layer += 1
            yield layer, f"body.stages.{stage}.0"
            for block in range(1, count + 1):
                yield layer + 1, f"body.stages.{stage}.{block}.squeeze"
                yield layer + 2, f"body.stages.{stage}.{block}.expand"
                layer += 3  # a [shortcut] ends the block
    else:
        for conv in range(7):
            yield 2 * conv, f"body.convs.{conv}"  # a [maxpool] lies between
        layer = 12
    for scale, depth in enumerate(config.depths):
        if scale:
            yield layer + 2, f"laterals.{scale - 1}"  # between a [route] and [upsample], [route]
            layer += 4
        for conv in range(depth):
            layer += 1
            yield layer, f"branches.{scale}.convs.{conv}"
        yield layer + 1, f"branches.{scale}.expand"
        yield layer + 2, f"branches.{scale}.answer"
        layer += 3  # [yolo]


def _table(config: Config) -> Names:
    places = dict(_units(config))

    def ours(found: re.Match[str]) -> str:
        place = places.get(int(found[1]), f"layer {found[1]}")
        return f"{place}.{found[3]}" if place.endswith(".answer") and found[2] == "conv." else f"{place}.{found[2]}{found[3]}"

    return Names(rename(r"(\d+)\.(conv\.|bn\.)(weight|bias|running_mean|running_var)", ours))


HEAD = r"branches\.\d+\.answer\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"darknet": _table(VARIANTS["416"]), "darknet-tiny": _table(VARIANTS["tiny-416"])}


def classes_of(rows: int) -> tuple[int, ...]:
    """Classes of a file whose convolution of answers has so many rows: three priors a cell."""
    return (rows // 3 - 5,) if rows % 3 == 0 else ()


def check_cfg(config: Config, cfg: str, file: str) -> None:
    """Compare what a cfg says and shapes do not: WeightsError unless every [yolo] section has the network's anchors."""
    sections = [options for kind, options in json.loads(cfg) if kind == "yolo"]
    for options in sections:
        found = tuple(float(number) for number in options.get("anchors", "").split(",") if number)
        if found != tuple(map(float, config.anchors)):
            raise WeightsError(
                f"{file}: the cfg beside it has the anchors {found}, the network {config.anchors}; pass anchors=... to load it"
            )


_FILES = "PurdueDualityLab/TensorFlowModels: yolo/utils/downloads/file_manager.py"


def _published(name: str, layout: str, digest: str, size: int, **more: Any) -> Weights:
    return Weights(
        url=f"https://pjreddie.com/media/files/{name}.weights",
        format=layout,
        license="YOLO licence (public domain)",
        prepare=PREPARE,
        digest=digest,
        labels="coco80",
        size=size,
        **more,
    )


WEIGHTS: dict[str, Weights] = {
    "416:coco": _published(
        "yolov3",
        "darknet",
        "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
        248_007_048,
        reports={"AP50": 55.3},
        source=f"{_FILES}; AP50: huggingface.co/lucid-dl/yolo-v3",
    ),
    "tiny-416:coco": _published(
        "yolov3-tiny",
        "darknet-tiny",
        "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
        35_434_956,
        source=_FILES,
    ),
}
PARAMETERS: dict[str, int] = {"416": 61_949_149, "tiny-416": 8_852_366}
