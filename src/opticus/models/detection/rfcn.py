"""R-FCN: Object Detection via Region-based Fully Convolutional Networks.

Dai, Li, He and Sun, NeurIPS 2016, arXiv 1605.06409.
Reference: a transcription of the paper's equations around torchvision's parts in `tools/references/rfcn.py`; constants from the authors'
repository daijifeng001/R-FCN (MIT), whose weights are Caffe files on a shared drive.

*Differs*: the proposal network and the rest learn together in one run, where the authors alternate; boxes are regressed for objects
only, the authors' layer also has an unused set for the background; `align=True` pools bilinear samples instead of whole pixels;
where the longer side limits the resize, the shorter one is rounded; "tiny" is a small configuration of stride 8 for the demo data.
*Map*: section 2 "Backbone architecture" and "A trous and stride" -> `Config.backbone` (`dilate`); "Position-sensitive score maps" and
eq. 1 -> `ops.psroi`; voting, eq. 2 -> `RFCN.regions`; "Training", the hardest of N regions -> `Losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.regions import anchor_losses
from opticus.losses.supervised import Supervised
from opticus.matching.anchors import balanced_sample, base_anchors, grid_anchors, ignore_inside, max_iou
from opticus.matching.detections import windows
from opticus.matching.objects import Truth, truth_of
from opticus.matching.proposals import detected, propose
from opticus.models.detection.faster_rcnn import CODER, ProposalNetwork
from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.ops.iou import iou
from opticus.ops.psroi import psroi_align, psroi_pool
from opticus.structures import Backbone, Batch, CapabilityError, DataError, Images, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
EXTENDS = "faster_rcnn"
PREPARE = Prepare(resize="shortest", size=(600, 1000), antialias=False, stride=16)
_R101 = Part("resnet/101", classes=0, norm="frozen", dilate=(4,))
SCORE, OVERLAP = 0.001, 0.3  # the authors keep every score and bound how many are kept in the whole test set


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; `width` and `hidden` are channels under the proposals and under the score maps.

    A region is cut into `bins` x `bins`; `sizes` are the anchors' sides in pixels; `proposals` are kept before and after suppression;
    `samples` are the anchors and regions learned from a picture.
    """

    classes: int = 20
    backbone: Part = _R101
    width: int = 512
    hidden: int = 1024
    bins: int = 7
    align: bool = False
    sizes: tuple[float, ...] = (128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 600
    proposals: tuple[int, int] = (6000, 300)
    samples: tuple[int, int] = (256, 128)
    detections: int = 100


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """Per anchor: `objectness` (B,N) logits and `shifts` (B,N,4). `proposals` (R,4) xyxy input pixels of the `pictures` (R,).

    Of the proposals: `logits` (R,K+1), background first, and `deltas` (R,4), one box for whatever the class is; in training, where the
    objects themselves are looked at too, both are empty (0 regions). `maps`: scores (B,(K+1)kk,h,w) and boxes (B,4kk,h,w).
    """

    objectness: Tensor
    shifts: Tensor
    proposals: Tensor
    pictures: Tensor
    logits: Tensor
    deltas: Tensor
    maps: tuple[Tensor, Tensor]


class RFCN(nn.Module):
    """All layers see the whole picture; a region only averages what they say about its parts (figure 3).

    Proposals come from the last stage but one, score maps from the last, whose stride is taken out by dilation.
    """

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.side)
        if len(backbone.strides) < 2 or backbone.strides[-1] != backbone.strides[-2]:
            raise CapabilityError(
                "rfcn: expected a backbone whose last two maps have one stride (the last stage dilated), found strides "
                f"{tuple(backbone.strides)}"
            )
        self.backbone = backbone
        self.stride = backbone.strides[-1]
        self.rpn = ProposalNetwork(backbone.widths[-2], len(config.sizes) * len(config.ratios), hidden=config.width)
        self.conv_new = nn.Conv2d(backbone.widths[-1], config.hidden, 1)
        self.cls_maps = nn.Conv2d(config.hidden, (config.classes + 1) * config.bins**2, 1)
        self.box_maps = nn.Conv2d(config.hidden, 4 * config.bins**2, 1)
        nn.init.kaiming_uniform_(self.conv_new.weight, a=1)
        for layer in (self.cls_maps, self.box_maps):
            nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.conv_new, self.cls_maps, self.box_maps):
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        fourth, fifth = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))[-2:]
        objectness, shifts = self.rpn([fourth])
        hidden = F.relu(self.conv_new(fifth))
        maps = (self.cls_maps(hidden), self.box_maps(hidden))
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        frames = windows(Images(pixels, valid, pixels.new_zeros(0), ()), shifts)
        among, keep = self.config.proposals
        proposals, pictures = propose(objectness, shifts, [self.anchors(size, shifts)], frames, among=among, keep=keep)
        looked = slice(0) if self.training else slice(None)
        return Answers(objectness, shifts, proposals, pictures, *self.regions(maps, proposals[looked], pictures[looked]), maps)

    def anchors(self, size: tuple[int, int], like: Tensor) -> Float[Tensor, "N 4"]:
        """Anchors of inputs of `size` (H, W), xyxy pixels; a cell is size / map pixels wide, rounded down."""
        h, w = (-(-side // self.stride) for side in size)
        base = base_anchors(self.config.sizes, self.config.ratios).to(like)
        return grid_anchors(base, (h, w), (float(size[0] // h), float(size[1] // w)))

    def regions(
        self, maps: Sequence[Tensor], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R 4"]]:
        """Eq. 1 and 2: every bin pooled from its own maps, then the bins' mean: class logits and box deltas of each region."""
        pool = psroi_align if self.config.align else psroi_pool
        size = (self.config.bins, self.config.bins)
        logits, deltas = (pool(x, boxes, pictures, size, scale=1 / self.stride).mean((2, 3)) for x in maps)
        return logits, deltas

    def results(self, out: Answers, images: Images) -> list[Result]:
        """The box of every proposal for every class that reaches 0.001, suppressed per class at IoU 0.3, best first."""
        probs = out.logits.detach().softmax(-1)[:, 1:]
        boxes = decode_boxes(out.deltas.detach(), out.proposals, CODER)
        boxes = boxes[:, None].expand(-1, probs.shape[1], -1)
        return detected(probs, boxes, out.pictures, images, self.config.detections, score=SCORE, overlap=OVERLAP)


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="shortest", size=(side, side * 1000 // 600), antialias=False, stride=16)


NETWORK = RFCN
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


class Losses:
    """The proposals' two losses, then cross-entropy and smooth L1 of the regions from which there is most to learn.

    `hard` takes every region (proposals and objects) and learns from the `samples[1]` of greatest loss in each picture (online hard
    example mining, section 2); otherwise as many are drawn at random, at most a quarter of them objects.
    """

    def __init__(self, network: RFCN, hard: bool) -> None:
        self.network = network
        self.hard = hard

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("R-FCN is trained on images, found a batch without")
        config = self.network.config
        size = (int(batch.images.pixels.shape[-2]), int(batch.images.pixels.shape[-1]))
        anchors = self.network.anchors(size, out.shifts)
        truth = truth_of(batch.targets, config.classes, batch.ids, anchors)
        weights = out.shifts.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.shifts)
        terms = anchor_losses(out.objectness, out.shifts, [anchors], truth, weights, config.samples[0], 1 / 9)
        return terms | self.regions(out, truth, weights)

    def regions(self, out: Answers, truth: Sequence[Truth], weights: Tensor) -> dict[str, Tensor]:
        """Both terms divided by the regions learned from; a region stands for the object that it overlaps most, by half or more."""
        count = self.network.config.samples[1]
        boxes: list[Tensor] = []
        labels: list[Tensor] = []
        goals: list[Tensor] = []
        for i, t in enumerate(truth):
            among = torch.cat([out.proposals[out.pictures == i], t.boxes])
            matches = ignore_inside(max_iou(iou(t.boxes, among), 0.5, 0.5, rescue=False), among, t.ignored)
            picked = balanced_sample(matches, len(matches) if self.hard else count, 1.0 if self.hard else 0.25)
            positives, negatives = picked
            boxes.append(among[torch.cat(picked)])
            labels.append(torch.cat([t.labels[matches[positives]] + 1, torch.zeros_like(negatives)]))
            goals.append(torch.cat([encode_boxes(t.boxes[matches[positives]], among[positives], CODER), among[negatives] * 0]))
        counts = torch.tensor([len(kinds) for kinds in labels], device=weights.device)
        picture = torch.arange(len(labels), device=weights.device).repeat_interleave(counts)
        kinds, goal = torch.cat(labels), torch.cat(goals)
        logits, deltas = self.network.regions(out.maps, torch.cat(boxes), picture)
        classified = F.cross_entropy(logits.to(weights), kinds, reduction="none")
        boxed = F.smooth_l1_loss(deltas.to(weights), goal, reduction="none").sum(1) * (kinds > 0)
        if self.hard:
            loss = (classified + boxed).detach()
            hardest = [part.topk(min(count, len(part))).indices for part in loss.split(counts.tolist())]
            learned = torch.cat([at + start for at, start in zip(hardest, (counts.cumsum(0) - counts).tolist())])
            classified, boxed, picture = classified[learned], boxed[learned], picture[learned]
        share = weights[picture] / object_count(len(picture), weights)
        return {"class": (classified * share).sum(), "box": (boxed * share).sum()}


def objective(network: RFCN, *, hard: bool = True) -> Supervised:
    """Targets are boxes in network-input pixels; `hard`: learn from the regions of greatest loss instead of random ones."""
    return Supervised(network, Losses(network, hard))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 2, 1), width=32, dilate=(3,)),
        width=64,
        hidden=192,
        bins=3,
        align=True,
        sizes=(16.0, 26.0, 42.0, 64.0),
        ratios=(1.0, 1.6, 2.2),
        side=128,
        proposals=(300, 100),
        samples=(64, 32),
    ),
    "r50": Config(backbone=Part("resnet/50", classes=0, norm="frozen", dilate=(4,))),
    "r101": Config(),
}

HEAD = r"cls_maps\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"plain": Names(rename(r"rpn\.conv\.(.*)", r"rpn.convs.0.\1"), rename(r"(.*)", r"\1"))}
WEIGHTS: dict[str, Weights] = {}
PARAMETERS: dict[str, int] = {}
