"""YOLO9000: Better, Faster, Stronger.

Redmon and Farhadi, CVPR 2017, arXiv 1612.08242 (YOLOv2; YOLO9000's hierarchy of classes is not here).
Reference: pjreddie/darknet (YOLO licence: public domain), cfg/yolov2.cfg and cfg/yolov2-voc.cfg, src/region_layer.c.

*Differs*: as in the authors' files, boxes weigh 2 - their share of the picture; darknet's pull of all boxes to their priors during
the first 12,800 pictures is left out. The norm is that of darknet's GPU code, and running statistics follow at torch's pace.
Pictures are letterboxed by the library's resize, whose corners are those of pixels, between bars of grey 128 (darknet: corner
pixels' centres, sides rounded down, grey 127.5). Of one picture at most 5,000 answers are suppressed and 300 kept. "tiny" is a
small network for the demo data.
*Map*: section 2 "Dimension Clusters" -> `matching.clusters`, `Config.anchors`; "Direct location prediction" -> `matching.cells`;
"Fine-Grained Features" -> `reorganised`; "Multi-Scale Training" -> `transforms.geometry.MultiScale`; section 3, table 6 -> `Darknet19`;
"Training for detection" -> `YOLOv2`, `criterion`.
"""

from __future__ import annotations

import json
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
from opticus.matching.detections import in_original, windows
from opticus.matching.objects import truth_of
from opticus.ops.iou import iou, paired_iou
from opticus.structures import Batch, DataError, Images, Prepare, Result, Task, UsageError, Weights, WeightsError
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="letterbox", size=(416, 416), antialias=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fill=128)
SURVIVAL = Survival(score=0.005, candidates=5000, overlap=0.45, keep=300)  # `detector valid` of darknet: 0.005 and 0.45
_COCO = (0.57273, 0.677385, 1.87446, 2.06253, 3.33843, 5.47434, 7.88282, 3.52778, 9.77052, 9.16828)
_VOC = (1.3221, 1.73145, 3.19275, 4.00944, 5.05587, 8.09892, 9.47112, 4.84053, 11.2364, 10.0071)


