"""EfficientDet: Scalable and Efficient Object Detection.

Tan, Pang and Le, CVPR 2020, arXiv 1911.09070.
Reference: effdet 0.4 (Apache-2.0), whose `tf_` files are the authors' own weights.

*Differs*: losses are divided by the positive anchors (effdet and the authors: by one more); an anchor that is the best one of an object
but overlaps another one more stands for that other; a picture lies in the middle of its square, on grey (effdet: at the top left, on
the mean colour); decoded sides are cut at 62.5 anchors; "torch_d0" and "torch_d1" are effdet's own training, without TensorFlow's
padding, their batch norms with torch's momentum (effdet: TensorFlow's); "tiny" is a small configuration for the demo data.
*Map*: figure 2d and section 3.3 "Fast normalized fusion" -> `Node`, `wiring`; figure 3 -> `EfficientDet`, `Head`; table 1 and
eq. 1-3 -> `VARIANTS`; section 5.1 -> `criterion`, `EfficientDet.anchors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.focal import sigmoid_focal
from opticus.losses.supervised import Supervised, widened
from opticus.matching.anchors import IGNORED, grid_anchors, ignore_inside, max_iou
from opticus.matching.detections import in_original, level_sizes, pyramid_maps, suppressed, windows
from opticus.matching.objects import truth_of
from opticus.models.detection.efficientdet_weights import FORMATS as FORMATS
from opticus.models.detection.efficientdet_weights import WEIGHTS as WEIGHTS
from opticus.models.detection.efficientdet_weights import prepare_for
from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.ops.iou import iou
from opticus.structures import Backbone, Batch, DataError, Images, Part, Result, Task, UsageError

TASK: Task = "detect"
PREPARE = prepare_for(512)
PRIOR = 0.01  # what every anchor says of every class at the start
CANDIDATES, OVERLAP = 5000, 0.5  # answers of a picture that are suppressed, and the IoU of two results of one class
EPSILON = 1e-4  # of the fusion's denominator
EPS = 1e-3  # of all batch norms
MOMENTUM = {"tensorflow": 0.01, "torch": 0.1}
ORDER = [1, 0, 3, 2]  # published files regress y before x
_B0 = Part("efficientnet/tf_b0", classes=0, top=0)
Layout = Literal["tensorflow", "torch"]


@dataclass(frozen=True)
class Config:
    """`width`, `cells` are those of the BiFPN, `depth` the convolutions of a head, `finest` the stride of the first of `levels`.

    Anchors of a level are `scale` strides long and up to twice that, `ratios` are (width, height) of a square one. `fusion` is fast
    normalised or a plain sum (D6, D7). `layout` "tensorflow" pools with TensorFlow's padding and has biases before batch norms.
    """

    classes: int = 90
    backbone: Part = _B0
    finest: int = 8
    width: int = 64
    cells: int = 3
    depth: int = 3
    levels: int = 5
    scale: float = 4.0
    ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    fusion: Literal["fast", "sum"] = "fast"
    layout: Layout = "tensorflow"
    side: int = 512


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One answer per anchor, levels fine to coarse, then rows, columns, anchors of a cell.

    `logits` (B,N,K); `deltas` (B,N,4) of centre y, centre x, height, width, in this order.
    """

    logits: Tensor
    deltas: Tensor


def _norm(config: Config) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(config.width, eps=EPS, momentum=MOMENTUM[config.layout])


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 one that mixes channels."""

    def __init__(self, width_in: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width_in, width_in, 3, 1, 1, groups=width_in, bias=False)
        self.pointwise = nn.Conv2d(width_in, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Project(nn.Module):
    """A map brought to the pyramid's width: a 1x1 convolution and batch norm."""

    def __init__(self, config: Config, width_in: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, config.width, 1, bias=config.layout == "tensorflow")
        self.norm = _norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def resized(x: Float[Tensor, "B C h w"], size: Sequence[int], layout: Layout) -> Tensor:
    """A map doubled to `size` by nearest neighbours, or halved to it by 3x3 max pooling at stride 2."""
    h, w = x.shape[-2:]
    if (h, w) == tuple(size):
        return x
    if h < size[0] or w < size[1]:
        return F.interpolate(x, size=tuple(size), mode="nearest")
    if layout == "torch":
        return F.max_pool2d(x, 3, 2, 1)
    return F.max_pool2d(x, 3, 2, (h % 2, w % 2), ceil_mode=True)  # "same": the odd cell of padding is at the right and bottom


def wiring(levels: int) -> list[tuple[int, tuple[int, ...]]]:
    """Figure 2d: the level of each of a cell's nodes and what it fuses, numbers of maps: the cell's inputs, then the nodes before it.

    Down from the second coarsest level each node takes its input and the node above; up again also the node of the way down.
    """
    ids = [[level] for level in range(levels)]
    nodes: list[tuple[int, tuple[int, ...]]] = []
    ways = [(level, level + 1) for level in reversed(range(levels - 1))], [(level, level - 1) for level in range(1, levels)]
    for up, way in enumerate(ways):
        for level, other in way:
            own = ids[level] if up else ids[level][-1:]
            nodes.append((level, (*own, ids[other][-1])))
            ids[level].append(levels + len(nodes) - 1)
    return nodes


