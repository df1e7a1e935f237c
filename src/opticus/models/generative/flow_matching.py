"""Flow matching for generative modeling.

Lipman, Chen, Ben-Hamu, Nickel and Le, ICLR 2023, arXiv 2210.02747.
Reference: atong01/conditional-flow-matching (torchcfm, MIT), whose networks are a dense one for points and guided-diffusion's U-Net
(openai/guided-diffusion, MIT).

*Differs*: only the optimal-transport path; the ODE is solved with a fixed number of steps instead of an adaptive solver. Time runs from
noise (0) to data (1). With `sigma=0` the paths are the straight lines of rectified flow (Liu, Gong and Liu, ICLR 2023, arXiv 2209.03003)
and of torchcfm's "icfm". `log_likelihood` of pictures estimates the divergence with fixed random signs.
*Map*: eq. 1 -> `FlowMatching.render`; eq. 20-23 (mu = t x1, sigma_t = 1 - (1 - sigma) t, u = x1 - (1 - sigma) x0) -> `Matching.pair`;
eq. 9 and 23 -> `Matching.forward`; appendix C (instantaneous change of variables, Hutchinson's estimate) -> `FlowMatching.log_density`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses import dequantise
from opticus.losses.pictures import mean, pixels_of
from opticus.structures import Batch, Dataset, Images, Noise, Prepare, Progress, Task, UsageError, Weights
from opticus.transforms.prepare import prepare
from opticus.weights.names import Names, drop, rename

TASK: Task = "generate"
HEADLINE, LOWER_IS_BETTER = "bits/dim", True
LEVELS = "levels"  # the field of Config that says how many values a pixel can take
PREPARE = Prepare(resize="fixed", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STEPS, LIKELIHOOD_STEPS = 20, 20
Solver = Literal["euler", "midpoint", "heun"]
Field = Callable[[Tensor, Tensor], Tensor]  # places (B, ...) and times (B,) to velocities


@dataclass(frozen=True)
class Config:
    """A U-Net of `width` times `mults` maps, `blocks` residual blocks a level, attention where pictures are reduced by `attention`.

    `layout` "points": a dense network with three hidden layers of `width` units for `channels` coordinates.
    """

    size: int = 32
    channels: int = 3
    width: int = 128
    mults: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (2,)
    head_width: int = 64
    groups: int = 32
    dropout: float = 0.1
    levels: int = 256
    layout: Literal["pictures", "points"] = "pictures"

    def __post_init__(self) -> None:
        dequantise.check_levels("flow_matching", self.levels)
        if self.layout == "points":
            return
        if self.size % 2 ** (len(self.mults) - 1):
            raise UsageError(f"flow_matching: size {self.size} must be a multiple of {2 ** (len(self.mults) - 1)} for its mults")
        if self.width % self.groups or self.width * self.mults[-1] % self.head_width:
            raise UsageError(
                f"flow_matching: width {self.width} must be a multiple of groups {self.groups}, and {self.width * self.mults[-1]} of "
                f"head_width {self.head_width}"
            )


# --- networks of the velocity -----------------------------------------------------------------------------------------------


def waves(times: Float[Tensor, "B"], width: int) -> Float[Tensor, "B D"]:
    """Cosines and sines of times, at frequencies from 1 down to 1/10000."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=times.dtype, device=times.device) / half)
    phases = times[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], 1)


class ResBlock(nn.Module):
    """Two convolutions, the second of which starts at zero; the time is added between them."""

    def __init__(self, inputs: int, outputs: int, config: Config) -> None:
        super().__init__()
        self.in_norm = nn.GroupNorm(config.groups, inputs)
        self.in_conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(4 * config.width, outputs)
        self.out_norm = nn.GroupNorm(config.groups, outputs)
        self.out_conv = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.dropout = config.dropout

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.in_conv(F.silu(self.in_norm(x))) + self.time(F.silu(time))[:, :, None, None]
        y = F.dropout(F.silu(self.out_norm(y)), self.dropout, self.training)
        return self.skip(x) + self.out_conv(y)


