"""Image-to-Image Translation with Conditional Adversarial Networks (pix2pix).

Isola, Zhu, Zhou and Efros, CVPR 2017, arXiv 1611.07004.
Reference: junyanz/pytorch-CycleGAN-and-pix2pix (BSD-2-Clause).

*Differs*: the authors train and test with batches of one picture in training mode, so every norm takes the statistics of that one
picture. Here that is said outright: with `statistics="picture"` each picture is normalised by its own, in training and afterwards, in
batches of any size (running statistics are kept beside, as in the authors' files); `statistics="batch"` is the usual batch norm, with
running statistics in eval. The noise z is dropout, which stays on after training: eval takes one fixed draw for every picture, so that
an answer depends on its picture alone, and `noise=` takes others; `load(..., dropout=0.0)` turns it off. The learning rate falls step
by step, not once an epoch.
*Map*: section 3.1 (eq. 1-4) -> `Pix2Pix` (objective); section 3.2.1 (U-Net) -> `UNet`; section 3.2.2 (PatchGAN) -> `layers.patchgan`;
section 3.3 (per-picture norm, z at test time) -> `PictureNorm`, `UNet.forward`; appendix 6.1 -> `Config`; 6.2 -> `recipes.pix2pix`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.patchgan import Norm, PatchGAN, PixelGAN, normal_weights
from opticus.losses import adversarial
from opticus.losses.pictures import mean, pictures, pixels_of, targets_of, view_of
from opticus.structures import (
    Batch,
    DataError,
    Images,
    Noise,
    Picture,
    Prepare,
    Progress,
    Task,
    UnknownNameError,
    UsageError,
    Weights,
)
from opticus.weights.names import Names, drop, rename

TASK: Task = "translate"


def rule_of(channels: int, size: int) -> Prepare:
    """Pictures of `size` pixels a side, in [-1, 1]."""
    half = (0.5,) * channels
    return Prepare(channels, "fixed", (size, size), interpolation="bicubic", mean=half, std=half)


PREPARE = rule_of(3, 256)


@dataclass(frozen=True)
class Config:
    """`channels` of the picture and of its `answer` (None: as many); `depth` halvings, after which `size` is usually one pixel.

    `dropout` acts after the upward layers of the full width but the innermost one; `statistics` is what batch norm takes.
    """

    size: int = 256
    channels: int = 3
    answer: int | None = None
    width: int = 64
    depth: int = 8
    norm: Literal["batch", "instance"] = "batch"
    statistics: Literal["picture", "batch"] = "picture"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.depth < 2 or self.size % 2**self.depth or self.size < 2**self.depth:
            raise UsageError(
                f"pix2pix: size {self.size} must be a multiple of 2**depth, depth at least 2, found depth {self.depth}"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"pix2pix: dropout must be in [0, 1), found {self.dropout}")


# --- network -----------------------------------------------------------------------------------------------------------


class PictureNorm(nn.Module):
    """Batch norm as a batch of one picture has it: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var of each picture."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        tracked = (self.running_mean, self.running_var) if self.training else (None, None)
        return F.instance_norm(x, *tracked, self.weight, self.bias, True, self.momentum, self.eps)


def norm_of(config: Config) -> Norm:
    """The kind of norm that a Config asks for."""
    if config.norm == "instance":
        return nn.InstanceNorm2d
    return PictureNorm if config.statistics == "picture" else nn.BatchNorm2d


