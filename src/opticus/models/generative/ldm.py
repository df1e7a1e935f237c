"""High-Resolution Image Synthesis with Latent Diffusion Models.

Rombach, Blattmann, Lorenz, Esser and Ommer, CVPR 2022, arXiv 2112.10752; Stable Diffusion 1.x and 2.x are its later weights.
Reference: CompVis/latent-diffusion (MIT); diffusers (Apache-2.0), whose UNet2DConditionModel is the same network.

*Differs*: the condition's encoder is only the table of class embeddings; any other context, such as a text encoder's output, is given as
a tensor. Fewer than 32 groups are normalised where the network is narrower than 128.
*Map*: section 3.1 (the autoencoder) -> `Config.autoencoder`, `LDM.encoded`; section 3.2, eq. 2 -> `ddpm.Denoising`; section 3.3 (Q = W_Q phi(z),
K = W_K tau(y), V = W_V tau(y)) -> `CrossAttention`; appendix E.2.1 (transformer in the U-Net) -> `SpatialTransformer`; appendix G (codes of unit
deviation) -> `LDM.scale_factor`; concatenation (section 4.4) -> `Config.given`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.diffusion.samplers import Denoise, Known, guided
from opticus.diffusion.schedules import Schedule, schedule
from opticus.losses.pictures import pictures
from opticus.models.generative.ddpm import Denoising, Shape, TimeEmbedding, UNet, initialise, sinusoid, walk
from opticus.structures import Images, Noise, Part, Picture, Prepare, Task, UsageError, Weights
from opticus.weights.names import Names, Rule, drop, flatten, join, keep, rename

EXTENDS = "ddpm"
TASK: Task = "generate"
PREPARE = Prepare(resize="fixed", size=(256, 256), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Config:
    """`latent` (channels, H, W) is the shape of a code; `attention` are the factors of reduction at which there are transformers.

    `heads` in every attention, or, with 0, as many as give 64 channels each (Stable Diffusion 2). `context` is the width of what
    cross-attention reads (0: it reads the picture again), `classes` a table of such vectors with one more for "no class", `given` the number of
    channels of a further picture. Without an autoencoder the codes are the pictures. `betas` are the ends of the scaled linear schedule.
    """

    latent: tuple[int, int, int] = (4, 64, 64)
    width: int = 320
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    layers: int = 2
    attention: tuple[int, ...] = (1, 2, 4)
    heads: int = 8
    context: int = 768
    classes: int = 0
    given: int = 0
    betas: tuple[float, float] = (0.00085, 0.012)
    predicts: Literal["eps", "v"] = "eps"
    autoencoder: Part | None = None

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.multiples) - 1)
        if self.latent[1] % factor or self.latent[2] % factor or self.width % 8:
            raise UsageError(
                f"ldm: the sides of latent {self.latent} must be multiples of {factor} and width {self.width} one of 8"
            )
        if self.classes and not self.context:
            raise UsageError(
                f"ldm: {self.classes} classes are read by cross-attention and need context, the width of their vectors"
            )


# --- network -----------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """softmax(Q K' / sqrt(d)) V among the places of a picture; no biases but the last."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """The same with queries of the picture, keys and values of the context (B, M, E)."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(context, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B M E"]) -> Float[Tensor, "B N D"]:
        q = self.to_q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """out(a gelu(b)) with (a, b) the halves of proj(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, -1)
        return self.out(x * F.gelu(gate))


class Block(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each on normalised input and added."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = SelfAttention(width, heads)
        self.attn2 = CrossAttention(width, context or width, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Float[Tensor, "B N D"], context: Tensor | None) -> Float[Tensor, "B N D"]:
        x = x + self.attn1(self.norm1(x))
        y = self.norm2(x)
        x = x + self.attn2(y, y if context is None else context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """x + proj_out(a transformer block on the places of proj_in(norm(x)))."""

    def __init__(self, width: int, context: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([Block(width, context, heads)])
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B C H W"], context: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        rows = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            rows = block(rows, context)
        return x + self.proj_out(rows).transpose(1, 2).reshape(x.shape)


class LDM(nn.Module):
    """A U-Net with cross-attention that takes noise away from the codes of an autoencoder, which is not trained here."""

    path: Schedule
    scale_factor: Tensor
    TIMES = 1000

    def __init__(self, config: Config, autoencoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config, self.channels = config, config.latent[0]
        self.path = schedule("scaled-linear", self.TIMES, *config.betas)
        self.autoencoder = None if autoencoder is None else autoencoder.requires_grad_(False)
        self.prepare = self._preparation()
        if autoencoder is not None:  # 0: not known yet, measured on the first codes that are trained on
            known = float(getattr(autoencoder, "scaling", 1.0))
            self.register_buffer("scale_factor", torch.tensor(0.0 if known == 1.0 else known))
        groups = 32 if config.width >= 128 else config.width // 8
        shape = Shape(
            self.channels + config.given, self.channels, config.width, config.multiples, config.layers, 0.0, groups, 1e-5, True
        )

        def attend(level: int, width: int) -> nn.Module | None:
            if level >= 0 and 2**level not in config.attention:
                return None
            return SpatialTransformer(width, config.context, config.heads or width // 64, groups)

        self.unet = UNet(shape, attend)
        self.time_embedding = TimeEmbedding(config.width, 4 * config.width)
        self.class_embedding = nn.Embedding(config.classes + 1, config.context) if config.classes else None
        initialise(self.unet, ("conv2", "proj_out", "conv_out"))

    def _preparation(self) -> Prepare:
        channels, height, width = self.config.latent
        if self.autoencoder is None:
            rule = PREPARE.with_channels(channels)
            return Prepare(channels, "fixed", (height, width), mean=(0.5,) * channels, std=rule.std[:1] * channels)
        part = cast(Any, self.autoencoder)
        if getattr(part, "channels", channels) != channels:
            raise UsageError(f"ldm: latent has {channels} channels, the autoencoder's code has {part.channels}")
        stride = int(getattr(part, "stride", 1))
        return replace(part.prepare, resize="fixed", size=(height * stride, width * stride))

    def forward(
        self, latents: Float[Tensor, "B C H W"], times: Tensor, condition: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """The answer to noisy codes at `times` (B,). `condition` is labels (B,) int64 (`classes` = none of them, as None), a context (B, M, D), or
        the given picture (B, given, H, W)."""
        context = self._context(condition, len(latents))
        if self.config.given:
            if condition is None or condition.ndim != 4:
                raise UsageError(f"ldm: the network needs a picture with {self.config.given} channels as condition")
            latents = torch.cat([latents, condition.to(latents)], 1)
        half = self.config.width // 2
        waves = sinusoid(times, self.config.width, last=False).roll(half, 1)  # cosines first
        return self.unet(latents, self.time_embedding(waves.to(self.unet.conv_in.weight.dtype)), context)

    def _context(self, condition: Tensor | None, count: int) -> Tensor | None:
        weight = self.unet.conv_in.weight
        if self.class_embedding is not None:
            labels = self.nothing(count) if condition is None or condition.ndim != 1 else condition.to(weight.device)
            return self.class_embedding(labels)[:, None]
        if not self.config.context:
            return None
        if condition is None or condition.ndim != 3 or condition.shape[2] != self.config.context:
            found = "none" if condition is None else f"shape {tuple(condition.shape)}"
            raise UsageError(f"ldm: the network needs a context (B, M, {self.config.context}) as condition, found {found}")
        return condition.to(weight)

    def nothing(self, count: int) -> Int[Tensor, "n"]:
        """The label that says "no class", `count` times."""
        return torch.full((count,), self.config.classes, device=self.unet.conv_in.weight.device)

    # --- codes ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encoded(self, pixels: Float[Tensor, "B C H W"], *, learn: bool = False) -> Float[Tensor, "B D h w"]:
        """What noise is added to: the code of pictures, scaled; `learn` measures the scale where it is not known yet."""
        if self.autoencoder is None:
            return pixels
        codes = cast(Any, self.autoencoder).encode(pixels).to(pixels.dtype)
        if learn and float(self.scale_factor) == 0:
            self.scale_factor.copy_(1 / codes.float().std())
        return codes * self._scale()

    def decoded(self, latents: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """The pictures of codes."""
        if self.autoencoder is None:
            return latents
        return cast(Any, self.autoencoder).decode(latents / self._scale())

    def _scale(self) -> Tensor | float:
        return self.scale_factor if float(self.scale_factor) else 1.0

    def pictures(self, pixels: Float[Tensor, "B C H W"]) -> list[Picture]:
        """Pixels in [-1, 1], such as samples, as pictures."""
        return pictures(pixels, self.prepare)

    # --- drawing ----------------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "n D h w"]:
        """Standard normal starting points."""
        weight = self.unet.conv_in.weight
        return noise.to(weight.device).normal(*self.config.latent, dtype=weight.dtype)

    @torch.no_grad()
    def render(self, latents: Tensor, *, condition: Tensor | None = None, steps: int | None = None) -> Tensor:
        """The pictures that DDIM with eta 0 leads starting points to."""
        return self.decoded(walk(self, self._denoiser(condition, latents, 1.0, None), latents, None, "ddim", steps))

    @torch.no_grad()
    def sample(
        self, noise: Noise, *, condition: Tensor | None = None, steps: int | None = None, sampler: str = "ddim", guidance: float = 1.0,
        without: Tensor | None = None, eta: float = 0.0, known: Known | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, "n C H W"]:  # fmt: skip
        """Pictures, one per sample of `noise`, in `steps` steps (50; all times for "ddpm") of a `sampler` of `diffusion.samplers`.

        `condition` as in `forward`, labels drawn evenly if None. `guidance` > 1 exaggerates what is particular to the condition; for a
        context it needs `without` (M, D), the context that says nothing. `known` holds codes.
        """
        start = self.latents(noise)
        if self.config.classes and condition is None:
            condition = noise.integers(self.config.classes)
        denoise = self._denoiser(condition, start, guidance, without)
        return self.decoded(walk(self, denoise, start, noise, sampler, steps, eta=eta, known=known, progress=progress))

    def _denoiser(self, condition: Tensor | None, start: Tensor, guidance: float, without: Tensor | None) -> Denoise:
        count = len(start)
        if condition is not None and len(condition) != count:
            raise UsageError(f"ldm: {count} pictures are drawn, but the condition has {len(condition)} rows")
        if self.config.classes:
            labels = self.nothing(count) if condition is None else condition.to(start.device)
            if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) > self.config.classes:
                raise UsageError(f"ldm: labels must be whole numbers in 0..{self.config.classes - 1}, found {labels.tolist()[:8]}")
            return guided(self, labels, self.nothing(count), guidance)
        if guidance == 1.0:
            return lambda x, times: self(x, times, condition)
        if condition is None or without is None:
            raise UsageError("ldm: guidance needs a condition, and without=, the condition that says nothing")
        return guided(self, condition, without.to(condition).expand(condition.shape), guidance)


NETWORK = LDM


def inputs(network: LDM, images: Images) -> tuple[Tensor, ...]:
    """Codes of pictures with times, and a condition where the network needs one, by formula."""
    codes, config = network.encoded(images.pixels), network.config
    count, device = len(codes), codes.device
    times = torch.arange(count, device=device) * 131 % network.TIMES
    if config.classes:
        return codes, times, torch.arange(count, device=device) % config.classes
    if config.given:
        return codes, times, codes.mean(1, keepdim=True).expand(-1, config.given, -1, -1)
    if config.context:
        steps = torch.arange(count * 2 * config.context, device=device, dtype=codes.dtype)
        return codes, times, steps.sin().view(count, 2, config.context)
    return codes, times


def objective(network: LDM, **options: Any) -> Denoising:
    """Eq. 2, with `unlabelled`, `hides` and `factor` as in `ddpm.Denoising`; the context can be learned from labels only."""
    if network.config.context and not network.config.classes:
        raise UsageError("ldm: a network whose context comes from outside has no training here; give it classes, or context=0")
    return Denoising(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

_SMALL = Config((1, 16, 16), 32, (1, 2, 2), 1, (2,), 2, 0, predicts="v")
VARIANTS: dict[str, Config] = {
    "tiny": replace(
        _SMALL, latent=(1, 4, 4), width=64, multiples=(1, 2), attention=(1, 2), context=64, classes=10, autoencoder=Part("kl/tiny")
    ),
    "tiny-pixels": replace(_SMALL, context=64, classes=10),
    "tiny-unconditional": _SMALL,
    # models/ldm/cin256/config.yaml of latent-diffusion; the 1.45 billion parameters of its text model include the text encoder
    "cin256": Config((3, 64, 64), 192, (1, 2, 3, 5), 2, (2, 4, 8), 1, 512, 1000, betas=(0.0015, 0.0195)),
    "text2img": Config((4, 32, 32), context=1280),
    "sd1": Config(),
    "sd1-inpainting": Config(given=5),
    "sd2": Config(heads=0, context=1024),
    "sd2-768": Config((4, 96, 96), heads=0, context=1024, predicts="v"),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {"observable": "loss", "samples": 8, "lr": 2e-3, "floor": 0.0}

Home = Callable[[re.Match[str]], str]
_LEAVES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}  # fmt: skip


def _home(match: re.Match[str]) -> str:
    """Where a numbered block of the authors' flat lists is: two residual blocks a level and a step down, three and a step up."""
    number, residual = int(match["n"]), match["k"] == "0"
    if match["side"] == "middle_block":
        return "unet.mid_block." + ("attentions.0" if number == 1 else f"resnets.{number // 2}")
    up = match["side"] == "output_blocks"
    level, place = divmod(number if up else number - 1, 3)
    return f"unet.{'up' if up else 'down'}_blocks.{level}.{'resnets' if residual else 'attentions'}.{place}"


def _step(match: re.Match[str]) -> str:
    """The step to the next level, by the number of its block."""
    number = int(match["n"])
    level = f"up_blocks.{number // 3}" if match["side"] == "output_blocks" else f"down_blocks.{(number - 1) // 3}"
    return f"unet.{level}.step.conv.{match['w']}"


def _transformer(place: str, home: Home) -> list[Rule]:
    """The rules for transformers under keys that begin with `place`."""

    def to(inner: str) -> Home:
        return lambda match: f"{home(match)}.{match.expand(inner)}"

    block = place + r"\.(?P<b>transformer_blocks\.\d+)\."
    return [
        *(join(block + rf"attn1\.to_{q}\.(?P<w>\w+)", to(r"\g<b>.attn1.to_qkv.\g<w>"), i, 3) for i, q in enumerate("qkv")),
        *(join(block + rf"attn2\.to_{q}\.(?P<w>\w+)", to(r"\g<b>.attn2.to_kv.\g<w>"), i, 2) for i, q in enumerate("kv")),
        rename(block + r"(?P<a>attn[12]\.to_out)\.0\.(?P<w>\w+)", to(r"\g<b>.\g<a>.\g<w>")),
        rename(block + r"ff\.net\.0\.proj\.(?P<w>\w+)", to(r"\g<b>.ff.proj.\g<w>")),
        rename(block + r"ff\.net\.2\.(?P<w>\w+)", to(r"\g<b>.ff.out.\g<w>")),
        rename(place + r"\.(?P<p>proj_(?:in|out)\.weight)", to(r"\g<p>"), flatten(1)),  # 1x1 convolutions, or already matrices
        rename(place + r"\.(?P<rest>(?:transformer_blocks|norm|proj_in|proj_out)\..+)", to(r"\g<rest>")),
    ]


def _ldm() -> Names:
    """Keys of a whole training file; the parts that are not the U-Net or the table of classes are left out."""
    unet = r"model\.diffusion_model\."
    place = unet + r"(?P<side>input_blocks|middle_block|output_blocks)\.(?P<n>\d+)(?:\.(?P<k>\d))?"
    return Names(
        rename(unet + r"time_embed\.0\.(\w+)", r"time_embedding.linear_1.\1"),
        rename(unet + r"time_embed\.2\.(\w+)", r"time_embedding.linear_2.\1"),
        rename(unet + r"input_blocks\.0\.0\.(\w+)", r"unet.conv_in.\1"),
        rename(place + r"\.(?:op|conv)\.(?P<w>\w+)", _step),
        rename(
            place + r"\.(?P<leaf>(?:in|out|emb)_layers\.\d|skip_connection)\.(?P<w>\w+)",
            lambda match: f"{_home(match)}.{_LEAVES[match['leaf']]}.{match['w']}",
        ),
        *_transformer(place, _home),
        rename(unet + r"out\.0\.(\w+)", r"unet.conv_norm_out.\1"),
        rename(unet + r"out\.2\.(\w+)", r"unet.conv_out.\1"),
        rename(r"cond_stage_model\.embedding\.weight", r"class_embedding.weight"),
        drop(r"(?:first_stage_model|cond_stage_model|model_ema)\..+"),
        drop(r"\w*(?:alphas|betas|alphas_cumprod|posterior)\w*|lvlb_weights|logvar|scale_factor|cond_ids"),
    )


_PLACE = r"((?:down_blocks|up_blocks)\.\d+|mid_block)"
FORMATS: dict[str, Names] = {
    "ldm": _ldm(),
    "diffusers": Names(
        *_transformer(_PLACE + r"(\.attentions\.\d+)", lambda match: f"unet.{match[1]}{match[2]}"),
        rename(_PLACE + r"\.(?:down|up)samplers\.0\.(.+)", r"unet.\1.step.\2"),
        rename(_PLACE + r"\.(.+)", r"unet.\1.\2"),
        keep(r"time_embedding\..+"),
        rename(r"(conv_in|conv_norm_out|conv_out)\.(\w+)", r"unet.\1.\2"),
    ),
}
WEIGHTS: dict[str, Weights] = {}