class Node(nn.Module):
    """Section 3.3: O = sum of w_i I_i / (eps + sum of w_j) with w >= 0 by ReLU, then SiLU, a separable convolution, batch norm."""

    def __init__(self, config: Config, level: int, inputs: tuple[int, ...], widths: Sequence[int]) -> None:
        super().__init__()
        bias = config.layout == "tensorflow"
        self.level, self.inputs = level, inputs
        self.layout: Layout = config.layout
        self.project = nn.ModuleDict({str(i): Project(config, widths[i]) for i in inputs if widths[i] != config.width})
        self.weights = nn.Parameter(torch.ones(len(inputs))) if config.fusion == "fast" else None
        self.conv = Separable(config.width, config.width, bias=bias)
        self.norm = _norm(config)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[self.level].shape[-2:]
        taken: list[Tensor] = []
        for i in self.inputs:
            x = self.project[str(i)](maps[i]) if str(i) in self.project else maps[i]
            taken.append(resized(x, size, self.layout))
        if self.weights is None:
            fused = torch.stack(taken).sum(0)
        else:
            weights = self.weights.relu()
            share = weights / (weights.sum() + EPSILON)
            fused = taken[0] * share[0]
            for i in range(1, len(taken)):
                fused = fused + taken[i] * share[i]
        return self.norm(self.conv(F.silu(fused)))


class Head(nn.Module):
    """Figure 3: `depth` separable convolutions that every level shares, each followed by a batch norm of the level's own and SiLU."""

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.outputs = outputs
        self.convs = nn.ModuleList(Separable(width, width, bias=config.layout == "tensorflow") for _ in range(config.depth))
        self.norms = nn.ModuleList(nn.ModuleList(_norm(config) for _ in range(config.levels)) for _ in range(config.depth))
        self.answer = Separable(width, 3 * len(config.ratios) * outputs, bias=True)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "B N O"]:
        found: list[Tensor] = []
        for level, x in enumerate(levels):
            for i, conv in enumerate(self.convs):
                norms = self.norms[i]
                assert isinstance(norms, nn.ModuleList)
                x = F.silu(norms[level](conv(x)))
            found.append(self.answer(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.outputs))
        return torch.cat(found, 1)


class EfficientDet(nn.Module):
    """Figure 3: a backbone's maps and further ones by pooling, BiFPN cells that fuse them again and again, two heads."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.prepare = prepare_for(config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "efficientdet")[: config.levels]
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        widths = [backbone.widths[i] for i in self.maps]
        self.further = config.levels - len(widths)
        if config.levels < 2:
            raise UsageError(f"efficientdet: expected at least two levels, found {config.levels}")
        changes = self.further > 0 and widths[-1] != config.width
        self.coarser = Project(config, widths[-1]) if changes else None
        widths += [config.width] * self.further
        self.cells = nn.ModuleList()
        for cell in range(config.cells):
            plan = wiring(config.levels)
            known = [*(widths if cell == 0 else [config.width] * config.levels), *[config.width] * len(plan)]
            self.cells.append(nn.ModuleList(Node(config, level, inputs, known) for level, inputs in plan))
        self.class_net = Head(config, config.classes)
        self.box_net = Head(config, 4)
        _initialise(self)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = [every[i] for i in self.maps]
        for i in range(self.further):
            x = maps[-1] if i or self.coarser is None else self.coarser(maps[-1])
            maps.append(resized(x, [-(-n // 2) for n in x.shape[-2:]], self.config.layout))
        for cell in self.cells:
            assert isinstance(cell, nn.ModuleList)
            for node in cell:
                maps.append(node(maps))
            maps = maps[-self.config.levels :]
        return Answers(self.class_net(maps), self.box_net(maps))

    def anchors(self, size: tuple[int, int], like: Tensor) -> Float[Tensor, "N 4"]:
        """Every level's anchors for inputs of `size` (H, W), in the order of the answers, xyxy pixels: sizes outer, ratios inner."""
        config = self.config
        found: list[Tensor] = []
        for h, w in level_sizes(size, self.strides, self.further):
            stride = (size[0] / h, size[1] / w)
            sides = [
                (config.scale * 2 ** (step / 3) * stride[1] * x, config.scale * 2 ** (step / 3) * stride[0] * y)
                for step in range(3)
                for x, y in config.ratios
            ]
            half = like.new_tensor(sides) / 2
            found.append(grid_anchors(torch.cat([-half, half], 1), (h, w), stride, 0.5))
        return torch.cat(found)

    def results(self, out: Answers, images: Images) -> list[Result]:
        """The 5,000 best answers of all anchors and classes, decoded, suppressed per class at IoU 0.5, the best 100."""
        logits, deltas = (part.detach() for part in widened(out))
        height, width = images.pixels.shape[-2:]
        anchors = self.anchors((height, width), deltas)
        classes = logits.shape[-1]
        found: list[Result] = []
        for i, window in enumerate(windows(images, deltas)):
            best, places = logits[i].flatten().topk(min(CANDIDATES, logits[i].numel()))
            chosen = places // classes
            boxes = decode_boxes(deltas[i, chosen][:, ORDER], anchors[chosen])
            kept = suppressed(boxes, places % classes, best.sigmoid(), window, overlap=OVERLAP, count=100)
            found.append(in_original(*kept, images, i))
        return found


