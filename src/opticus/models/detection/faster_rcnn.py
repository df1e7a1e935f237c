"""Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.

Ren, He, Girshick and Sun, NeurIPS 2015, arXiv 1506.01497 (Faster R-CNN), over the pyramid of Lin et al. 2017, 1612.03144 (FPN).
Reference: torchvision 0.28 (BSD-3-Clause), fasterrcnn_resnet50_fpn and its v2 with the head and norms of Li et al. 2021, 2111.11429;
facebookresearch/detectron2 (Apache-2.0), faster_rcnn_R_50_FPN. What these implementations do differently is in `RULES`.

*Differs*: RoIAlign (1703.06870) instead of RoI pooling and boxes per class, as in the published files; losses are divided by the
sampled anchors and regions of all pictures, and background inside a crowd is not sampled; boxes wholly in the padding are left out;
Detectron2's variants keep 2,000 proposals in training, not 1,000, and none with a side under 1e-3 pixels; "tiny" is a small
configuration for the demo data.
*Map*: section 3.1 -> `ProposalNetwork`, `matching.proposals.propose`, 3.1.1 "Anchors" -> `FasterRCNN.anchors`, 3.1.2 eq. 1 ->
`Losses`, `losses.regions`; FPN eq. 1 -> `pooled`; Fast R-CNN (1504.08083) section 2 -> `BoxHead`, 2.3 -> `matching.proposals.sampled`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.layers.fpn import FPN
from opticus.losses.regions import anchor_losses, learned_from, region_losses
from opticus.losses.supervised import Supervised
from opticus.matching.detections import pyramid_maps, windows
from opticus.matching.proposals import Layout, cornered_anchors, detected, exact_anchors, propose, pyramid_anchors, sampled
from opticus.ops.boxes import decode_boxes
from opticus.ops.roi import roi_align
from opticus.structures import Backbone, Batch, Images, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="scaled", size=(800, 1333), antialias=False, stride=32)
CAFFE = Prepare(  # Detectron2's: the pixels of the Caffe models that its backbones were trained as
    resize="rounded", size=(800, 1333), scale=1.0, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), order="bgr", stride=32
)
_R50 = Part("resnet/50", classes=0, norm="frozen", norm_eps=0.0)
CODER = (10.0, 10.0, 5.0, 5.0)  # weights of a region's box deltas; an anchor's have none
BINS, OCTAVE = 7, 14.0  # of a pooled region; a region of this many strides a side is pooled from that stride (FPN eq. 1: 224 / 16)


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; `finest` is the stride of the first level, whose anchors are `scale` strides long.

    `proposals` are kept a level and in all, in training and in use; `samples` are the anchors and regions learned from a picture;
    `rules` names the implementation that is followed, a key of `RULES`.
    """

    classes: int = 90
    backbone: Part = _R50
    width: int = 256
    hidden: int = 1024
    finest: int = 4
    scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 800
    proposals: tuple[int, int] = (2000, 1000)
    samples: tuple[int, int] = (256, 512)
    detections: int = 100
    rules: Literal["torchvision", "torchvision-v2", "detectron2"] = "torchvision"


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """Per anchor: `objectness` (B,N) logits and `shifts` (B,N,4). `proposals` (R,4) xyxy input pixels of the `pictures` (R,).

    Of the proposals in use: `logits` (R,K+1), background first, and `deltas` (R,K+1,4); in training, where only sampled regions are
    looked at, both are empty (0 regions). `maps` are the pyramid's maps, which the heads look at.
    """

    objectness: Tensor
    shifts: Tensor
    proposals: Tensor
    pictures: Tensor
    logits: Tensor
    deltas: Tensor
    maps: tuple[Tensor, ...]


