"""Glow: generative flow with invertible 1x1 convolutions.

Kingma and Dhariwal, NeurIPS 2018, arXiv 1807.03039.
Reference: rosinality/glow-pytorch (MIT) and chaiyujin/glow-pytorch (MIT); the authors' code is openai/glow (MIT, TensorFlow).

*Differs*: the scale of a coupling is sigmoid(s + 2), as in the authors' code, instead of exp(s), and shifts come before it. Zero-
initialised convolutions see ones beyond borders, which the authors mark by a further channel; `Dialect` says how other implementations
differ: chaiyujin pads with zeros, its pictures start at 0 and its noise is normal; rosinality has no actnorm inside couplings. The
classifier on top (section 4, class-conditional) is left out: `log_likelihood` sums over classes.
*Map*: figure 2 -> `Step` (a) and `Glow` (b); table 1 -> `ActNorm`, `InvertibleConv`, `LUConv`, `Coupling`; section 3.1 (data-dependent
initialisation) -> `initialise`; eq. 10-11 -> `LUConv`; section 3.3 (zero initialisation) -> `ZeroConv`; the learnt prior of what leaves ->
`Scale`; of the rest, by class -> `Glow.top`, `ClassShift`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses import dequantise
from opticus.losses.pictures import mean, pixels_of
from opticus.ops.collectives import all_reduce
from opticus.structures import Batch, Classes, DataError, Dataset, Noise, Prepare, Progress, Task, UsageError, Weights
from opticus.transforms.prepare import prepare
from opticus.weights.names import Names, drop, rename

TASK: Task = "generate"
HEADLINE, LOWER_IS_BETTER = "bits/dim", True
LEVELS = "levels"  # the field of Config that says how many values a pixel can take
PREPARE = Prepare(resize="fixed", size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
DRAWS = 4  # places in a pixel's bin at which `evaluate` looks


@dataclass(frozen=True)
class Dialect:
    """In what implementations differ: actnorm in the couplings' networks, the value beyond borders, what is taken off pictures."""

    norm: bool = True
    border: float = 1.0
    offset: float = 0.5


@dataclass(frozen=True)
class Config:
    """`scales` is L and `steps` K of table 4, `width` the units of the couplings' networks. `lu`: 1x1 convolutions are decomposed (eq.
    10). `learnt_top`: the last latents' prior is learnt; `classes`: and depends on a label. Pictures enter as places in (0, 1).
    """

    size: int = 64
    channels: int = 3
    scales: int = 4
    steps: int = 32
    width: int = 512
    affine: bool = True
    lu: bool = True
    learnt_top: bool = True
    classes: int = 0
    levels: int = 256
    dialect: Dialect = field(default_factory=Dialect)

    def __post_init__(self) -> None:
        if isinstance(self.dialect, Mapping):  # as files of settings have it
            object.__setattr__(self, "dialect", Dialect(**cast("Mapping[str, Any]", self.dialect)))
        dequantise.check_levels("glow", self.levels)
        if min(self.size, self.channels, self.scales, self.steps, self.width) < 1 or self.classes < 0:
            raise UsageError("glow: size, channels, scales, steps and width must be at least 1, classes at least 0")
        if self.size % 2**self.scales:
            raise UsageError(f"glow: size {self.size} must be a multiple of {2**self.scales} for {self.scales} scales")


class Flowed(NamedTuple):
    """Latents (B, D), standardised by their priors, and log |det dz/dx| (B,)."""

    latents: Tensor
    log_det: Tensor


# --- the three layers of a step ---------------------------------------------------------------------------------------------


