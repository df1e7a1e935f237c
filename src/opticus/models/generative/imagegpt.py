"""Generative Pretraining from Pixels.

Chen, Radford, Child, Wu, Jun, Luan and Sutskever, ICML 2020 (Image GPT, no arXiv id).
Reference: transformers 5 (Apache-2.0), whose openai/imagegpt-* files hold the authors' weights; openai/image-gpt (modified MIT).

*Differs*: only the auto-regressive objective, not the BERT one; grey pictures use evenly spaced levels instead of a learned palette.
The layers have biases and the output matrix starts at 0.02, as in transformers; the authors' code has no biases and starts it at zero.
*Map*: section 2.1 (p(x) = prod_i p(x_i | x_<i)) -> `ImageGPT.log_likelihood`; section 2.2 -> `Block`, `Attention`; section 2.4 (f_l =
mean_i n_i^l) -> `ImageGPT.embed`; section 3.2 (the 9-bit palette) -> `ImageGPT.levels` and `Config.palette`; table 1's sizes -> `VARIANTS`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.supervised import Supervised
from opticus.structures import Batch, CapabilityError, Dataset, Noise, Picture, Prepare, Task, UsageError, Weights, WeightsError
from opticus.transforms.prepare import prepare
from opticus.weights.names import Names, drop, keep, rename, transpose

TASK: Task = "generate"
HEADLINE, LOWER_IS_BETTER = "bits/dim", True
LEVELS = "colours"  # the field of Config that says how many values a pixel can take
PREPARE = Prepare(resize="fixed", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Config:
    """`palette` holds `colours` colours, each with `channels` numbers in [-1, 1]; empty for grey pictures: evenly spaced levels.

    The palette of the published weights is not in their files: `palette_of` reads it from the preprocessor_config.json beside them.
    `probe` is the layer l whose normalised input, averaged over the pixels, is the embedding (0..depth).
    """

    size: int = 32
    width: int = 512
    depth: int = 24
    heads: int = 8
    colours: int = 512
    channels: int = 3
    palette: tuple[tuple[float, ...], ...] = ()
    probe: int = 12
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "palette", tuple(tuple(float(v) for v in colour) for colour in self.palette))
        if self.palette and {len(self.palette), *map(len, self.palette)} != {self.colours, self.channels}:
            raise UsageError(f"imagegpt: the palette must have {self.colours} colours of {self.channels} numbers each")
        if self.width % self.heads or not 0 <= self.probe <= self.depth:
            raise UsageError(
                f"imagegpt: width {self.width} must be a multiple of heads {self.heads}, and probe {self.probe} in 0..depth {self.depth}"
            )


def palette_of(file: str | Path) -> tuple[tuple[float, ...], ...]:
    """The colour clusters in a preprocessor_config.json of transformers; WeightsError if it has none."""
    try:
        return tuple(tuple(float(v) for v in colour) for colour in json.loads(Path(file).read_text("utf-8"))["clusters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{file}: expected JSON with a list of colours under 'clusters' ({error})") from error


# --- network -----------------------------------------------------------------------------------------------------------


class Cache:
    """Keys and values (B, heads, places, D) of one layer for the pixels seen so far."""

    def __init__(self, places: int) -> None:
        self.places, self.count = places, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, after adding those of further pixels."""
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.places, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        first, self.count = self.count, self.count + keys.shape[2]
        self.keys[:, :, first : self.count], self.values[:, :, first : self.count] = keys, values
        return self.keys[:, :, : self.count], self.values[:, :, : self.count]


class Attention(nn.Module):
    """Multi-head attention in which a pixel sees itself and those before it. With a cache, x is one pixel or all of the first ones."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"], cache: Cache | None = None) -> Float[Tensor, "B N D"]:
        batch, places, width = x.shape
        q, k, v = self.c_attn(x).reshape(batch, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            k, v = cache.extend(k, v)
        rate = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=places > 1)
        return F.dropout(self.c_proj(x.transpose(1, 2).reshape(batch, places, width)), self.dropout, self.training)


class FeedForward(nn.Module):
    """c_proj(gelu(c_fc(x))) with the quick form of GELU, x sigmoid(1.702 x)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return F.dropout(self.c_proj(x * torch.sigmoid(1.702 * x)), self.dropout, self.training)


