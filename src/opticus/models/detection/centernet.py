"""Objects as Points.

Zhou, Wang and Krähenbühl, 2019, arXiv 1904.07850 (CenterNet).
Reference: github.com/xingyizhou/CenterNet (MIT).

*Differs*: crowd regions are not learned; boxes are clipped to the whole map (the authors' stop one cell early); regression
losses are divided by the number of objects without the authors' 1e-4; pictures are padded at the right and bottom instead of
all around and not mirrored at test time; "tiny" is opticus's own encoder and decoder for small pictures (the demo), the others are
the authors' ResNets, DLA-34 and hourglass.
*Map*: section 3 eq. 1 -> `losses.focal.penalty_reduced_focal`; eq. 2-4 -> `Points`; section 4 -> `CenterNet.results`,
`matching.heatmaps.peaks`; section 5 "Hourglass" -> `up="none"`, "ResNet" -> `_deconvolutions` (the code's `msra_resnet`) and
`_deformable` (`resnet_dcn`, figure 6 c), "DLA" -> `Aggregation` (`pose_dla_dcn`, figure 6 d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.focal import penalty_reduced_focal
from opticus.losses.supervised import Supervised, widened
from opticus.matching.heatmaps import cells_inside, peaks, point_targets, values_at
from opticus.ops.boxes import clip, map_boxes
from opticus.ops.deform import deform_conv
from opticus.structures import Backbone, Batch, CapabilityError, Images, Instances, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "detect"
STRIDE = 4
PREPARE = Prepare(resize="none", order="bgr", mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278), stride=32)
SMALL = Prepare(resize="letterbox", size=(128, 128), mean=(0.470, 0.447, 0.408), std=(0.278, 0.274, 0.289))


@dataclass(frozen=True)
class Config:
    """Without a `backbone` the network is the small encoder and decoder of `widths` and `depths`; `head` is the heads' width.

    `up` leads from a backbone's maps to stride 4: transposed convolutions of width `neck`, such of `neck`, a half and a quarter of
    it behind deformable ones, DLA's aggregation, or nothing, where every map has that stride already (a stacked hourglass).
    """

    classes: int = 80
    backbone: Part | None = None
    neck: int = 256
    head: int = 64
    peaks: int = 100
    up: Literal["deconvolutions", "deformable", "aggregation", "none"] = "deconvolutions"
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()


# --- network -----------------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """Raw maps at stride 4: `heat` (B,K,H,W) logits, `sizes` (B,2,H,W) width and height, `offsets` (B,2,H,W), in cells.

    In training `earlier` holds those of the stacks before the last.
    """

    heat: Tensor
    sizes: Tensor
    offsets: Tensor
    earlier: tuple[Points, ...] | None = None


def _deconvolutions(width_in: int, width: int) -> nn.Sequential:
    """Three transposed 4x4 convolutions from stride 32 to stride 4 (Simple Baselines; section 5, "ResNet")."""
    layers: list[nn.Module] = []
    for source in (width_in, width, width):
        layers += [nn.ConvTranspose2d(source, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        nn.init.normal_(layers[-3].get_parameter("weight"), std=0.001)
    return nn.Sequential(*layers)


class Deformable(nn.Module):
    """A 3x3 convolution whose taps move and are weighed (deformable convolution, version 2); both start at nothing and a half."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        self.conv_offset_mask = nn.Conv2d(width_in, 27, 3, 1, 1)
        nn.init.uniform_(self.weight, -1 / (9 * width_in) ** 0.5, 1 / (9 * width_in) ** 0.5)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.get_parameter("bias"))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        offsets, shares = self.conv_offset_mask(x).split((18, 9), 1)
        return deform_conv(x, offsets, self.weight, self.bias, shares.sigmoid(), padding=1)


