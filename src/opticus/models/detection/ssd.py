"""SSD: Single Shot MultiBox Detector.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu and Berg, ECCV 2016, arXiv 1512.02325.
Reference: torchvision 0.28 (BSD-3-Clause), ssd300_vgg16; of "512" torchvision has the layers, the scales,
ratios and strides are those of open-mmlab/mmdetection (Apache-2.0), ssd512_coco.py and its SSDAnchorGenerator.

*Differs*: sides of default boxes are cut to the picture's, as in torchvision; the loss is divided by the matched boxes of all
pictures; boxes that lie wholly in the padding are left out; "tiny" is a small configuration for the demo data, with batch norm in its
backbone.
*Map*: figure 2 -> `SSD`; section 2.1 "Default boxes" and 2.2 "Choosing scales" -> `SSD.default_boxes`; section 2.2 "Matching strategy"
-> `match`, eq. 1-3 and "Hard negative mining" -> `criterion`; section 3.1 -> `L2Norm`, `Atrous`, `CODER`; section 3.7 -> `SSD.results`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.supervised import Supervised, widened
from opticus.matching.anchors import IGNORED, NEGATIVE, grid_anchors, hard_negatives, ignore_inside, max_iou
from opticus.matching.detections import in_original, level_sizes, pyramid_maps, suppressed, windows
from opticus.matching.objects import truth_of
from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.ops.iou import iou
from opticus.structures import Backbone, Batch, CapabilityError, DataError, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
CODER = (10.0, 10.0, 5.0, 5.0)  # weights of a box's deltas: the variances 0.1 and 0.2 of the authors' files
SCORE, CANDIDATES, OVERLAP = 0.01, 400, 0.45  # of an answer, of a class, of two results of one class (section 3.7)
_VGG = Part("vgg/16", classes=0, hidden=0)


def _prepare(side: int) -> Prepare:
    """The whole picture stretched to a square, less the mean colour; small pictures fit into a frame, as "tiny" is trained."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    mean, unit = (0.48235, 0.45882, 0.40784), 1 / 255
    return Prepare(resize="fixed", size=(side, side), antialias=False, mean=mean, std=(unit, unit, unit))


PREPARE = _prepare(300)


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; `finest` is the stride of the first map, `width` that of fc6 and fc7.

    `extras` are (kernel, stride, padding) of the further maps. Boxes of map i are `scales[i]` of the picture's side long, those of its
    further square lie between that and the next scale; `ratios[i]` are its other shapes, each upright and lying. `steps` are pixels
    per cell; `side` is that of the square input.
    """

    classes: int = 90
    backbone: Part = _VGG
    finest: int = 8
    width: int = 1024
    dilation: int = 6
    extras: tuple[tuple[int, int, int], ...] = ((3, 2, 1), (3, 2, 1), (3, 1, 0), (3, 1, 0))
    scales: tuple[float, ...] = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    ratios: tuple[tuple[float, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    steps: tuple[int, ...] = (8, 16, 32, 64, 100, 300)
    side: int = 300
    detections: int = 200


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One answer per default box, maps fine to coarse, then rows, columns, boxes of a cell.

    `logits` (B,N,K+1), background first; `deltas` (B,N,4).
    """

    logits: Tensor
    deltas: Tensor


class L2Norm(nn.Module):
    """Every cell's vector scaled to length 1 and each channel by a learned factor, 20 at the start (section 3.1; ParseNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 20.0))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return F.normalize(x) * self.scale[:, None, None]


class Atrous(nn.Module):
    """Section 3.1: pool5 at stride 1, and VGG's hidden layers as convolutions, fc6 with holes."""

    def __init__(self, width_in: int, width: int, dilation: int) -> None:
        super().__init__()
        self.pool5 = nn.MaxPool2d(3, 1, 1)
        self.fc6 = nn.Conv2d(width_in, width, 3, padding=dilation, dilation=dilation)
        self.fc7 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(self.pool5(x)))))