class Block(nn.Module):
    """n = norm(h); a = h + attention(n); h' = a + mlp(norm(a)). The norm divides by the root mean square: no mean, no bias."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = nn.RMSNorm(config.width, eps=1e-5)
        self.attn = Attention(config.width, config.heads, config.dropout)
        self.ln_2 = nn.RMSNorm(config.width, eps=1e-5)
        self.mlp = FeedForward(config.width, config.dropout)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class ImageGPT(nn.Module):
    """A transformer that reads a picture pixel by pixel, row after row, and predicts the colour of the next one.

    `forward` returns logits (B, H*W, colours): those of pixel i depend on the pixels before i only.
    """

    palette: Tensor | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rule = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(rule.channels, "fixed", (config.size, config.size), mean=rule.mean, std=rule.std)
        self.wte = nn.Embedding(config.colours + 1, config.width)  # the last row is the start of the sequence
        self.wpe = nn.Embedding(config.size**2, config.width)
        self.h = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.ln_f = nn.RMSNorm(config.width, eps=1e-5)
        self.lm_head = nn.Linear(config.width, config.colours, bias=False)
        colours = torch.tensor(config.palette) if config.palette else None
        if colours is None and config.channels == 1:
            colours = torch.linspace(-1, 1, config.colours)[:, None]
        self.register_buffer("palette", colours, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's scheme: deviation 0.02, the last layers of residual branches divided by the root of their number."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                last = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.depth) if last else 0.02)

    # --- pixels and levels ------------------------------------------------------------------------------------------

    def levels(self, pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The index of the nearest colour of the palette for every pixel, row after row; UsageError without a palette."""
        wanted = (self.config.channels, self.config.size, self.config.size)
        if tuple(pixels.shape[1:]) != wanted:
            raise UsageError(f"imagegpt: pictures must have shape {wanted}, found {tuple(pixels.shape[1:])}")
        return self._quantised(pixels)

    def _quantised(self, pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        colours = self._palette().to(pixels.dtype)
        rows = pixels.flatten(2).transpose(1, 2)
        return (colours.square().sum(1) - 2 * rows @ colours.T).argmin(2)

    def pixels(self, levels: Int[Tensor, "B N"]) -> Float[Tensor, "B C H W"]:
        """The colours of `levels`, in [-1, 1]."""
        return self._palette()[levels].transpose(1, 2).unflatten(2, (-1, self.config.size))

    def pictures(self, pixels: Float[Tensor, "B C H W"]) -> list[Picture]:
        """Pixels in [-1, 1], such as samples, as pictures."""
        bytes_ = ((pixels.detach().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Picture(one.permute(1, 2, 0).contiguous()) for one in bytes_]

    def _palette(self) -> Tensor:
        if self.palette is not None:
            return self.palette
        if self.wte.weight.is_meta:
            return self.wte.weight.new_empty(self.config.colours, self.config.channels)
        raise UsageError(
            "imagegpt: the network has no palette; give one with palette=, such as palette_of('preprocessor_config.json')"
        )

    # --- the sequence -----------------------------------------------------------------------------------------------

    def _tokens(self, levels: Int[Tensor, "B n"]) -> Int[Tensor, "B m"]:
        """The start of the sequence, then the pixels (m = n + 1)."""
        return F.pad(levels, (1, 0), value=self.config.colours)

    def _embedded(self, tokens: Int[Tensor, "B N"], first: int = 0) -> Float[Tensor, "B N D"]:
        x = self.wte(tokens) + self.wpe.weight[first : first + tokens.shape[1]]
        return F.dropout(x, self.config.dropout, self.training)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B N K"]:
        x = self._embedded(self._tokens(self.levels(pixels)[:, :-1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The average over all pixels of the normalised input of layer `probe`: what a linear probe reads (section 2.4)."""
        x = self._embedded(self._tokens(self.levels(pixels)[:, :-1]))
        for block in self.h[: self.config.probe]:
            x = block(x)
        norm = self.ln_f if self.config.probe == len(self.h) else cast(Block, self.h[self.config.probe]).ln_1
        return norm(x).mean(1)

    def log_likelihood(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """log p(x) in nats of every picture, quantised to the palette."""
        return -nats(self(pixels), self.levels(pixels)).sum(1)

    # --- drawing ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, noise: Noise, *, condition: Tensor | None = None, steps: int | None = None, temperature: float = 1.0,
        top: int | None = None,
    ) -> Float[Tensor, "n C H W"]:  # fmt: skip
        """Pictures in [-1, 1], one per sample of `noise`, drawn pixel by pixel; what earlier pixels were is kept, so that each pixel
        costs one pass.

        `condition` (n, C, h, W) are rows that are given, at the top; `top` draws among the so many likeliest colours only; `steps`
        is the number of pixels that are drawn and cannot differ from what is missing.
        """
        n = len(noise)
        known = torch.zeros(n, 0, dtype=torch.int64, device=self.wte.weight.device)
        if condition is not None:
            given = tuple(condition.shape)
            if (given[0], given[1], given[3]) != (n, self.config.channels, self.config.size) or given[2] > self.config.size:
                raise UsageError(f"imagegpt: the condition must be the upper rows of {n} pictures, found shape {given}")
            known = self._quantised(condition.to(self.wte.weight))
        places, first = self.config.size**2, known.shape[1]
        if steps not in (None, places - first):
            raise UsageError(f"imagegpt: exactly {places - first} pixels are missing, found steps={steps}")
        if temperature <= 0 or (top is not None and top < 1):
            raise UsageError(f"imagegpt: temperature must be positive and top at least 1, found {temperature} and {top}")
        caches, training, place = [Cache(places) for _ in self.h], self.training, first
        self.eval()
        tokens, seen = self._tokens(known), 0
        while place < places:
            x = self._embedded(tokens[:, seen:], seen)
            for block, cache in zip(self.h, caches):
                x = block(x, cache)
            drawn = draw(self.lm_head(self.ln_f(x[:, -1])) / temperature, top, noise)
            tokens, seen, place = torch.cat([tokens, drawn], 1), tokens.shape[1], place + 1
        self.train(training)
        return self.pixels(tokens[:, 1:])

    def complete(
        self, pixels: Float[Tensor, "B C H W"], rows: int, *, noise: Noise, temperature: float = 1.0, top: int | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Pictures whose upper `rows` rows are kept (quantised) and whose rest is drawn anew."""
        return self.sample(noise, condition=pixels[:, :, :rows], temperature=temperature, top=top)


def draw(logits: Float[Tensor, "B K"], top: int | None, noise: Noise) -> Int[Tensor, "B 1"]:
    """One index for every row, drawn from the softmax of its logits, or of its `top` largest ones."""
    if top is not None and top < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top, 1).values[:, -1:], -torch.inf)
    return noise.choice(logits.double().softmax(1))[:, None]


def nats(logits: Float[Tensor, "B N K"], levels: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """-log p of every pixel's level."""
    return F.cross_entropy(logits.flatten(0, 1), levels.flatten(), reduction="none").unflatten(0, levels.shape)


NETWORK = ImageGPT


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: ImageGPT) -> Supervised:
    """The negative log-likelihood in nats per pixel (section 2.1); no labels are used."""

    def criterion(out: Tensor, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise CapabilityError(f"imagegpt is trained on images, but batch {batch.ids[:1]} has none")
        each = nats(out, network.levels(batch.images.pixels)).mean(1)
        return {"nats": (each if batch.weights is None else each * batch.weights).mean()}

    return Supervised(network, criterion)


@torch.no_grad()
def evaluate(network: ImageGPT, data: Dataset) -> tuple[dict[str, float], dict[str, Any]]:
    """Bits per pixel of the quantised pictures of a data set: -log2 p(x) / (H W), averaged over the pictures."""
    weight, training, total = network.wte.weight, network.training, 0.0
    network.eval()
    for some in _blocks(len(data), 64):
        pixels = prepare([data[i].picture for i in some], network.prepare).pixels.to(weight)
        total -= float(network.log_likelihood(pixels).double().sum())
    network.train(training)
    places = network.config.size**2
    protocol = {"metric": "bits/dim", "colours": network.config.colours, "dimensions": places, "pictures": len(data)}
    return {"bits/dim": total / (len(data) * places * math.log(2))}, protocol


def _blocks(count: int, size: int) -> Sequence[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


# --- variants and weights ------------------------------------------------------------------------------------------------

# the sizes of the authors' README; heads too
VARIANTS: dict[str, Config] = {
    "tiny": Config(size=12, width=64, depth=4, heads=4, colours=16, channels=1, probe=2),
    "s": Config(),
    "m": Config(width=1024, depth=36, probe=18),
    "l": Config(width=1536, depth=48, heads=16, probe=24),
}
# those of the transformers models; the paper rounds them to 76M, 455M and 1.4B
PARAMETERS: dict[str, int] = {"s": 76_682_240, "m": 455_489_536, "l": 1_362_914_304}
_LAYER = r"transformer\.(h\.\d+\.(?:attn|mlp)\."
FORMATS: dict[str, Names] = {
    "huggingface": Names(
        drop(r"transformer\.h\.\d+\.attn\.(?:bias|masked_bias)"),  # the causal mask, which older files keep
        rename(_LAYER + r"c_\w+\.weight)", r"\1", transpose()),  # kernels (in, out)
        rename(r"transformer\.(.+)", r"\1"),
        keep(r"lm_head\.weight"),
    )
}
WEIGHTS: dict[str, Weights] = {}
