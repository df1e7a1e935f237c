"""Density estimation using Real NVP.

Dinh, Sohl-Dickstein and Bengio, ICLR 2017, arXiv 1605.08803.
Reference: chrischute/real-nvp (MIT); the authors' code is part of tensorflow/models (Apache-2.0).

*Differs*: as in the reference, a coupling shifts before it scales, y = (x + t) exp(s), the scale is a weight-normalised factor of
tanh(s), and there is no batch normalisation between couplings (section 3.7): the normalisation inside the residual networks only. So
log-determinants do not depend on the batch in evaluation. The logit's alpha is taken off at both ends. `points` is for toy densities
(figure 1): halves of the coordinates instead of pixels, dense networks, no logit.
*Map*: eq. 2-3 -> `RealNVP.log_density`; eq. 7-8 and figure 2 -> `Coupling`; section 3.4, figure 3 -> `checkerboard`, `squeeze`; section
3.6, figure 4b -> `Scale`; section 4.1 (logit(alpha + (1 - alpha) x), uniform noise) -> `RealNVP.to_logits`, `Likelihood`; the appendix's
residual networks with weight normalisation and skips -> `ResNet`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses import dequantise
from opticus.losses.pictures import mean, pixels_of
from opticus.structures import Batch, Dataset, Noise, Prepare, Progress, Task, UsageError, Weights
from opticus.transforms.prepare import prepare
from opticus.weights.names import Names, rename

TASK: Task = "generate"
HEADLINE, LOWER_IS_BETTER = "bits/dim", True
LEVELS = "levels"  # the field of Config that says how many values a pixel can take
PREPARE = Prepare(resize="fixed", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
DRAWS = 4  # places in a pixel's bin at which `evaluate` looks


@dataclass(frozen=True)
class Config:
    """`width` doubles at every scale and `blocks` is the residual blocks of a coupling's network; `layout` "points" has `channels`
    coordinates, dense networks of `width` units with `blocks` hidden layers, and `scales` pairs of couplings.
    """

    size: int = 32
    channels: int = 3
    width: int = 64
    blocks: int = 8
    scales: int = 2
    levels: int = 256
    alpha: float = 0.05
    layout: Literal["pictures", "points"] = "pictures"

    def __post_init__(self) -> None:
        dequantise.check_levels("realnvp", self.levels)
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"realnvp: alpha must be in (0, 0.5), found {self.alpha}")
        if min(self.size, self.channels, self.width, self.scales) < 1 or self.blocks < 0:
            raise UsageError("realnvp: size, channels, width and scales must be at least 1, blocks at least 0")
        if self.layout == "pictures" and self.size % 2**self.scales:
            raise UsageError(f"realnvp: size {self.size} must be a multiple of {2**self.scales} for {self.scales} scales")
        if self.layout == "points" and self.channels % 2:
            raise UsageError(f"realnvp: points need an even number of coordinates, found channels={self.channels}")


class Flowed(NamedTuple):
    """Latents of the input's shape, and log |det dz/dx| (B,)."""

    latents: Tensor
    log_det: Tensor


# --- masks and shapes --------------------------------------------------------------------------------------------------


def checkerboard(like: Float[Tensor, "B C H W"], flipped: bool) -> Float[Tensor, "H W"]:
    """1 where row + column is odd; `flipped`: even (figure 2, left)."""
    rows, columns = (torch.arange(n, device=like.device) for n in like.shape[2:])
    return ((rows[:, None] + columns + flipped) % 2).to(like.dtype)


