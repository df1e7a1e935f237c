"""A Style-Based Generator Architecture for Generative Adversarial Networks (StyleGAN).

Karras, Laine and Aila, CVPR 2019, arXiv 1812.04948.
Reference: genforce/genforce (MIT), a PyTorch form of the authors' networks, whose files load here. The authors' own code is not for
commercial use and was not read.

*Differs*: mixing regularisation draws a crossover for every picture instead of one for the batch; the optimisers' moments are kept
where a level is added, and the batch is the same at every resolution; only the logistic loss with R1 (FFHQ), not WGAN-GP.
*Map*: section 2 and figure 1b -> `mapping`, `Layer`, `StyleGAN.synthesize`; eq. 1 -> `adain`; section 3.1 -> `mixed`, `StyleLoss`;
section 3.2 (noise) -> `Layer`, `StyleGAN.noises`; appendix B (truncation in W) -> `StyleGAN.spread`; appendix C -> `blur`, `Linear`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.adversarial import r1, rule
from opticus.losses.pictures import pixels_of
from opticus.ops.growth import GRAIN, doubled, enlarged, missing, reduced
from opticus.structures import Batch, Images, Noise, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "generate"
PREPARE = Prepare(resize="fixed", size=(1024, 1024), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SLOPE = 0.2  # of the leaky rectifiers
GROUP = 4  # pictures over which the discriminator measures variation
GAIN = math.sqrt(2)  # of layers before a rectifier


@dataclass(frozen=True)
class Config:
    """Pictures of `size` pixels a side; latent vectors and styles of `latent` numbers, a mapping network of `depth` layers.

    A resolution r has min(`base` / r, `most`) channels. `rate` is the mapping network's learning rate relative to the rest's. From
    `fused` pixels on, doubling the side and the convolution after it are one transposed convolution, whose kernel is not mirrored.
    """

    size: int = 1024
    latent: int = 512
    depth: int = 8
    rate: float = 0.01
    base: int = 16_384
    most: int = 512
    channels: int = 3
    fused: int = 128

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise UsageError(f"stylegan: size must be a power of two of at least 8, found {self.size}")
        if min(self.latent, self.depth, self.channels, self.most) < 1 or self.base < self.size or self.rate <= 0:
            raise UsageError(
                f"stylegan: latent, depth, channels and most must be at least 1, base at least size and rate positive, found {self}"
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """4, 8, 16, ..., size."""
        return tuple(2**power for power in range(2, self.size.bit_length()))

    def width(self, side: int) -> int:
        """Channels at a resolution."""
        return min(self.base // side, self.most)


# --- layers --------------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Weights of unit deviation times gain / sqrt(fan-in); with a `rate` below 1 both weights and bias move more slowly."""

    def __init__(self, inputs: int, outputs: int, gain: float = GAIN, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.factor, self.rate = rate * gain / math.sqrt(inputs), rate

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        return F.linear(x, self.weight * self.factor, self.bias * self.rate)


class Conv(nn.Module):
    """A convolution whose weights are scaled in the same way."""

    def __init__(self, inputs: int, outputs: int, size: int, *, gain: float = GAIN, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.factor = gain / math.sqrt(inputs * size**2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return F.conv2d(x, self.weight * self.factor, self.bias, padding=self.weight.shape[2] // 2)


class UpConv(nn.Module):
    """Twice the side, a 3x3 convolution and a blur, without bias; the first two as one transposed convolution of half the work."""

    def __init__(self, inputs: int, outputs: int, *, mirrored: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.factor, self.mirrored = GAIN / math.sqrt(9 * inputs), mirrored

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        kernel = (self.weight * self.factor).transpose(0, 1)
        kernel = kernel.flip(2, 3) if self.mirrored else kernel
        return blur(F.conv_transpose2d(x, spread_out(kernel), stride=2, padding=1))


class DownConv(nn.Module):
    """A blur, a 3x3 convolution and the mean of every 2x2 pixels; the last two as one convolution with a stride."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.factor = GAIN / math.sqrt(9 * inputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return F.conv2d(blur(x), spread_out(self.weight * self.factor) / 4, self.bias, stride=2, padding=1)


def spread_out(kernel: Float[Tensor, "A B 3 3"]) -> Float[Tensor, "A B 4 4"]:
    """The sum of a kernel at the four places of a 2x2 block."""
    return F.pad(kernel, (0, 1, 0, 1)) + F.pad(kernel, (1, 0, 0, 1)) + F.pad(kernel, (0, 1, 1, 0)) + F.pad(kernel, (1, 0, 1, 0))


def blur(x: Tensor) -> Tensor:
    """The filter [1, 2, 1] / 4 along both sides, with zeros outside (appendix C)."""
    line = x.new_tensor((0.25, 0.5, 0.25))
    return F.conv2d(x, (line[:, None] * line).expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


def pixel_norm(x: Tensor) -> Tensor:
    """Vectors of mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def adain(x: Float[Tensor, "B C H W"], style: Float[Tensor, "B C2"]) -> Float[Tensor, "B C H W"]:
    """Every map gets mean 0 and deviation 1, then the scale (stored less one) and the shift that the style says (eq. 1)."""
    scale, shift = style[:, :, None, None].chunk(2, 1)
    x = x - x.mean((2, 3), keepdim=True)
    x = x * (x.square().mean((2, 3), keepdim=True) + 1e-8).rsqrt()
    return torch.addcmul(shift, x, scale + 1)


def deviation(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """How much four pictures, a quarter of the batch apart, differ on average over everything else; one group of other batches."""
    group = GROUP if len(x) % GROUP == 0 else len(x)
    each = (x.unflatten(0, (group, -1)).var(0, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)
    return each.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])


def leaky(x: Tensor) -> Tensor:
    """The rectifier after every layer."""
    return F.leaky_relu(x, SLOPE)


class Layer(nn.Module):
    """A convolution (or the constant), noise, bias, rectifier, and a style: one of the 18 layers of figure 1b.

    `noise` is what is added where nobody gives another one, so that a latent vector has one picture.
    """

    noise: Tensor

    def __init__(self, source: nn.Module, width: int, side: int, latent: int) -> None:
        super().__init__()
        self.source = source
        self.strength = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.style = Linear(latent, 2 * width, gain=1.0)
        self.register_buffer("noise", torch.randn(1, 1, side, side))

    def forward(self, x: Tensor, style: Float[Tensor, "B D"], noise: Tensor | None) -> Float[Tensor, "B C H W"]:
        noise = self.noise if noise is None else noise
        x = self.source(x) + self.strength[:, None, None] * noise + self.bias[:, None, None]
        return adain(leaky(x), self.style(style))


# --- networks ------------------------------------------------------------------------------------------------------------


class StyleGAN(nn.Module):
    """Latent vectors z (N, D) -> styles w (N, D) -> styles of every layer (N, L, D) -> pictures (N, C, H, W) in [-1, 1].

    `forward` is the whole way with the fixed noise, at the resolution the network has grown to.
    """

    mean_style: Tensor
    lod_tracked: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        grey = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(config.channels, "fixed", (config.size, config.size), mean=grey.mean, std=grey.std)
        d, width = config.latent, config.width
        self.mapping = nn.ModuleList(Linear(d, d, rate=config.rate) for _ in range(config.depth))
        self.constant = nn.Parameter(torch.ones(1, width(4), 4, 4))
        layers = [Layer(nn.Identity(), width(4), 4, d), Layer(Conv(width(4), width(4), 3, bias=False), width(4), 4, d)]
        for side in config.sides[1:]:
            up = UpConv(width(side // 2), width(side), mirrored=side < config.fused)
            layers += [Layer(one, width(side), side, d) for one in (up, Conv(width(side), width(side), 3, bias=False))]
        self.layers = nn.ModuleList(layers)
        self.to_rgb = nn.ModuleList(Conv(width(side), config.channels, 1, gain=1.0) for side in config.sides)
        self.register_buffer("mean_style", torch.zeros(d))  # the centre of W, towards which truncation goes
        self.register_buffer("lod_tracked", torch.zeros((), dtype=torch.int64))  # levels that are missing, in 1/GRAIN

    def grow(self, lacking: float) -> None:
        """Set the number of levels that are still missing (`ops.growth.missing`)."""
        self.lod_tracked.fill_(round(lacking * GRAIN))

    @property
    def lacking(self) -> float:
        """Levels that are still missing."""
        return int(self.lod_tracked) / GRAIN

    def forward(self, latents: Float[Tensor, "B D"]) -> Float[Tensor, "B C s s"]:
        return self.synthesize(self.spread(self.styles(latents)))

    # --- styles ----------------------------------------------------------------------------------------------------------

    def styles(self, latents: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """w = f(z): the intermediate space W."""
        x = pixel_norm(latents)
        for layer in self.mapping:
            x = leaky(layer(x))
        return x

    def spread(self, styles: Float[Tensor, "N D"], truncation: float = 1.0, cutoff: int | None = None) -> Float[Tensor, "N L D"]:
        """The style of every layer: w, in the first `cutoff` layers (None: all) mean + truncation (w - mean) (appendix B)."""
        every = styles[:, None].expand(-1, len(self.layers), -1)
        if truncation == 1:
            return every
        nearer = torch.arange(len(self.layers), device=styles.device)[:, None] < (len(self.layers) if cutoff is None else cutoff)
        return torch.where(nearer, self.mean_style + truncation * (every - self.mean_style), every)

    def noises(self, noise: Noise) -> list[Tensor]:
        """New noise (N, 1, s, s) for every layer that the network has grown."""
        count = 2 * (len(self.to_rgb) - math.floor(self.lacking))
        return [noise.normal(*cast(Layer, layer).noise.shape[1:]).to(self.constant) for layer in self.layers[:count]]

    def synthesize(
        self, styles: Float[Tensor, "N L D"], noises: Sequence[Tensor] | None = None, lod: Tensor | float | None = None
    ) -> Float[Tensor, "N C s s"]:
        """Pictures from a style for every layer; `noises` as from `noises()`, None for the fixed ones."""
        lacking = self.lacking if lod is None else float(lod)
        top, share = len(self.to_rgb) - 1 - math.floor(lacking), lacking % 1
        x = before = self.constant.expand(len(styles), -1, -1, -1)
        for index in range(2 * top + 2):
            before = x if index == 2 * top else before
            x = self.layers[index](x, styles[:, index], None if noises is None else noises[index])
        pixels = self.to_rgb[top](x)
        return pixels.lerp(doubled(self.to_rgb[top - 1](before)), share) if share else pixels

    # --- drawing ---------------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "n D"]:
        """Normal vectors; the mapping network only looks at their direction."""
        return noise.normal(self.config.latent).to(self.constant)

    @torch.no_grad()
    def render(
        self, latents: Float[Tensor, "n D"], *, condition: Tensor | None = None, steps: int | None = None,
        truncation: float = 1.0, cutoff: int | None = None,
    ) -> Float[Tensor, "n C H W"]:  # fmt: skip
        """The pictures of latent vectors with the fixed noise; a network that is still growing repeats its pixels up to the size."""
        self._check(condition, steps, truncation, cutoff, None)
        return self.finished(self.synthesize(self.spread(self.styles(latents), truncation, cutoff)))

    def finished(self, pixels: Tensor) -> Float[Tensor, "n C H W"]:
        """Pictures at the full size."""
        return enlarged(pixels, self.config.size)

    @torch.no_grad()
    def sample(
        self, noise: Noise, *, condition: Tensor | None = None, steps: int | None = None, truncation: float = 1.0,
        cutoff: int | None = None, mixing: int | None = None, fixed: bool = False,
    ) -> Float[Tensor, "n C H W"]:  # fmt: skip
        """One picture per sample of `noise`.

        `truncation` below 1 trades variety for quality, in the first `cutoff` layers; `mixing` is a crossover: that layer and all
        after it take the style of a second latent vector; `fixed`: the network's own noise instead of new one for every picture.
        """
        self._check(condition, steps, truncation, cutoff, mixing)
        styles = self.spread(self.styles(self.latents(noise)), truncation, cutoff)
        if mixing is not None:
            styles = mixed(styles, self.spread(self.styles(self.latents(noise)), truncation, cutoff), mixing)
        return self.finished(self.synthesize(styles, None if fixed else self.noises(noise)))

    def _check(self, condition: Any, steps: Any, truncation: Any, cutoff: Any, mixing: Any) -> None:
        if condition is not None or steps is not None:
            raise UsageError("stylegan: pictures depend on latent vectors alone; there is no condition and there are no steps")
        if not isinstance(truncation, (int, float, Tensor)) or not -2 <= truncation <= 2:
            raise UsageError(f"stylegan: truncation must be a number in [-2, 2], found {truncation!r}")
        for name, layer in (("cutoff", cutoff), ("mixing", mixing)):
            if layer is not None and (not isinstance(layer, (int, Tensor)) or not 0 <= layer <= len(self.layers)):
                raise UsageError(f"stylegan: {name} is a layer, a whole number in 0..{len(self.layers)}, found {layer!r}")


def mixed(first: Float[Tensor, "N L D"], second: Float[Tensor, "N L D"], crossover: int | Tensor) -> Float[Tensor, "N L D"]:
    """The first's styles before layer `crossover` (one number, or one (N,) for every picture), the second's from there on."""
    late = torch.arange(first.shape[1], device=first.device) >= torch.as_tensor(crossover, device=first.device).reshape(-1, 1)
    return torch.where(late[:, :, None], second, first)


NETWORK = StyleGAN


def inputs(network: StyleGAN, images: Images) -> tuple[Tensor, ...]:
    """Latent vectors made of pixels, for checks that need some."""
    flat = images.pixels.flatten(1)
    return (flat.repeat(1, -(-network.config.latent // flat.shape[1]))[:, : network.config.latent],)


class Discriminator(nn.Module):
    """Progressive GAN's, with blurs and logits: from the largest resolution to the smallest; scores (B, 1), high for real."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, sides = config.width, config.sides[::-1]
        self.from_rgb = nn.ModuleList(Conv(config.channels, width(side), 1) for side in sides)
        layers: list[nn.Module] = []
        for side in sides[:-1]:
            layers += [Conv(width(side), width(side), 3), DownConv(width(side), width(side // 2))]
        last = [Conv(width(4) + 1, width(4), 3), Linear(16 * width(4), width(2)), Linear(width(2), 1, gain=1.0)]
        self.layers = nn.ModuleList([*layers, *last])

    def forward(self, pixels: Float[Tensor, "B C s s"], lod: Tensor | float = 0.0) -> Float[Tensor, "B 1"]:
        first, share = math.floor(float(lod)), float(lod) % 1
        x = leaky(self.from_rgb[first](pixels))
        for level in range(first, len(self.from_rgb) - 1):
            x = leaky(self.layers[2 * level + 1](leaky(self.layers[2 * level](x))))
            if share and level == first:
                x = x.lerp(leaky(self.from_rgb[first + 1](F.avg_pool2d(pixels, 2))), share)
        conv, hidden, decision = list(self.layers)[-3:]
        x = leaky(conv(torch.cat([x, deviation(x)], 1)))
        return decision(leaky(hidden(x.flatten(1))))


# --- objective ---------------------------------------------------------------------------------------------------------


class StyleLoss(nn.Module):
    """The non-saturating logistic game with R1 on real pictures, on growing networks, with mixed styles."""

    def __init__(
        self, network: StyleGAN, *, growing: float = 0.6, start: int = 8, gamma: float = 10.0, mixing: float = 0.9,
        follow: float = 0.005,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= growing < 1 or gamma < 0 or not 0 <= mixing <= 1 or not 0 < follow <= 1 or start not in network.config.sides:
            raise UsageError(
                f"stylegan: growing must be in [0, 1), gamma not negative, mixing in [0, 1], follow in (0, 1] and start one of "
                f"{list(network.config.sides)}, found {growing}, {gamma}, {mixing}, {follow} and {start}"
            )
        self.network, self.growing, self.gamma, self.mixing, self.follow = network, growing, gamma, mixing, follow
        self.levels = len(network.config.sides) - 1 - network.config.sides.index(start)  # that are added during training
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
            raise UsageError("stylegan: the pictures of a batch are judged together: sample weights have no meaning here")
        lacking = missing(at.fraction, self.levels, self.growing)
        self.network.grow(lacking)
        real = pixels_of(batch)
        if at.phase == "g":
            terms = self.fooling(self.drawn(real))
        else:
            with torch.no_grad():
                fake = self.drawn(real)
            terms = self.judging(reduced(real, lacking), fake)
        return {name: each.mean() for name, each in terms.items()}

    def drawn(self, like: Tensor) -> Tensor:
        """As many pictures as `like` has, with new noise; most have the styles of two latent vectors (section 3.1)."""
        network, count = self.network, len(like)
        first, second = network.styles(torch.randn(2 * count, network.config.latent).to(like)).chunk(2)
        if self.training and torch.is_grad_enabled():
            self._followed(first.detach())
        layers = 2 * (len(network.to_rgb) - math.floor(network.lacking))
        crossover = torch.randint(1, layers, (count,))
        crossover = torch.where(torch.rand(count) < self.mixing, crossover, len(network.layers))
        noises = [torch.randn(count, *cast(Layer, layer).noise.shape[1:]).to(like) for layer in network.layers[:layers]]
        return network.synthesize(mixed(network.spread(first), network.spread(second), crossover), noises)

    @torch.no_grad()
    def _followed(self, styles: Tensor) -> None:
        mean = self.network.mean_style
        mean.lerp_(styles.mean(0).to(mean), self.follow)

    def judging(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The discriminator's terms (B,) on pictures of the present resolution."""
        losses, lacking = rule("logistic"), self.network.lacking
        terms = {
            "d/real": losses.real(self.discriminator(real, lacking)),
            "d/fake": losses.fake(self.discriminator(fake, lacking)),
        }
        if self.gamma:
            terms["d/r1"] = self.gamma * r1(lambda pixels: self.discriminator(pixels, lacking), real)
        return terms

    def fooling(self, fake: Tensor) -> dict[str, Tensor]:
        """The generator's term (B,)."""
        return {"g/fake": rule("logistic").generator(self.discriminator(fake, self.network.lacking))}

    @torch.no_grad()
    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the batch's pictures and of as many new ones."""
        lacking, real = self.network.lacking, pixels_of(batch)
        true = self.discriminator(reduced(real, lacking), lacking)
        return true.flatten(), self.discriminator(self.drawn(real), lacking).flatten()

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""


def objective(network: StyleGAN, **options: Any) -> StyleLoss:
    """`growing`: share of the run after which the networks are whole, from `start` pixels a side; R1's `gamma`; the share of pictures
    with `mixing` of two styles; how far the mean style moves towards each batch's (`follow`)."""
    return StyleLoss(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, latent=64, depth=4, base=512, most=64, channels=1),
    "256": Config(size=256),
    "512": Config(size=512),
    "1024": Config(),
}
PARAMETERS: dict[str, int] = {"256": 26_086_229, "512": 26_179_768, "1024": 26_219_627}
OVERFIT = {"observable": "realness", "weights": "refused", "samples": 8, "lr": 2e-3, "options": {"growing": 0.0}}
UNTRAINED = (r"to_rgb\.[01]\..+", r"discriminator\.from_rgb\.[12]\..+")  # those of resolutions that have been left behind


def _whole(lod: Tensor) -> Tensor:
    return (lod * GRAIN).round().long()


def _names(file: str, ours: str) -> tuple[Any, ...]:
    return (
        rename(file + r"mapping\.dense(\d+)\.(.+)", ours + r"mapping.\1.\2"),
        rename(file + r"truncation\.w_avg", ours + "mean_style"),
        rename(file + r"synthesis\.lod", ours + "lod_tracked", _whole),
        rename(file + r"synthesis\.layer0\.const", ours + "constant"),
        rename(file + r"synthesis\.layer(\d+)\.weight", ours + r"layers.\1.source.weight"),
        rename(file + r"synthesis\.layer(\d+)\.(bias|style\..+)", ours + r"layers.\1.\2"),
        rename(file + r"synthesis\.layer(\d+)\.apply_noise\.weight", ours + r"layers.\1.strength"),
        rename(file + r"synthesis\.layer(\d+)\.apply_noise\.noise", ours + r"layers.\1.noise"),
        drop(file + r"synthesis\.layer\d+\.blur\.kernel"),  # the constant filter
        rename(file + r"synthesis\.output(\d+)\.(.+)", ours + r"to_rgb.\1.\2"),
    )


FORMATS: dict[str, Names] = {"genforce": Names(*_names("", ""))}
TRAINING = Names(  # both networks of the reference
    *_names(r"generator\.", "network."),
    rename(r"discriminator\.input(\d+)\.(.+)", r"discriminator.from_rgb.\1.\2"),
    rename(r"discriminator\.layer(\d+)\.(weight|bias)", r"discriminator.layers.\1.\2"),
    drop(r"discriminator\.(?:lod|layer\d+\.blur\.kernel)"),
)


def _published(share: str, size: int, fid: float) -> Weights:
    return Weights(
        url=f"https://mycuhk-my.sharepoint.com/:u:/g/personal/1155082926_link_cuhk_edu_hk/{share}&download=1",
        format="genforce",
        license="MIT",
        source="https://github.com/genforce/genforce MODEL_ZOO.md, LICENSE",
        prepare=Prepare(resize="fixed", size=(size, size), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        reports={"fid": fid},
    )


# those that genforce trained itself; its conversions of the authors' files are under the authors' licence
WEIGHTS: dict[str, Weights] = {
    "256:ffhq": _published("ES-NAUCC2qdHg87BftvlBiQBVpbJ8-005Q4TNr5KrOxQEw?e=00AnWt", 256, 5.70),
    "512:ffhq": _published("EZYrrwOiEgVOg-PfGv7QTegBzFQ9yq2v7o1WxNq5JJ9KNA?e=SZU8PI", 512, 5.15),
}
