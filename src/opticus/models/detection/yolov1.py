"""You Only Look Once: Unified, Real-Time Object Detection.

Redmon, Divvala, Girshick and Farhadi, CVPR 2016, arXiv 1506.02640 (YOLO).
Reference: pjreddie/darknet (YOLO licence: public domain), cfg/yolov1.cfg and cfg/yolov1-tiny.cfg, src/detection_layer.c.

*Differs*: "448" and "tiny-448" are the networks of the authors' files, which came after the paper: batch norm everywhere; "448" has
a locally connected layer where the paper has a connected one of 4,096, and three boxes a cell where the paper has two.
"448-paper" has the paper's layers and boxes (and the batch norm). Losses are half of equation 3, whose gradients are darknet's; of
two objects with centres in one cell the first is learned (darknet: one at random). The answers start ten times nearer to 0. The norm
is that of darknet's GPU code, and running statistics follow at torch's pace. Of one picture 300 results are kept. "tiny" is a small
network for the demo data.
*Map*: section 2 -> `Answers`, `YOLOv1.results`; section 2.1, figure 3 -> `YOLOv1`; section 2.2, equation 3 -> `criterion`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.layers.darknet import SLOPE, ConvUnit, half_pool
from opticus.losses.boxes import object_count
from opticus.losses.supervised import Supervised, widened
from opticus.matching.cells import Survival, survivors
from opticus.matching.crowds import boxes_crowded
from opticus.matching.detections import in_original, windows
from opticus.matching.objects import truth_of
from opticus.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from opticus.ops.iou import paired_iou
from opticus.structures import (
    Backbone,
    Batch,
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
PREPARE = Prepare(size=(448, 448), antialias=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # sides are not kept in proportion
SURVIVAL = Survival(score=0.001, candidates=5000, overlap=0.5, keep=300)  # `yolo valid` of darknet
FIXED_SIZE = True  # the last layers belong to places
_POOL = (0, 2, 2)
_FOUR = ((256, 1, 1), (512, 3, 1)) * 4
_BODY = (
    *((64, 7, 2), _POOL, (192, 3, 1), _POOL),
    *((128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1), _POOL),
    *(*_FOUR, (512, 1, 1), (1024, 3, 1), _POOL),
    *((512, 1, 1), (1024, 3, 1), (512, 1, 1), (1024, 3, 1), (1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1)),
)
_SMALL = (*(layer for width in (16, 32, 64, 128, 256, 512) for layer in ((width, 3, 1), _POOL)), (1024, 3, 1), (256, 3, 1))


@dataclass(frozen=True)
class Config:
    """`body`: (filters, kernel, stride) of every convolution, 0 filters for a pooling; it leaves `grid` x `grid` cells of `size` pixels.

    With a `backbone`, trained before (section 2.2), the body comes after its last map. Then come a locally connected layer of `local`
    filters or a connected one of `hidden` units (0: neither), dropout if there is one, and the connected layer of the answers:
    `boxes` boxes and confidences and the classes of every cell.
    """

    classes: int = 20
    grid: int = 7
    boxes: int = 3
    body: tuple[tuple[int, int, int], ...] = _BODY
    local: int = 256
    hidden: int = 0
    dropout: float = 0.5
    backbone: Part | None = None
    size: int = 448


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """Of every cell, rows first: `classes` (B,S*S,C), `objects` (B,S*S,N) confidences, `boxes` (B,S*S,N,4).

    A box is its centre in the cell, in cells, and the square roots of its sides as shares of the picture. Nothing is squashed.
    """

    classes: Tensor
    objects: Tensor
    boxes: Tensor


class Local(nn.Module):
    """A 3x3 convolution with a kernel of its own at every place."""

    def __init__(self, inputs: int, filters: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(side * side, filters, 9 * inputs))
        self.bias = nn.Parameter(torch.zeros(filters * side * side))
        nn.init.uniform_(self.weight, -math.sqrt(2 / (9 * inputs)), math.sqrt(2 / (9 * inputs)))

    def forward(self, x: Float[Tensor, "B C S S"]) -> Float[Tensor, "B F S S"]:
        patches = F.unfold(x, 3, padding=1).permute(2, 1, 0)
        places, filters, _ = self.weight.shape
        out = torch.bmm(self.weight, patches).permute(2, 1, 0) + self.bias.view(filters, places)
        return out.unflatten(2, x.shape[2:])


class YOLOv1(nn.Module):
    """Figure 3: convolutions over the picture, then layers that see all of it and answer for every cell at once."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.size)
        self.backbone = backbone
        inputs, side = (3, config.size) if backbone is None else (backbone.widths[-1], -(-config.size // backbone.strides[-1]))
        self.body = nn.ModuleList()
        for filters, size, stride in config.body:
            self.body.append(ConvUnit(inputs, filters, size, stride) if filters else nn.Identity())
            inputs, side = filters or inputs, -(-side // stride)
        _check(config, side)
        self.local = Local(inputs, config.local, side) if config.local else None
        width = (config.local or inputs) * side * side
        self.hidden = nn.Linear(width, config.hidden) if config.hidden else None
        self.dropout = nn.Dropout(config.dropout if config.local or config.hidden else 0.0)
        self.answer = nn.Linear(config.hidden or width, side * side * (config.classes + 5 * config.boxes))
        # of thousands of inputs few concern a cell: at darknet's start the others are noise as large as what is to be learned
        for layer, share in ((self.hidden, 1.0), (self.answer, 0.1)):
            if layer is not None:
                most = share * math.sqrt(2 / layer.in_features)
                nn.init.uniform_(layer.weight, -most, most)
                nn.init.zeros_(layer.bias)

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Answers:
        config = self.config
        if tuple(pixels.shape[-2:]) != (config.size, config.size):
            height, width = pixels.shape[-2:]
            raise UsageError(f"yolov1: the connected layers are for {config.size}x{config.size}, found {height}x{width}")
        x = pixels.contiguous(memory_format=torch.channels_last)
        x = x if self.backbone is None else self.backbone.features(x)[-1]
        for layer in self.body:
            x = layer(x) if isinstance(layer, ConvUnit) else half_pool(x)
        if self.local is not None:
            x = F.leaky_relu(self.local(x), SLOPE)
        x = x.flatten(1)
        if self.hidden is not None:
            x = F.leaky_relu(self.hidden(x), SLOPE)
        cells = config.grid**2
        sizes = [cells * config.classes, cells * config.boxes, cells * config.boxes * 4]
        classes, objects, boxes = self.answer(self.dropout(x)).split(sizes, 1)
        return Answers(
            classes.reshape(-1, cells, config.classes),
            objects.reshape(-1, cells, config.boxes),
            boxes.reshape(-1, cells, config.boxes, 4),
        )

    def corners(self, like: Tensor) -> Float[Tensor, "S2 1 2"]:
        """Column and row of every cell."""
        count = torch.arange(self.config.grid, device=like.device, dtype=like.dtype)
        rows, columns = torch.meshgrid(count, count, indexing="ij")
        return torch.stack([columns, rows], -1).reshape(-1, 1, 2)

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Section 2: confidence times class probability above 0.001, suppressed per class at IoU 0.5, best first."""
        answers = Answers(*(part.detach() for part in widened(out)))
        size = answers.boxes.new_tensor([self.config.size] * 2)
        centre = (answers.boxes[..., :2] + self.corners(answers.boxes)) / self.config.grid * size
        boxes = cxcywh_to_xyxy(torch.cat([centre, answers.boxes[..., 2:].square() * size], -1)).flatten(1, 2)
        scores = (answers.objects[..., None] * answers.classes[:, :, None]).flatten(1, 2)
        found: list[Result] = []
        for i, window in enumerate(windows(images, boxes)):
            found.append(in_original(*survivors(boxes[i], scores[i], window, SURVIVAL), images, i))
        return found


def _prepare(size: int) -> Prepare:
    """darknet's stretched square; small pictures are fitted into a frame instead, as the recipe of "tiny" shows them in training."""
    rule = replace(PREPARE, size=(size, size))
    return replace(rule, resize="letterbox", fill=128) if size <= 128 else rule


def _check(config: Config, side: int) -> None:
    if side != config.grid:
        raise UsageError(f"yolov1: the body leaves {side}x{side} cells of {config.size} pixels, expected a grid of {config.grid}")
    if config.boxes < 1 or (config.local and config.hidden):
        raise UsageError(
            f"yolov1: expected boxes of at least 1 and one of local and hidden, found boxes={config.boxes}, local={config.local}, "
            f"hidden={config.hidden}"
        )


NETWORK = YOLOv1
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: YOLOv1, *, coord_weight: float = 5.0, noobj_weight: float = 0.5
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Half of equation 3, summed over a picture's cells, averaged over pictures.

    Of the cell that holds an object's centre the box that overlaps it most (none does: the nearest) learns it, and as confidence
    the IoU that it has now; all other confidences learn 0 unless their box lies in a crowd, and the cell's classes learn its own.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("YOLO is trained on images, found a batch without")
        weights = out.boxes.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.boxes)
        sums: list[Tensor] = []
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, out.boxes)):
            cells, wanted, labels = _first_of_cell(network, truth.boxes, truth.labels)
            answers = out.boxes[i, cells]
            best, overlap = _responsible(answers.detach(), wanted, network.config.grid)
            known = torch.arange(len(cells), device=cells.device)
            box = answers[known, best] - torch.cat([wanted[:, :2], wanted[:, 2:].sqrt()], 1)
            objects = out.objects[i]
            background = (~_in_crowds(network, out.boxes[i].detach(), truth.ignored)).to(objects)
            background[cells, best] = 0
            confidence = objects[cells, best] - overlap
            classes = out.classes[i, cells] - F.one_hot(labels, network.config.classes).to(out.classes)
            noobj = noobj_weight * (objects.square() * background).sum()
            parts = (coord_weight * box.square().sum(), confidence.square().sum() + noobj, classes.square().sum())
            sums.append(torch.stack(parts) / 2)
        box, objects, classes = (torch.stack(sums) * weights[:, None]).sum(0) / object_count(len(batch), out.boxes)
        return {"box": box, "object": objects, "class": classes}

    return terms