class Layer(nn.Module):
    """A convolution and its norm, if it has one."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class UNet(nn.Module):
    """An encoder and a decoder whose level i also sees the encoder's level i (section 3.2.1, figure 3).

    `down[0]` has no norm, nor has the innermost `down`, whose output may be one pixel; `up[0]` makes the answer.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        answer = config.channels if config.answer is None else config.answer
        self.prepare, self.produces = rule_of(config.channels, config.size), rule_of(answer, config.size)
        norm, bias, last = norm_of(config), config.norm == "instance", config.depth - 1
        widths = [config.width * min(2**i, 8) for i in range(config.depth)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            into, out = (config.channels, answer) if i == 0 else (widths[i - 1], widths[i - 1])
            narrow = nn.Conv2d(into, width, 4, 2, 1, bias=bias)
            widen = nn.ConvTranspose2d(width if i == last else 2 * width, out, 4, 2, 1, bias=bias or i == 0)
            self.down.append(Layer(narrow, None if i in (0, last) else norm(width)))
            self.up.append(Layer(widen, None if i == 0 else norm(out)))
        self.noisy = tuple(i for i in range(last) if widths[i - 1] == 8 * config.width and i > 0)
        normal_weights(self)

    def forward(
        self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None, noise: Noise | None = None
    ) -> Float[Tensor, "B A H W"]:
        """The answers, in [-1, 1]. `noise` draws z, a row per picture; without it eval takes one z for all and training chance.

        UsageError for sides that are no multiple of 2**depth, and for `valid`: a norm would count the padding.
        """
        unit = 2**self.config.depth
        if pixels.shape[2] % unit or pixels.shape[3] % unit or valid is not None:
            found = f"{pixels.shape[2]}x{pixels.shape[3]}" + (" with padding" if valid is not None else "")
            raise UsageError(f"pix2pix: pictures must be whole and their sides multiples of {unit}, found {found}")
        if noise is None and not self.training and self.noisy:
            noise = Noise(0, 1)
        elif noise is not None and len(noise) not in (1, len(pixels)):
            raise UsageError(f"pix2pix: {len(pixels)} pictures need noise for 1 or {len(pixels)}, found {len(noise)}")
        seen: list[Tensor] = []
        x = pixels
        for i, layer in enumerate(self.down):
            x = layer(F.leaky_relu(x, 0.2) if i else x)
            seen.append(x)
        for i in reversed(range(self.config.depth)):
            x = self.up[i](F.relu(x))
            if i in self.noisy:
                x = self._dropped(x, noise)
            x = torch.cat([seen[i - 1], x], 1) if i else x
        return torch.tanh(x)

    def _dropped(self, x: Tensor, noise: Noise | None) -> Tensor:
        rate = self.config.dropout
        if noise is None or rate == 0:
            return F.dropout(x, rate, self.training)
        kept = noise.uniform(*x.shape[1:]).to(x.device) >= rate
        return x * (kept.to(x.dtype) / (1 - rate))

    def results(self, out: Tensor, images: Images) -> list[Picture]:
        """The answers as pictures, as large as the network's input."""
        return list(pictures(out, self.produces))


NETWORK = UNet


# --- objective ---------------------------------------------------------------------------------------------------------


class Pix2Pix(nn.Module):
    """G* = arg min max L_cGAN(G, D) + l1 L_1(G) (eq. 4): the discriminator sees a picture and its answer together.

    Phases "d", then "g". `judge` "patch" has `layers` strided
    layers (3: 70x70 pixels), "pixel" none; `rule` is one of `losses.adversarial.RULES`.
    """

    def __init__(
        self, network: UNet, *, judge: str = "patch", layers: int = 3, width: int = 64, rule: str = "logistic", l1: float = 100.0
    ) -> None:
        super().__init__()
        if judge not in ("patch", "pixel"):
            raise UnknownNameError("judge of pix2pix", judge, ("patch", "pixel"))
        if l1 < 0:
            raise UsageError(f"pix2pix: l1 must not be negative, found {l1}")
        self.network, self.rule, self.l1 = network, adversarial.rule(rule), l1
        config = network.config
        channels, norm, bias = network.prepare.channels + network.produces.channels, norm_of(config), config.norm == "instance"
        self.discriminator = (
            PixelGAN(channels, norm, width=width, bias=bias)
            if judge == "pixel"
            else PatchGAN(channels, norm, width=width, layers=layers, bias=bias)
        )
        normal_weights(self.discriminator)

    def phases(self, step: int) -> tuple[str, ...]:
        """The discriminator's step, then the generator's."""
        return ("d", "g")

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """One side's."""
        return (self.discriminator if phase == "d" else self.network).parameters()

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures and their answers, normalised; DataError for pictures without, UsageError where the two differ in size.

        Where a batch has no pictures but views "a" and "b", these are the pairs.
        """
        if batch.images is None:
            a, b = view_of(batch, "a"), view_of(batch, "b")
        elif "a" in batch.roles and not any(isinstance(target, Picture) for target in batch.targets):
            raise DataError(
                f"batch {batch.ids[:1]} has pictures of two domains that are no pairs: pix2pix needs a target picture, cyclegan does not"
            )
        else:
            a, b = pixels_of(batch), targets_of(batch, self.network.produces)
        if a.shape[2:] != b.shape[2:]:
            raise UsageError(f"pix2pix: pictures of {tuple(a.shape[2:])} pixels have answers of {tuple(b.shape[2:])} pixels")
        return a, b

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Half the discriminator's loss on real and on fake pairs; or the generator's, with the L1 distance to the answer."""
        a, b = self.pair(batch)
        if at.phase == "d":
            with torch.no_grad():
                fake = self.network(a)
            real, fake = (self.discriminator(torch.cat([a, c], 1)) for c in (b, fake))
            return {"d/real": mean(self.rule.real(real), batch) / 2, "d/fake": mean(self.rule.fake(fake), batch) / 2}
        fake = self.network(a)
        scores = self.discriminator(torch.cat([a, fake], 1))
        distance = (fake - b).abs().flatten(1).mean(1)
        return {"g/real": mean(self.rule.generator(scores), batch), "g/l1": self.l1 * mean(distance, batch)}

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The discriminator's mean scores (B,) of real and of fake pairs."""
        a, b = self.pair(batch)
        real, fake = (self.discriminator(torch.cat([a, c], 1)) for c in (b, self.network(a)))
        return adversarial.per_picture(real), adversarial.per_picture(fake)


def objective(network: UNet, **options: Any) -> Pix2Pix:
    """The objective of the paper; options as those of `Pix2Pix`."""
    return Pix2Pix(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, channels=1, width=16, depth=5),
    "unet128": Config(size=128, depth=7),
    "unet256": Config(),
    "unet128-instance": Config(size=128, depth=7, norm="instance"),
    "unet256-instance": Config(norm="instance"),
}
PARAMETERS: dict[str, int] = {
    "unet128": 41_828_995,
    "unet256": 54_413_955,
    "unet128-instance": 41_825_667,
    "unet256-instance": 54_409_603,
}  # counted by the reference
OVERFIT = {"lr": 3e-3, "options": {"layers": 2, "width": 16}}