class ActNorm(nn.Module):
    """scale (x + loc) per channel. `initialise` sets both so that the first batch gets zero mean and unit variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.scale * (x + self.loc)

    def log_det(self) -> Tensor:
        """Of one place."""
        return self.scale.abs().log().sum()

    def inverse(self, y: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The x whose y this is."""
        return y / self.scale - self.loc

    @torch.no_grad()
    def look_at(self, x: Float[Tensor, "B C H W"]) -> None:
        """Set loc and scale by a batch, of all processes."""
        x = x.float()
        count = all_reduce(torch.full((), float(x.numel() // x.shape[1]), device=x.device))
        centre = all_reduce(x.sum((0, 2, 3))) / count
        deviation = (all_reduce((x - centre[:, None, None]).square().sum((0, 2, 3))) / count).sqrt()
        self.loc.copy_(-centre.view_as(self.loc))
        self.scale.copy_(1 / (deviation + 1e-6).view_as(self.scale))


class InvertibleConv(nn.Module):
    """A 1x1 convolution with a square matrix, a rotation at first (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(rotation(channels)[:, :, None, None])

    def matrix(self) -> Float[Tensor, "C C"]:
        """W."""
        return self.weight[:, :, 0, 0]

    def log_det(self) -> Tensor:
        """Of one place, log |det W|."""
        return torch.linalg.slogdet(self.matrix().float() if self.weight.dtype != torch.float64 else self.matrix()).logabsdet

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return F.conv2d(x, self.matrix()[:, :, None, None])

    def inverse(self, y: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The x whose y this is."""
        return F.conv2d(y, torch.linalg.inv(self.matrix())[:, :, None, None])


class LUConv(nn.Module):
    """The same with W = P L (U + diag(s)): P is fixed, L and U are learnt triangles, and log |det W| = sum log |s| (eq. 10-11)."""

    w_p: Tensor
    s_sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        w = rotation(channels)
        p, lower, upper = (w, w, w) if w.is_meta else torch.linalg.lu(w)
        s = upper.diagonal()
        self.register_buffer("w_p", p.clone())
        self.register_buffer("s_sign", s.sign())
        self.w_l = nn.Parameter(lower.clone())
        self.w_s = nn.Parameter(s.abs().log())
        self.w_u = nn.Parameter(upper.triu(1))

    def matrix(self) -> Float[Tensor, "C C"]:
        """W."""
        lower = self.w_l.tril(-1) + torch.eye(len(self.w_s), dtype=self.w_l.dtype, device=self.w_l.device)
        return self.w_p @ lower @ (self.w_u.triu(1) + (self.s_sign * self.w_s.exp()).diag())

    def log_det(self) -> Tensor:
        """Of one place."""
        return self.w_s.sum()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return F.conv2d(x, self.matrix()[:, :, None, None])

    def inverse(self, y: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The x whose y this is."""
        return F.conv2d(y, torch.linalg.inv(self.matrix())[:, :, None, None])


def rotation(channels: int) -> Float[Tensor, "C C"]:
    """A random orthogonal matrix."""
    w = torch.randn(channels, channels)
    return w if w.is_meta else torch.linalg.qr(w).Q


class ZeroConv(nn.Module):
    """A 3x3 convolution that starts at zero, times exp(3 scale) per channel (section 3.3)."""

    def __init__(self, inputs: int, outputs: int, border: float) -> None:
        super().__init__()
        self.border = border
        self.conv = nn.Conv2d(inputs, outputs, 3)
        self.scale = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1), value=self.border)) * (3 * self.scale).exp()


class Coupling(nn.Module):
    """The second half of the channels is shifted, and scaled by sigmoid(s + 2), as a network of the first half says."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.affine = config.affine
        half, bias = channels // 2, not config.dialect.norm
        self.conv1 = nn.Conv2d(half, config.width, 3, padding=1, bias=bias)
        self.norm1 = ActNorm(config.width) if config.dialect.norm else nn.Identity()
        self.conv2 = nn.Conv2d(config.width, config.width, 1, bias=bias)
        self.norm2 = ActNorm(config.width) if config.dialect.norm else nn.Identity()
        self.out = ZeroConv(config.width, channels if config.affine else half, config.dialect.border)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=0.05)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def _scale_and_shift(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """log s and t; log s is zero where couplings are additive."""
        out = self.out(F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(first)))))))
        if not self.affine:
            return torch.zeros_like(out), out
        raw, shift = out.chunk(2, 1)
        return F.logsigmoid(raw + 2), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, 1)
        log_scale, shift = self._scale_and_shift(first)
        return torch.cat([first, (second + shift) * log_scale.exp()], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """The x whose y this is."""
        first, second = y.chunk(2, 1)
        log_scale, shift = self._scale_and_shift(first)
        return torch.cat([first, second * (-log_scale).exp() - shift], 1)


class Step(nn.Module):
    """Actnorm, 1x1 convolution, coupling (figure 2a)."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.invconv = LUConv(channels) if config.lu else InvertibleConv(channels)
        self.coupling = Coupling(channels, config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = x.shape[2] * x.shape[3]
        x, log_det = self.coupling(self.invconv(self.actnorm(x)))
        return x, log_det + places * (self.actnorm.log_det() + self.invconv.log_det())

    def inverse(self, y: Tensor) -> Tensor:
        """The x whose y this is."""
        return self.actnorm.inverse(self.invconv.inverse(self.coupling.inverse(y)))


# --- the model --------------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Squeeze, K steps, and the second half leaves, with a normal prior that depends on the first.

    Nothing leaves the last scale: its prior, of all that is left, is what the convolution makes of zeros.
    """

    def __init__(self, channels: int, config: Config, last: bool) -> None:
        super().__init__()
        self.last = last
        self.flows = nn.ModuleList(Step(4 * channels, config) for _ in range(config.steps))
        inputs = (4 if last else 2) * channels
        self.prior = ZeroConv(inputs, 2 * inputs, config.dialect.border) if config.learnt_top or not last else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """What goes on, what leaves (standardised), and the log-determinant of both."""
        x = F.pixel_unshuffle(x, 2)
        log_det = x.new_zeros(len(x))
        for flow in self.flows:
            x, change = flow(x)
            log_det = log_det + change
        if self.last or self.prior is None:
            return x, None, log_det
        x, leaving = x.chunk(2, 1)
        centre, log_sd = self.prior(x).chunk(2, 1)
        return x, (leaving - centre) * (-log_sd).exp(), log_det - log_sd.flatten(1).sum(1)

    def inverse(self, x: Tensor, left: Tensor | None) -> Tensor:
        """The input, from what went on and what left."""
        if left is not None and self.prior is not None:
            centre, log_sd = self.prior(x).chunk(2, 1)
            x = torch.cat([x, centre + left * log_sd.exp()], 1)
        for flow in reversed(self.flows):
            x = cast(Step, flow).inverse(x)
        return F.pixel_shuffle(x, 2)


class ClassShift(nn.Module):
    """What a label adds to mean and log-deviation of the prior: (W[:, label] + b) exp(3 scale), zero at first."""

    def __init__(self, classes: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, classes))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, labels: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return (self.weight.T[labels] + self.bias) * (3 * self.scale).exp()


