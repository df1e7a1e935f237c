"""Objects as Points.

Zhou, Wang and Krähenbühl, 2019, arXiv 1904.07850 (CenterNet).
Reference: github.com/xingyizhou/CenterNet (MIT).

*Differs*: crowd regions are not learned; boxes are clipped to the whole map (the authors' stop one cell early); regression
losses are divided by the number of objects without the authors' 1e-4; pictures are padded at the right and bottom instead of
all around; "tiny" is opticus's own encoder and decoder for small pictures (the demo), the others are the authors' ResNets.
*Map*: section 3 eq. 1 -> `losses.focal.penalty_reduced_focal`; eq. 2-4 -> `Points`; section 4 -> `CenterNet.results`,
`matching.heatmaps.peaks`; section 5 "ResNet" -> `_deconvolutions`; appendix of the code (`msra_resnet`) -> key names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.focal import penalty_reduced_focal
from opticus.losses.supervised import Supervised
from opticus.matching.heatmaps import cells_inside, peaks, point_targets, values_at
from opticus.ops.boxes import clip, map_boxes
from opticus.structures import Backbone, Batch, CapabilityError, Images, Instances, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, keep, rename

TASK: Task = "detect"
STRIDE = 4
PREPARE = Prepare(resize="none", order="bgr", mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278), stride=32)
SMALL = Prepare(resize="letterbox", size=(128, 128), mean=(0.470, 0.447, 0.408), std=(0.278, 0.274, 0.289))


@dataclass(frozen=True)
class Config:
    """Without a `backbone` the network is the small encoder and decoder of `widths` and `depths`; `head` is the heads' width."""

    classes: int = 80
    backbone: Part | None = None
    neck: int = 256
    head: int = 64
    peaks: int = 100
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()


# --- network -----------------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """Raw maps at stride 4: `heat` (B,K,H,W) logits, `sizes` (B,2,H,W) width and height, `offsets` (B,2,H,W), in cells."""

    heat: Tensor
    sizes: Tensor
    offsets: Tensor


