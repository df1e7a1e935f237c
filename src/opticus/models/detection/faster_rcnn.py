"""Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.

Ren, He, Girshick and Sun, NeurIPS 2015, arXiv 1506.01497 (Faster R-CNN), over the pyramid of Lin et al. 2017, 1612.03144 (FPN).
Reference: torchvision 0.28 (BSD-3-Clause), fasterrcnn_resnet50_fpn.

*Differs*: RoIAlign (1703.06870, without its half-pixel shift) instead of RoI pooling and boxes per class, as in the published files;
losses are divided by the sampled anchors and regions of all pictures, and none is taken from inside a crowd; boxes wholly in the
padding are left out; where the longer side
limits the resize, the shorter one is rounded (torchvision: floored); "tiny" is a small configuration for the demo data.
*Map*: section 3.1 -> `ProposalNetwork`, 3.1.1 "Anchors" -> `FasterRCNN.anchors`, 3.1.2 eq. 1 -> `Losses`; FPN eq. 1 -> `pooled`;
Fast R-CNN (1504.08083) section 2 -> `BoxHead`, 2.3 -> `Losses.regions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.layers.fpn import FPN
from opticus.losses.boxes import object_count
from opticus.losses.supervised import Supervised
from opticus.matching.anchors import balanced_sample, base_anchors, grid_anchors, ignore_inside, max_iou
from opticus.matching.detections import best_of, cut, in_original, level_sizes, pyramid_maps, suppressed, windows
from opticus.matching.objects import ignored_of, objects_of
from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.ops.iou import iou
from opticus.ops.nms import nms_per_class
from opticus.ops.roi import roi_align
from opticus.structures import Backbone, Batch, DataError, Images, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="shortest", size=(800, 1333), antialias=False, stride=32)
_R50 = Part("resnet/50", classes=0, norm="frozen", norm_eps=0.0)
CODER = (10.0, 10.0, 5.0, 5.0)  # weights of a region's box deltas; an anchor's have none
BINS, OCTAVE = 7, 14.0  # of a pooled region; a region of this many strides a side is pooled from that stride (FPN eq. 1: 224 / 16)
SCORE, OVERLAP, PROPOSAL_OVERLAP = 0.05, 0.5, 0.7


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; `finest` is the stride of the first level, whose anchors are `scale` strides long.

    `proposals` are kept a level and in all, in training and in use; `samples` are the anchors and regions learned from a picture.
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
    """Section 3.1: a 3x3 convolution that visits every level, and per anchor "is there an object?" and a shift of its box."""

    def __init__(self, width: int, anchors: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        self.conv = nn.Conv2d(width, hidden, 3, 1, 1)
        self.cls_logits = nn.Conv2d(hidden, anchors, 1)
        self.bbox_pred = nn.Conv2d(hidden, 4 * anchors, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 4"]]:
        hidden = [F.relu(self.conv(x)) for x in maps]
        objectness = [self.cls_logits(x).permute(0, 2, 3, 1).flatten(1) for x in hidden]
        shifts = [self.bbox_pred(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in hidden]
        return torch.cat(objectness, 1), torch.cat(shifts, 1)


class BoxHead(nn.Module):
    """Two hidden layers on a pooled region, then a score and a box for every class (Fast R-CNN, figure 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc6 = nn.Linear(config.width * BINS**2, config.hidden)
        self.fc7 = nn.Linear(config.hidden, config.hidden)
        self.cls_score = nn.Linear(config.hidden, config.classes + 1)
        self.bbox_pred = nn.Linear(config.hidden, 4 * (config.classes + 1))

    def forward(self, x: Float[Tensor, "R C h w"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R K 4"]]:
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class FasterRCNN(nn.Module):
    """A backbone under a feature pyramid, a proposal network on every level, and a head on each proposal (figure 2)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "faster_rcnn")
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        self.fpn = FPN([backbone.widths[i] for i in self.maps], config.width)
        self.rpn = ProposalNetwork(config.width, len(config.ratios))
        self.head = BoxHead(config)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = self.fpn([every[i] for i in self.maps])
        objectness, shifts = self.rpn([*maps, F.max_pool2d(maps[-1], 1, 2)])
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        frames = windows(Images(pixels, valid, pixels.new_zeros(0), ()), shifts)
        keep = self.config.proposals[0 if self.training else 1]
        proposals, pictures = proposed(objectness, shifts, self.anchors(size, shifts), frames, keep, keep)
        looked = slice(0) if self.training else slice(None)
        return Answers(
            objectness, shifts, proposals, pictures, *self.regions(maps, proposals[looked], pictures[looked]), tuple(maps)
        )

    def anchors(self, size: tuple[int, int], like: Tensor) -> list[Float[Tensor, "N 4"]]:
        """Every level's anchors for inputs of `size` (H, W), xyxy pixels."""
        return level_anchors(size, self.strides, self.config.scale, self.config.ratios, like)

    def regions(self, maps: Sequence[Tensor], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]) -> tuple[Tensor, Tensor]:
        """Class logits (R, K+1) and box deltas (R, K+1, 4) of regions of the pictures that the pyramid's `maps` belong to."""
        return self.head(pooled(maps, boxes, pictures, self.strides))

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Every class's boxes of the proposals that reach 0.05, suppressed per class at IoU 0.5, best first."""
        return detections(out, images, self.config.detections)


def level_anchors(
    size: tuple[int, int], strides: Sequence[int], scale: float, ratios: Sequence[float], like: Tensor
) -> list[Float[Tensor, "N 4"]]:
    """Anchors of `scale` strides on every level and on one coarser; a cell is size (H, W) / map pixels wide, rounded down."""
    found: list[Tensor] = []
    for i, (h, w) in enumerate(level_sizes(size, strides, 1)):
        stride = strides[i] if i < len(strides) else 2 * strides[-1]
        base = base_anchors([scale * stride], ratios).to(like)
        found.append(grid_anchors(base, (h, w), (float(size[0] // h), float(size[1] // w))))
    return found


def proposed(
    objectness: Tensor, shifts: Tensor, anchors: Sequence[Tensor], frames: Tensor, before: int, after: int
) -> tuple[Float[Tensor, "R 4"], Int[Tensor, "R"]]:
    """Proposals of all pictures, best first in each, and the picture of each.

    Per picture the `before` best anchors of each level are shifted, cut to the picture and suppressed level by level; `after` remain.
    """
    lengths = [len(level) for level in anchors]
    found: list[Tensor] = []
    for scores, deltas, frame in zip(objectness.detach(), shifts.detach(), frames):
        boxes: list[Tensor] = []
        values: list[Tensor] = []
        for level, s, d in zip(anchors, scores.split(lengths), deltas.split(lengths)):
            value, place = s.topk(min(before, len(s)))
            boxes.append(decode_boxes(d[place], level[place]))
            values.append(value.sigmoid())
        box, value = cut(torch.cat(boxes), frame), torch.cat(values)
        kinds = torch.arange(len(values), device=box.device).repeat_interleave(
            torch.tensor([len(v) for v in values], device=box.device)
        )
        large = ((box[:, 2:] - box[:, :2]) >= 1e-3).all(1)
        box, value, kinds = box[large], value[large], kinds[large]
        found.append(box[nms_per_class(box, value, kinds, PROPOSAL_OVERLAP)[:after]])
    counts = torch.tensor([len(boxes) for boxes in found], device=shifts.device)
    return torch.cat(found), torch.arange(len(found), device=shifts.device).repeat_interleave(counts)


def detections(out: Answers, images: Images, count: int) -> list[Result]:
    """Every class's boxes of the proposals that reach 0.05, suppressed per class at IoU 0.5: the `count` best, best first."""
    probs = out.logits.detach().softmax(-1)[:, 1:]
    deltas = out.deltas.detach()[:, 1:]
    boxes = decode_boxes(deltas, out.proposals[:, None].expand_as(deltas), CODER)
    found: list[Result] = []
    for i, window in enumerate(windows(images, boxes)):
        own = (out.pictures == i).nonzero()[:, 0]
        best = best_of(probs[own], SCORE, probs.numel())
        chosen = boxes[own[best.places], best.labels]
        kept = suppressed(chosen, best.labels, best.scores, window, overlap=OVERLAP, count=count)
        found.append(in_original(*kept, images, i))
    return found


def pooled(maps: Sequence[Tensor], boxes: Tensor, pictures: Tensor, strides: Sequence[int]) -> Float[Tensor, "R C 7 7"]:
    """FPN eq. 1: each region pooled from the level whose stride is a fourteenth of the region's side, rounded down to a level."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    level = torch.floor(torch.log2(sides / (OCTAVE * strides[0])) + 1e-6).clamp(0, len(strides) - 1)
    out = maps[0].new_zeros(len(boxes), maps[0].shape[1], BINS, BINS)
    for i, (x, stride) in enumerate(zip(maps, strides)):
        own = (level == i).nonzero()[:, 0]
        part = roi_align(x, boxes[own], pictures[own], (BINS, BINS), scale=1 / stride, samples=2, aligned=False)
        out = out.index_copy(0, own, part.to(out.dtype))
    return out


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="shortest", size=(side, side * 1333 // 800), antialias=False, stride=32)


NETWORK = FasterRCNN
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


class Sampling(Protocol):
    """What the losses ask of a Config."""

    @property
    def classes(self) -> int: ...
    @property
    def samples(self) -> tuple[int, int]: ...


class TwoStage(Protocol):
    """What the losses ask of a network that answers with `Answers`, this paper's or that of one that builds on it."""

    @property
    def config(self) -> Sampling: ...
    def anchors(self, size: tuple[int, int], like: Tensor) -> list[Tensor]: ...
    def regions(self, maps: Sequence[Tensor], boxes: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]: ...


class Truth(NamedTuple):
    """The objects to learn in one picture: `boxes` (N,4) xyxy in network-input pixels, `labels` (N,); `ignored` (M,4): crowds."""

    boxes: Tensor
    labels: Tensor
    ignored: Tensor


def truth_of(batch: Batch, classes: int, like: Tensor) -> list[Truth]:
    """The objects of every picture in `like`'s type; raises as `matching.objects.objects_of`."""
    known = zip(objects_of(batch.targets, classes, batch.ids), ignored_of(batch.targets), strict=True)
    return [Truth(t.boxes.to(like), t.labels, ignored.to(like)) for t, ignored in known]


class Losses:
    """Eq. 1 twice: objectness and shifts of sampled anchors, then class and box of sampled regions; the four weigh the same."""

    def __init__(self, network: TwoStage) -> None:
        self.network = network

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("Faster R-CNN is trained on images, found a batch without")
        size = (int(batch.images.pixels.shape[-2]), int(batch.images.pixels.shape[-1]))
        anchors = torch.cat(self.network.anchors(size, out.shifts))
        truth = truth_of(batch, self.network.config.classes, anchors)
        weights = out.shifts.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.shifts)
        terms = anchor_terms(out.objectness, out.shifts, anchors, truth, weights, self.network.config.samples[0])
        return terms | self.regions(out, truth, weights)

    def regions(self, out: Answers, truth: Sequence[Truth], weights: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of sampled proposals and objects, and smooth L1 of the boxes of those that hold an object."""
        boxes: list[Tensor] = []
        labels: list[Tensor] = []
        goals: list[Tensor] = []
        pictures: list[Tensor] = []
        for i, t in enumerate(truth):
            among = torch.cat([out.proposals[out.pictures == i], t.boxes])
            matches = ignore_inside(max_iou(iou(t.boxes, among), 0.5, 0.5, rescue=False), among, t.ignored)
            positives, negatives = balanced_sample(matches, self.network.config.samples[1], 0.25)
            boxes.append(among[torch.cat([positives, negatives])])
            labels.append(torch.cat([t.labels[matches[positives]] + 1, torch.zeros_like(matches[negatives])]))
            goals.append(torch.cat([encode_boxes(t.boxes[matches[positives]], among[positives], CODER), among[negatives] * 0]))
            pictures.append(torch.full((len(labels[-1]),), i, device=among.device))
        kinds, picture, goal = torch.cat(labels), torch.cat(pictures), torch.cat(goals)
        logits, deltas = self.network.regions(out.maps, torch.cat(boxes), picture)
        logits, deltas = logits.to(out.shifts), deltas.to(out.shifts)
        share, count = weights[picture], object_count(len(kinds), out.shifts)
        hits = (kinds > 0).nonzero()[:, 0]
        box = F.smooth_l1_loss(deltas[hits, kinds[hits]], goal[hits], beta=1 / 9, reduction="none").sum(1)
        return {
            "class": (F.cross_entropy(logits, kinds, reduction="none") * share).sum() / count,
            "box": (box * share[hits]).sum() / count,
        }


def anchor_terms(
    objectness: Tensor, shifts: Tensor, anchors: Tensor, truth: Sequence[Truth], weights: Tensor, samples: int
) -> dict[str, Tensor]:
    """Binary cross-entropy of sampled anchors and smooth L1 of the positive ones, both divided by the sampled ones."""
    objects: list[Tensor] = []
    boxes: list[Tensor] = []
    sampled = 0
    for i, t in enumerate(truth):
        matches = ignore_inside(max_iou(iou(t.boxes, anchors), 0.7, 0.3), anchors, t.ignored)
        positives, negatives = balanced_sample(matches, samples, 0.5)
        places = torch.cat([positives, negatives])
        wanted = (torch.arange(len(places), device=places.device) < len(positives)).to(objectness)
        objects.append(F.binary_cross_entropy_with_logits(objectness[i, places], wanted, reduction="sum"))
        goals = encode_boxes(t.boxes[matches[positives]], anchors[positives])
        boxes.append(F.smooth_l1_loss(shifts[i, positives], goals, beta=1 / 9, reduction="sum"))
        sampled += len(places)
    count = object_count(sampled, shifts)
    return {
        "objectness": (torch.stack(objects) * weights).sum() / count,
        "proposal": (torch.stack(boxes) * weights).sum() / count,
    }


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
}

HEAD = r"head\.(cls_score|bbox_pred)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "torchvision": Names(
        rename(r"backbone\.body\.(.*)", r"backbone.\1"),
        rename(r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.inner.\1.\2"),
        rename(r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"fpn.outer.\1.\2"),
        rename(r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn.conv.\1"),
        rename(r"rpn\.head\.(cls_logits|bbox_pred)\.(.*)", r"rpn.\1.\2"),
        rename(r"roi_heads\.box_(?:head|predictor)\.(.*)", r"head.\1"),
    ),
}
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
    )
}
PARAMETERS: dict[str, int] = {"r50": 41_755_286}  # as torchvision states it
