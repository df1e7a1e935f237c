"""Fast R-CNN.

Girshick (Microsoft Research), ICCV 2015, arXiv 1504.08083.
Reference: torchvision 0.28 (BSD-3-Clause): its VGG-16, RoI pooling, box predictor and RoI heads put together as the paper's figure 1
says; torchvision ships no Fast R-CNN, and the author's files (rbgirshick/fast-rcnn, Caffe) are in a format that is not read here.

*Differs*: regions are selective search's of this library ("fast" strategy, picture of at most 500 pixels), up to 2,000 a picture; box
targets are divided by fixed deviations (0.1, 0.1, 0.2, 0.2) where the author computes them from the training set; pixels have
torchvision's mean and deviation, with which its VGG-16 was trained; the truncated SVD of section 3.1 is left out; a picture without
objects shows all its regions as background; results are suppressed at IoU 0.3, the author's test setting; "tiny" is a small
configuration for the demo data whose background may also be far from every object.
*Map*: section 2.1 -> `FastRCNN.regions`; 2.2 -> `Head`, `FORMATS`; eq. 1 to 3 -> `Losses`; 2.3 "mini-batch sampling" -> `matching.proposals.sampled`;
2.4 -> `results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.regions import learned_from, region_losses
from opticus.losses.supervised import Supervised
from opticus.matching.detections import pyramid_maps
from opticus.matching.proposals import detected, sampled
from opticus.matching.regions import Search, listed, regions_in
from opticus.ops.boxes import decode_boxes
from opticus.ops.roi import roi_pool
from opticus.structures import Backbone, Batch, CapabilityError, Images, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="shortest", size=(600, 1000), antialias=False)
_VGG16 = Part("vgg/16", classes=0, hidden=0)
CODER = (10.0, 10.0, 5.0, 5.0)  # box deltas in deviations of 0.1, 0.1, 0.2 and 0.2
BINS = 7
OVERLAP = 0.3


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; regions are pooled from the backbone's last map of `stride`.

    `samples` regions are learned from a picture, a quarter of them objects; background overlaps an object by at least `low` (IoU).
    `proposals`, `scales` and `spaces` are settings of selective search (`matching.regions.Search`).
    """

    classes: int = 20
    backbone: Part = _VGG16
    stride: int = 16
    hidden: int = 4096
    dropout: float = 0.5
    side: int = 600
    proposals: int = 2000
    scales: tuple[float, ...] = (50.0, 100.0)
    spaces: tuple[str, ...] = ("hsv", "lab")
    samples: int = 64
    low: float = 0.1
    detections: int = 100


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """`proposals` (R,4) xyxy input pixels of the `pictures` (R,); `logits` (R,K+1), background first, and `deltas` (R,K+1,4) of each.

    In training, where only sampled regions are looked at, the last two are empty (0 regions). `maps` is what regions are pooled from.
    """

    proposals: Tensor
    pictures: Tensor
    logits: Tensor
    deltas: Tensor
    maps: Tensor


class Head(nn.Module):
    """Figure 1: two hidden layers on a pooled region, then class scores and a box for every class, side by side."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(width * BINS**2, config.hidden)
        self.fc7 = nn.Linear(config.hidden, config.hidden)
        self.cls_score = nn.Linear(config.hidden, config.classes + 1)
        self.bbox_pred = nn.Linear(config.hidden, 4 * (config.classes + 1))
        self.dropout = nn.Dropout(config.dropout)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):  # section 2.3, "SGD hyper-parameters"
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "R C h w"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R K 4"]]:
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        x = self.dropout(F.relu(self.fc7(x)))
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class FastRCNN(nn.Module):
    """A backbone that sees the whole picture once, and a head on every region pooled from its map.

    `forward` takes the regions of each picture, (N, 4) xyxy in network pixels; without them it proposes its own.
    """

    inputs = ("regions",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.side)
        self.search = Search(config.proposals, config.scales, config.spaces)
        self.backbone = backbone
        self.map = pyramid_maps(backbone, config.stride, "fast_rcnn")[0]
        if backbone.strides[self.map] != config.stride:
            raise CapabilityError(f"fast_rcnn: expected a backbone with a map of stride {config.stride}, found {backbone.strides}")
        self.head = Head(config, backbone.widths[self.map])

    def forward(
        self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None, regions: Sequence[Tensor] | None = None
    ) -> Answers:
        if regions is None:
            regions = regions_in(pixels, valid, self.prepare, self.search)
        boxes, pictures = listed(regions, pixels)
        maps = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))[self.map]
        looked = slice(0) if self.training else slice(None)
        return Answers(boxes, pictures, *self.regions(maps, boxes[looked], pictures[looked]), maps)

    def regions(self, maps: Tensor, boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]) -> tuple[Tensor, Tensor]:
        """Class logits (R, K+1) and box deltas (R, K+1, 4) of regions of the pictures that `maps` belong to (section 2.1)."""
        return self.head(roi_pool(maps, boxes, pictures, (BINS, BINS), scale=1 / self.config.stride))

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Every class's boxes of the regions that reach 0.05, suppressed per class at IoU 0.3, best first (section 2.4)."""
        probs = out.logits.detach().softmax(-1)[:, 1:]
        deltas = out.deltas.detach()[:, 1:]
        boxes = decode_boxes(deltas, out.proposals[:, None].expand_as(deltas), CODER)
        return detected(probs, boxes, out.pictures, images, self.config.detections, overlap=OVERLAP)


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="shortest", size=(side, side * 5 // 3), antialias=False)


NETWORK = FastRCNN


# --- objective ---------------------------------------------------------------------------------------------------------


class Losses:
    """Eq. 1: cross-entropy of sampled regions and smooth L1 of the boxes of those that hold an object; the two weigh the same."""

    def __init__(self, network: FastRCNN) -> None:
        self.network = network

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        network, config = self.network, self.network.config
        _, truth, weights = learned_from(batch, out.maps, config.classes)
        regions = sampled(out.proposals, out.pictures, truth, config.samples, low=config.low)
        logits, deltas = (x.to(out.maps) for x in network.regions(out.maps, regions.boxes, regions.pictures))
        moves = deltas[torch.arange(len(regions.labels), device=deltas.device), regions.labels]
        return region_losses(logits, moves, regions, weights, CODER, 1.0)


def objective(network: FastRCNN) -> Supervised:
    """Targets are boxes in network-input pixels; the input "regions" of a batch, where it has one, are its proposals."""
    return Supervised(network, Losses(network))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("vgg/tiny", classes=0, hidden=0, layers=(1, 1, 3), width=20, grid=4),
        stride=4,
        hidden=256,
        dropout=0.0,
        side=128,
        proposals=300,
        scales=(50.0,),
        spaces=("hsv",),
        samples=32,
        low=0.0,
    ),
    "vgg16": Config(),
}

HEAD = r"head\.(cls_score|bbox_pred)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
IGNORE = r"classifier\.6\..*"
FORMATS: dict[str, Names] = {
    # torchvision's VGG-16 with the paper's two sister layers in the place of its last one: also its ImageNet file, the head fresh
    "torchvision": Names(
        rename(r"features\.(.*)", r"backbone.trunk.\1"),
        rename(r"classifier\.0\.(.*)", r"head.fc6.\1"),
        rename(r"classifier\.3\.(.*)", r"head.fc7.\1"),
        rename(r"(classifier\.6\..*)", r"\1"),
        rename(r"(cls_score|bbox_pred)\.(.*)", r"head.\1.\2"),
    ),
}
WEIGHTS: dict[str, Weights] = {}
PARAMETERS: dict[str, int] = {}
