"""Progressive Growing of GANs for Improved Quality, Stability, and Variation.

Karras, Aila, Laine and Lehtinen, ICLR 2018, arXiv 1710.10196.
Reference: facebookresearch/pytorch_GAN_zoo (BSD-3-Clause), whose published files load here.

*Differs*: as in the reference, the constant of the equalised learning rate multiplies the bias too and is that of a rectifier in
every layer, and the deviation over a group is the unbiased one; the optimisers' moments are kept where a level is added, and
the batch is the same at every resolution. The reference's discriminator does not fade in its first further level; this one does.
*Map*: section 2 and figure 2 -> `ops.growth`, `Generator.forward`, `Discriminator.forward`; section 3 -> `deviation`; section 4.1 ->
`Conv`, `Linear`; section 4.2 -> `pixel_norm`; appendix A.1 (drift, penalty) -> `ProGAN`, table 2 -> `VARIANTS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.adversarial import gradient_penalty, rule
from opticus.losses.pictures import pixels_of
from opticus.ops.growth import GRAIN, doubled, enlarged, missing, reduced
from opticus.structures import Batch, Images, Noise, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "generate"
PREPARE = Prepare(resize="fixed", size=(1024, 1024), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SLOPE = 0.2  # of the leaky rectifiers
GROUP = 4  # pictures over which the discriminator measures variation


@dataclass(frozen=True)
class Config:
    """`widths` are the channels at 4x4, 8x8, 16x16, ...; pictures have `channels` channels and 4 * 2^(levels - 1) pixels a side."""

    latent: int = 512
    widths: tuple[int, ...] = (512, 512, 512, 512, 256, 128, 64, 32, 16)
    channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or min(self.latent, self.channels, *self.widths) < 1:
            raise UsageError(f"progan: widths must be at least one positive number, found {list(self.widths)}")

    @property
    def size(self) -> int:
        """Pixels a side."""
        return 4 * 2 ** (len(self.widths) - 1)


# --- layers --------------------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """(w * x + b) c with w ~ N(0, 1) and He's c = sqrt(2 / fan-in): all weights learn equally fast (section 4.1)."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.constant = math.sqrt(2 / (inputs * size**2))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return F.conv2d(x, self.weight * self.constant, self.bias * self.constant, padding=self.weight.shape[2] // 2)


