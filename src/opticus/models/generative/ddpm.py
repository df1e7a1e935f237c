"""Denoising Diffusion Probabilistic Models.

Ho, Jain and Abbeel, NeurIPS 2020, arXiv 2006.11239. Reference: diffusers (Apache-2.0), whose google/ddpm-* files hold the authors'
weights; hojonathanho/diffusion (the authors' TensorFlow code).

*Differs*: classes with guidance (Ho and Salimans 2022, arXiv 2207.12598), the answers "v" and "x0" (Salimans 2022, 2202.00512), a picture
as a further input (Saharia 2021, 2104.07636) and samplers of later papers (`opticus.diffusion`) are options. Fewer than 32 groups are
normalised where the network is narrower than 128.
*Map*: section 2, eq. 4 (q(x_t | x_0)) -> `diffusion.schedules.Schedule`, `Denoising.forward`; algorithm 1, eq. 14 (L_simple) -> `Denoising`;
algorithm 2, eq. 11 -> `DDPM.sample`, `diffusion.samplers.Ancestral`; section 4 and appendix B (U-Net, attention at 16x16) -> `UNet`, `DDPM`;
eq. 5, 6 and 13 (the bound) -> `DDPM.log_likelihood`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.diffusion.prediction import noisy, parts, target
from opticus.diffusion.samplers import Denoise, Known, draw, guided, sampler
from opticus.diffusion.schedules import Schedule, schedule
from opticus.losses.pictures import mean, pictures, pixels_of
from opticus.structures import Batch, Classes, DataError, Images, Noise, Picture, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, join, keep, rename

TASK: Task = "generate"
PREPARE = Prepare(resize="fixed", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Config:
    """A network for `size` x `size` pictures: `layers` residual blocks of `width` times `multiples`, attention where maps have a side in
    `attention`.

    `classes` makes it class-conditional (with a further row for "no class"), `given` is the number of channels of a picture that it is
    given beside the noisy one; at most one of the two. `predicts` is what it answers ("eps" in the paper).
    """

    size: int = 32
    channels: int = 3
    width: int = 128
    multiples: tuple[int, ...] = (1, 2, 2, 2)
    layers: int = 2
    attention: tuple[int, ...] = (16,)
    heads: int = 1
    dropout: float = 0.1
    classes: int = 0
    given: int = 0
    schedule: Literal["linear", "scaled-linear", "cosine"] = "linear"
    predicts: Literal["eps", "x0", "v"] = "eps"

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.multiples) - 1)
        if self.size % factor or self.width % 8:
            raise UsageError(f"ddpm: size {self.size} must be a multiple of {factor} and width {self.width} one of 8")
        if self.classes and self.given:
            raise UsageError(f"ddpm: either classes or a given picture, found classes={self.classes} and given={self.given}")


# --- network -----------------------------------------------------------------------------------------------------------


def sinusoid(times: Float[Tensor, "B"], width: int, *, last: bool) -> Float[Tensor, "B D"]:
    """(B, width) float32 sines, then cosines of times at frequencies from 1 down to 1/10000, which is one of them if `last`."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / (half - int(last)))
    angles = times[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class TimeEmbedding(nn.Module):
    """Two layers on a sinusoidal embedding (appendix B)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))) + the time's projection))); a 1x1 convolution fits x where widths differ."""

    conv_shortcut: nn.Conv2d | None

    def __init__(self, width: int, out: int, shape: Shape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.norm1 = nn.GroupNorm(shape.groups, width, shape.eps)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * shape.width, out)
        self.norm2 = nn.GroupNorm(shape.groups, out, shape.eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width, out, 1) if width != out else None

    def forward(self, x: Float[Tensor, "B C H W"], time: Float[Tensor, "B E"]) -> Float[Tensor, "B D H W"]:
        """`time` is already through its SiLU, which all blocks share."""
        y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(time)[:, :, None, None]
        y = F.dropout(F.silu(self.norm2(y)), self.dropout, self.training)
        return self.conv2(y) + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """x + to_out(attention over all places of group_norm(x)), with one head in the paper."""

    def __init__(self, width: int, heads: int, shape: Shape) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(shape.groups, width, shape.eps)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B C H W"], context: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        batch, width, height, breadth = x.shape
        rows = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.to_qkv(rows).reshape(batch, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        rows = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, width)
        return x + self.to_out(rows).transpose(1, 2).reshape(batch, width, height, breadth)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2. `even`: one row and column of zeros on every side; otherwise right and below only, as TensorFlow pads."""

    def __init__(self, width: int, even: bool) -> None:
        super().__init__()
        self.even = even
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1 if even else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.even else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Shape(NamedTuple):
    """What a U-Net is built from: input and output channels, widths, blocks, and the constants of its norms and strides."""

    channels: int
    answers: int
    width: int
    multiples: tuple[int, ...]
    layers: int
    dropout: float = 0.0
    groups: int = 32
    eps: float = 1e-6
    even: bool = False


Attend = Callable[[int, int], nn.Module | None]  # (level, width) -> attention after the blocks of a level; None where there is none


class Stage(nn.Module):
    """The blocks of one level, each with its attention if the level has any, and the step to the next level."""

    attentions: nn.ModuleList | None

    def __init__(self, blocks: list[ResBlock], attentions: list[nn.Module | None], step: nn.Module | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(blocks)
        present = [one for one in attentions if one is not None]
        self.attentions = nn.ModuleList(present) if present else None
        self.step = step

    def block(self, i: int, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """Block i and its attention."""
        x = self.resnets[i](x, time)
        return x if self.attentions is None else self.attentions[i](x, context)


class UNet(nn.Module):
    """Down through the levels, a middle, and up again with every output of the way down concatenated (figure 1 of Ronneberger 2015)."""

    def __init__(self, shape: Shape, attend: Attend) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(shape.channels, shape.width, 3, padding=1)
        widths = [shape.width * multiple for multiple in shape.multiples]
        last, skips, now = len(widths) - 1, [shape.width], shape.width
        downs: list[Stage] = []
        for level, width in enumerate(widths):
            blocks = [ResBlock(now if i == 0 else width, width, shape) for i in range(shape.layers)]
            step = Downsample(width, shape.even) if level < last else None
            downs.append(Stage(blocks, [attend(level, width) for _ in blocks], step))
            skips += [width] * (shape.layers + (level < last))
            now = width
        self.down_blocks = nn.ModuleList(downs)
        self.mid_block = Stage([ResBlock(now, now, shape) for _ in range(2)], [self._present(attend(-1, now))], None)
        ups: list[Stage] = []
        for level in range(last, -1, -1):
            width, blocks = widths[level], []
            for _ in range(shape.layers + 1):
                blocks.append(ResBlock(now + skips.pop(), width, shape))
                now = width
            ups.append(Stage(blocks, [attend(level, width) for _ in blocks], Upsample(width) if level else None))
        self.up_blocks = nn.ModuleList(ups)
        self.conv_norm_out = nn.GroupNorm(shape.groups, shape.width, shape.eps)
        self.conv_out = nn.Conv2d(shape.width, shape.answers, 3, padding=1)

    @staticmethod
    def _present(module: nn.Module | None) -> nn.Module:
        assert module is not None, "the middle has attention in all of these networks"
        return module

    def forward(self, x: Float[Tensor, "B C H W"], time: Float[Tensor, "B E"], context: Tensor | None = None) -> Tensor:
        """The answer (B, answers, H, W); `context` is handed to every attention."""
        time = F.silu(time)
        x = self.conv_in(x)
        kept = [x]
        for stage in self._stages(self.down_blocks):
            for i in range(len(stage.resnets)):
                kept.append(x := stage.block(i, x, time, context))
            if stage.step is not None:
                kept.append(x := stage.step(x))
        x = self.mid_block.block(0, x, time, context)
        x = self.mid_block.resnets[1](x, time)
        for stage in self._stages(self.up_blocks):
            for i in range(len(stage.resnets)):
                x = stage.block(i, torch.cat([x, kept.pop()], 1), time, context)
            x = x if stage.step is None else stage.step(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    @staticmethod
    def _stages(blocks: nn.ModuleList) -> Iterable[Stage]:
        return cast(Iterable[Stage], blocks)


def initialise(module: nn.Module, zero: tuple[str, ...] = ("conv2", "to_out", "conv_out")) -> None:
    """Uniform weights scaled by the mean of inputs and outputs; the last layer of every residual branch and the output start at zero."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            if name.rpartition(".")[2] in zero:
                nn.init.zeros_(part.weight)
            else:
                nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class DDPM(nn.Module):
    """A U-Net that answers a noisy picture and its time with what `Config.predicts` names; nothing else is learned."""

    path: Schedule
    TIMES = 1000

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.channels = config, config.channels
        self.prepare = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(config.channels, "fixed", (config.size, config.size), mean=self.prepare.mean, std=self.prepare.std)
        self.path = schedule(config.schedule, self.TIMES)
        groups = 32 if config.width >= 128 else config.width // 8
        shape = Shape(
            config.channels + config.given, config.channels, config.width, config.multiples, config.layers, config.dropout, groups
        )

        def attend(level: int, width: int) -> nn.Module | None:
            seen = level < 0 or config.size >> level in config.attention
            return Attention(width, config.heads, shape) if seen else None

        self.unet = UNet(shape, attend)
        self.time_embedding = TimeEmbedding(config.width, 4 * config.width)
        self.class_embedding = nn.Embedding(config.classes + 1, 4 * config.width) if config.classes else None
        initialise(self)

    def forward(self, pixels: Float[Tensor, "B C H W"], times: Tensor, condition: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        """The answer to noisy `pixels` at `times` (B,); `condition` is labels (B,) int64 (`classes` = none of them, as None), or the given
        picture (B, given, H, W)."""
        time = self.time_embedding(sinusoid(times, self.config.width, last=True).to(self.unet.conv_in.weight.dtype))
        if self.class_embedding is not None:
            labels = self.nothing(len(pixels)) if condition is None else condition
            time = time + self.class_embedding(labels.to(pixels.device))
        elif self.config.given:
            if condition is None:
                raise UsageError(f"ddpm: the network needs a picture with {self.config.given} channels as condition")
            pixels = torch.cat([pixels, condition.to(pixels)], 1)
        elif condition is not None:
            raise UsageError("ddpm: the network has neither classes nor a given picture, but was told a condition")
        return self.unet(pixels, time)

    def encoded(self, pixels: Float[Tensor, "B C H W"], *, learn: bool = False) -> Float[Tensor, "B C H W"]:
        """What noise is added to: the pixels themselves."""
        return pixels

    def decoded(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pictures of what noise was added to."""
        return latents

    def nothing(self, count: int) -> Int[Tensor, "n"]:
        """The label that says "no class", `count` times."""
        return torch.full((count,), self.config.classes, device=self.unet.conv_in.weight.device)

    def pictures(self, pixels: Float[Tensor, "B C H W"]) -> list[Picture]:
        """Pixels in [-1, 1], such as samples, as pictures."""
        return pictures(pixels, self.prepare)

    # --- drawing ------------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "n C H W"]:
        """Standard normal starting points."""
        weight = self.unet.conv_in.weight
        shape = (self.config.channels, self.config.size, self.config.size)
        return noise.to(weight.device).normal(*shape, dtype=weight.dtype)

    def render(self, latents: Tensor, *, condition: Tensor | None = None, steps: int | None = None) -> Tensor:
        """The pictures that DDIM with eta 0 leads starting points to."""
        return walk(self, self._denoiser(condition, latents, 1.0), latents, None, "ddim", steps, clip=1.0)

    def sample(
        self, noise: Noise, *, condition: Tensor | None = None, steps: int | None = None, sampler: str = "ddim", guidance: float = 1.0,
        eta: float = 0.0, variance: str = "small", known: Known | None = None,
        progress: Callable[[int, int], None] | None = None, watch: Callable[[Tensor], None] | None = None,
    ) -> Float[Tensor, "n C H W"]:  # fmt: skip
        """Pictures in [-1, 1], one per sample of `noise`: with a `sampler` of `diffusion.samplers` in `steps` steps (50; all times for
        "ddpm").

        `condition` as in `forward`, labels drawn evenly if None; `guidance` > 1 exaggerates what is particular to a class; `known`
        pixels are kept (inpainting).
        """
        start = self.latents(noise)
        if self.config.classes and condition is None:
            condition = noise.integers(self.config.classes)
        denoise = self._denoiser(condition, start, guidance)
        return walk(
            self, denoise, start, noise, sampler, steps,
            eta=eta, variance=variance, clip=1.0, known=known, progress=progress, watch=watch,
        )  # fmt: skip

    def _denoiser(self, condition: Tensor | None, start: Tensor, guidance: float) -> Denoise:
        count = len(start)
        if condition is not None and len(condition) != count:
            raise UsageError(f"ddpm: {count} pictures are drawn, but the condition has {len(condition)} rows")
        if not self.config.classes:
            if guidance != 1.0:
                raise UsageError(f"ddpm: guidance needs a network with classes, found guidance={guidance:g}")
            return lambda x, times: self(x, times, condition)
        labels = self.nothing(count) if condition is None else condition.to(start.device)
        if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) > self.config.classes:
            raise UsageError(f"ddpm: labels must be whole numbers in 0..{self.config.classes - 1}, found {labels.tolist()[:8]}")
        return guided(self, labels, self.nothing(count), guidance)

    # --- likelihood ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_likelihood(self, pixels: Float[Tensor, "B C H W"], condition: Tensor | None = None) -> Float[Tensor, "B"]:
        """The variational bound of log p(x) in nats (eq. 5), all times summed, with the posterior's variance; its noise is that of seed 0,
        the same for every picture.

        8-bit pictures: the last step's Gaussian is integrated over each level's bin (eq. 13).
        """
        chance, total = Noise(0, 1, device=pixels.device), pixels.new_zeros(len(pixels), dtype=torch.float64)
        signal, amount = self.path.signal, self.path.noise
        for t in range(self.TIMES - 1, -1, -1):
            a, b = float(signal[t]), float(amount[t])
            x = noisy(pixels, chance.normal(*pixels.shape[1:], dtype=pixels.dtype).expand_as(pixels), a, b)
            answer = self(x, torch.full((len(pixels),), t, device=pixels.device), condition)
            found = parts(self.config.predicts, answer, x, a, b).picture.clamp(-1, 1)
            if t == 0:
                total += discretised(pixels, found, b / a)
                continue
            before, beta = float(signal[t - 1]), 1 - float(signal[t] / signal[t - 1]) ** 2
            variance = beta * float(amount[t - 1]) ** 2 / b**2
            weight = (before * beta / b**2) ** 2 / (2 * variance)
            total -= weight * (pixels - found).double().square().flatten(1).sum(1)
        a2, b2 = float(signal[-1]) ** 2, float(amount[-1]) ** 2  # the divergence of q(x_T | x_0) from a unit Gaussian
        total -= 0.5 * (a2 * pixels.double().square() + b2 - 1 - math.log(b2)).flatten(1).sum(1)
        return total.to(pixels.dtype)


def discretised(pixels: Tensor, centre: Tensor, deviation: float) -> Float[Tensor, "B"]:
    """log of the Gaussian's mass in each 8-bit level's bin, summed over a picture; the outer bins reach to infinity (eq. 13)."""
    normal = torch.distributions.Normal(centre.double(), deviation)
    above = torch.where(pixels > 0.999, torch.ones_like(centre, dtype=torch.float64), normal.cdf(pixels.double() + 1 / 255))
    below = torch.where(pixels < -0.999, torch.zeros_like(centre, dtype=torch.float64), normal.cdf(pixels.double() - 1 / 255))
    return (above - below).clamp(min=1e-12).log().flatten(1).sum(1)


def walk(
    network: Any, denoise: Denoise, start: Tensor, noise: Noise | None, name: str, steps: int | None, *, eta: float = 0.0,
    variance: str = "small", clip: float | None = None, known: Known | None = None, progress: Any = None, watch: Any = None,
) -> Tensor:  # fmt: skip
    """`diffusion.samplers.draw` along the path of a network in evaluation mode; 50 steps, or all times for "ddpm", where none are named."""
    count = (network.TIMES if name == "ddpm" else 50) if steps is None else steps
    rule = sampler(name, network.path, count, eta=eta, variance=variance)
    training = network.training
    network.eval()
    try:
        return draw(
            denoise, start, rule, noise, predicts=network.config.predicts, clip=clip, known=known, progress=progress, watch=watch
        )
    finally:
        network.train(training)


NETWORK = DDPM


def inputs(network: DDPM, images: Images) -> tuple[Tensor, ...]:
    """Pictures with times, and labels or given pictures where the network needs them, by formula."""
    count, device = len(images.pixels), images.pixels.device
    times = torch.arange(count, device=device) * 131 % network.TIMES
    if network.config.classes:
        return images.pixels, times, torch.arange(count, device=device) % network.config.classes
    if network.config.given:
        return images.pixels, times, images.pixels.mean(1, keepdim=True).expand(-1, network.config.given, -1, -1)
    return images.pixels, times


# --- objective ---------------------------------------------------------------------------------------------------------


class Denoising(nn.Module):
    """L_simple (eq. 14): the mean squared error of the answer at times drawn evenly. A label is left out with probability `unlabelled`.

    `hides` makes the given picture of a network with `given` channels: "detail" averages the picture over blocks of `factor` and enlarges
    it again; "part" hides a random rectangle, and a further channel says which (given = channels + 1). A network that works on codes of
    pictures (latent diffusion) makes them by its `encoded`.
    """

    def __init__(self, network: Any, unlabelled: float = 0.1, hides: Literal["", "detail", "part"] = "", factor: int = 4) -> None:
        super().__init__()
        wanted = {"": 0, "detail": network.channels, "part": network.channels + 1}
        if hides not in wanted or wanted[hides] != network.config.given:
            needs = ", ".join(f"hides={name!r} with given={count}" for name, count in wanted.items() if name)
            raise UsageError(
                f"ddpm: a network with given={network.config.given} cannot learn with hides={hides!r}; there are {needs}"
            )
        self.network, self.unlabelled, self.hides, self.factor = network, unlabelled, hides, factor

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's that are trained."""
        return (p for p in self.network.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Times and noise from torch's generator (algorithm 1)."""
        pixels = self.network.encoded(pixels_of(batch), learn=True)
        times = torch.randint(self.network.TIMES, (len(pixels),), device=pixels.device)
        return {"noise": mean(self.errors(pixels, times, torch.randn_like(pixels), self._condition(batch, pixels)), batch)}

    def errors(self, pixels: Tensor, times: Tensor, noise: Tensor, condition: Tensor | None = None) -> Float[Tensor, "B"]:
        """The mean squared error of every picture's answer at given times and noise."""
        a, b = self.network.path.at(times, pixels)
        wanted = target(self.network.config.predicts, pixels, noise, a, b)
        answer = self.network(noisy(pixels, noise, a, b), times, condition)
        return (answer - wanted).square().flatten(1).mean(1)

    def _condition(self, batch: Batch, pixels: Tensor) -> Tensor | None:
        classes = self.network.config.classes
        if classes:
            labels = labels_of(batch, classes).to(pixels.device)
            left_out = torch.rand(len(labels), device=pixels.device) < self.unlabelled
            return labels.masked_fill(left_out, classes)
        if self.hides == "detail":
            return coarse(pixels, self.factor)
        return with_hole(pixels, holes(pixels)) if self.hides == "part" else None

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing: the average that is sampled from is the recipe's."""


def labels_of(batch: Batch, classes: int) -> Int[Tensor, "B"]:
    """One label per picture; DataError names a sample without one or with one that the network lacks."""
    rows: list[int] = []
    for target_, name in zip(batch.targets, batch.ids):
        if not isinstance(target_, Classes) or not len(target_.labels) or int(target_.labels[0]) >= classes:
            raise DataError(f"{name}: a label in 0..{classes - 1} is needed, found {target_!r:.80}")
        rows.append(int(target_.labels[0]))
    return torch.tensor(rows)


def coarse(pixels: Float[Tensor, "B C H W"], factor: int) -> Float[Tensor, "B C H W"]:
    """The means of factor x factor blocks, enlarged again by cubic interpolation: what super-resolution is given."""
    small = F.avg_pool2d(pixels, factor)
    return F.interpolate(small, scale_factor=float(factor), mode="bicubic", align_corners=False).clamp(-1, 1)


def with_hole(pixels: Float[Tensor, "B C H W"], hidden: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B D H W"]:
    """The picture with zeros where `hidden` is 1, and `hidden` itself: what inpainting is given."""
    return torch.cat([pixels * (1 - hidden), hidden.to(pixels)], 1)


def holes(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """One rectangle per picture, of a quarter to three quarters of its sides, from torch's generator; 1 inside."""
    count, _, height, width = pixels.shape
    rows, columns = (torch.arange(side, device=pixels.device) for side in (height, width))
    sizes = torch.rand(count, 2, device=pixels.device) / 2 + 0.25
    firsts = torch.rand(count, 2, device=pixels.device) * (1 - sizes)
    inside: list[Tensor] = []
    for axis, (places, side) in enumerate(((rows, height), (columns, width))):
        shares = (places + 0.5) / side
        inside.append((shares >= firsts[:, axis, None]) & (shares < (firsts + sizes)[:, axis, None]))
    return (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(pixels)


def objective(network: DDPM, **options: Any) -> Denoising:
    """L_simple, with `unlabelled`, `hides` and `factor`."""
    return Denoising(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

_SMALL = Config(
    size=16, channels=1, width=32, multiples=(1, 2, 2), layers=1, attention=(8,), dropout=0.0, schedule="cosine", predicts="v"
)
VARIANTS: dict[str, Config] = {
    "tiny": _SMALL,
    "tiny-classes": replace(_SMALL, classes=10),
    "cifar10": Config(),
    "256": Config(size=256, multiples=(1, 1, 2, 2, 4, 4), dropout=0.0),
}
PARAMETERS: dict[str, int] = {"cifar10": 35_746_307, "256": 113_673_219}
OVERFIT = {"observable": "loss", "samples": 8, "lr": 2e-3, "floor": 0.0}
_PLACE = r"((?:down_blocks|up_blocks)\.\d+|mid_block)"
_ATTENTION = _PLACE + r"(\.attentions\.\d+)\."
_DIFFUSERS = Names(
    join(_ATTENTION + r"(?:to_q|query)\.(\w+)", r"unet.\1\2.to_qkv.\3", 0, 3),
    join(_ATTENTION + r"(?:to_k|key)\.(\w+)", r"unet.\1\2.to_qkv.\3", 1, 3),
    join(_ATTENTION + r"(?:to_v|value)\.(\w+)", r"unet.\1\2.to_qkv.\3", 2, 3),
    rename(_ATTENTION + r"(?:to_out\.0|proj_attn)\.(\w+)", r"unet.\1\2.to_out.\3"),
    rename(_PLACE + r"\.(?:down|up)samplers\.0\.(.+)", r"unet.\1.step.\2"),
    rename(_PLACE + r"\.(.+)", r"unet.\1.\2"),
    keep(r"(?:time|class)_embedding\..+"),
    rename(r"(conv_in|conv_norm_out|conv_out)\.(\w+)", r"unet.\1.\2"),
)
FORMATS: dict[str, Names] = {"diffusers": _DIFFUSERS, "diffusers-2022": _DIFFUSERS}  # the second with query, key, value, proj_attn
WEIGHTS: dict[str, Weights] = {}