def _deformable(width_in: int, width: int) -> nn.Sequential:
    """Three times a deformable convolution and a transposed 4x4 one, each pair half as wide as the last (figure 6 c)."""
    layers: list[nn.Module] = []
    for source, to in ((width_in, width), (width, width // 2), (width // 2, width // 4)):
        layers += [Deformable(source, to), nn.BatchNorm2d(to), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(to, to, 4, 2, 1, bias=False), nn.BatchNorm2d(to), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Node(nn.Module):
    """A deformable convolution with batch norm and ReLU."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.actf = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.conv = Deformable(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.actf(self.conv(x))


class Iterative(nn.Module):
    """Maps, fine to coarse, joined one after another: each is projected, enlarged by its factor, and added to the one before."""

    def __init__(self, width: int, widths: tuple[int, ...], factors: tuple[int, ...]) -> None:
        super().__init__()
        for i, (source, factor) in enumerate(zip(widths, factors, strict=True), 1):
            up = nn.ConvTranspose2d(width, width, 2 * factor, factor, factor // 2, groups=width, bias=False)
            nearness = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor
            up.weight.data.copy_(nearness[:, None] * nearness)  # bilinear enlargement
            self.add_module(f"proj_{i}", Node(source, width))
            self.add_module(f"up_{i}", up)
            self.add_module(f"node_{i}", Node(width, width))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        joined = maps[:1]
        for i, x in enumerate(maps[1:], 1):
            up, below = self.get_submodule(f"up_{i}")(self.get_submodule(f"proj_{i}")(x)), joined[-1]
            joined.append(self.get_submodule(f"node_{i}")(up[..., : below.shape[-2], : below.shape[-1]] + below))
        return joined


class Aggregation(nn.Module):
    """DLA's way up (1707.06484 figure 4): from the coarsest map on ever more maps are joined, then the results of all rounds."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        rounds = range(len(widths) - 1)
        self.dla_up = nn.ModuleDict(
            {f"ida_{i}": Iterative(widths[-2 - i], (widths[-1 - i],) * (i + 1), (2,) * (i + 1)) for i in rounds}
        )
        self.ida_up = Iterative(widths[0], widths[1:-1], tuple(2**i for i in rounds)[1:])

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "B C h w"]:
        layers, ends = list(maps), list[Tensor]()
        for i, join in enumerate(self.dla_up.values()):
            start = len(layers) - 2 - i
            layers[start:] = join(layers[start:])
            ends.insert(0, layers[-1])
        return self.ida_up(ends)[-1]


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
        self.prepare = SMALL if backbone is None else replace(PREPARE, stride=128) if config.up == "none" else PREPARE
        self.backbone: Backbone | None = backbone
        self.neck, width = _own(config) if backbone is None else _neck(config, backbone)
        stacks = len(backbone.strides) if backbone is not None and config.up == "none" else 1
        self.hm = _head(width, config.head, config.classes)
        self.wh = _head(width, config.head, 2)
        self.reg = _head(width, config.head, 2)
        self.earlier = nn.ModuleList(
            nn.ModuleDict({name: _head(width, config.head, n) for name, n in (("hm", config.classes), ("wh", 2), ("reg", 2))})
            for _ in range(stacks - 1)
        )
        for heads in (self, *self.earlier):
            # every cell starts at probability 0.1
            nn.init.constant_(heads.get_parameter("hm.2.bias"), -2.19)
            for name in ("wh", "reg"):  # not of the heat map: it would not learn for hundreds of steps
                nn.init.normal_(heads.get_parameter(f"{name}.2.weight"), std=0.001)
                nn.init.zeros_(heads.get_parameter(f"{name}.2.bias"))

    def forward(self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None) -> Points:
        maps = [pixels] if self.backbone is None else self.backbone.features(pixels)
        before: list[Tensor] = []
        if self.config.up == "none" and self.backbone is not None:
            before, x = maps[:-1], maps[-1]
        elif self.config.up == "aggregation" and self.backbone is not None:
            x = self.neck(maps[-4:])
        else:
            x = self.neck(maps[-1])
        if not self.training:
            return Points(self.hm(x), self.wh(x), self.reg(x))
        earlier = tuple(Points(*(head(y) for head in heads.children())) for y, heads in zip(before, self.earlier))
        return Points(self.hm(x), self.wh(x), self.reg(x), earlier)

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


def _own(config: Config) -> tuple[nn.Module, int]:
    """The small network of a CenterNet without a backbone, and its width."""
    if len(config.widths) < 2 or len(config.depths) != len(config.widths) - 1 or config.up != "deconvolutions":
        found = f"widths={config.widths}, depths={config.depths}, up={config.up!r}"
        raise UsageError(
            f"centernet without a backbone: expected widths, one depth fewer than widths and up='deconvolutions', found {found}"
        )
    return Pyramid(config.widths, config.depths, config.neck), config.neck


def _neck(config: Config, backbone: Backbone) -> tuple[nn.Module, int]:
    """What leads from a backbone's maps to stride 4, and the width it leads to; CapabilityError where they do not fit."""
    strides, widths = backbone.strides, backbone.widths
    if config.up == "none":
        if set(strides) != {STRIDE} or len(set(widths)) != 1:
            found = f"strides {strides} and widths {widths}"
            raise CapabilityError(f"centernet: expected a backbone whose maps have stride {STRIDE} and one width, found {found}")
        return nn.Identity(), widths[-1]
    if config.up == "aggregation":
        if strides[-4:] != (STRIDE, 2 * STRIDE, 4 * STRIDE, 8 * STRIDE):
            raise CapabilityError(f"centernet: expected a backbone whose last strides are 4, 8, 16 and 32, found {strides}")
        return Aggregation(widths[-4:]), widths[-4]
    if strides[-1] != 8 * STRIDE:
        raise CapabilityError(f"centernet: expected a backbone whose last stride is {8 * STRIDE}, found {strides}")
    if config.up == "deformable":
        return _deformable(widths[-1], config.neck), config.neck // 4
    return _deconvolutions(widths[-1], config.neck), config.neck


NETWORK = CenterNet
OVERFIT = {"samples": 2, "lr": 3e-3}


# --- objective ---------------------------------------------------------------------------------------------------------


def criterion(
    classes: int, *, size_weight: float = 0.1, offset_weight: float = 1.0, alpha: float = 2.0, beta: float = 4.0
) -> Callable[[Points, Batch], dict[str, Tensor]]:
    """Eq. 5: focal loss on the heat map, L1 on offsets and, weighted by 0.1, on sizes, each per object of the batch; stacks' mean.

    Cells inside crowds are no background.
    """

    def terms(out: Points, batch: Batch) -> dict[str, Tensor]:
        size = (out.heat.shape[-2], out.heat.shape[-1])
        truth = point_targets(batch.targets, classes, size, STRIDE, batch.ids)
        weights = out.heat.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.heat)
        image, (x, y) = truth.image, truth.cells.unbind(1)
        positives = object_count((truth.heat == 1).sum(), out.heat)
        objects = object_count(len(image), out.heat)

        def distance(maps: Tensor, wanted: Tensor) -> Tensor:
            each = (maps[image, :, y, x] - wanted.to(maps)).abs().mean(1)
            return (each * weights[image]).sum() / objects

        rows: list[Tensor] = []
        for stack in (*(widened(stack) for stack in out.earlier or ()), out):
            focal = penalty_reduced_focal(stack.heat, truth.heat.to(stack.heat), alpha=alpha, beta=beta, ignored=truth.ignored)
            size_term, offset_term = distance(stack.sizes, truth.sizes), distance(stack.offsets, truth.offsets)
            rows.append(torch.stack([(focal * weights).sum() / positives, size_weight * size_term, offset_weight * offset_term]))
        return dict(zip(("heat", "size", "offset"), torch.stack(rows).mean(0).unbind(0), strict=True))

    return terms


def objective(network: CenterNet, **options: float) -> Supervised:
    """Targets are boxes in network-input pixels; options of `criterion`: size_weight, offset_weight, alpha, beta."""
    return Supervised(network, criterion(network.config.classes, **options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(classes=10, neck=48, head=48, widths=(24, 40, 72, 96), depths=(2, 2, 1)),
    "resnet18": Config(backbone=Part("resnet/18", classes=0)),
    "resnet101": Config(backbone=Part("resnet/101", classes=0)),
    "resdcn18": Config(backbone=Part("resnet/18", classes=0), up="deformable"),
    "resdcn101": Config(backbone=Part("resnet/101", classes=0), up="deformable"),
    "dla34": Config(backbone=Part("dla/34", classes=0), up="aggregation", head=256),
    "hourglass": Config(backbone=Part("hourglass/104", classes=0), up="none", head=256),
}
HEAD = r"(?:earlier\.\d+\.)?hm\.2\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
_ANY = r"(?:module\.)?"
FORMATS: dict[str, Names] = {
    "xingyizhou": Names(
        rename(_ANY + r"((?:conv1|bn1|layer\d)\..*)", r"backbone.\1"),
        rename(_ANY + r"deconv_layers\.(.*)", r"neck.\1"),
        # DLA's classifier, and projections that nothing uses
        drop(_ANY + r"base\.(?:fc|level[34]\.project)\..*"),
        rename(_ANY + r"base\.(.*)", r"backbone.\1"),
        rename(_ANY + r"((?:dla_up|ida_up)\..*)", r"neck.\1"),
        # the hourglass has two stacks with heads
        rename(_ANY + r"((?:pre|kps|cnvs|inters|inters_|cnvs_)\..*)", r"backbone.\1"),
        rename(_ANY + r"(hm|wh|reg)\.0\.0\.conv\.(\w+)", r"earlier.0.\1.0.\2"),
        rename(_ANY + r"(hm|wh|reg)\.0\.1\.(\w+)", r"earlier.0.\1.2.\2"),
        rename(_ANY + r"(hm|wh|reg)\.1\.0\.conv\.(\w+)", r"\1.0.\2"),
        rename(_ANY + r"(hm|wh|reg)\.1\.1\.(\w+)", r"\1.2.\2"),
        rename(_ANY + r"((?:hm|wh|reg)\.\d\.\w+)", r"\1"),
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
PARAMETERS: dict[str, int] = {  # counted in the reference
    "resnet18": 15_820_372,
    "resnet101": 53_435_476,
    "resdcn18": 14_437_349,
    "resdcn101": 49_673_189,
    "dla34": 19_634_164,
    "hourglass": 191_284_008,
}