class Linear(nn.Module):
    """The same for a fully connected layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.constant = math.sqrt(2 / inputs)

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        return F.linear(x, self.weight * self.constant, self.bias * self.constant)


def pixel_norm(x: Tensor) -> Tensor:
    """Every pixel's vector of channels gets the mean square 1 (section 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def deviation(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """How much the pictures of a group differ: the deviation over four neighbours in the batch, averaged over everything else.

    One group where the batch is no multiple of four; 0 for a single picture (section 3).
    """
    group = GROUP if len(x) % GROUP == 0 else len(x)
    if group == 1:
        return torch.zeros_like(x[:, :1])
    each = (x.unflatten(0, (-1, group)).var(1) + 1e-8).sqrt().flatten(1).mean(1)
    return each.repeat_interleave(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])


def leaky(x: Tensor) -> Tensor:
    """The rectifier after every layer."""
    return F.leaky_relu(x, SLOPE)


def stack(inputs: int, outputs: int, hidden: int) -> nn.ModuleList:
    """The two 3x3 convolutions of a resolution."""
    return nn.ModuleList([Conv(inputs, hidden, 3), Conv(hidden, outputs, 3)])


# --- networks ------------------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """A latent vector becomes a 4x4 map, whose side every level doubles. It holds all levels; what it lacks yet is a counter.

    `forward` returns pictures (B, C, s, s) at the resolution it has grown to, in [-1, 1] once trained.
    """

    lod_tracked: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        grey = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(config.channels, "fixed", (config.size, config.size), mean=grey.mean, std=grey.std)
        widths = config.widths
        self.first = Linear(config.latent, 16 * widths[0])
        self.conv = Conv(widths[0], widths[0], 3)
        self.levels = nn.ModuleList(stack(a, b, b) for a, b in pairwise(widths))
        self.to_rgb = nn.ModuleList(Conv(width, config.channels, 1) for width in widths)
        self.register_buffer("lod_tracked", torch.zeros((), dtype=torch.int64))  # levels that are missing, in 1/GRAIN

    def grow(self, lacking: float) -> None:
        """Set the number of levels that are still missing (`ops.growth.missing`)."""
        self.lod_tracked.fill_(round(lacking * GRAIN))

    @property
    def lacking(self) -> float:
        """Levels that are still missing."""
        return int(self.lod_tracked) / GRAIN

    def forward(self, latents: Float[Tensor, "B D"], lod: Tensor | float | None = None) -> Float[Tensor, "B C s s"]:
        lacking = self.lacking if lod is None else float(lod)
        top = len(self.levels) - math.floor(lacking)
        x = before = self._map(latents)
        for convs in list(self.levels)[:top]:
            before, x = x, doubled(x)
            for conv in cast(nn.ModuleList, convs):
                x = pixel_norm(leaky(conv(x)))
        pixels, share = self.to_rgb[top](x), lacking % 1
        return pixels.lerp(doubled(self.to_rgb[top - 1](before)), share) if share else pixels

    def _map(self, latents: Tensor) -> Tensor:
        """The 4x4 map of a latent vector."""
        x = pixel_norm(leaky(self.first(pixel_norm(latents))).unflatten(1, (-1, 4, 4)))
        return pixel_norm(leaky(self.conv(x)))

    # --- drawing ---------------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "n D"]:
        """Normal vectors; `forward` only looks at their direction."""
        return noise.normal(self.config.latent).to(self.first.weight)

    @torch.no_grad()
    def render(
        self, latents: Float[Tensor, "n D"], *, condition: Tensor | None = None, steps: int | None = None
    ) -> Float[Tensor, "n C H W"]:
        """The pictures of latent vectors in [-1, 1]; a network that is still growing repeats its pixels up to the full size."""
        if condition is not None or steps is not None:
            raise UsageError("progan: pictures depend on the latent vectors alone; there is no condition and there are no steps")
        return enlarged(self(latents), self.config.size)

    def sample(self, noise: Noise, *, condition: Tensor | None = None, steps: int | None = None) -> Float[Tensor, "n C H W"]:
        """One picture per sample of `noise`."""
        return self.render(self.latents(noise), condition=condition, steps=steps)


NETWORK = Generator


def inputs(network: Generator, images: Images) -> tuple[Tensor, ...]:
    """Latent vectors made of pixels, for checks that need some."""
    flat = images.pixels.flatten(1)
    return (flat.repeat(1, -(-network.config.latent // flat.shape[1]))[:, : network.config.latent],)


class Discriminator(nn.Module):
    """The generator's mirror image, with the variation of the batch as a further map at 4x4; scores (B, 1), high for real."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.widths
        self.from_rgb = nn.ModuleList(Conv(config.channels, width, 1) for width in widths)
        self.levels = nn.ModuleList(stack(b, a, b) for a, b in pairwise(widths))
        self.conv = Conv(widths[0] + 1, widths[0], 3)
        self.hidden = Linear(16 * widths[0], widths[0])
        self.decision = Linear(widths[0], 1)

    def forward(self, pixels: Float[Tensor, "B C s s"], lod: Tensor | float = 0.0) -> Float[Tensor, "B 1"]:
        lacking = float(lod)
        top, share = len(self.levels) - math.floor(lacking), lacking % 1
        x = leaky(self.from_rgb[top](pixels))
        for level in range(top, 0, -1):
            for conv in cast(nn.ModuleList, self.levels[level - 1]):
                x = leaky(conv(x))
            x = F.avg_pool2d(x, 2)
            if share and level == top:
                x = x.lerp(leaky(self.from_rgb[top - 1](F.avg_pool2d(pixels, 2))), share)
        x = leaky(self.conv(torch.cat([x, deviation(x)], 1)))
        return self.decision(leaky(self.hidden(x.flatten(1))))


# --- objective ---------------------------------------------------------------------------------------------------------


class ProGAN(nn.Module):
    """Wasserstein losses with gradient penalty, and a drift term that keeps scores near 0 (appendix A.1), on growing networks."""

    def __init__(self, network: Generator, *, growing: float = 0.6, penalty: float = 10.0, drift: float = 1e-3) -> None:
        super().__init__()
        if not 0 <= growing < 1 or min(penalty, drift) < 0:
            raise UsageError(
                f"progan: growing must be in [0, 1), penalty and drift not negative, found {growing}, {penalty} and {drift}"
            )
        self.network, self.growing, self.penalty, self.drift = network, growing, penalty, drift
        self.discriminator = Discriminator(network.config)

    def phases(self, step: int) -> tuple[str, ...]:
        """Both in turn."""
        return ("d", "g")

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """Those of the discriminator or of the generator."""
        return (self.discriminator if phase == "d" else self.network).parameters()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The terms of a phase; the networks grow with the run (`growing` is the share of it after which they are whole)."""
        if batch.weights is not None:
            raise UsageError("progan: the pictures of a batch are judged together: sample weights have no meaning here")
        lacking = missing(at.fraction, len(self.network.levels), self.growing)
        self.network.grow(lacking)
        real = pixels_of(batch)
        latents = torch.randn(len(real), self.network.config.latent, device=real.device, dtype=real.dtype)
        share = torch.rand(len(real), device=real.device, dtype=real.dtype)
        terms = self.fooling(latents) if at.phase == "g" else self.judging(reduced(real, lacking), latents, share)
        return {name: each.mean() for name, each in terms.items()}

    def judging(self, real: Tensor, latents: Tensor, share: Tensor) -> dict[str, Tensor]:
        """The discriminator's terms (B,) on pictures of the present resolution.

        `share` (B,) in [0, 1] says where between a real and a generated picture the penalty looks.
        """
        score, lacking = self.discriminator, self.network.lacking
        with torch.no_grad():
            fake = self.network(latents)
        true, false = score(real, lacking).flatten(), score(fake, lacking).flatten()
        between = gradient_penalty(lambda pixels: score(pixels, lacking), real, fake, share)
        losses = rule("wasserstein")
        return {
            "d/real": losses.real(true),
            "d/fake": losses.fake(false),
            "d/penalty": self.penalty * between,
            "d/drift": self.drift * true.square(),
        }

    def fooling(self, latents: Tensor) -> dict[str, Tensor]:
        """The generator's term (B,)."""
        scores = self.discriminator(self.network(latents), self.network.lacking)
        return {"g/fake": rule("wasserstein").generator(scores)}

    @torch.no_grad()
    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the batch's pictures and of as many new ones."""
        lacking, real = self.network.lacking, pixels_of(batch)
        latents = torch.randn(len(real), self.network.config.latent, device=real.device, dtype=real.dtype)
        true = self.discriminator(reduced(real, lacking), lacking)
        return true.flatten(), self.discriminator(self.network(latents), lacking).flatten()

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""