class ProposalNetwork(nn.Module):
    """Section 3.1: 3x3 convolutions that visit every level, and per anchor "is there an object?" and a shift of its box."""

    def __init__(self, width: int, anchors: int, depth: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        widths = [width, *[hidden or width] * depth]
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, 1, 1) for pair in itertools.pairwise(widths))
        self.cls_logits = nn.Conv2d(widths[-1], anchors, 1)
        self.bbox_pred = nn.Conv2d(widths[-1], 4 * anchors, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 4"]]:
        hidden = list(maps)
        for conv in self.convs:
            hidden = [F.relu(conv(x)) for x in hidden]
        objectness = [self.cls_logits(x).permute(0, 2, 3, 1).flatten(1) for x in hidden]
        shifts = [self.bbox_pred(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in hidden]
        return torch.cat(objectness, 1), torch.cat(shifts, 1)


class BoxHead(nn.Module):
    """Two hidden layers on a pooled region, then a score for every class and the background, and `boxes` boxes (Fast R-CNN, figure 1)."""

    def __init__(self, width: int, hidden: int, classes: int, boxes: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(width * BINS**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.cls_score = nn.Linear(hidden, classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 * boxes)

    def forward(self, x: Float[Tensor, "R C h w"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R boxes 4"]]:
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class ConvHead(nn.Module):
    """Four normalised 3x3 convolutions and one hidden layer in place of two hidden layers (Li et al. 2021)."""

    def __init__(self, width: int, hidden: int, classes: int, boxes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_conv_norm(width) for _ in range(4)))
        self.fc6 = nn.Linear(width * BINS**2, hidden)
        self.cls_score = nn.Linear(hidden, classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 * boxes)

    def forward(self, x: Float[Tensor, "R C h w"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R boxes 4"]]:
        x = F.relu(self.fc6(self.convs(x).flatten(1)))
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


def _conv_norm(width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def normed_fpn(widths: Sequence[int], width: int) -> FPN:
    """A pyramid whose convolutions are followed by batch norm and have no bias (Li et al. 2021)."""
    fpn = FPN(widths, width)
    for convs, kernel in ((fpn.inner, 1), (fpn.outer, 3)):
        for i, conv in enumerate(convs):
            bare = nn.Conv2d(widths[i] if kernel == 1 else width, width, kernel, padding=kernel // 2, bias=False)
            bare.weight = conv.get_parameter("weight")  # initialised as the pyramid's
            convs[i] = nn.Sequential(bare, nn.BatchNorm2d(width))
    return fpn


class FasterRCNN(nn.Module):
    """A backbone under a feature pyramid, a proposal network on every level, and a head on each proposal (figure 2)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.rules = config, RULES[config.rules]
        self.prepare = prepare_of(self.rules.prepare, config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "faster_rcnn")
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        self.fpn = self.rules.pyramid([backbone.widths[i] for i in self.maps], config.width)
        self.rpn = ProposalNetwork(config.width, len(config.ratios), self.rules.depth)
        self.head = self.rules.head(config.width, config.hidden, config.classes, config.classes + self.rules.idle)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = self.fpn([every[i] for i in self.maps])
        objectness, shifts = self.rpn([*maps, F.max_pool2d(maps[-1], 1, 2)])
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        frames = windows(Images(pixels, valid, pixels.new_zeros(0), ()), shifts)
        keep = self.config.proposals[0 if self.training else 1]
        proposals, pictures = propose(objectness, shifts, self.anchors(size, shifts), frames, among=keep, keep=keep)
        looked = slice(0) if self.training else slice(None)
        return Answers(
            objectness, shifts, proposals, pictures, *self.regions(maps, proposals[looked], pictures[looked]), tuple(maps)
        )

    def anchors(self, size: tuple[int, int], like: Tensor) -> list[Float[Tensor, "N 4"]]:
        """Every level's anchors for inputs of `size` (H, W), xyxy pixels, as `rules` lay them out."""
        return pyramid_anchors(self.rules.anchors, size, self.strides, self.config.scale, self.config.ratios, like)

    def regions(self, maps: Sequence[Tensor], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]) -> tuple[Tensor, Tensor]:
        """Class logits (R, K+1) and box deltas (R, K+idle, 4) of regions of the pictures that the pyramid's `maps` belong to."""
        rules = self.rules
        return self.head(pooled(maps, boxes, pictures, self.strides, samples=rules.samples, aligned=rules.aligned))

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Every class's boxes of the proposals that reach 0.05, suppressed per class at IoU 0.5, best first."""
        probs = out.logits.detach().softmax(-1)[:, 1:]
        deltas = out.deltas.detach()[:, self.rules.idle :]
        boxes = decode_boxes(deltas, out.proposals[:, None].expand_as(deltas), CODER)
        return detected(probs, boxes, out.pictures, images, self.config.detections)


# --- regions -----------------------------------------------------------------------------------------------


def pooled(
    maps: Sequence[Tensor], boxes: Tensor, pictures: Tensor, strides: Sequence[int], *, samples: int = 2, aligned: bool = False
) -> Float[Tensor, "R C 7 7"]:
    """FPN eq. 1: each region pooled from the level whose stride is a fourteenth of the region's side, rounded down to a level."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    level = torch.floor(torch.log2(sides / (OCTAVE * strides[0])) + 1e-6).clamp(0, len(strides) - 1)
    out = maps[0].new_zeros(len(boxes), maps[0].shape[1], BINS, BINS)
    for i, (x, stride) in enumerate(zip(maps, strides)):
        own = (level == i).nonzero()[:, 0]
        part = roi_align(x, boxes[own], pictures[own], (BINS, BINS), scale=1 / stride, samples=samples, aligned=aligned)
        out = out.index_copy(0, own, part.to(out.dtype))
    return out


def prepare_of(rule: Prepare, side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return replace(rule, size=(side, side * 1333 // 800))


class Rules(NamedTuple):
    """What implementations of the same equations do differently.

    `samples` a bin and axis and `aligned` are RoIAlign's; `idle` boxes of a region, the first ones, belong to no class (torchvision
    has one for the background); below `smooth` the box loss is quadratic; `depth` convolutions lead the proposal network.
    """

    anchors: Layout
    samples: int
    aligned: bool
    idle: int
    smooth: float
    prepare: Prepare
    pyramid: Callable[[Sequence[int], int], FPN] = FPN
    head: Callable[[int, int, int, int], nn.Module] = BoxHead
    depth: int = 1


RULES: dict[str, Rules] = {
    "torchvision": Rules(cornered_anchors, 2, False, 1, 1 / 9, PREPARE),
    "torchvision-v2": Rules(cornered_anchors, 2, False, 1, 1 / 9, PREPARE, normed_fpn, ConvHead, 2),
    "detectron2": Rules(exact_anchors, 0, True, 0, 0.0, CAFFE),
}

NETWORK = FasterRCNN
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


class TwoStage(Protocol):
    """What the losses ask of a network: Faster R-CNN, or one that makes and looks at its regions in another way."""

    config: Any
    rules: Rules

    def anchors(self, size: tuple[int, int], like: Tensor) -> list[Tensor]: ...

    def regions(self, maps: Sequence[Tensor], boxes: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]: ...


class Losses:
    """Eq. 1 twice: objectness and shifts of sampled anchors, then class and box of sampled regions; the four weigh the same."""

    def __init__(self, network: TwoStage) -> None:
        self.network = network

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        network, config = self.network, self.network.config
        size, truth, weights = learned_from(batch, out.shifts, config.classes)
        smooth, (anchors, regions) = network.rules.smooth, config.samples
        first = anchor_losses(out.objectness, out.shifts, network.anchors(size, out.shifts), truth, weights, anchors, smooth)
        among = sampled(out.proposals, out.pictures, truth, regions)
        logits, deltas = network.regions(out.maps, among.boxes, among.pictures)
        own = (among.labels - 1 + network.rules.idle).clamp(min=0)
        moves = deltas[torch.arange(len(own), device=own.device), own]
        return first | region_losses(logits.to(out.shifts), moves.to(out.shifts), among, weights, CODER, smooth)


def objective(network: FasterRCNN) -> Supervised:
    """Targets are boxes in network-input pixels."""
    return Supervised(network, Losses(network))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        width=64,
        hidden=256,
        scale=4.0,
        ratios=(1.0, 1.6, 2.2),
        side=128,
        proposals=(100, 100),
        samples=(64, 32),
    ),
    "r50": Config(),
    "r50-v2": Config(backbone=Part("resnet/50", classes=0), rules="torchvision-v2"),
    "r50-d2": Config(classes=80, backbone=Part("resnet/50", classes=0, norm="frozen", block="original"), rules="detectron2"),
    "r101-d2": Config(classes=80, backbone=Part("resnet/101", classes=0, norm="frozen", block="original"), rules="detectron2"),
}

HEAD = r"head\.(cls_score|bbox_pred)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_V2 = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"


def of_block(match: re.Match[str]) -> str:
    """backbone.bottom_up.res2.0.conv1.norm.weight -> backbone.layer1.0.bn1.weight"""
    return f"backbone.layer{int(match[1]) - 1}.{match[2]}.{of_layer(match[3], match[4])}.{match[5]}"


def of_layer(layer: str, norm: str | None) -> str:
    """Detectron2's conv1 -> conv1, conv1.norm -> bn1, shortcut -> downsample.0, shortcut.norm -> downsample.1."""
    if layer == "shortcut":
        return f"downsample.{0 if norm is None else 1}"
    return layer if norm is None else layer.replace("conv", "bn")


def _of_level(match: re.Match[str]) -> str:
    """backbone.fpn_lateral2 -> fpn.inner.0"""
    return f"fpn.{'inner' if match[1] == 'lateral' else 'outer'}.{int(match[2]) - 2}.{match[3]}"


def last_first(scores: Tensor) -> Tensor:
    """The background, in Detectron2 the last class, becomes the first."""
    return scores.roll(1, 0)


DETECTRON2 = (  # all but the heads on regions
    rename(r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", r"backbone.conv1.weight"),
    rename(r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(\w+)", r"backbone.bn1.\1"),
    rename(r"backbone\.(?:bottom_up\.)?res([2-5])\.(\d+)\.(conv[123]|shortcut)\.(norm\.)?(\w+)", of_block),
    rename(r"backbone\.fpn_(lateral|output)(\d)\.(weight|bias)", _of_level),
    rename(r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    rename(r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rpn.cls_logits.\1"),
    rename(r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rpn.bbox_pred.\1"),
    drop(r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d+"),  # constants that older files carry
)
FORMATS: dict[str, Names] = {
    "torchvision": Names(
        rename(r"backbone\.body\.(.*)", r"backbone.\1"),
        rename(r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.inner.\1.\2"),
        rename(r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.outer.\1.\2"),
        rename(r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn.convs.0.\1"),
        rename(r"rpn\.head\.(cls_logits|bbox_pred)\.(.*)", r"rpn.\1.\2"),
        rename(r"roi_heads\.box_(?:head|predictor)\.(.*)", r"head.\1"),
    ),
    "torchvision-v2": Names(
        rename(r"backbone\.body\.(.*)", r"backbone.\1"),
        rename(rf"backbone\.fpn\.inner_blocks\.(\d+)\.([01])\.({_V2})", r"fpn.inner.\1.\2.\3"),
        rename(rf"backbone\.fpn\.layer_blocks\.(\d+)\.([01])\.({_V2})", r"fpn.outer.\1.\2.\3"),
        rename(r"rpn\.head\.conv\.(\d)\.0\.(weight|bias)", r"rpn.convs.\1.\2"),
        rename(r"rpn\.head\.(cls_logits|bbox_pred)\.(.*)", r"rpn.\1.\2"),
        rename(rf"roi_heads\.box_head\.([0-3])\.([01])\.({_V2})", r"head.convs.\1.\2.\3"),
        rename(r"roi_heads\.box_head\.5\.(weight|bias)", r"head.fc6.\1"),
        rename(r"roi_heads\.box_predictor\.(.*)", r"head.\1"),
    ),
    "detectron2": Names(
        *DETECTRON2,
        rename(r"roi_heads\.box_head\.fc1\.(weight|bias)", r"head.fc6.\1"),
        rename(r"roi_heads\.box_head\.fc2\.(weight|bias)", r"head.fc7.\1"),
        rename(r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"head.cls_score.\1", last_first),
        rename(r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"head.bbox_pred.\1"),
    ),
}


def zoo_row(config: str, file: str, ap: float, prepare: Prepare = CAFFE) -> Weights:
    """A row of Detectron2's model zoo: the name of its configuration, the file's place below it, COCO val2017 box AP."""
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/detectron2/{config}/{file}.pkl",
        format="detectron2",
        license="CC-BY-SA-3.0",
        source="facebookresearch/detectron2: MODEL_ZOO.md",
        prepare=prepare,
        labels="coco80",
        reports={"AP": ap},
    )


WEIGHTS: dict[str, Weights] = {
    "r50:coco": Weights(
        url="https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.28: models/detection/faster_rcnn.py",
        prepare=PREPARE,
        digest="258fb6c6",
        labels="coco90",
        reports={"AP": 37.0},
    ),
    "r50-v2:coco": Weights(
        url="https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        format="torchvision-v2",
        license="BSD-3-Clause",
        source="torchvision 0.28: models/detection/faster_rcnn.py",
        prepare=PREPARE,
        digest="dd69338a",
        labels="coco90",
        reports={"AP": 46.7},
    ),
    "r50-d2:coco-1x": zoo_row("COCO-Detection/faster_rcnn_R_50_FPN_1x", "137257794/model_final_b275ba", 37.9),
    "r50-d2:coco": zoo_row("COCO-Detection/faster_rcnn_R_50_FPN_3x", "137849458/model_final_280758", 40.2),
    "r101-d2:coco": zoo_row("COCO-Detection/faster_rcnn_R_101_FPN_3x", "137851257/model_final_f6e8b1", 42.0),
}
PARAMETERS: dict[str, int] = {
    "r50": 41_755_286,  # as torchvision states it, and the next
    "r50-v2": 43_712_278,
    "r50-d2": 41_699_936,  # counted in the reference, and the next
    "r101-d2": 60_639_840,
}