class Extra(nn.Module):
    """A further, coarser map: a 1x1 convolution to half the width, then the one that shrinks it (conv8_1 and conv8_2, ...)."""

    def __init__(self, width_in: int, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width // 2, 1)
        self.second = nn.Conv2d(width // 2, width, *shape)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


class SSD(nn.Module):
    """Figure 2: a backbone's maps of two strides, further ones ever smaller, and two 3x3 convolutions on each.

    `confidence` says what is in every default box of a cell, `location` how it is moved and stretched.
    """

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.prepare = _prepare(config.side)
        self.backbone = backbone
        self.maps = pyramid_maps(backbone, config.finest, "ssd")[:2]
        if len(self.maps) < 2:
            raise CapabilityError(
                f"ssd: expected a backbone with maps of two strides from {config.finest} on, found {backbone.strides}"
            )
        self.strides = tuple(backbone.strides[i] for i in self.maps)
        fine, coarse = (backbone.widths[i] for i in self.maps)
        self.norm = L2Norm(fine)
        self.atrous = Atrous(coarse, config.width, config.dilation)
        widths = [config.width, config.width // 2, *[config.width // 4] * (len(config.extras) - 1)]
        self.extras = nn.ModuleList(Extra(before, after, shape) for before, after, shape in zip(widths, widths[1:], config.extras))
        counts = [2 + 2 * len(ratios) for ratios in config.ratios]
        places = list(zip([fine, *widths], counts, strict=True))
        self.confidence = nn.ModuleList(nn.Conv2d(w, n * (config.classes + 1), 3, padding=1) for w, n in places)
        self.location = nn.ModuleList(nn.Conv2d(w, n * 4, 3, padding=1) for w, n in places)
        for part in (self.atrous, self.extras, self.confidence, self.location):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Answers:
        # channels-last maps: the answers of a cell lie side by side already, and convolutions are faster on CPU
        every = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
        maps = [self.norm(every[self.maps[0]]), self.atrous(every[self.maps[1]])]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        logits = [_rows(head(x), self.config.classes + 1) for x, head in zip(maps, self.confidence, strict=True)]
        deltas = [_rows(head(x), 4) for x, head in zip(maps, self.location, strict=True)]
        return Answers(torch.cat(logits, 1), torch.cat(deltas, 1))

    def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(h, w) of every map for inputs of `size` (H, W); UsageError if they are too small for the last ones."""
        sizes = list(level_sizes(size, self.strides, 0))
        for kernel, stride, padding in self.config.extras:
            h, w = ((n + 2 * padding - kernel) // stride + 1 for n in sizes[-1])
            if min(h, w) < 1:
                raise UsageError(f"ssd: expected inputs of about {self.config.side} pixels a side, found {size[0]}x{size[1]}")
            sizes.append((h, w))
        return sizes

    def default_boxes(self, size: tuple[int, int], like: Tensor) -> Float[Tensor, "N 4"]:
        """Section 2.2: the boxes of every map for inputs of `size` (H, W), in the order of the answers, xyxy pixels.

        A cell has a square of the map's scale, one of the geometric mean with the next scale, and w = s sqrt(a), h = s / sqrt(a)
        with a = r and 1 / r for each of the map's ratios; no side is longer than the picture's.
        """
        config = self.config
        frame = like.new_tensor([size[1], size[0]])
        found: list[Tensor] = []
        for i, (cells, step) in enumerate(zip(self.map_sizes(size), config.steps, strict=True)):
            scale, between = config.scales[i], (config.scales[i] * config.scales[i + 1]) ** 0.5
            sides = [(scale, scale), (between, between)]
            for ratio in config.ratios[i]:
                long, short = scale * ratio**0.5, scale / ratio**0.5
                sides += [(long, short), (short, long)]
            half = torch.tensor(sides, dtype=torch.float32).clamp(max=1).to(like) * frame / 2
            found.append(grid_anchors(torch.cat([-half, half], 1), cells, (float(step), float(step)), 0.5))
        return torch.cat(found)

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Section 3.7: the 400 best answers of each class that exceed 0.01, suppressed per class at IoU 0.45, the best 200."""
        logits, deltas = (part.detach() for part in widened(out))
        height, width = images.pixels.shape[-2:]
        priors = self.default_boxes((height, width), deltas)
        count = min(CANDIDATES, len(priors))
        found: list[Result] = []
        for i, window in enumerate(windows(images, deltas)):
            scores, places = logits[i].softmax(1)[:, 1:].T.topk(count)
            labels, ranks = (scores > SCORE).nonzero(as_tuple=True)
            chosen = places[labels, ranks]
            boxes = decode_boxes(deltas[i, chosen], priors[chosen], CODER)
            kept = suppressed(boxes, labels, scores[labels, ranks], window, overlap=OVERLAP, count=self.config.detections)
            found.append(in_original(*kept, images, i))
        return found


def _rows(x: Float[Tensor, "B C h w"], values: int) -> Float[Tensor, "B N V"]:
    """A map whose channels are `values` numbers for each box of a cell, as one row per box."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


def _check(config: Config) -> None:
    maps = 2 + len(config.extras)
    found = (len(config.scales), len(config.ratios), len(config.steps))
    if found != (maps + 1, maps, maps):
        raise UsageError(
            f"ssd: {len(config.extras)} extras make {maps} maps, expected {maps + 1} scales, {maps} ratios and {maps} steps, found {found}"
        )
    if config.width % 8:
        raise UsageError(f"ssd: expected a width divisible by 8, found {config.width}")


NETWORK = SSD
OVERFIT = {"samples": 2, "lr": 2e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


def match(overlaps: Float[Tensor, "M N"], positive: float = 0.5) -> Int[Tensor, "N"]:
    """Section 2.2: which of M objects each of N default boxes stands for: the one it overlaps by `positive` or more, else background.

    Then every object takes the box that overlaps it best, a later object from an earlier one, so that none goes unlearned.
    """
    matches = max_iou(overlaps, positive, positive, rescue=False)
    if overlaps.numel() == 0:
        return matches
    objects = torch.arange(len(overlaps), device=overlaps.device)
    forced = torch.full_like(matches, NEGATIVE).scatter_reduce(0, overlaps.argmax(1), objects, "amax")
    return torch.where(forced >= 0, forced, matches)


def criterion(
    network: SSD, *, box_weight: float = 1.0, positive: float = 0.5, negatives: float = 3.0
) -> Callable[[Answers, Batch], dict[str, Tensor]]:
    """Eq. 1: softmax loss of the matched boxes and of the hardest `negatives` times as many others, and smooth L1 of the matched
    ones' deltas, both per matched box; `box_weight` is eq. 1's alpha. Boxes inside crowds are no background.
    """

    def terms(out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("SSD is trained on images, found a batch without")
        height, width = batch.images.pixels.shape[-2:]
        priors = network.default_boxes((height, width), out.deltas)
        kinds = torch.zeros(out.logits.shape[:2], dtype=torch.int64, device=priors.device)
        goals = torch.zeros_like(out.deltas)
        ignored = torch.zeros_like(kinds, dtype=torch.bool)
        for i, truth in enumerate(truth_of(batch.targets, network.config.classes, batch.ids, priors)):
            objects = truth.boxes
            matches = ignore_inside(match(iou(objects, priors), positive), priors, truth.ignored)
            ignored[i] = matches == IGNORED
            places = (matches >= 0).nonzero()[:, 0]
            kinds[i, places] = truth.labels.to(priors.device)[matches[places]] + 1
            goals[i, places] = encode_boxes(objects[matches[places]], priors[places], CODER)
        hits = kinds > 0
        each = F.cross_entropy(out.logits.flatten(0, 1), kinds.flatten(), reduction="none").view_as(kinds)
        looked_at = hits | hard_negatives(each, hits, negatives, ignored)
        distance = F.smooth_l1_loss(out.deltas, goals, reduction="none").sum(2)
        weights = out.deltas.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.deltas)
        count = object_count(hits.sum(), out.deltas)
        return {
            "class": ((each * looked_at).sum(1) * weights).sum() / count,
            "box": box_weight * ((distance * hits).sum(1) * weights).sum() / count,
        }

    return terms


def objective(network: SSD, **options: Any) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: box_weight, positive, negatives."""
    return Supervised(network, criterion(network, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 2, 2), width=32),
        width=128,
        dilation=2,
        extras=((3, 2, 1),),
        scales=(0.15, 0.32, 0.56, 0.9),
        ratios=((1.6,),) * 3,
        steps=(8, 16, 32),
        side=128,
        detections=100,
    ),
    "300": Config(),
    "512": Config(
        extras=((3, 2, 1),) * 4 + ((4, 1, 1),),
        scales=(0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06),
        ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        steps=(8, 16, 32, 64, 128, 256, 512),
        side=512,
    ),
}

HEAD = r"confidence\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones


def _fifth(found: re.Match[str]) -> str:
    """torchvision counts the layers of VGG's fifth stage from pool4, the 24th layer of the trunk."""
    return f"backbone.trunk.{int(found[1]) + 23}.{found[2]}"


def _extra(found: re.Match[str]) -> str:
    return f"extras.{int(found[1]) - 1}.{'first' if found[2] == '0' else 'second'}.{found[3]}"


FORMATS: dict[str, Names] = {
    "torchvision": Names(
        rename(r"backbone\.features\.(\d+)\.(.*)", r"backbone.trunk.\1.\2"),
        rename(r"backbone\.scale_weight", "norm.scale"),
        rename(r"backbone\.extra\.0\.([135])\.(.*)", _fifth),
        rename(r"backbone\.extra\.0\.7\.1\.(.*)", r"atrous.fc6.\1"),
        rename(r"backbone\.extra\.0\.7\.3\.(.*)", r"atrous.fc7.\1"),
        rename(r"backbone\.extra\.([1-9])\.([02])\.(.*)", _extra),
        rename(r"head\.classification_head\.module_list\.(.*)", r"confidence.\1"),
        rename(r"head\.regression_head\.module_list\.(.*)", r"location.\1"),
    ),
}
WEIGHTS: dict[str, Weights] = {
    "300:coco": Weights(
        url="https://download.pytorch.org/models/ssd300_vgg16_coco-b556d3b4.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.28: models/detection/ssd.py",
        prepare=PREPARE,
        digest="b556d3b4",
        labels="coco90",
        reports={"AP": 25.1},
    )
}
PARAMETERS: dict[str, int] = {"300": 35_641_826}  # as torchvision states it