@dataclass(frozen=True)
class Config:
    """`width` of the first convolution; `stages` convolutions between poolings, 3x3 and 1x1 in turn, each stage twice as wide.

    `neck` is the width of the three added convolutions, `passthrough` that of the finer map before it is reorganised; `anchors` are
    widths and heights in cells of the last map.
    """

    classes: int = 80
    width: int = 32
    stages: tuple[int, ...] = (1, 1, 3, 3, 5, 5)
    neck: int = 1024
    passthrough: int = 64
    anchors: tuple[float, ...] = _COCO
    size: int = 416


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One row a prior of a cell, rows, columns, priors: `boxes` (B,N,4) tx ty tw th, `objects` (B,N), `logits` (B,N,K)."""

    boxes: Tensor
    objects: Tensor
    logits: Tensor


class Darknet19(nn.Module):
    """Table 6 without its classifier: 3x3 convolutions, narrowed by 1x1 ones between them, a pooling between the stages."""

    def __init__(self, width: int, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = 3
        for count in stages:
            units: list[nn.Module] = []
            for i in range(count):
                wanted, size = (width // 2, 1) if i % 2 else (width, 3)
                units.append(ConvUnit(inputs, wanted, size))
                inputs = wanted
            self.stages.append(nn.Sequential(*units))
            width *= 2

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        """The last map, and the one before the last pooling."""
        before = x = self.stages[0](pixels)
        for stage in self.stages[1:]:
            before = x
            x = stage(half_pool(x))
        return x, before


class YOLOv2(nn.Module):
    """Section 3, "Training for detection": two 3x3 convolutions, the finer map put beside them, one more, the answers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.prepare = replace(PREPARE, size=(config.size, config.size))
        self.stride = 2 ** (len(config.stages) - 1)
        self.body = Darknet19(config.width, config.stages)
        last = config.width * self.stride
        self.neck = nn.Sequential(ConvUnit(last, config.neck, 3), ConvUnit(config.neck, config.neck, 3))
        self.passthrough = ConvUnit(last // 2, config.passthrough, 1)
        self.fuse = ConvUnit(config.neck + 4 * config.passthrough, config.neck, 3)
        self.answer = nn.Conv2d(config.neck, len(config.anchors) // 2 * (5 + config.classes), 1)
        he_normal(self.answer)

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Answers:
        if pixels.shape[-2] % self.stride or pixels.shape[-1] % self.stride:
            height, width = pixels.shape[-2:]
            raise UsageError(f"yolov2: sides must be multiples of {self.stride}, found {height}x{width}")
        x, finer = self.body(pixels.contiguous(memory_format=torch.channels_last))
        x = torch.cat([reorganised(self.passthrough(finer)), self.neck(x)], 1)
        rows = rows_of(self.answer(self.fuse(x)), len(self.config.anchors) // 2)
        boxes, objects, logits = rows.split([4, 1, self.config.classes], -1)
        return Answers(boxes, objects[..., 0], logits)

    def cells(self, size: tuple[int, int], like: Tensor) -> Cells:
        """The cells and priors of every answer for inputs of `size` (H, W)."""
        priors = torch.tensor(self.config.anchors, dtype=torch.float64).reshape(-1, 2) * self.stride
        return cells_of(size, (self.stride,), [priors], like)

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Objectness times class probability above 0.005, suppressed per class at IoU 0.45, best first."""
        answers = Answers(*(part.detach() for part in widened(out)))
        height, width = images.pixels.shape[-2:]
        boxes = boxes_of(answers.boxes, self.cells((height, width), answers.boxes))
        scores = answers.objects.sigmoid()[..., None] * answers.logits.softmax(-1)
        found: list[Result] = []
        for i, window in enumerate(windows(images, boxes)):
            found.append(in_original(*survivors(boxes[i], scores[i], window, SURVIVAL), images, i))
        return found


def reorganised(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D i j"]:
    """Half the size, four times the channels, in the order of darknet's [reorg].

    Its loop takes the map for one of C/4 channels and twice the sides; what it writes is C x h x w numbers, read as 4C x h/2 x w/2.
    """
    batch, channels, h, w = x.shape
    split = x.reshape(batch, channels // 4, h, 2, w, 2).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(batch, 4 * channels, h // 2, w // 2)


def _check(config: Config) -> None:
    if len(config.stages) < 2 or not all(count % 2 for count in config.stages):
        raise UsageError(f"yolov2: expected two or more stages of odd numbers of convolutions, found {config.stages}")
    if not config.anchors or len(config.anchors) % 2 or min(config.anchors) <= 0:
        raise UsageError(f"yolov2: anchors are positive widths and heights, found {config.anchors}")
    if config.passthrough < 4 or config.passthrough % 4:
        raise UsageError(f"yolov2: the passthrough is reorganised by four, found a width of {config.passthrough}")
    if config.size % 2 ** (len(config.stages) - 1):
        raise UsageError(f"yolov2: size must be a multiple of {2 ** (len(config.stages) - 1)}, found {config.size}")


NETWORK = YOLOv2
OVERFIT = {"samples": 2, "lr": 4e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: YOLOv2, *, ignore: float = 0.6, object_weight: float = 5.0, background_weight: float = 1.0
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Half squared differences and a cross-entropy, summed over a picture's answers, averaged over pictures.

    The answer of an object learns its box, its class, and as objectness the IoU that its box has now; all others learn 0, unless
    their box overlaps an object by more than `ignore` or lies in a crowd.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("YOLOv2 is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        cells = network.cells((height, width), out.boxes)
        decoded = boxes_of(out.boxes.detach(), cells)
        weights = out.boxes.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.boxes)
        sums: list[Tensor] = []
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, out.boxes)):
            wanted = truth.boxes
            found = answerable(wanted, cells)
            places, boxes = found.places, wanted[found.objects]
            background = torch.ones_like(out.objects[i])
            if len(wanted):
                background = (iou(decoded[i], wanted).amax(1) <= ignore).to(out.objects)
            background = background.masked_fill(boxes_crowded(decoded[i], truth.ignored), 0)
            background[places] = 0
            objects = out.objects[i].sigmoid()
            overlap = paired_iou(decoded[i, places], boxes)
            share = (boxes[:, 2:] - boxes[:, :2]).prod(1) / (height * width)
            each = _box_loss(out.boxes[i, places], targets_of(boxes, places, cells))
            right = object_weight * (objects[places] - overlap).square().sum()
            wrong = background_weight * (objects.square() * background).sum()
            classes = F.cross_entropy(out.logits[i, places], truth.labels[found.objects], reduction="sum")
            sums.append(torch.stack([(each * (2 - share)).sum(), (right + wrong) / 2, classes]))
        box, objects, classes = (torch.stack(sums) * weights[:, None]).sum(0) / object_count(len(batch), out.boxes)
        return {"box": box, "object": objects, "class": classes}

    return terms


def _box_loss(answers: Tensor, targets: Tensor) -> Float[Tensor, "P"]:
    """Half the squared differences of the centre in its cell and of the logarithms of the sides."""
    raw = torch.cat([answers[:, :2].sigmoid(), answers[:, 2:]], 1)
    return (raw - targets).square().sum(1) / 2


def objective(network: YOLOv2, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: ignore, object_weight, background_weight."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        width=16,
        stages=(1, 1, 1, 3, 3),
        neck=128,
        passthrough=16,
        anchors=(1.03, 1.56, 1.4, 2.17, 1.84, 2.89, 2.41, 3.73, 3.0, 4.9),  # of the scenes, by `opticus anchors`
        size=128,
    ),
    "416": Config(),
    "416-voc": Config(classes=20, anchors=_VOC),
}


def _units(config: Config) -> Iterator[tuple[int, str]]:
    """Number of a layer in the cfg -> the module that it is."""
    layer = 0
    for stage, count in enumerate(config.stages):
        for conv in range(count):
            yield layer + conv, f"body.stages.{stage}.{conv}"
        layer += count + 1  # a [maxpool] ends the stage, but for the last
    layer -= 1
    yield from ((layer, "neck.0"), (layer + 1, "neck.1"))
    yield layer + 3, "passthrough"  # between a [route] and [reorg], [route]
    yield from ((layer + 6, "fuse"), (layer + 7, "answer"))


_PLACES = dict(_units(VARIANTS["416"]))


def _ours(found: re.Match[str]) -> str:
    place = _PLACES.get(int(found[1]), f"layer {found[1]}")
    return f"{place}.{found[3]}" if place == "answer" and found[2] == "conv." else f"{place}.{found[2]}{found[3]}"


HEAD = r"answer\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"darknet": Names(rename(r"(\d+)\.(conv\.|bn\.)(weight|bias|running_mean|running_var)", _ours))}


def classes_of(rows: int) -> tuple[int, ...]:
    """Classes of a file whose convolution of answers has so many rows: five priors a cell."""
    return (rows // 5 - 5,) if rows % 5 == 0 else ()


def check_cfg(config: Config, cfg: str, file: str) -> None:
    """Compare what a cfg says and shapes do not: WeightsError unless its [region] has the network's anchors."""
    for options in [options for kind, options in json.loads(cfg) if kind == "region"]:
        found = tuple(float(number) for number in options.get("anchors", "").split(",") if number)
        if found != tuple(map(float, config.anchors)):
            raise WeightsError(
                f"{file}: the cfg beside it has the anchors {found}, the network {config.anchors}; pass anchors=... to load it"
            )


WEIGHTS: dict[str, Weights] = {
    "416:coco": Weights(
        url="https://pjreddie.com/media/files/yolov2.weights",
        format="darknet",
        license="YOLO licence (public domain)",
        source="PurdueDualityLab/TensorFlowModels: yolo/utils/downloads/file_manager.py",
        prepare=PREPARE,
        digest="d9945162ed6f54ce1a901e3ec537bdba4d572ecae7873087bd730e5a7942df3f",
        labels="coco80",
    )
}
PARAMETERS: dict[str, int] = {"416": 50_962_889, "416-voc": 50_655_389}