def _first_of_cell(network: YOLOv1, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the cells with an object, rising: the cell, its first object as (x, y in cells of its own, width, height as shares), its label."""
    grid = network.config.grid
    shares = xyxy_to_cxcywh(boxes) / network.config.size
    centre = shares[:, :2] * grid
    corner = centre.floor().clamp(0, grid - 1)
    cell = (corner[:, 1] * grid + corner[:, 0]).long()
    order = torch.arange(len(cell), device=cell.device)
    first = torch.full((grid * grid,), len(cell), dtype=torch.int64, device=cell.device).scatter_reduce(0, cell, order, "amin")
    cells = (first < len(cell)).nonzero()[:, 0]
    chosen = first[cells]
    return cells, torch.cat([(centre - corner)[chosen].clamp(0, 1), shares[chosen, 2:]], 1), labels[chosen]


def _in_crowds(network: YOLOv1, answers: Float[Tensor, "G N 4"], regions: Float[Tensor, "M 4"]) -> Bool[Tensor, "G N"]:
    """Which boxes of all cells lie in a crowd."""
    if len(regions) == 0:
        return torch.zeros(answers.shape[:2], dtype=torch.bool, device=answers.device)
    centres = (answers[..., :2] + network.corners(answers)) / network.config.grid
    shares = torch.cat([centres, answers[..., 2:].square()], -1)
    return boxes_crowded(cxcywh_to_xyxy(shares).flatten(0, 1) * network.config.size, regions).view(answers.shape[:2])


def _responsible(answers: Float[Tensor, "M N 4"], wanted: Float[Tensor, "M 4"], grid: int) -> tuple[Tensor, Tensor]:
    """Of every cell's boxes the one of greatest IoU with the object, or the nearest if none overlaps; and that IoU."""
    found = torch.cat([answers[..., :2] / grid, answers[..., 2:].square()], -1)
    truth = torch.cat([wanted[:, :2] / grid, wanted[:, 2:]], -1)[:, None]
    overlap = paired_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(truth))
    distance = (found - truth).square().sum(-1)
    best = torch.where(overlap.amax(1) > 0, overlap.argmax(1), distance.argmin(1))
    return best, overlap.gather(1, best[:, None])[:, 0]