def _deconvolutions(width_in: int, width: int) -> nn.Sequential:
    """Three transposed 4x4 convolutions from stride 32 to stride 4 (Simple Baselines; section 5, "ResNet")."""
    layers: list[nn.Module] = []
    for source in (width_in, width, width):
        layers += [nn.ConvTranspose2d(source, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        nn.init.normal_(layers[-3].get_parameter("weight"), std=0.001)
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(width_in, width, stride)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        same = stride == 1 and width_in == width
        self.shortcut = None if same else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.norm2(self.conv2(self.conv1(x))) + shortcut)


class Pyramid(nn.Module):
    """The small network: a stem and residual stages at strides 2, 4, 8, ..., then upsampling with lateral sums to stride 4."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.stem = _conv(3, widths[0], 2)
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(before, after, 2), *(Residual(after, after, 1) for _ in range(depth - 1)))
            for before, after, depth in zip(widths[:-1], widths[1:], depths, strict=True)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(source, width, 1) for source in widths[1:])
        self.smooth = nn.ModuleList(_conv(width, width) for _ in widths[2:])

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        # channels-last input makes every convolution run channels-last: a quarter faster on CPU at these widths
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        maps: list[Tensor] = []
        for stage, lateral in zip(self.stages, self.laterals):
            x = stage(x)
            maps.append(lateral(x))
        top = maps.pop()
        for smooth in self.smooth:
            below = maps.pop()
            top = smooth(below + F.interpolate(top, size=below.shape[-2:], mode="nearest"))
        return top


def _conv(width_in: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _head(width_in: int, width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(width, channels, 1))


class CenterNet(nn.Module):
    """Features at stride 4 and three heads on them: centres of each class, sizes, and sub-cell offsets (section 4)."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.prepare = SMALL if backbone is None else PREPARE
        self.backbone: Backbone | None = backbone
        if backbone is None:
            if len(config.widths) < 2 or len(config.depths) != len(config.widths) - 1:
                found = f"widths={config.widths}, depths={config.depths}"
                raise UsageError(f"centernet without a backbone: expected widths and one depth fewer than widths, found {found}")
            self.neck: nn.Module = Pyramid(config.widths, config.depths, config.neck)
        elif backbone.strides[-1] == 8 * STRIDE:
            self.neck = _deconvolutions(backbone.widths[-1], config.neck)
        else:
            raise CapabilityError(f"centernet: expected a backbone whose last stride is {8 * STRIDE}, found {backbone.strides}")
        self.hm = _head(config.neck, config.head, config.classes)
        self.wh = _head(config.neck, config.head, 2)
        self.reg = _head(config.neck, config.head, 2)
        nn.init.constant_(self.hm.get_parameter("2.bias"), -2.19)  # every cell starts at probability 0.1
        for head in (self.wh, self.reg):  # not of the heat map: it would not learn for hundreds of steps
            nn.init.normal_(head.get_parameter("2.weight"), std=0.001)
            nn.init.zeros_(head.get_parameter("2.bias"))

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Points:
        x = self.neck(pixels if self.backbone is None else self.backbone.features(pixels)[-1])
        return Points(self.hm(x), self.wh(x), self.reg(x))

    def results(self, out: Points, images: Images) -> list[Result]:
        """Up to `config.peaks` boxes a picture around the peaks of the heat map, best first; no suppression is needed."""
        heat = out.heat.detach().sigmoid()
        if images.valid is not None:
            heat = heat * cells_inside(images.valid, (heat.shape[-2], heat.shape[-1]), STRIDE)
        best = peaks(heat, self.config.peaks)
        cell = best.y * heat.shape[-1] + best.x
        centres = torch.stack([best.x, best.y], -1) + values_at(out.offsets.detach(), cell)
        half = values_at(out.sizes.detach(), cell).clamp(min=0) / 2  # a negative side is an empty box, not a mirrored one
        boxes = torch.cat([centres - half, centres + half], -1) * STRIDE
        found: list[Result] = []
        for i, size in enumerate(images.sizes):
            box = clip(map_boxes(boxes[i], images.to_input[i].inverse()), size)
            keep = (best.scores[i] > 0) & (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
            found.append(Instances(box[keep].float(), best.labels[i][keep], size, best.scores[i][keep].float()))
        return found


NETWORK = CenterNet
OVERFIT = {"samples": 2, "lr": 3e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    classes: int, *, size_weight: float = 0.1, offset_weight: float = 1.0, alpha: float = 2.0, beta: float = 4.0
) -> Callable[[Points, Batch], dict[str, Tensor]]:
    """Eq. 5: focal loss on the heat map, L1 on offsets and, weighted by 0.1, on sizes, each per object of the batch."""

    def terms(out: Points, batch: Batch) -> dict[str, Tensor]:
        size = (out.heat.shape[-2], out.heat.shape[-1])
        truth = point_targets(batch.targets, classes, size, STRIDE, batch.ids)
        weights = out.heat.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.heat)
        image, (x, y) = truth.image, truth.cells.unbind(1)
        focal = penalty_reduced_focal(out.heat, truth.heat.to(out.heat), alpha=alpha, beta=beta)
        positives = object_count((truth.heat == 1).sum(), out.heat)
        objects = object_count(len(image), out.heat)

        def distance(maps: Tensor, wanted: Tensor) -> Tensor:
            each = (maps[image, :, y, x] - wanted.to(maps)).abs().mean(1)
            return (each * weights[image]).sum() / objects

        return {
            "heat": (focal * weights).sum() / positives,
            "size": size_weight * distance(out.sizes, truth.sizes),
            "offset": offset_weight * distance(out.offsets, truth.offsets),
        }

    return terms


def objective(network: CenterNet, **options: float) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: size_weight, offset_weight, alpha, beta."""
    return Supervised(network, criterion(network.config.classes, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(classes=10, neck=48, head=48, widths=(24, 40, 72, 96), depths=(2, 2, 1)),
    "resnet18": Config(backbone=Part("resnet/18", classes=0)),
    "resnet101": Config(backbone=Part("resnet/101", classes=0)),
}
HEAD = r"hm\.2\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "xingyizhou": Names(
        rename(r"(?:module\.)?((?:conv1|bn1|layer\d)\..*)", r"backbone.\1"),
        rename(r"(?:module\.)?deconv_layers\.(.*)", r"neck.\1"),
        keep(r"(?:hm|wh|reg)\..*"),
    )
}
WEIGHTS: dict[str, Weights] = {
    "tiny:scenes": Weights(
        url="package:centernet-tiny-scenes.safetensors",  # its header names the command that made it
        format="xingyizhou",
        license="Apache-2.0",
        source="opticus: recipes/centernet.py, `tiny`",
        prepare=SMALL,
        reports={"AP": 64.4, "AP50": 91.7, "AP75": 77.4},
    )
}
PARAMETERS: dict[str, int] = {"resnet18": 15_820_372, "resnet101": 53_435_476}  # counted in the reference