_KEY = re.compile(r"model\.model\.(?:([03])|1\.((?:model\.3\.)*)model\.([1-6]))\.(\w+)")
_PARTS = {
    "1": ("down", "conv"),
    "2": ("down", "norm"),
    "3": ("up", "conv"),
    "5": ("up", "conv"),
    "6": ("up", "norm"),
    "4": ("up", "norm"),
}


def _place(found: re.Match[str]) -> str:
    """The nested blocks of the authors' U-Net, counted from the outermost one; the innermost has no norm downwards."""
    outer, nested, part, tensor = cast("tuple[str | None, str | None, str | None, str]", found.groups())
    if outer is not None:
        return f"{'down' if outer == '0' else 'up'}.0.conv.{tensor}"
    way, what = _PARTS[str(part)]
    return f"{way}.{1 + (nested or '').count('model.3.')}.{what}.{tensor}"


_UNET = rename(_KEY.pattern, _place)
FORMATS: dict[str, Names] = {
    "authors": Names(_UNET),
    # instance norm of old torch versions left running statistics behind that nothing reads
    "authors-instance": Names(drop(r".+\.(?:running_mean|running_var|num_batches_tracked)"), _UNET),
}
TRAINING = Names(
    rename(r"netD\.(.+)", r"discriminator.\1"),
    rename(r"netG\." + _KEY.pattern, lambda found: "network." + _place(found)),
)
# the authors' files (scripts/download_pix2pix_model.sh: edges2shoes, sat2map, map2sat, facades_label2photo, day2night) are served by plain
# http only, which nothing is fetched by: download one and load("pix2pix/unet256", file)
WEIGHTS: dict[str, Weights] = {}
