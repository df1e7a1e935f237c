"""TridentNet: Scale-Aware Trident Networks for Object Detection.

Li, Chen, Wang and Zhang, ICCV 2019, arXiv 1901.01892.
Reference: a transcription around torchvision's parts in `tools/references/tridentnet.py`; facts from detectron2's projects/TridentNet
(Apache-2.0), which publishes figures of the fast form but no files, and from the authors' tusen-ai/simpledet (Apache-2.0).

*Differs*: the stride of a block is on its 3x3 convolution; "tiny" is a small configuration for the demo data.
*Map*: section 4.1 "Multi-branch block", figure 3 -> `Block`, `TridentNet.features_of`; 4.1 "Weight sharing" -> one stage, run at every
dilation; 4.2 "Scale-aware training", eq. 1 -> `Losses`, `branches`; 4.3 "Fast inference approximation" -> `Config.fast`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from opticus.layers.norm import FrozenBatchNorm
from opticus.losses.boxes import object_count
from opticus.losses.regions import anchor_losses, learned_from
from opticus.losses.supervised import Supervised
from opticus.matching.anchors import balanced_sample, base_anchors, grid_anchors, ignore_inside, max_iou
from opticus.matching.detections import windows
from opticus.matching.objects import Truth
from opticus.matching.proposals import detected, propose
from opticus.models.detection.faster_rcnn import CODER, ProposalNetwork
from opticus.ops.boxes import area, decode_boxes, encode_boxes
from opticus.ops.iou import iou
from opticus.ops.roi import roi_align
from opticus.structures import Backbone, Batch, CapabilityError, Images, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
EXTENDS = "faster_rcnn"
PREPARE = Prepare(resize="shortest", size=(800, 1333), antialias=False, stride=16)
DETECTIONS = 100
ANY = 1e5  # a side that no object reaches
OPEN = ((1, 0.0, ANY), (2, 0.0, ANY), (3, 0.0, ANY))
_R50 = Part("resnet/50", classes=0, layers=(3, 4), norm="frozen")


@dataclass(frozen=True)
class Config:
    """`backbone` ends before the trident; `stage` is (width, blocks) of the trident, `head` (width, blocks, bins) of a region's stage.

    `branches` are (dilation, least, most): the square root of an object's area in input pixels; `fast` uses the middle branch alone.
    `sizes` are the anchors' sides in pixels; `proposals` are kept before and after suppression, of each branch; `samples` are the
    anchors and regions learned from a picture by a branch.
    """

    classes: int = 80
    backbone: Part = _R50
    stage: tuple[int, int] = (256, 6)
    head: tuple[int, int, int] = (512, 3, 14)
    norm: Literal["batch", "frozen"] = "frozen"
    branches: tuple[tuple[int, float, float], ...] = ((1, 0.0, 90.0), (2, 30.0, 160.0), (3, 90.0, ANY))
    fast: bool = False
    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 800
    proposals: tuple[int, int] = (6000, 500)
    samples: tuple[int, int] = (256, 128)


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """Per picture, branch and anchor: `objectness` (B,n,N) logits and `shifts` (B,n,N,4). `proposals` (R,4) xyxy input pixels.

    Their `pictures` (R,) and `branches` (R,); `logits` (R,K+1), background first, and `deltas` (R,K+1,4): empty in training, where
    only sampled regions are looked at. `maps` (B,n,C,h,w).
    """

    objectness: Tensor
    shifts: Tensor
    proposals: Tensor
    pictures: Tensor
    branches: Tensor
    logits: Tensor
    deltas: Tensor
    maps: Tensor


def _norm(config: Config, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if config.norm == "batch" else FrozenBatchNorm(width)


class Block(nn.Module):
    """A bottleneck whose 3x3 convolution is run at any dilation: the branches share all that is learned (figure 3)."""

    def __init__(self, config: Config, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = _norm(config, width)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)
        self.bn2 = _norm(config, width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = _norm(config, 4 * width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or width_in != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, 4 * width, 1, stride, bias=False), _norm(config, 4 * width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"], dilation: int = 1) -> Float[Tensor, "B D h w"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.conv2d(x, self.conv2.weight, None, self.stride, dilation, dilation)
        x = F.relu(self.bn2(x))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def _stage(config: Config, width_in: int, width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(Block(config, width_in if i == 0 else 4 * width, width, 2 if i == 0 else 1) for i in range(blocks))


def _run(stage: nn.ModuleList, x: Tensor, dilation: int = 1) -> Tensor:
    for block in stage:
        x = cast(Block, block)(x, dilation)
    return x


class TridentNet(nn.Module):
    """One stage run at several dilations, each answer a map for objects of its own range of sizes; the rest is shared (figure 2)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if not config.branches or any(least >= most for _, least, most in config.branches):
            raise CapabilityError(
                f"tridentnet: expected branches (dilation, least, most) with least < most, found {config.branches}"
            )
        self.config = config
        self.prepare = _prepare(config.side)
        self.backbone = backbone
        self.stride = 2 * backbone.strides[-1]
        self.trident = _stage(config, backbone.widths[-1], *config.stage)
        width = 4 * config.stage[0]
        self.rpn = ProposalNetwork(width, len(config.sizes) * len(config.ratios))
        self.head = _stage(config, width, *config.head[:2])
        self.cls_score = nn.Linear(4 * config.head[0], config.classes + 1)
        self.bbox_pred = nn.Linear(4 * config.head[0], 4 * (config.classes + 1))
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    @property
    def used(self) -> tuple[tuple[int, float, float], ...]:
        """The branches that are run: all of them, or in use of a fast network the middle one."""
        branches = self.config.branches
        middle = len(branches) // 2
        return branches[middle : middle + 1] if self.config.fast and not self.training else branches

    def features_of(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n C h w"]:
        """The map of every branch."""
        x = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))[-1]
        return torch.stack([_run(self.trident, x, dilation) for dilation, _, _ in self.used], 1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        maps = self.features_of(pixels)
        batch, count = maps.shape[:2]
        objectness, shifts = self.rpn([maps.flatten(0, 1)])
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        frames = windows(Images(pixels, valid, pixels.new_zeros(0), ()), shifts).repeat_interleave(count, 0)
        among, keep = self.config.proposals
        proposals, owners = propose(objectness, shifts, [self.anchors(size, shifts)], frames, among=among, keep=keep)
        pictures, branches = owners // count, owners % count
        looked = slice(0) if self.training else slice(None)
        logits, deltas = self.regions(maps, proposals[looked], pictures[looked], branches[looked])
        objectness, shifts = objectness.unflatten(0, (batch, count)), shifts.unflatten(0, (batch, count))
        return Answers(objectness, shifts, proposals, pictures, branches, logits, deltas, maps)

    def anchors(self, size: tuple[int, int], like: Tensor) -> Float[Tensor, "N 4"]:
        """Anchors of inputs of `size` (H, W), xyxy pixels; a cell is size / map pixels wide, rounded down."""
        h, w = (-(-side // self.stride) for side in size)
        base = base_anchors(self.config.sizes, self.config.ratios).to(like)
        return grid_anchors(base, (h, w), (float(size[0] // h), float(size[1] // w)))

    def regions(
        self, maps: Float[Tensor, "B n C h w"], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"], branches: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R K 4"]]:
        """Class logits and box deltas of regions, each pooled from the map of its own branch."""
        bins = self.config.head[2]
        own = pictures * maps.shape[1] + branches
        x = roi_align(maps.flatten(0, 1), boxes, own, (bins, bins), scale=1 / self.stride, samples=2)
        if len(x):  # a batch norm has nothing to count in no regions
            x = _run(self.head, x)
        x = x.mean((2, 3)) if len(x) else x.new_zeros(0, self.cls_score.in_features)
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Boxes of all branches that lie in their branch's range and reach 0.05, suppressed together per class at IoU 0.5, best first."""
        probs = out.logits.detach().softmax(-1)[:, 1:]
        deltas = out.deltas.detach()[:, 1:]
        boxes = decode_boxes(deltas, out.proposals[:, None].expand_as(deltas), CODER)
        if not self.config.fast:
            probs = probs * in_range(boxes, out.branches[:, None], self.config.branches)
        return detected(probs, boxes, out.pictures, images, DETECTIONS)


def in_range(
    boxes: Float[Tensor, "*n 4"], branch: Int[Tensor, "*#n"], branches: Sequence[tuple[int, float, float]]
) -> Bool[Tensor, "*n"]:
    """Eq. 1: whether the square root of a box's area lies in the range [least, most] of its branch."""
    limits = boxes.new_tensor([row[1:] for row in branches])
    side = area(boxes).sqrt()
    return (side >= limits[branch, 0]) & (side <= limits[branch, 1])


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="shortest", size=(side, side * 1333 // 800), antialias=False, stride=16)


NETWORK = TridentNet
OVERFIT = {"samples": 1, "lr": 2e-3, "changes": {"samples": (64, 64), "head": (96, 1, 8)}}


# --- objective ---------------------------------------------------------------------------------------------------------


class Losses:
    """Faster R-CNN's four losses, every branch on the objects and regions of its range (section 4.2).

    Branches share their weights, so what one has to find is not background to another: anchors on objects outside of a branch's
    range (above IoU 0.3, as in the authors' configurations) teach it nothing.
    """

    def __init__(self, network: TridentNet) -> None:
        self.network = network

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        config = self.network.config
        size, pictures, weights = learned_from(batch, out.shifts, config.classes)
        anchors = self.network.anchors(size, out.shifts)
        truth: list[Truth] = []
        aside: list[Tensor] = []
        count = out.objectness.shape[1]
        for t in pictures:
            for branch in torch.arange(count, device=anchors.device):
                own = in_range(t.boxes, branch, self.network.used)
                truth.append(Truth(t.boxes[own], t.labels[own], t.ignored))
                aside.append(t.boxes[~own])
        weights = weights.repeat_interleave(count)
        objectness, shifts = out.objectness.flatten(0, 1), out.shifts.flatten(0, 1)
        terms = anchor_losses(objectness, shifts, [anchors], truth, weights, config.samples[0], 1 / 9, aside)
        return terms | self.regions(out, truth, weights)

    def regions(self, out: Answers, truth: Sequence[Truth], weights: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of sampled proposals of the branch's range and smooth L1 of those that hold an object."""
        count = out.objectness.shape[1]
        owners = out.pictures * count + out.branches
        boxes: list[Tensor] = []
        labels: list[Tensor] = []
        goals: list[Tensor] = []
        for i, t in enumerate(truth):
            among = torch.cat([out.proposals[owners == i], t.boxes])
            among = among[in_range(among, owners.new_tensor(i % count), self.network.used)]
            matches = ignore_inside(max_iou(iou(t.boxes, among), 0.5, 0.5, rescue=False), among, t.ignored)
            positives, negatives = balanced_sample(matches, self.network.config.samples[1], 0.5)
            boxes.append(among[torch.cat([positives, negatives])])
            labels.append(torch.cat([t.labels[matches[positives]] + 1, torch.zeros_like(negatives)]))
            goals.append(torch.cat([encode_boxes(t.boxes[matches[positives]], among[positives], CODER), among[negatives] * 0]))
        lengths = torch.tensor([len(kinds) for kinds in labels], device=weights.device)
        owner = torch.arange(len(labels), device=weights.device).repeat_interleave(lengths)
        kinds, goal = torch.cat(labels), torch.cat(goals)
        logits, deltas = self.network.regions(out.maps, torch.cat(boxes), owner // count, owner % count)
        hits = (kinds > 0).nonzero()[:, 0]
        box = F.smooth_l1_loss(deltas[hits, kinds[hits]].to(weights), goal[hits], beta=1 / 9, reduction="none").sum(1)
        share = weights[owner] / object_count(len(kinds), weights)
        return {
            "class": (F.cross_entropy(logits.to(weights), kinds, reduction="none") * share).sum(),
            "box": (box * share[hits]).sum(),
        }


def objective(network: TridentNet) -> Supervised:
    """Targets are boxes in network-input pixels."""
    return Supervised(network, Losses(network))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1), width=32, dilate=(2,)),  # stride 4
        stage=(32, 3),
        head=(64, 1, 8),
        norm="batch",
        branches=((1, 0.0, 36.0), (2, 22.0, 58.0), (3, 42.0, ANY)),
        sizes=(16.0, 26.0, 42.0, 64.0),
        ratios=(1.0, 1.6, 2.2),
        side=128,
        proposals=(200, 60),
        samples=(64, 24),
    ),
    "r50": Config(),
    "r50-fast": Config(branches=OPEN, fast=True),
    "r101": Config(stage=(256, 23)),
    "r101-fast": Config(stage=(256, 23), branches=OPEN, fast=True),
}

HEAD = r"(cls_score|bbox_pred)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"plain": Names(rename(r"rpn\.conv\.(.*)", r"rpn.convs.0.\1"), rename(r"(.*)", r"\1"))}
WEIGHTS: dict[str, Weights] = {}
PARAMETERS: dict[str, int] = {}