def objective(network: YOLOv1, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: coord_weight, noobj_weight."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        grid=8,
        boxes=2,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        body=((128, 3, 1), (32, 1, 1)),
        local=0,
        size=128,
    ),
    "448": Config(),
    "448-paper": Config(boxes=2, local=0, hidden=4096),
    "tiny-448": Config(boxes=2, body=_SMALL, local=0),
}


def _connected(found: re.Match[str]) -> str:
    """Layer 28 of yolov1.cfg stands before the dropout; the other connected layer, wherever it is, answers."""
    return f"hidden.{found[2]}" if found[1] == "28" else f"answer.{found[2]}"


HEAD = r"answer\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "darknet": Names(
        rename(r"(\d+)\.(conv|bn)\.(weight|bias|running_mean|running_var)", r"body.\1.\2.\3"),
        rename(r"28\.local\.(weight|bias)", r"local.\1"),
        rename(r"(\d+)\.connected\.(weight|bias)", _connected),
    )
}


def check_cfg(config: Config, cfg: str, file: str) -> None:
    """Compare what a cfg says and shapes do not: WeightsError unless its [detection] has the network's boxes and square roots."""
    for options in [options for kind, options in json.loads(cfg) if kind == "detection"]:
        found = tuple(options.get(key, "") for key in ("side", "num", "classes", "sqrt", "softmax"))
        wanted = (str(config.grid), str(config.boxes), str(config.classes), "1", "0")
        if found != wanted:
            raise WeightsError(f"{file}: the cfg beside it has side, num, classes, sqrt, softmax = {found}, the network {wanted}")


WEIGHTS: dict[str, Weights] = {
    "448:voc": Weights(
        url="https://pjreddie.com/media/files/yolov1/yolov1.weights",
        format="darknet",
        license="YOLO licence (public domain)",
        source="anivegesana/yolo-v1-v2: yolo/utils/file_manager.py",
        prepare=PREPARE,
        labels="voc20",
    )
}
PARAMETERS: dict[str, int] = {"448": 197_301_875, "448-paper": 271_716_734, "tiny-448": 27_095_374}
