"""Colorful Image Colorization.

Zhang, Isola and Efros, ECCV 2016, arXiv 1603.08511; and the network of Real-Time User-Guided Image Colorization with Learned Deep
Priors, Zhang, Zhu, Isola, Geng, Lin, Yu and Efros, SIGGRAPH 2017, arXiv 1705.02999.
Reference: richzhang/colorization (BSD-2-Clause).

*Differs*: a new network's colour bins are the `bins` points of the grid that lie nearest to the colours of sRGB (the authors' list of
313 is in their file, as `model_out`). The published ECCV network takes the plain mean over bins: its temperature is in its weights.
Pictures come in as RGB and only their lightness is looked at, so that a colour photograph is coloured as its exact L channel is.
Against the grey of eq. 1 there is, besides the paper's classification, a discriminator over (L, a, b) patches.
*Map*: eq. 1 -> `Colours.squared`; eq. 2 -> `Colours.classes`; eqs. 3 and 4 (rebalancing) -> `rebalanced`; eq. 5 (annealed mean) ->
`Colorization.decoded`; section 2.1 (soft encoding) -> `encoded`; figure 2 -> `ECCV16`; SIGGRAPH 2017, figure 2 -> `SIGGRAPH17`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.adversarial import per_picture, rule
from opticus.losses.pictures import mean, pictures, pixels_of, targets_of
from opticus.ops.lab import to_lab, to_rgb
from opticus.structures import Batch, Images, Picture, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "translate"
PREPARE = Prepare(resize="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
AB = 110.0  # the largest a or b, by which networks divide
GRID = 10  # distance of the bins in a and b
SPREAD = 5.0  # deviation of the Gaussian that shares a colour among bins, and that smooths their frequencies


@dataclass(frozen=True)
class Config:
    """`size`: side of the picture that the network looks at, whose colours are enlarged to the picture's own size; None looks at
    the picture as it is (sides that are multiples of 8). `temperature` of the annealed mean over bins: 0.38 in the paper."""

    kind: Literal["eccv16", "siggraph17"] = "eccv16"
    size: int | None = 256
    width: int = 64
    bins: int = 313
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("eccv16", "siggraph17"):
            raise UsageError(f"colorization: kind must be 'eccv16' or 'siggraph17', found {self.kind!r}")
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise UsageError(f"colorization: size must be a multiple of 8, found {self.size}")
        if not 0 < self.temperature <= 1 or not 8 <= self.bins <= 529 or self.width < 1:
            raise UsageError(f"colorization: temperature must be in (0, 1], bins in 8..529, width at least 1, found {self}")


class Coloured(NamedTuple):
    """`pixels` (B, 3, H, W) RGB in [0, 1]; `ab` (B, 2, h, w) what the network says at the size it looked at; `logits` of the bins."""

    pixels: Tensor
    ab: Tensor
    logits: Tensor


# --- networks ----------------------------------------------------------------------------------------------------------


def block(*widths: int, stride: int = 1, dilation: int = 1, norm: bool = True) -> nn.Sequential:
    """3x3 convolutions with ReLUs, the last one with `stride`; then a batch norm."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        step = stride if i == len(widths) - 2 else 1
        layers += [nn.Conv2d(before, after, 3, step, dilation, dilation), nn.ReLU()]
    return nn.Sequential(*layers, nn.BatchNorm2d(widths[-1])) if norm else nn.Sequential(*layers)


