"""Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition.

He, Zhang, Ren and Sun (Microsoft Research), ECCV 2014, arXiv 1406.4729 (SPP-net), detection part (section 4).
Reference: torchvision 0.28 (BSD-3-Clause), its VGG-16 and classifier; the pyramid is written out from the paper, whose authors' Caffe
and MATLAB code (ShaoqingRen/SPP_net) has no file that is read here. What follows the pyramid is R-CNN's.

*Differs*: any backbone with maps (the paper's is ZF-5; here VGG-16 and a small one); one scale, pictures at 688 pixels a shorter side,
where the paper chooses one of five for each region; a region's cells are those whose middle lies in it, at least one; fine-tuning and
the last layers are R-CNN's (section 2.3 of that paper) with the convolutions left as they were, as here in section 4.1.
*Map*: section 2.2 and 4.1 -> `pyramid`; 4.1 "feature maps only once" -> `SPPNet.see`; appendix A "mapping a window" -> `cells`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.supervised import Supervised
from opticus.matching.described import Described
from opticus.matching.detections import pyramid_maps
from opticus.matching.regions import Search, listed, regions_in
from opticus.models.detection.rcnn import Answers, Head, Losses, ranked, solve_boxes, solve_scores
from opticus.ops.roi import roi_pool
from opticus.structures import Backbone, CapabilityError, Images, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, rename

EXTENDS = "rcnn"
TASK: Task = "detect"
PREPARE = Prepare(resize="shortest", size=(688, 0), antialias=False)
_VGG16 = Part("vgg/16", classes=0, hidden=0)


@dataclass(frozen=True)
class Config:
    """`levels` are the sides of the pyramid's grids, pooled from the backbone's last map of `stride`; the rest is R-CNN's."""

    classes: int = 20
    backbone: Part = _VGG16
    stride: int = 16
    levels: tuple[int, ...] = (6, 3, 2, 1)
    hidden: int = 4096
    dropout: float = 0.5
    side: int = 688
    proposals: int = 2000
    scales: tuple[float, ...] = (50.0, 100.0)
    spaces: tuple[str, ...] = ("hsv", "lab")
    samples: int = 64
    cost: float = 1e-3


# --- network -----------------------------------------------------------------------------------------------------------


def cells(boxes: Float[Tensor, "R 4"], stride: int) -> Float[Tensor, "R 4"]:
    """First and last cells (x, y, x, y) of a map whose middles lie in each box: at least one a side (appendix A)."""
    first = torch.ceil(boxes[:, :2] / stride - 0.5)
    last = torch.floor(boxes[:, 2:] / stride - 0.5)
    middle = torch.floor((boxes[:, :2] + boxes[:, 2:]) / (2 * stride))
    return torch.cat([torch.where(last < first, middle, first), torch.where(last < first, middle, last)], 1)


def pyramid(
    maps: Float[Tensor, "B C H W"], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"], stride: int, levels: Sequence[int]
) -> Float[Tensor, "R P"]:
    """Section 2.2: each region's cells divided into n x n bins for every n of `levels`, the maximum of each, all in one vector."""
    spots = cells(boxes, stride)
    return torch.cat([roi_pool(maps, spots, pictures, (n, n)).flatten(1) for n in levels], 1)


class SPPNet(nn.Module):
    """Figure 3: the picture goes through the convolutions once, and every region is pooled to one length from their map.

    `forward` takes the regions of each picture, (N, 4) xyxy in network pixels; without them it proposes its own.
    """

    inputs = ("regions",)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.side)
        self.search = Search(config.proposals, config.scales, config.spaces)
        self.backbone = backbone
        self.map = pyramid_maps(backbone, config.stride, "sppnet")[0]
        if backbone.strides[self.map] != config.stride:
            raise CapabilityError(f"sppnet: expected a backbone with a map of stride {config.stride}, found {backbone.strides}")
        width = backbone.widths[self.map] * sum(n * n for n in config.levels)
        self.head = Head(width, config.hidden, config.classes, config.dropout)

    def forward(
        self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None, regions: Sequence[Tensor] | None = None
    ) -> Answers:
        if regions is None:
            regions = regions_in(pixels, valid, self.prepare, self.search)
        boxes, pictures = listed(regions, pixels)
        maps = self.see(pixels)
        looked = slice(0) if self.training else slice(None)
        logits, margins, deltas = self.head(self.pooled(maps, boxes[looked], pictures[looked]))
        return Answers(boxes, pictures, logits, margins, deltas, maps)

    def see(self, pixels: Float[Tensor, "B C H W"]) -> Tensor:
        """The map of conv5, once a picture; fine-tuning does not reach the convolutions, whose statistics stay too (section 4.1)."""
        part = self.backbone
        assert isinstance(part, nn.Module)
        modes = {module: module.training for module in part.modules()}
        part.eval()
        with torch.no_grad():
            maps = part.features(pixels.contiguous(memory_format=torch.channels_last))[self.map]
        for module, training in modes.items():
            module.training = training
        return maps

    def pooled(self, maps: Tensor, boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]) -> Float[Tensor, "R P"]:
        """The spatial pyramid of every region."""
        return pyramid(maps, boxes, pictures, self.config.stride, self.config.levels)

    def steps(self) -> dict[str, Callable[[Described], None]]:
        """What is solved after fine-tuning, in this order, from the descriptions of all regions."""
        return {"svm": partial(solve_scores, self.head, cost=self.config.cost), "box": partial(solve_boxes, self.head)}

    def results(self, out: Answers, images: Images) -> list[Result]:
        """R-CNN's: every class's corrected boxes, suppressed per class at IoU 0.3, best first."""
        return ranked(out, images, self.head.solved)


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="shortest", size=(side, 0), antialias=False)


NETWORK = SPPNet
OVERFIT = {"observable": "found", "changes": {"cost": 1.0}}  # as R-CNN's
UNTRAINED = (r"backbone\..*",)  # fine-tuning is of the layers after the pyramid (section 4.1)


def objective(network: SPPNet) -> Supervised:
    """R-CNN's step 3. Targets are boxes in network-input pixels; the input "regions" of a batch, where it has one, are its proposals."""
    return Supervised(network, Losses(network))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("vgg/tiny", classes=0, hidden=0, layers=(1, 1, 3), width=20, grid=4),
        stride=4,
        hidden=256,
        dropout=0.1,
        side=128,
        proposals=300,
        scales=(50.0,),
        spaces=("hsv",),
        samples=32,
    ),
    "vgg16": Config(),
}

HEAD = r"head\.(fc8|svm|box)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    # torchvision's convolutions; the layers after the pyramid under the paper's names
    "torchvision": Names(
        rename(r"features\.(.*)", r"backbone.trunk.\1"),
        rename(r"((?:fc6|fc7|fc8|svm|box)\..*)", r"head.\1"),
    ),
}
WEIGHTS: dict[str, Weights] = {}
PARAMETERS: dict[str, int] = {}