class Attention(nn.Module):
    """x + attention among all places; the output starts at zero. Every head's queries, keys and values are neighbours in `qkv`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.norm = nn.GroupNorm(config.groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        flat = self.norm(x).flatten(2)
        parts = self.qkv(flat).unflatten(1, (-1, 3, self.head_width)).transpose(3, 4).unbind(2)  # (B, heads, places, D)
        mixed = F.scaled_dot_product_attention(*parts).transpose(2, 3).reshape(flat.shape)
        return x + self.proj_out(mixed).view_as(x)


class Resample(nn.Module):
    """Half or twice the size, with a convolution."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else x)


class Stem(nn.Module):
    """The first convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(x)


class UNet(nn.Module):
    """Velocities of pictures: down with residual blocks, and up again with what the way down had at every block beside it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.width
        self.time = nn.ModuleList([nn.Linear(config.width, 4 * config.width), nn.Linear(4 * config.width, 4 * config.width)])
        width = config.mults[0] * config.width
        self.down, widths, last = nn.ModuleList([nn.ModuleList([Stem(config.channels, width)])]), [width], len(config.mults) - 1
        for level, mult in enumerate(config.mults):
            for _ in range(config.blocks):
                self.down.append(self._stage(width, mult * config.width, level, config))
                width = mult * config.width
                widths.append(width)
            if level < last:
                self.down.append(nn.ModuleList([Resample(width, False)]))
                widths.append(width)
        self.middle = nn.ModuleList([ResBlock(width, width, config), Attention(width, config), ResBlock(width, width, config)])
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.mults))):
            for i in range(config.blocks + 1):
                stage = self._stage(width + widths.pop(), mult * config.width, level, config)
                width = mult * config.width
                if level and i == config.blocks:
                    stage.append(Resample(width, True))
                self.up.append(stage)
        self.norm = nn.GroupNorm(config.groups, width)
        self.out = zeroed(nn.Conv2d(width, config.channels, 3, padding=1))

    @staticmethod
    def _stage(inputs: int, outputs: int, level: int, config: Config) -> nn.ModuleList:
        block: list[nn.Module] = [ResBlock(inputs, outputs, config)]
        return nn.ModuleList([*block, Attention(outputs, config)] if 2**level in config.attention else block)

    def forward(self, x: Float[Tensor, "B C H W"], times: Float[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        time = self.time[1](F.silu(self.time[0](waves(times, self.width))))
        kept: list[Tensor] = []
        for stage in self.down:
            x = through(stage, x, time)
            kept.append(x)
        x = through(self.middle, x, time)
        for stage in self.up:
            x = through(stage, torch.cat([x, kept.pop()], 1), time)
        return self.out(F.silu(self.norm(x)))


def through(stage: Any, x: Tensor, time: Tensor) -> Tensor:
    """The layers of a stage one after another."""
    for layer in stage:
        x = layer(x, time)
    return x


def zeroed(layer: Any) -> Any:
    """The layer with weight and bias zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Dense(nn.Module):
    """Velocities of points: three hidden layers, the time as a further coordinate."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = [config.channels + 1, *[config.width] * 3, config.channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Float[Tensor, "B D"], times: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        x = torch.cat([x, times[:, None]], 1)
        for layer in self.layers[:-1]:
            x = F.selu(layer(x))
        return self.layers[-1](x)


# --- the ODE -----------------------------------------------------------------------------------------------------------------


def solve(field: Field, x: Tensor, steps: int, solver: Solver, *, backwards: bool = False) -> Tensor:
    """x at time 1 from x at time 0 (`backwards`: the other way) by `steps` equal steps of dx/dt = field(x, t).

    Euler's method asks the field once a step, the midpoint method and Heun's (the mean of both ends' slopes) twice.
    """
    length = (-1.0 if backwards else 1.0) / steps
    for i in range(steps):
        now = x.new_full((len(x),), (1.0 if backwards else 0.0) + i * length)
        slope = field(x, now)
        if solver == "midpoint":
            slope = field(x + 0.5 * length * slope, now + 0.5 * length)
        elif solver == "heun":
            slope = (slope + field(x + length * slope, now + length)) / 2
        x = x + length * slope
    return x


class FlowMatching(nn.Module):
    """A velocity field that carries standard normal noise at time 0 to data at time 1: `forward(x, times)` -> velocities."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rule = PREPARE.with_channels(config.channels if config.layout == "pictures" else 1)
        self.prepare = Prepare(rule.channels, "fixed", (config.size, config.size), mean=rule.mean, std=rule.std)
        self.field = UNet(config) if config.layout == "pictures" else Dense(config)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one picture or point."""
        c = self.config
        return (c.channels, c.size, c.size) if c.layout == "pictures" else (c.channels,)

    def forward(self, x: Float[Tensor, "B *shape"], times: Float[Tensor, "B"]) -> Float[Tensor, "B *shape"]:
        if tuple(x.shape[1:]) != self.shape:
            raise UsageError(f"flow_matching: inputs must have shape {self.shape}, found {tuple(x.shape[1:])}")
        return self.field(x, times)

    # --- drawing ----------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "n *shape"]:
        """Standard normal starting points, one per sample of `noise`."""
        return noise.normal(*self.shape).to(next(self.parameters()))

    @torch.no_grad()
    def render(
        self, latents: Tensor, *, condition: Any = None, steps: int | None = None, solver: Solver = "midpoint"
    ) -> Float[Tensor, "n *shape"]:
        """The pictures in [-1, 1] (or points) that starting points are carried to, in `steps` steps (default 20).

        Raises UsageError for a condition, no steps or an unknown solver.
        """
        steps = STEPS if steps is None else steps
        if condition is not None or steps < 1 or solver not in get_args(Solver):
            raise UsageError(
                "flow_matching: there is no condition, steps must be at least 1 and the solver one of "
                f"{', '.join(get_args(Solver))}; found condition={condition}, steps={steps}, solver={solver!r}"
            )
        training = self.training
        out = solve(self.eval(), latents, steps, solver)
        self.train(training)
        return out if self.config.layout == "points" else out.clamp(-1, 1)

    def sample(
        self, noise: Noise, *, condition: Any = None, steps: int | None = None, solver: Solver = "midpoint"
    ) -> Float[Tensor, "n *shape"]:
        """Pictures in [-1, 1], one per sample of `noise`, in `steps` steps of `solver`."""
        return self.render(self.latents(noise), condition=condition, steps=steps, solver=solver)

    # --- density ----------------------------------------------------------------------------------------------------

    def divergence(self, x: Tensor, times: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """Velocities, and their divergence (B,): exact, or with a probe e of random signs Hutchinson's estimate e^T (dv/dx) e."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            velocity = self(x, times)
            if probe is not None:
                (gradient,) = torch.autograd.grad((velocity * probe).sum(), x)
                return velocity.detach(), (gradient * probe).flatten(1).sum(1)
            flat, total = velocity.flatten(1), x.new_zeros(len(x))
            for i in range(flat.shape[1]):
                (gradient,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
                total = total + gradient.flatten(1)[:, i]
        return velocity.detach(), total.detach()

    def log_density(
        self, x: Float[Tensor, "B *shape"], *, steps: int = LIKELIHOOD_STEPS, draw: int = 0, exact: bool | None = None
    ) -> Float[Tensor, "B"]:
        """log p(x) in nats of continuous pixels or points: the ODE backwards with the midpoint method, its divergence integrated.

        `exact` (default: for points): the exact trace, one pass per value; else signs that depend on `draw` alone, alike for
        every picture. No gradient reaches the network.
        """
        exact = self.config.layout == "points" if exact is None else exact
        probe = None if exact else signs(x, draw)
        change, length = x.new_zeros(len(x)), 1.0 / steps
        for i in range(steps):
            now = x.new_full((len(x),), 1.0 - i * length)
            with torch.no_grad():
                middle = x - 0.5 * length * self(x, now)
            velocity, divergence = self.divergence(middle, now - 0.5 * length, probe)
            x, change = x - length * velocity, change - length * divergence
        return change - 0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def levels(self, pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, "B D"]:
        """The whole numbers 0..levels-1 whose probability `log_likelihood` gives."""
        return dequantise.levels_of(pixels, self.config.levels)

    def log_likelihood(self, pixels: Tensor, *, draws: int = 1, steps: int = LIKELIHOOD_STEPS) -> Float[Tensor, "B"]:
        """log P (B,) in nats of pictures of `levels` levels: the mean log-density at `draws` fixed places of every pixel's bin
        (`dequantise.fixed_uniform`), each with its own signs, times the bin's volume. Of points, their log-density.
        """
        if self.config.layout == "points":
            return self.log_density(pixels, steps=steps)
        count, dimensions = self.config.levels, pixels[0].numel()
        each: list[Tensor] = []
        for draw in range(draws):
            place = dequantise.fixed_uniform(pixels, draw, draws)
            each.append(self.log_density(dequantise.spread(pixels, count, place), steps=steps, draw=draw))
        return torch.stack(each).mean(0) + dimensions * math.log(dequantise.width(count))


def signs(like: Float[Tensor, "B *shape"], draw: int) -> Float[Tensor, "1 *shape"]:
    """Random signs for every value of a picture: a function of `draw` and the place alone."""
    drawn = torch.randint(0, 2, (1, *like.shape[1:]), generator=torch.Generator().manual_seed(draw))
    return (2 * drawn - 1).to(like)


def inputs(network: FlowMatching, images: Images) -> tuple[Tensor, Tensor]:
    """What `forward` takes: the pictures, at times spread over (0, 1)."""
    count = len(images.pixels)
    return images.pixels, (torch.arange(count, device=images.pixels.device) + 0.5).to(images.pixels) / count


NETWORK = FlowMatching


# --- objective ---------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Places on the paths and the velocities that the network should have there."""

    x: Tensor
    velocity: Tensor


class Matching(nn.Module):
    """The squared error of the velocity on the path from noise x0 to data x1 (eq. 9, 23), at a uniform time.

    `sigma` is the deviation that is left at time 1; 0 is the convention of rectified flow.
    """

    def __init__(self, network: FlowMatching, *, sigma: float = 1e-4) -> None:
        super().__init__()
        if not 0 <= sigma < 1:
            raise UsageError(f"flow_matching: sigma must be in [0, 1), found {sigma}")
        self.network, self.sigma = network, sigma

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's."""
        return self.network.parameters()

    def pair(self, data: Tensor, noise: Tensor, times: Float[Tensor, "B"]) -> Pair:
        """The place t x1 + (1 - (1 - sigma) t) x0 and its velocity x1 - (1 - sigma) x0 (eq. 22-23)."""
        t, rest = times.view(-1, *[1] * (data.ndim - 1)), 1 - self.sigma
        return Pair(t * data + (1 - rest * t) * noise, data - rest * noise)

    def errors(self, data: Tensor, noise: Tensor, times: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The mean squared error of each sample's velocity."""
        x, velocity = self.pair(data, noise, times)
        return (self.network(x, times).float() - velocity).square().flatten(1).mean(1)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The mean over pictures whose levels are spread over their bins, weighted where samples have weights."""
        pixels = pixels_of(batch)
        data = dequantise.spread(pixels, self.network.config.levels, torch.rand_like(pixels))
        times = torch.rand(len(pixels), dtype=pixels.dtype, device=pixels.device)
        return {"velocity": mean(self.errors(data, torch.randn_like(data), times), batch)}

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""


objective = Matching


@torch.no_grad()
def evaluate(network: FlowMatching, data: Dataset) -> tuple[dict[str, float], dict[str, Any]]:
    """Bits per dimension of the pictures of a data set: -log2 P(x) / (C H W), averaged over the pictures."""
    weight, training, total = next(network.parameters()), network.training, 0.0
    network.eval()
    for first in range(0, len(data), 64):
        some = range(first, min(first + 64, len(data)))
        pixels = prepare([data[i].picture for i in some], network.prepare).pixels.to(weight)
        total -= float(network.log_likelihood(pixels).double().sum())
    network.train(training)
    dimensions = math.prod(network.shape)
    protocol = {
        "metric": "bits/dim", "levels": network.config.levels, "dimensions": dimensions, "pictures": len(data),
        "dequantisation": "uniform, one fixed place a pixel", "solver": f"midpoint, {LIKELIHOOD_STEPS} steps",
        "divergence": "Hutchinson, one fixed vector of signs",
    }  # fmt: skip
    return {"bits/dim": dequantise.bits(total / len(data), dimensions)}, protocol


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, channels=1, width=32, mults=(1, 2), blocks=1, attention=(), head_width=32, groups=8, dropout=0.0),
    "points": Config(channels=2, width=64, layout="points"),
    "cifar10": Config(),  # torchcfm's
}
PARAMETERS: dict[str, int] = {"cifar10": 35_746_307, "points": 8_706}  # of the reference at these sizes
OVERFIT: dict[str, Any] = {"observable": "loss", "floor": 0.0, "samples": 8, "lr": 5e-3}
_BLOCK = r"(?:ema_model\.)?(?:module\.)?(input|output)_blocks\.(\d+)\.(\d+)\."
_SIDES = {"input": "down", "output": "up"}
_PARTS = {
    r"in_layers\.0": "in_norm", r"in_layers\.2": "in_conv", r"emb_layers\.1": "time", r"out_layers\.0": "out_norm",
    r"out_layers\.3": "out_conv", "skip_connection": "skip", "norm": "norm", "qkv": "qkv", "proj_out": "proj_out", "conv": "conv",
    "op": "conv",
}  # fmt: skip


def _unet() -> Names:
    """guided-diffusion's names, alone or as torchcfm's averaged network in a training checkpoint."""
    whole = r"(?:ema_model\.)?(?:module\.)?"
    rules = [
        drop(r"(?:net_model|sched|optim)\..+|step"),
        rename(whole + r"time_embed\.0\.(\w+)", r"field.time.0.\1"),
        rename(whole + r"time_embed\.2\.(\w+)", r"field.time.1.\1"),
        rename(whole + r"input_blocks\.0\.0\.(\w+)", r"field.down.0.0.conv.\1"),
        rename(whole + r"out\.0\.(\w+)", r"field.norm.\1"),
        rename(whole + r"out\.2\.(\w+)", r"field.out.\1"),
    ]
    for theirs, ours in _PARTS.items():
        rules.append(rename(_BLOCK + theirs + r"\.(\w+)", lambda m, ours=ours: f"field.{_SIDES[m[1]]}.{m[2]}.{m[3]}.{ours}.{m[4]}"))
        rules.append(rename(whole + r"middle_block\.(\d)\." + theirs + r"\.(\w+)", rf"field.middle.\1.{ours}.\2"))
    return Names(*rules)


FORMATS: dict[str, Names] = {
    "torchcfm": _unet(),
    "torchcfm-points": Names(*(rename(rf"net\.{2 * i}\.(\w+)", rf"field.layers.{i}.\1") for i in range(4))),
}
TRAINING = Names(*(rename(rf"net\.{2 * i}\.(\w+)", rf"network.field.layers.{i}.\1") for i in range(4)))
_RELEASE = "https://github.com/atong01/conditional-flow-matching/releases/download/1.0.4/"
_SOURCE = "https://github.com/atong01/conditional-flow-matching examples/images/cifar10/README.md"
WEIGHTS: dict[str, Weights] = {
    f"cifar10:{tag}": Weights(
        url=f"{_RELEASE}{file}_cifar10_weights_step_400000.pt", format="torchcfm", license="MIT", source=_SOURCE, prepare=PREPARE
    )
    for tag, file in (("icfm", "cfm"), ("otcfm", "otcfm"), ("fm", "fm"))
}