class Glow(nn.Module):
    """An invertible map of pictures to latents (B, C H W) that are standard normal: those that leave at each scale, then the top's.

    `forward(pixels, labels=None)` returns `Flowed(latents, log_det)`: exact, of continuous pixels in [-1, 1], without any noise.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rule = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(rule.channels, "fixed", (config.size, config.size), mean=rule.mean, std=rule.std)
        widths = [config.channels * 2**i for i in range(config.scales)]
        self.blocks = nn.ModuleList(Scale(w, config, i == config.scales - 1) for i, w in enumerate(widths))
        self.shift = ClassShift(config.classes, 8 * widths[-1]) if config.classes else None

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Shapes of the latents that leave at each scale, and of the top's."""
        c, last = self.config, self.config.scales - 1
        shapes = [(c.channels * 2 ** (i + 1), c.size // 2 ** (i + 1), c.size // 2 ** (i + 1)) for i in range(c.scales)]
        return [*shapes[:last], (2 * shapes[last][0], *shapes[last][1:])]

    def _flow(self, pixels: Float[Tensor, "B C H W"]) -> tuple[list[Tensor], Tensor, Tensor]:
        """What leaves, flat; the top's latents, not standardised; the log-determinant."""
        wanted = (self.config.channels, self.config.size, self.config.size)
        if tuple(pixels.shape[1:]) != wanted:
            raise UsageError(f"glow: pictures must have shape {wanted}, found {tuple(pixels.shape[1:])}")
        x = dequantise.unit(pixels) - self.config.dialect.offset
        log_det = x.new_full((len(x),), x[0].numel() * math.log(127.5 / 256))
        left: list[Tensor] = []
        for block in self.blocks:
            x, leaving, change = block(x)
            log_det = log_det + change
            if leaving is not None:
                left.append(leaving.flatten(1))
        return left, x, log_det

    def top(self, like: Float[Tensor, "B C H W"], labels: Int[Tensor, "B"] | None) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation of the top's latents of the shape of `like`; without labels, what no label changes."""
        zeros, prior = torch.zeros_like(like), cast(Scale, self.blocks[-1]).prior
        both = torch.cat([zeros, zeros], 1) if prior is None else prior(zeros)
        if self.shift is not None and labels is not None:
            both = both + self.shift(labels)[:, :, None, None]
        centre, log_sd = both.chunk(2, 1)
        return centre, log_sd

    def forward(self, pixels: Float[Tensor, "B C H W"], labels: Int[Tensor, "B"] | None = None) -> Flowed:
        left, x, log_det = self._flow(pixels)
        centre, log_sd = self.top(x, labels)
        return Flowed(torch.cat([*left, ((x - centre) * (-log_sd).exp()).flatten(1)], 1), log_det - log_sd.flatten(1).sum(1))

    def inverse(self, latents: Float[Tensor, "B D"], labels: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B C H W"]:
        """The pixels of latents."""
        parts = [
            part.unflatten(1, shape) for part, shape in zip(latents.split([math.prod(s) for s in self.shapes], 1), self.shapes)
        ]
        centre, log_sd = self.top(parts[-1], labels)
        x = centre + parts[-1] * log_sd.exp()
        for block, left in zip(reversed(self.blocks), [None, *reversed(parts[:-1])]):
            x = cast(Scale, block).inverse(x, left)
        return dequantise.from_unit(x + self.config.dialect.offset)

    # --- density ----------------------------------------------------------------------------------------------------

    def log_density(self, pixels: Float[Tensor, "B C H W"], labels: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B"]:
        """log p(x | label) in nats of continuous pixels; without labels log p(x), all classes being equally frequent."""
        if labels is not None or not self.config.classes:
            latents, log_det = self(pixels, labels)
            return log_det + normal(latents)
        left, x, log_det = self._flow(pixels)
        tops: list[Tensor] = []
        for label in range(self.config.classes):
            centre, log_sd = self.top(x, torch.full((len(x),), label, device=x.device))
            tops.append(normal((x - centre) * (-log_sd).exp()) - log_sd.flatten(1).sum(1))
        rest = log_det + sum(normal(part) for part in left)
        return rest + torch.stack(tops).logsumexp(0) - math.log(self.config.classes)

    def nats(self, noisy: Float[Tensor, "B C H W"], labels: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B"]:
        """-log p(x | label) in nats a value, of pixels with noise, as that of their levels: what is minimised."""
        return -self.log_density(noisy, labels) / noisy[0].numel() - math.log(dequantise.width(self.config.levels))

    def levels(self, pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, "B D"]:
        """The whole numbers 0..levels-1 whose probability `log_likelihood` gives."""
        return dequantise.levels_of(pixels, self.config.levels)

    def log_likelihood(self, pixels: Float[Tensor, "B C H W"], *, draws: int = 1) -> Float[Tensor, "B"]:
        """log P (B,) in nats of pictures of `levels` levels, a lower bound: the mean log-density at `draws` fixed places of every
        pixel's bin (`dequantise.fixed_uniform`) times the bin's volume.
        """
        count, dimensions = self.config.levels, pixels[0].numel()
        places = (dequantise.fixed_uniform(pixels, draw, draws) for draw in range(draws))
        each = torch.stack([self.log_density(dequantise.spread(pixels, count, place)) for place in places])
        return each.mean(0) + dimensions * math.log(dequantise.width(count))

    # --- drawing ----------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "n D"]:
        """Standard normal latents, one row per sample of `noise`."""
        return noise.normal(self.config.channels * self.config.size**2).to(next(self.parameters()))

    @torch.no_grad()
    def render(
        self, latents: Float[Tensor, "n D"], *, condition: Tensor | None = None, steps: int | None = None
    ) -> Float[Tensor, "n C H W"]:
        """The pictures in [-1, 1] of latents, of the labels `condition` (n,) if given; UsageError for steps, which there are not.

        Far latents of a little trained network lead beyond all numbers: what is none is grey (0)."""
        if steps is not None:
            raise UsageError("glow: pictures are drawn in one step; found steps=")
        if condition is not None:
            self._check(condition, len(latents))
        training = self.training
        out = self.eval().inverse(latents, condition)
        self.train(training)
        return out.nan_to_num(nan=0.0).clamp(-1, 1)

    def sample(
        self, noise: Noise, *, condition: Tensor | None = None, steps: int | None = None, temperature: float = 1.0
    ) -> Float[Tensor, "n C H W"]:
        """Pictures in [-1, 1], one per sample of `noise`; labels are drawn where they are not given. `temperature` is the
        deviation of the latents (section 5.2 uses 0.7).
        """
        if temperature <= 0:
            raise UsageError(f"glow: temperature must be positive, found {temperature}")
        if condition is None and self.config.classes:
            condition = noise.integers(self.config.classes)
        return self.render(self.latents(noise) * temperature, condition=condition, steps=steps)

    def _check(self, labels: Tensor, count: int) -> None:
        classes = self.config.classes
        if not classes or labels.shape != (count,) or int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise UsageError(f"glow: the condition must be {count} labels below classes={classes}, found {labels.tolist()}")


def normal(latents: Tensor) -> Float[Tensor, "B"]:
    """Log-density of the standard normal distribution, summed over all but the first dimension."""
    return -0.5 * (latents.square() + math.log(2 * math.pi)).flatten(1).sum(1)


NETWORK = Glow


# --- objective ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def initialise(network: Glow, pixels: Float[Tensor, "B C H W"]) -> None:
    """Let every actnorm look at what reaches it, one after another (section 3.1)."""
    norms = [module for module in network.modules() if isinstance(module, ActNorm)]
    hooks = [norm.register_forward_pre_hook(lambda module, given: cast(ActNorm, module).look_at(given[0])) for norm in norms]
    network(pixels)
    for hook in hooks:
        hook.remove()


class Likelihood(nn.Module):
    """-log p(x + u), or -log p(x + u | label), in nats a value, with noise u uniform in every pixel's bin.

    A network whose first actnorm is still the identity is initialised by the first batch.
    """

    def __init__(self, network: Glow) -> None:
        super().__init__()
        self.network = network

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's."""
        return self.network.parameters()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The mean over pictures, weighted where samples have weights; DataError without labels if the network has classes."""
        pixels, config = pixels_of(batch), self.network.config
        spread = dequantise.spread(pixels, config.levels, torch.rand_like(pixels))
        if not bool(cast(Step, cast(Scale, self.network.blocks[0]).flows[0]).actnorm.loc.any()):
            initialise(self.network, spread)
        labels = labels_of(batch, config.classes).to(pixels.device) if config.classes else None
        each = self.network.nats(spread, labels)
        return {"nats": mean(each, batch)}

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    after_step = before_update


def labels_of(batch: Batch, classes: int) -> Int[Tensor, "B"]:
    """One label per picture; DataError for a picture without one, or with one beyond `classes`."""
    for name, target in zip(batch.ids, batch.targets):
        if not isinstance(target, Classes) or int(target.labels[0]) >= classes:
            raise DataError(f"{name}: a label below classes={classes} is needed (classes=0 learns without), found {target}")
    return torch.stack([cast(Classes, target).labels[0] for target in batch.targets])


objective = Likelihood


@torch.no_grad()
def evaluate(network: Glow, data: Dataset) -> tuple[dict[str, float], dict[str, Any]]:
    """Bits per dimension of the pictures of a data set: -log2 P(x) / (C H W), averaged over the pictures, an upper bound."""
    weight, training, total = next(network.parameters()), network.training, 0.0
    network.eval()
    for first in range(0, len(data), 64):
        some = range(first, min(first + 64, len(data)))
        pixels = prepare([data[i].picture for i in some], network.prepare).pixels.to(weight)
        total -= float(network.log_likelihood(pixels, draws=DRAWS).double().sum())
    network.train(training)
    dimensions = network.config.channels * network.config.size**2
    protocol = {
        "metric": "bits/dim", "levels": network.config.levels, "dimensions": dimensions, "pictures": len(data),
        "dequantisation": f"uniform, {DRAWS} fixed places a pixel (bound)", "labels": "summed over" if network.config.classes else "none",
    }  # fmt: skip
    return {"bits/dim": dequantise.bits(total / len(data), dimensions)}, protocol


# --- variants and weights ------------------------------------------------------------------------------------------------

_PLAIN = Dialect(norm=False)  # rosinality's
VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, channels=1, scales=2, steps=6, width=32, classes=10),
    "64": Config(levels=32, dialect=_PLAIN),  # rosinality's with --affine
    "64-additive": Config(affine=False, levels=32, dialect=_PLAIN),  # rosinality's defaults
    "celeba64": Config(scales=3, lu=False, learnt_top=False, dialect=Dialect(border=0.0, offset=0.0)),  # chaiyujin's
    "cifar10": Config(size=32, scales=3),
}
# of the references, without chaiyujin's prior_h: zeros in the shape of a batch
PARAMETERS: dict[str, int] = {"64": 74_490_832, "64-additive": 61_214_032, "celeba64": 44_052_720}
OVERFIT: dict[str, Any] = {"observable": "likelihood", "samples": 8, "lr": 5e-3}


def _layers(steps: int, scales: int) -> Names:
    """chaiyujin numbers squeezing, steps and splits in one row: a table belongs to one number of steps and of scales."""
    top = f"blocks.{scales - 1}.prior"

    def block(number: str) -> tuple[int, int]:
        return divmod(int(number), steps + 2)

    def step(match: Any) -> str:
        scale, place = block(match[1])
        return f"blocks.{scale}.flows.{place - 1}.{match[2]}"

    def inside(name: str) -> Any:
        return lambda match: f"{step({1: match[1], 2: name})}"

    def square(weight: Tensor) -> Tensor:
        return weight[:, :, None, None]

    def scale_first(tensor: Tensor) -> Tensor:  # shifts and scales alternate there
        return torch.cat([tensor[1::2], tensor[0::2]])

    def mean_first(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[0::2], tensor[1::2]])

    flow = r"flow\.layers\.(\d+)\."
    rules = [
        rename(flow + r"actnorm\.bias", inside("actnorm.loc")),
        rename(flow + r"actnorm\.logs", inside("actnorm.scale"), torch.exp),
        rename(flow + r"invconv\.weight", inside("invconv.weight"), square),
        rename(flow + r"f\.4\.weight", inside("coupling.out.conv.weight"), scale_first),
        rename(flow + r"f\.4\.bias", inside("coupling.out.conv.bias"), scale_first),
        rename(flow + r"f\.4\.logs", inside("coupling.out.scale"), lambda t: scale_first(t)[None]),
        rename(flow + r"conv\.weight", lambda m: f"blocks.{block(m[1])[0]}.prior.conv.weight", mean_first),
        rename(flow + r"conv\.bias", lambda m: f"blocks.{block(m[1])[0]}.prior.conv.bias", mean_first),
        rename(flow + r"conv\.logs", lambda m: f"blocks.{block(m[1])[0]}.prior.scale", lambda t: mean_first(t)[None]),
        # the top's convolution sees zeros in twice as many channels: what it makes of them does not count
        rename(r"learn_top\.weight", f"{top}.conv.weight", lambda t: t[:, : t.shape[1] // 2]),
        rename(r"learn_top\.bias", f"{top}.conv.bias"),
        rename(r"learn_top\.logs", f"{top}.scale", lambda t: t[None]),
        rename(r"project_ycond\.logs", "shift.scale"),
        rename(r"project_ycond\.(weight|bias)", r"shift.\1"),
        drop(r"project_class\..+|prior_h"),
    ]
    for number, place in ((1, 0), (2, 2)):
        rules += [
            rename(flow + rf"f\.{place}\.weight", inside(f"coupling.conv{number}.weight")),
            rename(flow + rf"f\.{place}\.actnorm\.bias", inside(f"coupling.norm{number}.loc")),
            rename(flow + rf"f\.{place}\.actnorm\.logs", inside(f"coupling.norm{number}.scale"), torch.exp),
        ]
    return Names(*rules)


_FLOW = r"(?:module\.)?(blocks\.\d+\.flows\.\d+\.)"
FORMATS: dict[str, Names] = {
    "rosinality": Names(
        drop(r".*\.(?:initialized|u_mask|l_mask|l_eye)"),
        rename(_FLOW + r"coupling\.net\.0\.(\w+)", r"\1coupling.conv1.\2"),
        rename(_FLOW + r"coupling\.net\.2\.(\w+)", r"\1coupling.conv2.\2"),
        rename(_FLOW + r"coupling\.net\.4\.(.+)", r"\1coupling.out.\2"),
        rename(_FLOW + r"((?:actnorm|invconv)\.\w+)", r"\1\2"),
        rename(r"(?:module\.)?blocks\.(\d+)\.prior\.(.+)", r"blocks.\1.prior.\2"),
    ),
    "chaiyujin": _layers(32, 3),
}
WEIGHTS: dict[str, Weights] = {}