def _initialise(network: EfficientDet) -> None:
    """As the authors: Glorot's uniform in the pyramid, normal by fan-in in the heads; a depthwise kernel's fans count one channel."""
    for part in (network.coarser, network.cells):
        for module in () if part is None else part.modules():
            if isinstance(module, nn.Conv2d):
                taps = module.weight[0, 0].numel()
                fans = taps if module.groups > 1 else taps * (module.in_channels + module.out_channels) / 2
                nn.init.uniform_(module.weight, -math.sqrt(3 / fans), math.sqrt(3 / fans))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    for head in (network.class_net, network.box_net):
        for module in head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    nn.init.constant_(network.class_net.answer.pointwise.get_parameter("bias"), -math.log((1 - PRIOR) / PRIOR))


NETWORK = EfficientDet
OVERFIT = {"samples": 3, "lr": 3e-3}  # the third scene has an object of the coarsest level


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    network: EfficientDet,
    *,
    box_weight: float = 50.0,
    alpha: float = 0.25,
    gamma: float = 1.5,
    delta: float = 0.1,
    positive: float = 0.5,
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Section 5.1: focal loss of all anchors and Huber's loss (linear from `delta` on) of the positive ones' deltas, mean of the
    four, both per positive anchor; an anchor is positive from IoU `positive` with an object, or as its best one; others
    inside a crowd are ignored.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("EfficientDet is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        anchors = network.anchors((height, width), out.deltas)
        weights = out.deltas.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.deltas)
        focal: list[Tensor] = []
        boxes: list[Tensor] = []
        count = 0
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, anchors)):
            wanted = truth.boxes
            matches = ignore_inside(max_iou(iou(wanted, anchors), positive, positive), anchors, truth.ignored)
            places = (matches >= 0).nonzero()[:, 0]
            objects = matches[places]
            classes = torch.zeros_like(out.logits[i])
            classes[places, truth.labels.to(anchors.device)[objects]] = 1
            each = sigmoid_focal(out.logits[i], classes, alpha=alpha, gamma=gamma)
            focal.append((each * (matches != IGNORED)[:, None]).sum())
            goals = encode_boxes(wanted[objects], anchors[places])[:, ORDER]
            boxes.append(F.huber_loss(out.deltas[i, places], goals, delta=delta, reduction="sum") / 4)
            count += len(places)
        positives = object_count(count, out.deltas)
        return {
            "class": (torch.stack(focal) * weights).sum() / positives,
            "box": box_weight * (torch.stack(boxes) * weights).sum() / positives,
        }

    return terms


def objective(network: EfficientDet, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: box_weight, alpha, gamma, delta, positive."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------


def _scaled(backbone: str, side: int, width: int, cells: int, depth: int) -> Config:
    return Config(backbone=Part(f"efficientnet/{backbone}", classes=0, top=0), side=side, width=width, cells=cells, depth=depth)


_D6 = replace(_scaled("tf_b6", 1280, 384, 8, 5), fusion="sum")
VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        width=64,
        cells=2,
        depth=2,
        levels=3,
        scale=2.3,
        ratios=((1.1, 0.9), (0.9, 1.1), (0.75, 1.35)),
        layout="torch",
        side=128,
    ),
    "d0": _scaled("tf_b0", 512, 64, 3, 3),
    "d1": _scaled("tf_b1", 640, 88, 4, 3),
    "d2": _scaled("tf_b2", 768, 112, 5, 3),
    "d3": _scaled("tf_b3", 896, 160, 6, 4),
    "d4": _scaled("tf_b4", 1024, 224, 7, 4),
    "d5": _scaled("tf_b5", 1280, 288, 7, 4),
    "d6": _D6,
    "d7": replace(_D6, side=1536, scale=5.0),
    "d7x": replace(_D6, backbone=Part("efficientnet/tf_b7", classes=0, top=0), side=1536, levels=6),
    "torch_d0": replace(_scaled("b0", 512, 64, 3, 3), layout="torch"),
    "torch_d1": replace(_scaled("b1", 640, 88, 4, 3), layout="torch"),
}
HEAD = r"class_net\.answer\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
PARAMETERS: dict[str, int] = {  # of effdet's networks; its README and table 1 round them to 3.88, 6.63, ... million
    "d0": 3_880_067,
    "d1": 6_625_898,
    "d2": 8_097_039,
    "d3": 12_032_296,
    "d4": 20_723_675,
    "d5": 33_653_315,
    "d6": 51_871_782,
    "d7": 51_871_782,
    "d7x": 77_147_166,
    "torch_d0": 3_877_763,
    "torch_d1": 6_622_026,
}