def squeeze(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 4C h w"]:
    """2x2 places become four neighbouring groups of channels, place by place, each with all channels (figure 3)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def unsqueeze(x: Float[Tensor, "B 4C h w"]) -> Float[Tensor, "B C H W"]:
    """The inverse of `squeeze`."""
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


def deal(x: Float[Tensor, "B 4C h w"], order: tuple[int, ...] = (0, 3, 1, 2)) -> Float[Tensor, "B 4C h w"]:
    """The four groups of `squeeze` in another order: the main diagonal first, so that halves are checkerboards."""
    return x.unflatten(1, (4, -1))[:, list(order)].flatten(1, 2)


def collect(x: Float[Tensor, "B 4C h w"]) -> Float[Tensor, "B 4C h w"]:
    """The inverse of `deal`."""
    return deal(x, (0, 2, 3, 1))


# --- the networks of s and t ----------------------------------------------------------------------------------------------


class WeightNormed(nn.Module):
    """A convolution whose kernels are weight_g v / |v| (weight normalisation: Salimans and Kingma 2016)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        plain = nn.Conv2d(inputs, outputs, kernel, bias=bias)
        self.weight_v = plain.weight
        self.weight_g = nn.Parameter(plain.weight.detach().flatten(1).norm(dim=1)[:, None, None, None].clone())
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.weight_g * self.weight_v / self.weight_v.flatten(1).norm(dim=1)[:, None, None, None]
        return F.conv2d(x, kernels, self.bias, padding=kernels.shape[2] // 2)


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_norm = nn.BatchNorm2d(width)
        self.in_conv = WeightNormed(width, width, 3, bias=False)
        self.out_norm = nn.BatchNorm2d(width)
        self.out_conv = WeightNormed(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.in_conv(F.relu(self.in_norm(x)))
        return x + self.out_conv(F.relu(self.out_norm(y)))


class ResNet(nn.Module):
    """s and t from what a coupling leaves as it is: a residual network whose every block also feeds the output (skips).

    `gain` makes up for the half of a masked input that is zero.
    """

    def __init__(self, inputs: int, width: int, blocks: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.in_norm = nn.BatchNorm2d(inputs)
        self.in_conv = WeightNormed(2 * inputs, width, 3)
        self.in_skip = WeightNormed(width, width, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormed(width, width, 1) for _ in range(blocks))
        self.out_norm = nn.BatchNorm2d(width)
        self.out_conv = WeightNormed(width, 2 * inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_norm(x) * self.gain
        x = self.in_conv(F.relu(torch.cat([x, -x], 1)))
        total = self.in_skip(x)
        for block, skip in zip(self.blocks, self.skips):
            x = block(x)
            total = total + skip(x)
        return self.out_conv(F.relu(self.out_norm(total)))


class Rescale(nn.Module):
    """A learned factor per channel. Weight normalisation of one number leaves its sign: weight_g sign(weight_v)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.ones(shape))
        self.weight_g = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight_g * (self.weight_v / self.weight_v.abs()) * x


# --- couplings --------------------------------------------------------------------------------------------------------------


class Coupling(nn.Module):
    """y = (x + t(kept)) exp(s(kept)) on the part that changes; the log-determinant is the sum of s.

    With "checkerboard" pixels change where row + column is even, with "halves" the first half of the channels (or coordinates);
    `flipped`: the other part.
    """

    def __init__(self, st_net: nn.Module, rescale: Rescale, mask: Literal["checkerboard", "halves"], flipped: bool) -> None:
        super().__init__()
        self.st_net, self.rescale, self.mask, self.flipped = st_net, rescale, mask, flipped

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(x)
        s, t = self._st(kept)
        return self._join(kept, (moved + t) * s.exp()), s.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """The x whose y this is."""
        kept, moved = self._split(y)
        s, t = self._st(kept)
        return self._join(kept, moved * (-s).exp() - t)

    def _st(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.st_net(kept).chunk(2, 1)
        s = self.rescale(torch.tanh(s))
        if self.mask == "checkerboard":
            free = 1 - checkerboard(kept, self.flipped)
            return s * free, t * free
        return s, t

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept and what moves; on a checkerboard both have x's shape, zero where they have nothing."""
        if self.mask == "checkerboard":
            mask = checkerboard(x, self.flipped)
            return x * mask, x * (1 - mask)
        first, second = x.chunk(2, 1)
        return (first, second) if self.flipped else (second, first)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        if self.mask == "checkerboard":
            return kept + moved
        return torch.cat([kept, moved] if self.flipped else [moved, kept], 1)


def image_coupling(channels: int, width: int, blocks: int, mask: Literal["checkerboard", "halves"], flipped: bool) -> Coupling:
    """A coupling of pictures with `channels` channels."""
    inputs = channels if mask == "checkerboard" else channels // 2
    net = ResNet(inputs, width, blocks, 2.0 if mask == "checkerboard" else 1.0)
    return Coupling(net, Rescale(inputs, 1, 1), mask, flipped)


class Scale(nn.Module):
    """Three checkerboard couplings, three of channel halves on the squeezed picture, then half of the values leave (figure 4b).

    The last scale has four checkerboard couplings and nothing leaves.
    """

    def __init__(self, channels: int, width: int, blocks: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.in_couplings = nn.ModuleList(
            image_coupling(channels, width, blocks, "checkerboard", i % 2 == 1) for i in range(4 if last else 3)
        )
        self.out_couplings = nn.ModuleList(
            image_coupling(4 * channels, 2 * width, blocks, "halves", i % 2 == 1) for i in range(0 if last else 3)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for coupling in self.in_couplings:
            x, change = coupling(x)
            log_det = log_det + change
        if not self.last:
            # the couplings' halves are of channels whose four places are together; the halves that leave are checkerboards
            x = by_channel(squeeze(x))
            for coupling in self.out_couplings:
                x, change = coupling(x)
                log_det = log_det + change
            x = by_place(x)
        return x, log_det

    def inverse(self, x: Tensor) -> Tensor:
        """The input whose output this is."""
        if not self.last:
            x = by_channel(x)
            for coupling in reversed(self.out_couplings):
                x = cast(Coupling, coupling).inverse(x)
            x = unsqueeze(by_place(x))
        for coupling in reversed(self.in_couplings):
            x = cast(Coupling, coupling).inverse(x)
        return x


def by_channel(x: Float[Tensor, "B 4C h w"]) -> Float[Tensor, "B 4C h w"]:
    """Squeezed pictures with the four places of a channel together, channel by channel."""
    return x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


def by_place(x: Float[Tensor, "B 4C h w"]) -> Float[Tensor, "B 4C h w"]:
    """The inverse of `by_channel`."""
    return x.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)


class PictureFlow(nn.Module):
    """The scales one after another, each on the half of the values that the one before has not finished."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            Scale(config.channels * 2**i, config.width * 2**i, config.blocks, i == config.scales - 1) for i in range(config.scales)
        )

    def forward(self, x: Tensor) -> Flowed:
        return Flowed(*self._from(0, x))

    def _from(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self.scales[number](x)
        if number == len(self.scales) - 1:
            return x, log_det
        x, done = deal(x).chunk(2, 1)
        x, change = self._from(number + 1, x)
        return unsqueeze(collect(torch.cat([x, done], 1))), log_det + change

    def inverse(self, latents: Tensor, number: int = 0) -> Tensor:
        """The logits of latents."""
        scale = cast(Scale, self.scales[number])
        if number == len(self.scales) - 1:
            return scale.inverse(latents)
        x, done = deal(squeeze(latents)).chunk(2, 1)
        return scale.inverse(collect(torch.cat([self.inverse(x, number + 1), done], 1)))


class PointFlow(nn.Module):
    """Couplings of the two halves of a point's coordinates, in turn, with dense networks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        half = config.channels // 2
        self.couplings = nn.ModuleList(
            Coupling(dense(half, config.width, config.blocks), Rescale(half), "halves", i % 2 == 1)
            for i in range(2 * config.scales)
        )

    def forward(self, x: Tensor) -> Flowed:
        log_det = x.new_zeros(len(x))
        for coupling in self.couplings:
            x, change = coupling(x)
            log_det = log_det + change
        return Flowed(x, log_det)

    def inverse(self, latents: Tensor) -> Tensor:
        """The points of latents."""
        for coupling in reversed(self.couplings):
            latents = cast(Coupling, coupling).inverse(latents)
        return latents


def dense(half: int, width: int, hidden: int) -> nn.Sequential:
    """s and t of points: `hidden` layers of `width` units."""
    sizes = [half] + [width] * hidden
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 2 * half))


# --- the model --------------------------------------------------------------------------------------------------------------


class RealNVP(nn.Module):
    """An invertible map of pictures (or points) to latents of the same shape that are standard normal.

    `forward` returns `Flowed(latents, log_det)`: exact, of continuous pixels in [-1, 1], without any noise.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rule = PREPARE.with_channels(config.channels if config.layout == "pictures" else 1)
        self.prepare = Prepare(rule.channels, "fixed", (config.size, config.size), mean=rule.mean, std=rule.std)
        self.flow = PictureFlow(config) if config.layout == "pictures" else PointFlow(config)
        self.constraint: Tensor  # 1 - 2 alpha, which the published layout keeps
        if config.layout == "pictures":
            self.register_buffer("constraint", torch.tensor([1 - 2 * config.alpha]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one picture (or point) and of its latents."""
        c = self.config
        return (c.channels, c.size, c.size) if c.layout == "pictures" else (c.channels,)

    def to_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """logit(alpha + (1 - 2 alpha) x) of the pixels' places x in (0, 1), and the log-determinant (B,) with respect to pixels."""
        y = ((2 * dequantise.unit(pixels) - 1) * self.constraint + 1) / 2
        logits = y.log() - (-y).log1p()
        slopes = F.softplus(logits) + F.softplus(-logits) + (self.constraint * 127.5 / 256).log()
        return logits, slopes.flatten(1).sum(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Flowed:
        if tuple(pixels.shape[1:]) != self.shape:
            raise UsageError(f"realnvp: inputs must have shape {self.shape}, found {tuple(pixels.shape[1:])}")
        if self.config.layout == "points":
            return self.flow(pixels)
        logits, log_det = self.to_logits(pixels)
        latents, change = self.flow(logits)
        return Flowed(latents, log_det + change)

    def inverse(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels of latents; of most, but not of all, latents they lie in [-1, 1]."""
        x = cast(PictureFlow, self.flow).inverse(latents)
        if self.config.layout == "points":
            return x
        return dequantise.from_unit(((2 * x.sigmoid() - 1) / self.constraint + 1) / 2)

    # --- density ----------------------------------------------------------------------------------------------------

    def log_density(self, pixels: Tensor) -> Float[Tensor, "B"]:
        """log p(x) in nats of continuous pixels or points (eq. 2-3)."""
        latents, log_det = self(pixels)
        return log_det - 0.5 * (latents.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def levels(self, pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, "B D"]:
        """The whole numbers 0..levels-1 whose probability `log_likelihood` gives."""
        return dequantise.levels_of(pixels, self.config.levels)

    def log_likelihood(self, pixels: Tensor, *, draws: int = 1) -> Float[Tensor, "B"]:
        """log P (B,) in nats of pictures of `levels` levels, a lower bound: the mean log-density at `draws` fixed places of every
        pixel's bin (`dequantise.fixed_uniform`) times the bin's volume. Of points, their log-density.
        """
        if self.config.layout == "points":
            return self.log_density(pixels)
        count, dimensions = self.config.levels, pixels[0].numel()
        places = (dequantise.fixed_uniform(pixels, draw, draws) for draw in range(draws))
        each = torch.stack([self.log_density(dequantise.spread(pixels, count, place)) for place in places])
        return each.mean(0) + dimensions * math.log(dequantise.width(count))

    # --- drawing ----------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "n C H W"]:
        """Standard normal latents, one per sample of `noise`."""
        weight = next(self.parameters())
        return noise.normal(*self.shape).to(weight)

    @torch.no_grad()
    def render(self, latents: Tensor, *, condition: Any = None, steps: int | None = None) -> Tensor:
        """The pictures in [-1, 1] (or points) of latents; UsageError for a condition or steps, which there are not."""
        if condition is not None or steps is not None:
            raise UsageError(
                "realnvp: pictures depend on nothing but the noise and are drawn in one step; found condition= or steps="
            )
        training = self.training
        out = self.eval().inverse(latents)
        self.train(training)
        return out if self.config.layout == "points" else out.clamp(-1, 1)

    def sample(
        self, noise: Noise, *, condition: Any = None, steps: int | None = None, temperature: float = 1.0
    ) -> Float[Tensor, "n C H W"]:
        """Pictures in [-1, 1], one per sample of `noise`; the latents' deviation is `temperature`."""
        if temperature <= 0:
            raise UsageError(f"realnvp: temperature must be positive, found {temperature}")
        return self.render(self.latents(noise) * temperature, condition=condition, steps=steps)


NETWORK = RealNVP


# --- objective ---------------------------------------------------------------------------------------------------------


class Likelihood(nn.Module):
    """-log p(x + u) in nats a value, with noise u uniform in every pixel's bin (section 4.1); no labels are used.

    `decay` times the sum of the squared scales of weight normalisation is added, as the paper does.
    """

    def __init__(self, network: RealNVP, *, decay: float = 5e-5) -> None:
        super().__init__()
        if decay < 0:
            raise UsageError(f"realnvp: decay must be at least 0, found {decay}")
        self.network, self.decay = network, decay

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's."""
        return self.network.parameters()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The mean over pictures, weighted where samples have weights."""
        pixels, levels = pixels_of(batch), self.network.config.levels
        spread = dequantise.spread(pixels, levels, torch.rand_like(pixels))
        each = -self.network.log_density(spread) / pixels[0].numel() - math.log(dequantise.width(levels))
        terms = {"nats": mean(each, batch)}
        if self.decay:
            squares = [p.square().sum() for name, p in self.network.named_parameters() if name.endswith("weight_g")]
            total = self.decay * torch.stack(squares).sum() / pixels[0].numel()
            terms["scales"] = mean(total.expand(len(pixels)), batch)
        return terms

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""


objective = Likelihood


@torch.no_grad()
def evaluate(network: RealNVP, data: Dataset) -> tuple[dict[str, float], dict[str, Any]]:
    """Bits per dimension of the pictures of a data set: -log2 P(x) / (C H W), averaged over the pictures, an upper bound."""
    weight, training, total = next(network.parameters()), network.training, 0.0
    network.eval()
    for first in range(0, len(data), 64):
        some = range(first, min(first + 64, len(data)))
        pixels = prepare([data[i].picture for i in some], network.prepare).pixels.to(weight)
        total -= float(network.log_likelihood(pixels, draws=DRAWS).double().sum())
    network.train(training)
    dimensions = math.prod(network.shape)
    protocol = {
        "metric": "bits/dim", "levels": network.config.levels, "dimensions": dimensions, "pictures": len(data),
        "dequantisation": f"uniform, {DRAWS} fixed places a pixel (bound)",
    }  # fmt: skip
    return {"bits/dim": dequantise.bits(total / len(data), dimensions)}, protocol


# --- variants and weights ------------------------------------------------------------------------------------------------

# sizes of section 4.1 as in fmu2/realNVP: 64 maps and 8 blocks for CIFAR-10; 32 maps, 4 and 2 blocks for pictures of 32 and 64 pixels
VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, channels=1, width=16, blocks=1, scales=2),
    "points": Config(channels=2, width=64, blocks=2, scales=6, layout="points"),
    "cifar10": Config(),
    "32": Config(width=32, blocks=4, scales=4),
    "64": Config(size=64, width=32, blocks=2, scales=5),
}
PARAMETERS: dict[str, int] = {"cifar10": 19_631_640, "32": 46_248_488, "64": 96_384_552}  # of the reference at these sizes
OVERFIT: dict[str, Any] = {"observable": "likelihood", "samples": 8, "lr": 5e-3}
UNTRAINED = (r".*rescale\.weight_v",)  # only its sign counts


def _ours(match: re.Match[str]) -> str:
    """The reference nests every scale in the one before, as "next_block"."""
    return f"flow.scales.{match[1].count('next_block')}.{match[2]}{match[3]}"


FORMATS: dict[str, Names] = {
    "chrischute": Names(
        rename(r"(?:module\.)?data_constraint", "constraint"),
        rename(
            r"(?:module\.)?flows\.((?:next_block\.)*)(.+?)(?:\.conv)?(\.(?:weight\w*|bias|running_\w+|num_batches_tracked))", _ours
        ),
    )
}
WEIGHTS: dict[str, Weights] = {}
