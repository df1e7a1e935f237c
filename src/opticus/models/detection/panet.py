"""Path Aggregation Network for Instance Segmentation.

Liu, Qi, Qin, Shi and Jia, CVPR 2018, arXiv 1803.01534; the detector without its mask branch.
Reference: a transcription of section 3 between torchvision's parts in `tools/references/panet.py`; constants and norms of the authors'
own re-implementation, ShuLiu1993/PANet (MIT), the head with two fully connected layers.

*Differs*: group norm follows the new layers, as in that repository (the paper normalises over all processes), and is not in the
top-down pyramid; the backbone's stride is on the 3x3 convolution; fully-connected fusion (section 3.3) is part of the mask branch,
which would stand beside `BoxHead` and look at the same regions of all levels; the head's layers start as PyTorch starts them;
"tiny" is a small configuration for the demo data.
*Map*: section 3.1, figure 2 -> `BottomUp`; 3.2 "Adaptive feature pooling", figure 3 -> `PANet.regions`, `BoxHead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.layers.fpn import FPN
from opticus.losses.supervised import Supervised
from opticus.matching.detections import pyramid_maps, windows
from opticus.matching.proposals import detected, propose, pyramid_anchors
from opticus.models.detection.faster_rcnn import BINS, CODER, RULES, Answers, Losses, ProposalNetwork
from opticus.ops.boxes import decode_boxes
from opticus.ops.roi import roi_align
from opticus.structures import Backbone, CapabilityError, Images, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
EXTENDS = "faster_rcnn"
PREPARE = Prepare(resize="shortest", size=(1000, 1400), antialias=False, stride=32)
GROUPS = 32  # of the group norms
_R50 = Part("resnet/50", classes=0, norm="frozen")


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; `finest` is the stride of the first level, whose anchors are `scale` strides long.

    `width` and `hidden` are multiples of 32, the groups of the norms; `proposals` are kept a level and in all, in training and in use;
    `samples` are the anchors and regions learned from a picture.
    """

    classes: int = 80
    backbone: Part = _R50
    width: int = 256
    hidden: int = 1024
    finest: int = 4
    scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 1000
    proposals: tuple[int, int] = (2000, 1000)
    samples: tuple[int, int] = (256, 512)
    detections: int = 100


# --- network -----------------------------------------------------------------------------------------------------------


class Convolution(nn.Module):
    """A 3x3 convolution, group norm and ReLU."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, 1)
        self.norm = nn.GroupNorm(GROUPS, width)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        nn.init.zeros_(self.conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class BottomUp(nn.Module):
    """Section 3.1: N2 is P2; N(i+1) is a convolution of (N(i), halved by a strided one, + P(i+1)): a short way up for fine detail."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Convolution(width, 2) for _ in range(levels - 1))
        self.smooth = nn.ModuleList(Convolution(width, 1) for _ in range(levels - 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        found = [maps[0]]
        for coarser, down, smooth in zip(maps[1:], self.down, self.smooth, strict=True):
            found.append(smooth(down(found[-1]) + coarser))
        return found


class BoxHead(nn.Module):
    """Figure 3: a region's grid of every level has a first layer of its own, the maximum of them goes on; then score and box."""

    def __init__(self, config: Config, levels: int) -> None:
        super().__init__()
        self.fc1 = nn.ModuleList(nn.Linear(config.width * BINS**2, config.hidden) for _ in range(levels))
        self.norm1 = nn.ModuleList(nn.GroupNorm(GROUPS, config.hidden) for _ in range(levels))
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.norm2 = nn.GroupNorm(GROUPS, config.hidden)
        self.cls_score = nn.Linear(config.hidden, config.classes + 1)
        self.bbox_pred = nn.Linear(config.hidden, 4 * (config.classes + 1))

    def forward(self, grids: Sequence[Float[Tensor, "R C h w"]]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R K 4"]]:
        hidden = [F.relu(norm(fc(x.flatten(1)))) for x, fc, norm in zip(grids, self.fc1, self.norm1, strict=True)]
        fused = torch.stack(hidden).amax(0)
        x = F.relu(self.norm2(self.fc2(fused)))
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class PANet(nn.Module):
    """Down the pyramid and up again; proposals from every level, and every proposal looked at on all levels (figure 1)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        if config.width % GROUPS or config.hidden % GROUPS:
            raise CapabilityError(
                f"panet: expected width and hidden to be multiples of {GROUPS}, found {config.width} and {config.hidden}"
            )
        self.config, self.rules = config, RULES["torchvision"]
        self.prepare = _prepare(config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "panet")
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        self.fpn = FPN([backbone.widths[i] for i in self.maps], config.width)
        self.bottom_up = BottomUp(len(self.maps), config.width)
        self.rpn = ProposalNetwork(config.width, len(config.ratios))
        self.head = BoxHead(config, len(self.maps))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = self.bottom_up(self.fpn([every[i] for i in self.maps]))
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
        """Every level's anchors for inputs of `size` (H, W), xyxy pixels."""
        return pyramid_anchors(self.rules.anchors, size, self.strides, self.config.scale, self.config.ratios, like)

    def regions(self, maps: Sequence[Tensor], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]) -> tuple[Tensor, Tensor]:
        """Section 3.2: each region pooled from all levels; class logits (R, K+1) and box deltas (R, K+1, 4)."""
        grids = [
            roi_align(x, boxes, pictures, (BINS, BINS), scale=1 / stride, samples=2, aligned=False)
            for x, stride in zip(maps, self.strides)
        ]
        return self.head(grids)

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Every class's boxes of the proposals that reach 0.05, suppressed per class at IoU 0.5, best first."""
        probs = out.logits.detach().softmax(-1)[:, 1:]
        deltas = out.deltas.detach()[:, self.rules.idle :]
        boxes = decode_boxes(deltas, out.proposals[:, None].expand_as(deltas), CODER)
        return detected(probs, boxes, out.pictures, images, self.config.detections)


def _prepare(side: int) -> Prepare:
    """The published rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="shortest", size=(side, side * 1400 // 1000), antialias=False, stride=32)


NETWORK = PANet
OVERFIT = {"samples": 1, "lr": 1e-3, "changes": {"hidden": 256}}


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: PANet) -> Supervised:
    """The four losses of Faster R-CNN; targets are boxes in network-input pixels."""
    return Supervised(network, Losses(network))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        width=64,
        hidden=256,  # eight to a group; of a group of three the norm leaves one number
        scale=4.0,
        ratios=(1.0, 1.6, 2.2),
        side=128,
        proposals=(100, 100),
        samples=(64, 32),
    ),
    "r50": Config(),
}

HEAD = r"head\.(cls_score|bbox_pred)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {"plain": Names(rename(r"rpn\.conv\.(.*)", r"rpn.convs.0.\1"), rename(r"(.*)", r"\1"))}
WEIGHTS: dict[str, Weights] = {}
PARAMETERS: dict[str, int] = {}
