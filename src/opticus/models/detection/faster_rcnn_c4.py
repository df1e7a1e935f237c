"""Faster R-CNN on one map of a residual network ("C4"): the last stage is the head on each region.

Ren, He, Girshick and Sun, NeurIPS 2015, arXiv 1506.01497, as He, Zhang, Ren and Sun, CVPR 2016, 1512.03385, appendix A, build it.
Reference: facebookresearch/detectron2 (Apache-2.0), faster_rcnn_R_50_C4.

*Differs*: RoIAlign of 14x14 bins (1703.06870) instead of RoI pooling, anchors of five sizes, boxes per class, L1 instead of smooth L1,
as in the reference; the longer side of a resized picture is floored (Detectron2: rounded); no proposal has a side under 1e-3 pixels;
"tiny" is a small configuration for the demo data.
*Map*: section 3.1 -> `faster_rcnn.ProposalNetwork`, 3.1.1 "Anchors" -> `FasterRCNNC4.anchors`, 3.1.2 eq. 1 -> `Losses`; ResNet
appendix A, "object detection" -> `LastStage`, `FasterRCNNC4.regions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.layers.norm import FrozenBatchNorm
from opticus.losses.regions import anchor_losses, learned_from, region_losses
from opticus.losses.supervised import Supervised
from opticus.matching.detections import windows
from opticus.matching.proposals import detected, exact_anchors, propose, sampled
from opticus.models.detection.faster_rcnn import (
    CAFFE,
    CODER,
    DETECTRON2,
    Answers,
    ProposalNetwork,
    last_first,
    of_layer,
    prepare_of,
    zoo_row,
)
from opticus.ops.boxes import decode_boxes
from opticus.ops.roi import roi_align
from opticus.structures import Backbone, Batch, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

EXTENDS = "faster_rcnn"
TASK: Task = "detect"
PREPARE: Prepare = replace(CAFFE, stride=1)
BINS = 14
NORMS = {"frozen": FrozenBatchNorm, "batch": nn.BatchNorm2d}
_C4 = Part("resnet/50", classes=0, layers=(3, 4, 6), norm="frozen", block="original")


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; `inner` is the width inside the last stage's `blocks` blocks, a quarter of its output's.

    Anchors have the `lengths` (square roots of their areas, pixels); `candidates` of them are suppressed and `proposals` kept, in
    training and in use; `samples` are the anchors and regions learned from a picture.
    """

    classes: int = 80
    backbone: Part = _C4
    inner: int = 512
    blocks: int = 3
    norm: Literal["frozen", "batch"] = "frozen"
    lengths: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 800
    candidates: tuple[int, int] = (12000, 6000)
    proposals: tuple[int, int] = (2000, 1000)
    samples: tuple[int, int] = (256, 512)
    detections: int = 100