class ECCV16(nn.Module):
    """Convolutions down to an eighth and up to a quarter of the size, where every place has a distribution over bins of colours."""

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        w1, w2, w4, w8 = (width * factor for factor in (1, 2, 4, 8))
        self.conv1 = block(1, w1, w1, stride=2)
        self.conv2 = block(w1, w2, w2, stride=2)
        self.conv3 = block(w2, w4, w4, w4, stride=2)
        self.conv4 = block(w4, w8, w8, w8)
        self.conv5 = block(w8, w8, w8, w8, dilation=2)
        self.conv6 = block(w8, w8, w8, w8, dilation=2)
        self.conv7 = block(w8, w8, w8, w8)
        up = [nn.ConvTranspose2d(w8, w4, 4, 2, 1), nn.ReLU()]
        self.conv8 = nn.Sequential(*up, *block(w4, w4, w4, norm=False), nn.Conv2d(w4, bins, 1))
        self.centres = nn.Conv2d(bins, 2, 1, bias=False).requires_grad_(False)
        if not self.centres.weight.is_meta:
            self.centres.weight.copy_(nearest_bins(bins).T[:, :, None, None] / AB)

    def forward(self, lightness: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B K h w"]:
        x = (lightness - 50) / 100
        for i in range(1, 9):
            x = self.get_submodule(f"conv{i}")(x)
        return x


class SIGGRAPH17(nn.Module):
    """A U-shaped network on lightness and hints of colour: (a, b) where the mask is 1; it answers a and b, and bins for training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w1, w2, w4, w8 = (width * factor for factor in (1, 2, 4, 8))
        self.conv1, self.conv2, self.conv3 = block(4, w1, w1), block(w1, w2, w2), block(w2, w4, w4, w4)
        self.conv4, self.conv7 = block(w4, w8, w8, w8), block(w8, w8, w8, w8)
        self.conv5, self.conv6 = block(w8, w8, w8, w8, dilation=2), block(w8, w8, w8, w8, dilation=2)
        self.up8, self.short8 = nn.ConvTranspose2d(w8, w4, 4, 2, 1), nn.Conv2d(w4, w4, 3, padding=1)
        self.up9, self.short9 = nn.ConvTranspose2d(w4, w2, 4, 2, 1), nn.Conv2d(w2, w2, 3, padding=1)
        self.up10, self.short10 = nn.ConvTranspose2d(w2, w2, 4, 2, 1), nn.Conv2d(w1, w2, 3, padding=1)
        self.conv8 = nn.Sequential(nn.ReLU(), *block(w4, w4, w4))
        self.conv9 = nn.Sequential(nn.ReLU(), *block(w2, w2))
        self.conv10 = nn.Sequential(nn.ReLU(), nn.Conv2d(w2, w2, 3, padding=1), nn.LeakyReLU(0.2))
        self.bins = nn.Conv2d(w4, (2 * (110 // GRID) + 1) ** 2, 1)
        self.out = nn.Conv2d(w2, 2, 1)

    def forward(
        self, lightness: Float[Tensor, "B 1 H W"], hints: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B 2 H W"]]:
        one = self.conv1(torch.cat([(lightness - 50) / 100, hints[:, :2] / AB, hints[:, 2:]], 1))
        two = self.conv2(one[:, :, ::2, ::2])
        three = self.conv3(two[:, :, ::2, ::2])
        x = self.conv7(self.conv6(self.conv5(self.conv4(three[:, :, ::2, ::2]))))
        eight = self.conv8(self.up8(x) + self.short8(three))
        nine = self.conv9(self.up9(eight) + self.short9(two))
        ten = self.conv10(self.up10(nine) + self.short10(one))
        return self.bins(eight), self.out(ten).tanh() * AB


class Colorization(nn.Module):
    """Colours for pictures: the lightness of each pixel is kept, a and b are the network's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.prepare, self.produces, self.scale = config, PREPARE, PREPARE, 1
        self.net = ECCV16(config.width, config.bins) if config.kind == "eccv16" else SIGGRAPH17(config.width)

    def forward(
        self, pixels: Float[Tensor, "B 3 H W"], valid: Tensor | None = None, hints: Float[Tensor, "B 3 H W"] | None = None
    ) -> Coloured:
        """`hints` (SIGGRAPH 2017): a, b and a mask that is 1 where they are given, at the size of the pixels."""
        if hints is not None and (isinstance(self.net, ECCV16) or hints.shape[2:] != pixels.shape[2:]):
            raise UsageError("colorization: hints are for the variant 'siggraph17', at the size of the picture")
        frames = _frames(valid, pixels)
        small = self._fitted(pixels, frames, "bicubic").clamp(0, 1)
        lightness = to_lab(small)[:, :1]
        if isinstance(self.net, ECCV16):
            logits = self.net(lightness)
            ab = self.decoded(logits)
        else:
            given = torch.zeros_like(small) if hints is None else self._fitted(hints, frames, "nearest")
            logits, ab = self.net(lightness, given)
        colours = ab
        if ab.shape[2:] != pixels.shape[2:] or frames:
            colours = pixels.new_zeros(len(pixels), 2, *pixels.shape[2:])
            for i, (height, width) in enumerate(frames or [tuple(pixels.shape[2:])]):  # of unlike sizes only where there is padding
                rows = slice(i, i + 1) if frames else slice(None)
                colours[rows, :, :height, :width] = F.interpolate(ab[rows], (height, width), mode="bilinear", align_corners=False)
        return Coloured(to_rgb(torch.cat([to_lab(pixels.clamp(0, 1))[:, :1], colours], 1)), ab, logits)

    def decoded(self, logits: Float[Tensor, "B K h w"]) -> Float[Tensor, "B 2 H W"]:
        """The annealed mean of the bins (eq. 5), four times as large."""
        assert isinstance(self.net, ECCV16)
        shares = (logits / self.config.temperature).softmax(1)
        return F.interpolate(self.net.centres(shares), scale_factor=4, mode="bilinear", align_corners=False) * AB

    def _fitted(self, planes: Tensor, frames: list[tuple[int, int]], mode: str) -> Tensor:
        """What the network looks at: every picture, without its padding, at the size of the Config."""
        size = self.config.size
        if size is None:
            if planes.shape[2] % 8 or planes.shape[3] % 8:
                raise UsageError(f"colorization: sides must be multiples of 8 without size=, found {tuple(planes.shape[2:])}")
            return planes
        antialias = mode == "bicubic"
        if not frames:
            same = planes.shape[2:] == (size, size)
            return planes if same else F.interpolate(planes, (size, size), mode=mode, antialias=antialias)
        cut = [planes[i : i + 1, :, :height, :width] for i, (height, width) in enumerate(frames)]
        return torch.cat([F.interpolate(one, (size, size), mode=mode, antialias=antialias) for one in cut])

    def results(self, out: Coloured, images: Images) -> list[Picture]:
        """The coloured pictures, without padding."""
        frames = _frames(images.valid, out.pixels) or [tuple(out.pixels.shape[2:])] * len(out.pixels)
        return [
            Picture(one.pixels[:height, :width].contiguous())
            for one, (height, width) in zip(pictures(out.pixels, self.produces), frames)
        ]


def _frames(valid: Tensor | None, pixels: Tensor) -> list[tuple[int, int]]:
    """(H, W) of every picture inside its padding; empty where there is none."""
    return [] if valid is None else [(int(one.any(1).sum()), int(one.any(0).sum())) for one in valid]


NETWORK = Colorization


# --- encoding ----------------------------------------------------------------------------------------------------------


@functools.cache
def _points(count: int) -> tuple[tuple[float, float], ...]:
    """The `count` points of the grid that lie nearest to colours of sRGB, in the order of the grid."""
    side = torch.linspace(0, 1, 33, dtype=torch.float64, device="cpu")
    cube = torch.stack(torch.meshgrid(side, side, side, indexing="ij")).reshape(1, 3, -1, 1)
    colours = np.unique(to_lab(cube)[0, 1:, :, 0].T.round().numpy(), axis=0)
    grid = np.stack(np.meshgrid(*(np.arange(-110, 111, GRID),) * 2, indexing="ij"), -1).reshape(-1, 2)
    away = np.square(grid[:, None] - colours[None]).sum(-1).min(1)
    chosen = np.sort(np.argsort(away, kind="stable")[:count])
    return tuple((float(a), float(b)) for a, b in grid[chosen])


def nearest_bins(count: int) -> Float[Tensor, "K 2"]:
    """The a and b of a new network's bins."""
    return torch.tensor(_points(count))


def encoded(ab: Float[Tensor, "N 2"], centres: Float[Tensor, "K 2"], neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Every colour shared among its nearest bins by a Gaussian of their distance: shares (N, neighbours) and bins, nearest first."""
    far, bins = torch.cdist(ab, centres).topk(min(neighbours, len(centres)), largest=False)
    shares = (-far.square() / (2 * SPREAD**2)).softmax(1)  # the softmax divides by the sum, without an underflow of far colours
    return shares, bins


def rebalanced(prior: Float[Tensor, "K"], centres: Float[Tensor, "K 2"], balance: float) -> Float[Tensor, "K"]:
    """The weight of each bin: one over its smoothed frequency mixed with a uniform share, 1 on average over the prior (eq. 4)."""
    kernel = (-torch.cdist(centres, centres).square() / (2 * SPREAD**2)).exp()
    smooth = kernel / kernel.sum(1, keepdim=True) @ (prior / prior.sum())
    weights = 1 / ((1 - balance) * smooth / smooth.sum() + balance / len(prior))
    return weights / (weights * prior / prior.sum()).sum()


# --- objective ---------------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """Patches of (L, a, b) that are real, or a picture's lightness with colours that a network gave it: scores (B, 1, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, lab: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        return self.net(lab / lab.new_tensor([100.0, AB, AB])[:, None, None])


Loss = Literal["classes", "squared", "adversarial"]


class Colours(nn.Module):
    """What colours are compared by: "classes" (eq. 2), "squared" (eq. 1) or "adversarial" (a patch discriminator beside eq. 1).

    `prior`: the frequency of every bin, for rebalancing with `balance` (lambda of eq. 4); without one all bins weigh the same.
    `squared` is the weight of eq. 1 beside the discriminator.
    """

    discriminator: Discriminator | None
    weights: Tensor

    def __init__(
        self, network: Colorization, *, loss: Loss | None = None, prior: Sequence[float] | None = None, balance: float = 0.5,
        squared: float = 1.0, width: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.loss: Loss = loss or ("classes" if network.config.kind == "eccv16" else "squared")
        if self.loss not in ("classes", "squared", "adversarial"):
            raise UsageError(f"colorization: loss must be 'classes', 'squared' or 'adversarial', found {loss!r}")
        if not 0 <= balance <= 1 or squared < 0 or width < 1:
            raise UsageError("colorization: balance must be in [0, 1], squared not negative and width at least 1")
        count = len(self.centres())
        if prior is not None and (len(prior) != count or min(prior) < 0 or sum(prior) <= 0):
            raise UsageError(f"colorization: the prior must be {count} frequencies, found {len(prior)} numbers")
        self.squared_weight = squared
        centres = nearest_bins(count) if self.centres().is_meta else self.centres().detach().cpu()
        weights = torch.ones(count) if prior is None else rebalanced(torch.tensor(prior), centres, balance)
        self.register_buffer("weights", weights.float())
        self.discriminator = Discriminator(width) if self.loss == "adversarial" else None

    def centres(self) -> Float[Tensor, "K 2"]:
        """The a and b of the bins."""
        net = self.network.net
        return net.centres.weight[:, :, 0, 0].T * AB if isinstance(net, ECCV16) else nearest_bins(net.bins.out_channels)

    def phases(self, step: int) -> tuple[str, ...]:
        """("d", "g") with a discriminator, else ("all",)."""
        return ("all",) if self.discriminator is None else ("d", "g")

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """Those of the discriminator in "d", else those of the network that are learned."""
        if phase == "d" and self.discriminator is not None:
            return self.discriminator.parameters()
        return (p for p in self.network.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The colours of the batch's target pictures are wanted for its pictures."""
        wanted = to_lab(targets_of(batch, PREPARE).float())
        if at.phase == "d" and self.discriminator is not None:
            game = rule("hinge")
            with torch.no_grad():
                made = self._joined(wanted, self.network(pixels_of(batch)).ab)
            real, fake = self.discriminator(wanted), self.discriminator(made)
            return {"d/real": mean(game.real(real.float()), batch), "d/fake": mean(game.fake(fake.float()), batch)}
        out: Coloured = self.network(pixels_of(batch))
        if self.loss == "classes":
            return {"classes": mean(self.classes(out.logits.float(), wanted[:, 1:]), batch)}
        error = mean(self.squared(out.ab.float(), wanted[:, 1:]), batch)
        if self.discriminator is None:
            return {"squared": error}
        fooled = rule("hinge").generator(self.discriminator(self._joined(wanted, out.ab)).float())
        return {"g/squared": self.squared_weight * error, "g/fool": mean(fooled, batch)}

    def classes(self, logits: Float[Tensor, "B K h w"], ab: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B"]:
        """The cross-entropy of softly encoded colours, weighted by the rarity of the nearest bin, per place (eqs. 2 and 3)."""
        small = F.interpolate(ab, logits.shape[2:], mode="area").permute(0, 2, 3, 1).reshape(-1, 2)
        shares, bins = encoded(small, self.centres().to(small))
        logs = logits.log_softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        each = -(shares * logs.gather(1, bins)).sum(1) * self.weights[bins[:, 0]]
        return each.reshape(len(logits), -1).mean(1)

    def squared(self, found: Float[Tensor, "B 2 h w"], ab: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B"]:
        """Half the squared distance of the colours, divided by 110, per place (eq. 1)."""
        wanted = F.interpolate(ab, found.shape[2:], mode="area")
        return ((found - wanted) / AB).square().flatten(1).mean(1)

    def _joined(self, lab: Tensor, ab: Tensor) -> Tensor:
        if ab.shape[2:] != lab.shape[2:]:
            ab = F.interpolate(ab, lab.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([lab[:, :1], ab.to(lab)], 1)

    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The discriminator's mean scores (B,) of real colours and of the network's."""
        if self.discriminator is None:
            raise UsageError("colorization: there is no discriminator without loss='adversarial'")
        wanted = to_lab(targets_of(batch, PREPARE).float())
        made = self._joined(wanted, self.network(pixels_of(batch)).ab)
        return per_picture(self.discriminator(wanted)), per_picture(self.discriminator(made))

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""


def objective(network: Colorization, **options: Any) -> Colours:
    """See `Colours`: `loss`, `prior` and `balance` of the bins, and the discriminator's settings."""
    return Colours(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=None, width=16, temperature=0.38),
    "eccv16": Config(),
    "siggraph17": Config("siggraph17", bins=529),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {"observable": "loss", "floor": 0.0, "samples": 2, "lr": 5e-3, "options": {"loss": "squared"}}
FORMATS: dict[str, Names] = {
    "eccv16": Names(
        rename(r"model([1-8])\.(\d+\..+)", r"net.conv\1.\2"),
        rename(r"model_out\.weight", "net.centres.weight"),
    ),
    "siggraph17": Names(
        rename(r"model(\d+)up\.0\.(.+)", r"net.up\1.\2"),
        rename(r"model\d+short(\d+)\.0\.(.+)", r"net.short\1.\2"),
        rename(r"model_class\.0\.(.+)", r"net.bins.\1"),
        rename(r"model_out\.0\.(.+)", r"net.out.\1"),
        rename(r"model(\d+)\.(\d+\..+)", r"net.conv\1.\2"),
    ),
}
_SOURCE = "https://github.com/richzhang/colorization colorizers/eccv16.py, colorizers/siggraph17.py (digests: the names' ends)"
_AT = "https://colorizers.s3.us-east-2.amazonaws.com/"
WEIGHTS: dict[str, Weights] = {
    "eccv16:imagenet": Weights(
        f"{_AT}colorization_release_v2-9b330a0b.pth", "eccv16", "BSD-2-Clause", _SOURCE, PREPARE, digest="9b330a0b"
    ),
    "siggraph17:imagenet": Weights(
        f"{_AT}siggraph17-df00044c.pth", "siggraph17", "BSD-2-Clause", _SOURCE, PREPARE, digest="df00044c"
    ),
}
