"""Taming Transformers for High-Resolution Image Synthesis (VQGAN).

Esser, Rombach and Ommer, CVPR 2021, arXiv 2012.09841; the first stages of Rombach et al., CVPR 2022, arXiv 2112.10752 that quantise.
Reference: CompVis/taming-transformers and CompVis/latent-diffusion (MIT); diffusers (Apache-2.0), whose VQModel is the same network.

*Differs*: before the step at which the discriminator joins in there is no phase "d" (the authors multiply its loss by zero, which
moves nothing but its running statistics). No Gumbel quantiser and no table of used codes. The perceptual network is handed over.
*Map*: section 3.1, eq. 1-2 (encoder, quantiser, decoder) -> `Encoder`, `Quantiser`, `Decoder`; eq. 4 (codebook and commitment) ->
`commitment`; eq. 5-7 (patch discriminator, adaptive weight lambda) -> `PatchGAN`, `Restoration`; table 7 -> `ResnetBlock`, `Attention`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.adversarial import rule
from opticus.losses.pictures import mean, pictures, pixels_of
from opticus.structures import Batch, Images, Picture, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, Rule, drop, flatten, join, rename

TASK: Task = "reconstruct"
PREPARE = Prepare(resize="none", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), stride=16)


class Levels(NamedTuple):
    """What encoder and decoder are made of: level i has maps of size / 2^i with `width` x `multiples[i]` channels.

    `blocks` residual blocks a level in the encoder and one more in the decoder; attention after every block of the levels in
    `attention` and, with `middle`, between the two blocks at the coarsest size; norms over `groups` groups of channels.
    """

    channels: int
    width: int
    multiples: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    middle: bool
    groups: int

    @property
    def stride(self) -> int:
        """Pixels a side for one place of the code."""
        return 2 ** (len(self.multiples) - 1)


@dataclass(frozen=True)
class Config:
    """`size`: side that pictures are resized to, 0 = pictures of any size; `latent` channels of the code, `codes` in the codebook."""

    size: int = 0
    channels: int = 3
    width: int = 128
    multiples: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    middle: bool = True
    groups: int = 32
    latent: int = 256
    codes: int = 1024

    @property
    def levels(self) -> Levels:
        """The part of it that encoder and decoder share."""
        return Levels(self.channels, self.width, self.multiples, self.blocks, self.attention, self.middle, self.groups)


# --- encoder and decoder -----------------------------------------------------------------------------------------------


def activated(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """swish(norm(x)) = y sigmoid(y); without a gradient to keep, in place."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    """x + conv2(swish(norm2(conv1(swish(norm1(x)))))); x through a 1x1 convolution where the number of channels changes."""

    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        residual = self.conv1(activated(self.norm1, x))
        residual = self.conv2(activated(self.norm2, residual))
        return residual.add_(x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """x + attention(norm(x)) with one head as wide as the map, every place looking at every place."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        rows = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(rows)[:, None].chunk(3, -1)
        rows = self.proj_out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + rows.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 whose padding lies at the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel twice a side, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one size, and a change of size after them where `change` is one."""

    def __init__(
        self, widths: tuple[int, ...], attention: bool, groups: int, change: tuple[str, type[Downsample] | type[Upsample]] | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(Attention(width, groups) for width in widths[1:] if attention)
        if change is not None:
            self.add_module(change[0], change[1](widths[-1]))
        self.change = change[0] if change is not None else ""

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return cast(nn.Module, getattr(self, self.change))(x) if self.change else x


class Middle(nn.Module):
    """Two blocks at the coarsest size with attention between them."""

    def __init__(self, width: int, attention: bool, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, groups)
        self.attn_1 = Attention(width, groups) if attention else None
        self.block_2 = ResnetBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return self.block_2(x if self.attn_1 is None else self.attn_1(x))


class Encoder(nn.Module):
    """Pixels (B, C, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, levels: Levels, outputs: int) -> None:
        super().__init__()
        self.stride = levels.stride
        widths = [levels.width, *(levels.width * m for m in levels.multiples)]
        last, change = len(levels.multiples) - 1, ("downsample", Downsample)
        self.conv_in = nn.Conv2d(levels.channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                (widths[i], *(widths[i + 1],) * levels.blocks), i in levels.attention, levels.groups, change if i < last else None
            )
            for i in range(last + 1)
        )
        self.mid = Middle(widths[-1], levels.middle, levels.groups)
        self.norm_out = nn.GroupNorm(levels.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        if pixels.shape[2] % self.stride or pixels.shape[3] % self.stride:
            size = f"{pixels.shape[2]}x{pixels.shape[3]}"
            raise UsageError(f"the sides of pictures must be multiples of {self.stride}, found {size}; `predict` pads pictures")
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(activated(self.norm_out, self.mid(x)))


class Decoder(nn.Module):
    """Latents (B, D, h, w) -> pixels (B, C, h stride, w stride); `up[i]` is level i, so the last one comes first."""

    def __init__(self, levels: Levels, latent: int) -> None:
        super().__init__()
        widths = [levels.width, *(levels.width * m for m in levels.multiples)]
        entering, change = [*widths[2:], widths[-1]], ("upsample", Upsample)
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], levels.middle, levels.groups)
        self.up = nn.ModuleList(
            Level(
                (entering[i], *(widths[i + 1],) * (levels.blocks + 1)),
                i in levels.attention,
                levels.groups,
                change if i else None,
            )
            for i in range(len(levels.multiples))
        )
        self.norm_out = nn.GroupNorm(levels.groups, widths[1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[1], levels.channels, 3, padding=1)

    def forward(self, latents: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(activated(self.norm_out, x))


def preparation(size: int, channels: int, stride: int) -> Prepare:
    """Pixels in [-1, 1]: pictures resized to `size`, or (0) as they are, padded to a multiple of `stride`."""
    half = (0.5,) * channels
    if size:
        return Prepare(channels, "fixed", (size, size), mean=half, std=half, stride=stride)
    return Prepare(channels, "none", mean=half, std=half, stride=stride)


def restored(pixels: Float[Tensor, "B C H W"], images: Images, rule: Prepare) -> list[Picture]:
    """Network pixels as pictures, without the padding of `images`."""
    found = pictures(pixels, rule)
    if images.valid is None:
        return found
    windows = [(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in images.valid]
    return [Picture(one.pixels[:h, :w].contiguous()) for one, (h, w) in zip(found, windows)]


# --- quantiser ---------------------------------------------------------------------------------------------------------

PLACES = 1 << 22  # distances that are held at a time


class Quantiser(nn.Module):
    """The codebook (eq. 2): every vector becomes the nearest of `codes` ones."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def nearest(self, latents: Float[Tensor, "B D h w"]) -> Int[Tensor, "B h w"]:
        """The index of the nearest code of every place. At no time are more than PLACES distances in memory."""
        codebook = self.embedding.weight.detach()
        rows = latents.detach().permute(0, 2, 3, 1).reshape(-1, codebook.shape[1]).to(codebook)
        squares = codebook.square().sum(1)
        # the square of the row itself is the same for all codes
        parts = rows.split(max(PLACES // len(codebook), 1))
        with torch.autocast(rows.device.type, enabled=False):  # half a codebook lies within the rounding of bfloat16
            nearest = torch.cat([torch.addmm(squares, part, codebook.T, alpha=-2).argmin(1) for part in parts])
        return nearest.unflatten(0, (latents.shape[0], *latents.shape[2:]))

    def look_up(self, codes: Int[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """The vectors of codes."""
        return self.embedding(codes).permute(0, 3, 1, 2)


def straight_through(latents: Tensor, quantised: Tensor) -> Tensor:
    """The quantised vectors, whose gradient goes to the latents as if nothing had been rounded."""
    return latents + (quantised - latents).detach()


def commitment(latents: Tensor, quantised: Tensor, *, beta: float, legacy: bool) -> Float[Tensor, "B"]:
    """Eq. 4: codes move to latents and latents, `beta` times, to codes; one value a picture.

    The authors' files were trained with the factor on the other term (`legacy`), which their code keeps as the default.
    """
    encoder = (quantised.detach() - latents).square().flatten(1).mean(1)
    codebook = (quantised - latents.detach()).square().flatten(1).mean(1)
    return encoder + beta * codebook if legacy else beta * encoder + codebook


class VQGAN(nn.Module):
    """Pictures as maps of codes, and back. `forward` returns the reconstruction (B, C, H, W) in [-1, 1].

    `encode` gives the latents before they are quantised, as latent diffusion takes them, and `decode` quantises what it gets.
    `stride`: pixels a side for one place; `channels` of the latents, which are used as they are (`scaling` 1).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, levels = config, config.levels
        self.stride, self.channels, self.scaling = levels.stride, config.latent, 1.0
        self.prepare = preparation(config.size, config.channels, self.stride)
        self.encoder, self.decoder = Encoder(levels, config.latent), Decoder(levels, config.latent)
        self.quantize = Quantiser(config.codes, config.latent)
        self.quant_conv = nn.Conv2d(config.latent, config.latent, 1)
        self.post_quant_conv = nn.Conv2d(config.latent, config.latent, 1)

    def encode(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The latents, not quantised yet. UsageError for sides that are no multiples of `stride`."""
        return self.quant_conv(self.encoder(pixels))

    def quantised(self, latents: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """The nearest vectors of the codebook."""
        return self.quantize.look_up(self.quantize.nearest(latents))

    def decode(self, latents: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Pixels from latents, which are quantised first."""
        return self.render(straight_through(latents, self.quantised(latents)))

    def render(self, quantised: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Pixels from vectors of the codebook."""
        return self.decoder(self.post_quant_conv(quantised))

    def codes(self, pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, "B h w"]:
        """The picture as codes 0..codes-1."""
        return self.quantize.nearest(self.encode(pixels))

    def decode_codes(self, codes: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """Pixels from codes; UsageError if one is outside the codebook."""
        count = self.config.codes
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= count):
            raise UsageError(f"vqgan: codes must be in 0..{count - 1}, found {int(codes.min())}..{int(codes.max())}")
        return self.render(self.quantize.look_up(codes))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        return self.decode(self.encode(pixels))

    def results(self, out: Float[Tensor, "B C H W"], images: Images) -> list[Picture]:
        """The restored pictures, of the size that the network saw, without padding."""
        return restored(out, images, self.prepare)


NETWORK = VQGAN


# --- objective ---------------------------------------------------------------------------------------------------------


def _weights(module: nn.Module) -> None:
    """pix2pix's start: kernels of deviation 0.02, norms around 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class PatchGAN(nn.Module):
    """Scores (B, 1, h, w), one for every overlapping patch: `layers` convolutions of stride 2 and two of stride 1, all 4x4."""

    def __init__(self, channels: int, *, filters: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [filters * min(2**i, 8) for i in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(channels, filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (width_in, width) in enumerate(itertools.pairwise(widths), 1):
            stride = 2 if i < layers else 1
            main += [nn.Conv2d(width_in, width, 4, stride, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        self.layers = layers
        self.main = nn.Sequential(*main, nn.Conv2d(widths[-1], 1, 4, 1, 1)).apply(_weights)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 h w"]:
        if min(pixels.shape[2:]) < 3 * 2**self.layers:
            size = f"{pixels.shape[2]}x{pixels.shape[3]}"
            raise UsageError(
                f"a discriminator of {self.layers} layers needs sides of {3 * 2**self.layers}, found {size}; take fewer"
            )
        return self.main(pixels)


class Restored(NamedTuple):
    """What a network makes of pictures in training: the reconstruction, a penalty (B,) on the code, and figures about it."""

    pixels: Tensor
    penalty: Tensor
    figures: dict[str, Tensor]


class Losses(NamedTuple):
    """One value a picture for distance, penalty, and the opponent's verdict times the adaptive weight; and figures."""

    distance: Tensor
    penalty: Tensor
    fooled: Tensor
    figures: dict[str, Tensor]


class Distance(Protocol):
    """A perceptual distance (B,) of two batches of pictures in [-1, 1], such as `losses.perceptual.LPIPS`."""

    def __call__(self, one: Tensor, other: Tensor) -> Tensor: ...


class Restoration(nn.Module):
    """|x - x'| + perceptual distance + `penalty` x that on the code, and from step `start` on an opponent that sees patches (eq. 5-7).

    The opponent's term weighs `weight` times the ratio of the gradients' norms of the two losses at the decoder's last layer.
    `per_picture` sums the distance over the values of a picture, which is latent diffusion's scale, instead of averaging it.
    """

    def __init__(
        self, network: nn.Module, restore: Callable[[Tensor, Tensor | None], Restored], *, penalty: float, per_picture: bool,
        perceptual: Distance | None, perceptual_weight: float, start: int, weight: float, layers: int, filters: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(start, weight, penalty, perceptual_weight) < 0 or min(layers, filters) < 1:
            raise UsageError("start and the weights must be at least 0, layers and filters of the discriminator at least 1")
        self.network, self.restore = network, restore
        self.penalty, self.per_picture, self.start, self.weight = penalty, per_picture, start, weight
        # in a tuple, so that its tensors are in no state: it is given anew with every run
        self.held = (perceptual.eval().requires_grad_(False) if isinstance(perceptual, nn.Module) else perceptual,)
        self.perceptual_weight = perceptual_weight
        self.discriminator = PatchGAN(cast(Any, network).config.channels, filters=filters, layers=layers)
        self.rule, self.last = rule("hinge"), dict[str, float]()

    def phases(self, step: int) -> tuple[str, ...]:
        """The network, and once the game has begun its opponent."""
        return ("g",) if step < self.start else ("g", "d")

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The opponent's in phase "d", else the network's."""
        return (self.discriminator if phase == "d" else self.network).parameters()

    def distance(self, pixels: Tensor, found: Tensor) -> Float[Tensor, "B"]:
        """The reconstruction's distance from the picture, one value each."""
        values = (pixels - found).abs().flatten(1).mean(1)
        net = self.held[0]
        if net is not None:
            if isinstance(net, nn.Module):
                net.to(pixels)
            values = values + self.perceptual_weight * net(pixels, found)
        return values * pixels[0].numel() if self.per_picture else values

    def adaptive(self, distance: Tensor, fooled: Tensor) -> Tensor:
        """lambda (eq. 7): ||grad of the distance|| / (||grad of the opponent's loss|| + 1e-4) at the last layer, at most 10^4."""
        layer = cast(Any, self.network).decoder.conv_out.weight
        norms = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (distance, fooled)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()

    def losses(self, pixels: Tensor, noise: Tensor | None = None) -> Losses:
        """Everything that the network learns from when the game is on. `noise` takes the place of what `restore` draws."""
        with torch.enable_grad():  # the adaptive weight is made of gradients
            made = self.restore(pixels, noise)
            distance, fooled = self.distance(pixels, made.pixels), self.rule.generator(self.discriminator(made.pixels))
            factor = self.adaptive(distance.mean(), fooled.mean())
        return Losses(distance, made.penalty, factor * fooled, {**made.figures, "adaptive": factor})

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Phase "g": "restored", "code" and "g/fool"; phase "d": "d/real" and "d/fake"."""
        pixels = pixels_of(batch)
        if at.phase == "d":
            with torch.no_grad():
                found = self.restore(pixels, None).pixels
            real, fake = self.judged(pixels, found)
            return {"d/real": mean(real, batch), "d/fake": mean(fake, batch)}
        if at.step < self.start or self.weight == 0:
            made = self.restore(pixels, None)
            distance, penalty, figures, terms = self.distance(pixels, made.pixels), made.penalty, made.figures, {}
        else:
            distance, penalty, fooled, figures = self.losses(pixels)
            terms = {"g/fool": self.weight * mean(fooled, batch)}
        self.last = {key: float(value) for key, value in figures.items()}
        return {"restored": mean(distance, batch), "code": self.penalty * mean(penalty, batch), **terms}

    def judged(self, pixels: Tensor, found: Tensor) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Half the hinge losses of pictures and of restored ones, one value each."""
        real, fake = self.discriminator(pixels), self.discriminator(found)
        return self.rule.real(real) / 2, self.rule.fake(fake) / 2

    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The opponent's mean scores (B,) of pictures and of what the network makes of them."""
        pixels = pixels_of(batch)
        return tuple(self.discriminator(x).flatten(1).mean(1) for x in (pixels, self.restore(pixels, None).pixels))

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """Of the last batch: about the code, and the adaptive weight where there is one."""
        return dict(self.last)

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """A codebook of which one code is left."""
        return "every place of every picture has the same code" if figures.get("used", 2) < 2 else None


def perplexity(codes: Int[Tensor, "B h w"], count: int) -> tuple[Tensor, Tensor]:
    """exp(entropy) of the codes' shares, from 1 (one code) to `count` (all equally often), and how many occur at all."""
    shares = torch.bincount(codes.flatten(), minlength=count).double() / codes.numel()
    return torch.special.entr(shares).sum().exp(), (shares > 0).sum()


def objective(
    network: VQGAN, *, beta: float = 0.25, legacy: bool = True, penalty: float = 1.0, perceptual: Distance | None = None,
    perceptual_weight: float = 1.0, start: int = 250_001, weight: float = 0.8, layers: int = 3, filters: int = 64,
) -> Restoration:  # fmt: skip
    """Distance + codebook loss + the game. `beta` and `legacy`: `commitment`; `perceptual`: a distance such as LPIPS, None = none;
    the discriminator of `layers` and `filters` joins in at step `start` with `weight`."""

    def restore(pixels: Tensor, noise: Tensor | None) -> Restored:
        latents = network.encode(pixels)
        codes = network.quantize.nearest(latents)
        quantised = network.quantize.look_up(codes)
        spread, used = perplexity(codes, network.config.codes)
        found = network.render(straight_through(latents, quantised))
        loss = commitment(latents, quantised, beta=beta, legacy=legacy)
        return Restored(found, loss, {"perplexity": spread, "used": used})

    return Restoration(
        network, restore, penalty=penalty, per_picture=False, perceptual=perceptual, perceptual_weight=perceptual_weight,
        start=start, weight=weight, layers=layers, filters=filters,
    )  # fmt: skip


# --- variants and weights ------------------------------------------------------------------------------------------------

# f16-*: configs of taming-transformers; vq-*: models/first_stage_models of latent-diffusion
VARIANTS: dict[str, Config] = {
    "tiny": Config(16, 1, 16, (1, 2, 4), 1, (), True, 8, latent=4, codes=64),
    "f16-1024": Config(),
    "f16-16384": Config(codes=16_384),
    "vq-f4": Config(multiples=(1, 2, 4), attention=(), latent=3, codes=8192),
    "vq-f4-noattn": Config(multiples=(1, 2, 4), attention=(), middle=False, latent=3, codes=8192),
    "vq-f8": Config(multiples=(1, 2, 2, 4), attention=(3,), latent=4, codes=16_384),
    "vq-f8-n256": Config(multiples=(1, 2, 2, 4), attention=(3,), latent=4, codes=256),
    "vq-f16": Config(latent=8, codes=16_384),
}
OVERFIT = {"observable": "restored", "samples": 4, "lr": 2e-3, "options": {"start": 1, "layers": 1, "filters": 8, "weight": 0.01}}
PARAMETERS: dict[str, int] = {}


def _ldm_rules(prefix: str = "") -> tuple[Rule, ...]:
    """The authors' keys; their attention has separate 1x1 convolutions for query, key and value."""
    rules = [
        join(rf"{prefix}(.+attn(?:\.\d+|_1))\.{part}\.(weight|bias)", r"\1.qkv.\2", i, 3, op=flatten_kernel)
        for i, part in enumerate("qkv")
    ]
    return (
        *rules,
        rename(rf"{prefix}(.+attn(?:\.\d+|_1)\.proj_out\.(?:weight|bias))", r"\1", flatten_kernel),
        rename(rf"{prefix}((?:encoder|decoder|quantize|quant_conv|post_quant_conv)\..+)", r"\1"),
    )


def flatten_kernel(tensor: Tensor) -> Tensor:
    """A 1x1 kernel (out, in, 1, 1) as a matrix; matrices and biases as they are."""
    return flatten(1)(tensor) if tensor.ndim > 1 else tensor


def ldm(prefix: str = "", others: str = r"(?:loss|model_ema)\..+") -> Names:
    """The layout of taming-transformers and latent-diffusion; keys that match `others` belong to the training."""
    return Names(drop(others), *_ldm_rules(prefix))


def diffusers(levels: int) -> Names:
    """The layout of diffusers for so many levels: its decoder counts them from the coarsest one. Old files name attention differently."""
    rules: list[Rule] = []
    attention = ("(?:to_q|query)", "(?:to_k|key)", "(?:to_v|value)")
    for side, blocks, level in (("encoder", "down", r"\2"), ("decoder", "up", None)):
        for i in range(levels):
            here = rf"({side})\.{blocks}_blocks\.({i})"
            there = rf"\1.{blocks}.{level if level else levels - 1 - i}"
            rules += [
                join(rf"{here}\.attentions\.(\d+)\.{part}\.(weight|bias)", rf"{there}.attn.\3.qkv.\4", j, 3, op=flatten_kernel)
                for j, part in enumerate(attention)
            ]
            rules += [
                rename(rf"{here}\.attentions\.(\d+)\.group_norm\.(.+)", rf"{there}.attn.\3.norm.\4"),
                rename(
                    rf"{here}\.attentions\.(\d+)\.(?:to_out\.0|proj_attn)\.(.+)", rf"{there}.attn.\3.proj_out.\4", flatten_kernel
                ),
                rename(rf"{here}\.resnets\.(\d+)\.conv_shortcut\.(.+)", rf"{there}.block.\3.nin_shortcut.\4"),
                rename(rf"{here}\.resnets\.(\d+)\.(.+)", rf"{there}.block.\3.\4"),
                rename(rf"{here}\.{blocks}samplers\.0\.(.+)", rf"{there}.{blocks}sample.\3"),
            ]
    middle = r"(encoder|decoder)\.mid_block"
    rules += [
        join(rf"{middle}\.attentions\.0\.{part}\.(weight|bias)", r"\1.mid.attn_1.qkv.\2", j, 3, op=flatten_kernel)
        for j, part in enumerate(attention)
    ]
    rules += [
        rename(rf"{middle}\.attentions\.0\.group_norm\.(.+)", r"\1.mid.attn_1.norm.\2"),
        rename(rf"{middle}\.attentions\.0\.(?:to_out\.0|proj_attn)\.(.+)", r"\1.mid.attn_1.proj_out.\2", flatten_kernel),
        rename(rf"{middle}\.resnets\.0\.(.+)", r"\1.mid.block_1.\2"),
        rename(rf"{middle}\.resnets\.1\.(.+)", r"\1.mid.block_2.\2"),
        rename(r"(encoder|decoder)\.conv_norm_out\.(.+)", r"\1.norm_out.\2"),
        rename(r"((?:encoder|decoder)\.conv_(?:in|out)|quant_conv|post_quant_conv|quantize)\.(.+)", r"\1.\2"),
    ]
    return Names(*rules)


FORMATS: dict[str, Names] = {
    "taming": ldm(),
    "diffusers-f4": diffusers(3),
    "diffusers-f8": diffusers(4),
    "diffusers-f16": diffusers(5),
}
TRAINING = Names(  # the authors' whole training state but their perceptual network
    drop(r"loss\.(?:perceptual_loss\..+|logvar)"),
    rename(r"loss\.discriminator\.(.+)", r"discriminator.\1"),
    *(Rule(rule.pattern, f"network.{rule.to}", rule.op, rule.piece) for rule in _ldm_rules()),
)
WEIGHTS: dict[str, Weights] = {}