# --- network -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A bottleneck (ResNet, figure 5 right) with its stride on the first convolution."""

    def __init__(self, width_in: int, inner: int, stride: int, norm: Literal["frozen", "batch"]) -> None:
        super().__init__()
        make = NORMS[norm]
        self.conv1, self.bn1 = nn.Conv2d(width_in, inner, 1, stride, bias=False), make(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), make(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), make(4 * inner)
        same = width_in == 4 * inner and stride == 1
        self.downsample = None if same else nn.Sequential(nn.Conv2d(width_in, 4 * inner, 1, stride, bias=False), make(4 * inner))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class LastStage(nn.Module):
    """The network's last stage on a pooled region, averaged; a score for every class and the background, and a box per class."""

    def __init__(self, config: Config, width_in: int) -> None:
        super().__init__()
        width, inner = 4 * config.inner, config.inner
        blocks = [Block(width_in if i == 0 else width, inner, 2 if i == 0 else 1, config.norm) for i in range(config.blocks)]
        self.blocks = nn.Sequential(*blocks)
        self.cls_score = nn.Linear(width, config.classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * config.classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Float[Tensor, "R C h w"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R classes 4"]]:
        x = self.blocks(x).mean((2, 3))
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class FasterRCNNC4(nn.Module):
    """A backbone's last map, proposals on it, and the network's last stage on each of them."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if config.blocks < 1:
            raise UsageError(f"faster_rcnn_c4: expected at least one block in the last stage, found blocks={config.blocks}")
        self.config = config
        self.prepare = prepare_of(PREPARE, config.side)
        self.backbone = backbone
        self.stride, width = backbone.strides[-1], backbone.widths[-1]
        self.rpn = ProposalNetwork(width, len(config.lengths) * len(config.ratios))
        self.head = LastStage(config, width)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        x = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))[-1]
        objectness, shifts = self.rpn([x])
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        frames = windows(Images(pixels, valid, pixels.new_zeros(0), ()), shifts)
        use = 0 if self.training else 1
        among, keep = self.config.candidates[use], self.config.proposals[use]
        proposals, pictures = propose(objectness, shifts, [self.anchors(size, shifts)], frames, among=among, keep=keep)
        looked = slice(0) if self.training else slice(None)
        return Answers(objectness, shifts, proposals, pictures, *self.regions(x, proposals[looked], pictures[looked]), (x,))

    def anchors(self, size: tuple[int, int], like: Tensor) -> Float[Tensor, "N 4"]:
        """Anchors for inputs of `size` (H, W), xyxy pixels; every ratio of the first length, then of the next, cell by cell."""
        cells = (-(-size[0] // self.stride), -(-size[1] // self.stride))
        ratios = self.config.ratios
        grids = [exact_anchors(length, ratios, cells, size, self.stride, like) for length in self.config.lengths]
        return torch.stack([grid.unflatten(0, (-1, len(ratios))) for grid in grids], 1).flatten(0, 2)

    def regions(
        self, x: Float[Tensor, "B C H W"], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R classes 4"]]:
        """Class logits, background first, and box deltas of regions of the pictures that the map `x` belongs to."""
        return self.head(roi_align(x, boxes, pictures, (BINS, BINS), scale=1 / self.stride, samples=0))

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Every class's boxes of the proposals that reach 0.05, suppressed per class at IoU 0.5, best first."""
        probs, deltas = out.logits.detach().softmax(-1)[:, 1:], out.deltas.detach()
        boxes = decode_boxes(deltas, out.proposals[:, None].expand_as(deltas), CODER)
        return detected(probs, boxes, out.pictures, images, self.config.detections)


NETWORK = FasterRCNNC4
OVERFIT = {"samples": 1, "lr": 1e-3, "changes": {"inner": 64, "blocks": 2}}


# --- objective ---------------------------------------------------------------------------------------------------------


class Losses:
    """Eq. 1 twice: objectness and shifts of sampled anchors, then class and box of sampled regions; the four weigh the same."""

    def __init__(self, network: FasterRCNNC4) -> None:
        self.network = network

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        network, config = self.network, self.network.config
        size, truth, weights = learned_from(batch, out.shifts, config.classes)
        anchors = [network.anchors(size, out.shifts)]
        first = anchor_losses(out.objectness, out.shifts, anchors, truth, weights, config.samples[0], 0.0)
        among = sampled(out.proposals, out.pictures, truth, config.samples[1])
        logits, deltas = network.regions(out.maps[0], among.boxes, among.pictures)
        own = (among.labels - 1).clamp(min=0)
        moves = deltas[torch.arange(len(own), device=own.device), own]
        return first | region_losses(logits.to(out.shifts), moves.to(out.shifts), among, weights, CODER, 0.0)


def objective(network: FasterRCNNC4) -> Supervised:
    """Targets are boxes in network-input pixels."""
    return Supervised(network, Losses(network))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1), width=48),
        inner=48,
        blocks=1,
        norm="batch",
        lengths=(16.0, 23.0, 33.0, 48.0),
        ratios=(1.0, 1.6, 2.2),
        side=128,
        candidates=(400, 400),
        proposals=(100, 100),
        samples=(64, 32),
    ),
    "r50": Config(),
    "r101": Config(backbone=Part("resnet/101", classes=0, layers=(3, 4, 23), norm="frozen", block="original")),
}

HEAD = r"head\.(cls_score|bbox_pred)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones


def _of_last_stage(match: re.Match[str]) -> str:
    """roi_heads.res5.0.conv1.norm.weight -> head.blocks.0.bn1.weight"""
    return f"head.blocks.{match[1]}.{of_layer(match[2], match[3])}.{match[4]}"


FORMATS: dict[str, Names] = {
    "detectron2": Names(
        rename(r"roi_heads\.res5\.(\d+)\.(conv[123]|shortcut)\.(norm\.)?(\w+)", _of_last_stage),
        *DETECTRON2,
        rename(r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"head.cls_score.\1", last_first),
        rename(r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"head.bbox_pred.\1"),
    ),
}
WEIGHTS: dict[str, Weights] = {
    "r50:coco": zoo_row("COCO-Detection/faster_rcnn_R_50_C4_3x", "137849393/model_final_f97cb7", 38.4, PREPARE),
    "r101:coco": zoo_row("COCO-Detection/faster_rcnn_R_101_C4_3x", "138204752/model_final_298dad", 41.1, PREPARE),
}
PARAMETERS: dict[str, int] = {"r50": 33_791_644, "r101": 52_731_548}  # counted in the reference
