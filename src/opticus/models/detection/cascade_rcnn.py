"""Cascade R-CNN: Delving into High Quality Object Detection.

Cai and Vasconcelos, CVPR 2018, arXiv 1712.00726.
Reference: facebookresearch/detectron2 (Apache-2.0), cascade_mask_rcnn_R_50_FPN, whose published files also hold a mask head.

*Differs*: one box for all classes of a region, L1 instead of smooth L1, and gradients that reach the pyramid divided by the number of
stages, as in the reference; proposals as in `faster_rcnn` under the rules "detectron2"; the mask head of the published files is left
out, which changes no box; "tiny" is a small configuration for the demo data.
*Map*: figure 3d -> `CascadeRCNN`; section 4.1, eqs. 5-6 -> `CascadeRCNN.stage`, `refined`; 4.2 "cascaded detection", eq. 8 -> `Losses`;
the classifiers' ensemble of section 4.2 and figure 3d -> `CascadeRCNN.results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.layers.fpn import FPN
from opticus.losses.regions import anchor_losses, learned_from, region_losses
from opticus.losses.supervised import Supervised
from opticus.matching.detections import pyramid_maps, windows
from opticus.matching.proposals import Regions, detected, exact_anchors, matched, propose, pyramid_anchors, sampled
from opticus.models.detection.faster_rcnn import (
    CAFFE,
    DETECTRON2,
    BoxHead,
    ProposalNetwork,
    last_first,
    pooled,
    prepare_of,
    zoo_row,
)
from opticus.ops.boxes import decode_boxes
from opticus.structures import Backbone, Batch, DataError, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

EXTENDS = "faster_rcnn"
TASK: Task = "detect"
PREPARE: Prepare = CAFFE
CODERS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))  # weights of the deltas: finer stage by stage
_R50 = Part("resnet/50", classes=0, norm="frozen", block="original")


@dataclass(frozen=True)
class Config:
    """As of `faster_rcnn`; `overlaps` are the IoU from which a region is an object, stage by stage."""

    classes: int = 80
    backbone: Part = _R50
    width: int = 256
    hidden: int = 1024
    finest: int = 4
    scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 800
    proposals: tuple[int, int] = (2000, 1000)
    samples: tuple[int, int] = (256, 512)
    overlaps: tuple[float, ...] = (0.5, 0.6, 0.7)
    detections: int = 100


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """Per anchor: `objectness` (B,N) logits and `shifts` (B,N,4). `proposals` (R,4) xyxy input pixels of the `pictures` (R,).

    Of every stage S: `logits` (S,R,K+1), background first, and the `boxes` (S,R,4) that it makes of the boxes of the stage before,
    not yet cut to the picture; in training, where only sampled regions are looked at, both are empty (0 stages). `maps` are the
    pyramid's.
    """

    objectness: Tensor
    shifts: Tensor
    proposals: Tensor
    pictures: Tensor
    logits: Tensor
    boxes: Tensor
    maps: tuple[Tensor, ...]


class CascadeRCNN(nn.Module):
    """Proposals over a pyramid, then heads that each look at the boxes of the head before (figure 3d)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if not 1 <= len(config.overlaps) <= len(CODERS) or not all(0 < overlap < 1 for overlap in config.overlaps):
            raise UsageError(f"cascade_rcnn: expected overlaps of 1 to {len(CODERS)} stages in (0, 1), found {config.overlaps}")
        self.config = config
        self.prepare = prepare_of(PREPARE, config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "cascade_rcnn")
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        self.fpn = FPN([backbone.widths[i] for i in self.maps], config.width)
        self.rpn = ProposalNetwork(config.width, len(config.ratios))
        self.heads = nn.ModuleList(BoxHead(config.width, config.hidden, config.classes, 1) for _ in config.overlaps)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = self.fpn([every[i] for i in self.maps])
        objectness, shifts = self.rpn([*maps, F.max_pool2d(maps[-1], 1, 2)])
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        frames = windows(Images(pixels, valid, pixels.new_zeros(0), ()), shifts)
        keep = self.config.proposals[0 if self.training else 1]
        proposals, pictures = propose(objectness, shifts, self.anchors(size, shifts), frames, among=keep, keep=keep)
        boxes, regions = [proposals[:0]], proposals
        logits = [shifts.new_zeros(0, self.config.classes + 1)]
        for k in range(0 if self.training else len(self.heads)):
            scores, deltas = self.stage(k, maps, regions, pictures)
            logits.append(scores)
            boxes.append(decode_boxes(deltas, regions, CODERS[k]))
            regions = refined(deltas, regions, k, frames[pictures])
        looked = slice(0, 1) if self.training else slice(1, None)
        return Answers(
            objectness, shifts, proposals, pictures, torch.stack(logits[looked]), torch.stack(boxes[looked]), tuple(maps)
        )

    def anchors(self, size: tuple[int, int], like: Tensor) -> list[Float[Tensor, "N 4"]]:
        """Every level's anchors for inputs of `size` (H, W), xyxy pixels."""
        return pyramid_anchors(exact_anchors, size, self.strides, self.config.scale, self.config.ratios, like)

    def stage(
        self, k: int, maps: Sequence[Tensor], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R 4"]]:
        """Stage k's class logits and box deltas of regions; the pyramid learns from each stage a share of its gradient."""
        x = pooled(maps, boxes, pictures, self.strides, samples=0, aligned=True)
        logits, deltas = self.heads[k](x.detach() + (x - x.detach()) / len(self.heads))
        return logits, deltas[:, 0]

    def results(self, out: Answers, images: Images) -> list[Result]:
        """The last stage's boxes under the average of all stages' probabilities, suppressed per class at IoU 0.5, best first."""
        probs = out.logits.detach().softmax(-1).mean(0)[:, 1:]
        boxes = out.boxes[-1].detach()[:, None].expand(-1, self.config.classes, -1)
        return detected(probs, boxes, out.pictures, images, self.config.detections)


def refined(
    deltas: Float[Tensor, "R 4"], boxes: Float[Tensor, "R 4"], k: int, frames: Float[Tensor, "R 4"]
) -> Float[Tensor, "R 4"]:
    """The regions of the next stage: stage k's boxes, cut to their pictures' `frames`, xyxy. No gradient (eq. 5)."""
    corners = decode_boxes(deltas.detach(), boxes, CODERS[k]).unflatten(1, (2, 2))
    return corners.maximum(frames[:, None, :2]).minimum(frames[:, None, 2:]).flatten(1)


NETWORK = CascadeRCNN
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


class Losses:
    """Eq. 8 for every stage, on regions that the stages before it have moved and at a stricter overlap, after the anchors' losses."""

    def __init__(self, network: CascadeRCNN) -> None:
        self.network = network

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        network, config = self.network, self.network.config
        size, truth, weights = learned_from(batch, out.shifts, config.classes)
        if batch.images is None:
            raise DataError("Cascade R-CNN is trained on images, found a batch without")
        frames = windows(batch.images, out.shifts)
        anchors = network.anchors(size, out.shifts)
        terms = anchor_losses(out.objectness, out.shifts, anchors, truth, weights, config.samples[0], 0.0)
        among: Regions = sampled(out.proposals, out.pictures, truth, config.samples[1], config.overlaps[0])
        for k, overlap in enumerate((*config.overlaps[1:], 1.0)):
            logits, deltas = network.stage(k, out.maps, among.boxes, among.pictures)
            logits, deltas = logits.to(out.shifts), deltas.to(out.shifts)
            found = region_losses(logits, deltas, among, weights, CODERS[k], 0.0)
            terms |= {f"{name}{k + 1}": value for name, value in found.items()}
            boxes = refined(deltas, among.boxes, k, frames[among.pictures])
            some = (boxes[:, 2:] > boxes[:, :2]).all(1)
            among = matched(boxes[some], among.pictures[some], truth, overlap)
        return terms


def objective(network: CascadeRCNN) -> Supervised:
    """Targets are boxes in network-input pixels."""
    return Supervised(network, Losses(network))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        width=64,
        hidden=128,
        scale=4.0,
        ratios=(1.0, 1.6, 2.2),
        side=128,
        proposals=(100, 100),
        samples=(64, 32),
    ),
    "r50": Config(),
}

HEAD = r"heads\.\d+\.cls_score\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "detectron2": Names(
        *DETECTRON2,
        rename(r"roi_heads\.box_head\.(\d)\.fc1\.(weight|bias)", r"heads.\1.fc6.\2"),
        rename(r"roi_heads\.box_head\.(\d)\.fc2\.(weight|bias)", r"heads.\1.fc7.\2"),
        rename(r"roi_heads\.box_predictor\.(\d)\.cls_score\.(weight|bias)", r"heads.\1.cls_score.\2", last_first),
        rename(r"roi_heads\.box_predictor\.(\d)\.bbox_pred\.(weight|bias)", r"heads.\1.bbox_pred.\2"),
        drop(r"roi_heads\.mask_head\..*"),
    ),
}
WEIGHTS: dict[str, Weights] = {
    "r50:coco-1x": zoo_row("Misc/cascade_mask_rcnn_R_50_FPN_1x", "138602847/model_final_e9d89b", 42.1),
    "r50:coco": zoo_row("Misc/cascade_mask_rcnn_R_50_FPN_3x", "144998488/model_final_480dd8", 44.3),
}
PARAMETERS: dict[str, int] = {"r50": 69_341_646}  # counted in the reference without the mask head