def objective(network: Generator, **options: Any) -> ProGAN:
    """`growing`: share of the run after which the networks are whole; factors of the gradient `penalty` and of the `drift` term."""
    return ProGAN(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

_WIDTHS = (512, 512, 512, 512, 256, 128, 64, 32, 16)
VARIANTS: dict[str, Config] = {
    "tiny": Config(latent=64, widths=(64, 64, 32), channels=1),
    "128": Config(widths=_WIDTHS[:6]),
    "256": Config(widths=_WIDTHS[:7]),
    "512": Config(widths=_WIDTHS[:8]),
    "1024": Config(widths=_WIDTHS),
}
PARAMETERS: dict[str, int] = {"128": 22_941_074, "256": 23_051_989, "512": 23_079_800, "1024": 23_086_795}
OVERFIT = {"observable": "realness", "weights": "refused", "samples": 8, "lr": 2e-3, "options": {"growing": 0.0}}
UNTRAINED = (r"to_rgb\.[01]\..+", r"discriminator\.from_rgb\.[01]\..+")  # those of resolutions that have been left behind
FORMATS: dict[str, Names] = {
    "gan_zoo": Names(
        rename(r"formatLayer\.module\.(.+)", r"first.\1"),
        rename(r"groupScale0\.0\.module\.(.+)", r"conv.\1"),
        rename(r"scaleLayers\.(\d+)\.(\d)\.module\.(.+)", r"levels.\1.\2.\3"),
        rename(r"toRGBLayers\.(\d+)\.module\.(.+)", r"to_rgb.\1.\2"),
    ),
}
TRAINING = Names(  # both networks of the reference
    rename(r"netG\.formatLayer\.module\.(.+)", r"network.first.\1"),
    rename(r"netG\.groupScale0\.0\.module\.(.+)", r"network.conv.\1"),
    rename(r"netG\.scaleLayers\.(\d+)\.(\d)\.module\.(.+)", r"network.levels.\1.\2.\3"),
    rename(r"netG\.toRGBLayers\.(\d+)\.module\.(.+)", r"network.to_rgb.\1.\2"),
    rename(r"netD\.fromRGBLayers\.(\d+)\.module\.(.+)", r"discriminator.from_rgb.\1.\2"),
    rename(r"netD\.scaleLayers\.(\d+)\.(\d)\.module\.(.+)", r"discriminator.levels.\1.\2.\3"),
    rename(r"netD\.groupScaleZero\.0\.module\.(.+)", r"discriminator.conv.\1"),
    rename(r"netD\.groupScaleZero\.1\.module\.(.+)", r"discriminator.hidden.\1"),
    rename(r"netD\.decisionLayer\.module\.(.+)", r"discriminator.decision.\1"),
)


def _published(file: str, digest: str, size: int) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/gan_zoo/PGAN/{file}-{digest}.pth",
        format="gan_zoo",
        license="BSD-3-Clause",
        source="https://github.com/facebookresearch/pytorch_GAN_zoo hubconf.py, README.md, LICENSE",
        prepare=Prepare(resize="fixed", size=(size, size), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        digest=digest,
    )


# the fourth file of hubconf.py, DTD, is of a network that takes classes, as its datasets.py says, and does not load here
WEIGHTS: dict[str, Weights] = {
    "256:celebahq": _published("celebaHQ_s6_i80000", "6196db68", 256),
    "512:celebahq": _published("celebaHQ16_december_s7_i96000", "9c72988c", 512),
    "128:celeba": _published("celebaCropped_s5_i83000", "2b0acc76", 128),
}
