"""Auto-Encoding Variational Bayes (VAE).

Kingma and Welling, ICLR 2014, arXiv 1312.6114. Beta: Higgins et al., ICLR 2017. Importance-weighted bound: Burda et al., arXiv 1509.00519.
Reference: pytorch/examples vae (BSD-3-Clause) for the dense layout; AntixK/PyTorch-VAE VanillaVAE (Apache-2.0) for the convolutional one.

*Differs*: a Gaussian decoder's deviation is one number for all pixels, learned or fixed, and pictures have the probability of their 8-bit
levels, the integral of that Gaussian over a level. Training draws one code per picture (L = 1 in the paper's algorithm 1).
*Map*: eq. 3 and 10 (the bound with its KL term in closed form) -> `VAE.bound`, `divergence`; eq. 4 and 9 (the reparameterisation) ->
`reparameterised`; algorithm 1 -> `Bound`; appendix C.1 (Bernoulli) and C.2 (Gaussian) -> `VAE.log_probability`; appendix D (marginal
likelihood) -> `VAE.importance_weighted`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.pictures import mean, pixels_of
from opticus.losses.supervised import widened
from opticus.structures import Batch, Noise, Prepare, Progress, Task, UnknownNameError, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "generate"
LEVELS = "levels"
PREPARE = Prepare(resize="fixed", size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CODES = 16  # codes per picture with which `log_likelihood` averages
LEAST = -20.0  # least log variance of a posterior: smaller ones are noise of the arithmetic


@dataclass(frozen=True)
class Config:
    """`widths`: the layers (dense) or the stages that halve the picture (convolutional) before the code; the decoder mirrors them.

    `likelihood` "bernoulli" is for pictures that are nearly black and white: pixels in [0, 1], two levels; "gaussian" for all others:
    pixels in [-1, 1], 256 levels. `deviation` of the Gaussian in these pixels: a number, or None to learn it.
    """

    layout: Literal["dense", "convolutional"] = "convolutional"
    size: int = 64
    channels: int = 3
    code: int = 128
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    likelihood: Literal["bernoulli", "gaussian"] = "gaussian"
    deviation: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        for name, value, known in (
            ("layout", self.layout, ("dense", "convolutional")),
            ("likelihood", self.likelihood, ("bernoulli", "gaussian")),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        if not self.widths or min(self.size, self.channels, self.code, *self.widths) < 1:
            raise UsageError(
                f"vae: size, channels, code and widths must be at least 1 and there must be one width at least, found "
                f"{self.size}, {self.channels}, {self.code} and {self.widths}"
            )
        if self.layout == "convolutional" and self.size % 2 ** len(self.widths):
            raise UsageError(
                f"vae: {len(self.widths)} stages halve the picture, so size {self.size} must be a multiple of {2 ** len(self.widths)}"
            )
        if self.deviation is not None and (self.deviation <= 0 or self.likelihood == "bernoulli"):
            raise UsageError(f"vae: deviation must be positive and is for the gaussian likelihood, found {self.deviation}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture (C, H, W)."""
        return self.channels, self.size, self.size

    @property
    def levels(self) -> int:
        """How many values a pixel can take."""
        return 2 if self.likelihood == "bernoulli" else 256


class Posterior(NamedTuple):
    """q(z|x): a Gaussian with a diagonal covariance."""

    mean: Float[Tensor, "B D"]
    log_variance: Float[Tensor, "B D"]


class Output(NamedTuple):
    """What `forward` returns: the picture of the posterior's mean (B, C, H, W), in the network's normalisation, and the posterior."""

    pixels: Tensor
    mean: Tensor
    log_variance: Tensor


# --- network -----------------------------------------------------------------------------------------------------------


class DenseEncoder(nn.Module):
    """Layers with ReLU; `fc_mu` and `fc_var` of the last one are the posterior's mean and log variance."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = (math.prod(config.shape), *config.widths)
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise(widths))
        self.fc_mu = nn.Linear(widths[-1], config.code)
        self.fc_var = nn.Linear(widths[-1], config.code)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Posterior:
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return Posterior(self.fc_mu(x), self.fc_var(x))


class DenseDecoder(nn.Module):
    """The encoder's layers backwards: (B, code) -> (B, C, H, W), unbounded."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = config.shape
        widths = (config.code, *config.widths[::-1], math.prod(config.shape))
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise(widths))

    def forward(self, codes: Float[Tensor, "B D"]) -> Float[Tensor, "B C H W"]:
        for layer in self.layers[:-1]:
            codes = F.relu(layer(codes))
        return self.layers[-1](codes).reshape(-1, *self.shape)


def stage(layer: nn.Module, width: int) -> nn.Sequential:
    """A convolution with its batch norm and leaky ReLU."""
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.LeakyReLU())


def enlarging(before: int, width: int) -> nn.Sequential:
    """A stage that doubles the sides."""
    return stage(nn.ConvTranspose2d(before, width, 3, stride=2, padding=1, output_padding=1), width)


class Encoder(nn.Module):
    """Strided convolutions with batch norm; `fc_mu` and `fc_var` of the last map are the posterior's mean and log variance."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        pairs = pairwise((config.channels, *config.widths))
        self.stages = nn.Sequential(*(stage(nn.Conv2d(a, b, 3, stride=2, padding=1), b) for a, b in pairs))
        places = config.widths[-1] * (config.size // 2 ** len(config.widths)) ** 2
        self.fc_mu = nn.Linear(places, config.code)
        self.fc_var = nn.Linear(places, config.code)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Posterior:
        x = self.stages(x).flatten(1)
        return Posterior(self.fc_mu(x), self.fc_var(x))


class Decoder(nn.Module):
    """The code is projected, reshaped to a small map and enlarged, one stage for each of the encoder's: (B, code) -> (B, C, H, W)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.side = config.size // 2 ** len(config.widths)
        self.input = nn.Linear(config.code, config.widths[-1] * self.side**2)
        self.stages = nn.Sequential(*(enlarging(a, b) for a, b in pairwise(config.widths[::-1])))
        first = config.widths[0]
        self.final = nn.Sequential(*enlarging(first, first), nn.Conv2d(first, config.channels, 3, padding=1))

    def forward(self, codes: Float[Tensor, "B D"]) -> Float[Tensor, "B C H W"]:
        return self.final(self.stages(self.input(codes).unflatten(1, (-1, self.side, self.side))))


class VAE(nn.Module):
    """p(z) = N(0, I), p(x|z) by the decoder, q(z|x) by the encoder.

    Pixels are in [0, 1] with a Bernoulli likelihood and in [-1, 1] with a Gaussian one; `prepare` says so.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        binary = config.likelihood == "bernoulli"
        numbers = ((0.0,) * config.channels, (1.0,) * config.channels) if binary else ((0.5,) * config.channels,) * 2
        self.prepare = Prepare(config.channels, "fixed", (config.size, config.size), mean=numbers[0], std=numbers[1])
        dense = config.layout == "dense"
        self.encoder = DenseEncoder(config) if dense else Encoder(config)
        self.decoder = DenseDecoder(config) if dense else Decoder(config)
        self.log_deviation: nn.Parameter | None = None
        if not binary and config.deviation is None:
            self.log_deviation = nn.Parameter(torch.tensor(-2.0))

    # --- there and back -------------------------------------------------------------------------------------------------

    def posterior(self, pixels: Float[Tensor, "B C H W"]) -> Posterior:
        """q(z|x); UsageError for pictures of another shape."""
        if tuple(pixels.shape[1:]) != self.config.shape:
            raise UsageError(f"vae: pictures must have shape {self.config.shape}, found {tuple(pixels.shape[1:])}")
        found = self.encoder(pixels)
        return Posterior(found.mean, found.log_variance.clamp(min=LEAST))

    def encode(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The posterior's mean."""
        return self.posterior(pixels).mean

    def decode(self, latents: Float[Tensor, "B D"]) -> Float[Tensor, "B C H W"]:
        """The mean of p(x|z) in the network's normalisation; UsageError for codes of another length."""
        raw = self._raw(latents)
        return raw.sigmoid() if self.config.likelihood == "bernoulli" else raw.tanh()

    def _raw(self, latents: Float[Tensor, "B D"]) -> Float[Tensor, "B C H W"]:
        if latents.ndim != 2 or latents.shape[1] != self.config.code:
            raise UsageError(f"vae: codes must have shape (B, {self.config.code}), found {tuple(latents.shape)}")
        return self.decoder(latents)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Output:
        found = self.posterior(pixels)
        return Output(self.decode(found.mean), *found)

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The posterior's mean."""
        return self.encode(pixels)

    # --- drawing --------------------------------------------------------------------------------------------------------

    def latents(self, noise: Noise) -> Float[Tensor, "N D"]:
        """Codes drawn from N(0, I)."""
        return noise.normal(self.config.code).to(next(self.parameters()))

    @torch.no_grad()
    def render(self, latents: Float[Tensor, "N D"], *, condition: Any = None, steps: int | None = None) -> Float[Tensor, "N C H W"]:
        """The mean pictures of codes, in evaluation mode. A condition or a number of steps is a UsageError: there is neither."""
        if condition is not None or steps is not None:
            raise UsageError(f"vae: draws without condition and in one step, found condition {condition} and steps {steps}")
        training = self.training
        drawn = self.eval().decode(latents)
        self.train(training)
        return drawn

    def sample(self, noise: Noise, *, condition: Any = None, steps: int | None = None) -> Float[Tensor, "N C H W"]:
        """The mean pictures of codes drawn from the prior."""
        return self.render(self.latents(noise), condition=condition, steps=steps)

    # --- how likely a picture is ----------------------------------------------------------------------------------------

    def levels(self, pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """Every pixel as a whole number: 0..255, or 0 and 1 with a Bernoulli likelihood."""
        if self.config.likelihood == "bernoulli":
            return (pixels > 0.5).flatten(1).long()
        return ((pixels + 1) * 127.5).round().clamp(0, 255).flatten(1).long()

    def deviation(self) -> Tensor:
        """Of the Gaussian likelihood, in [-1, 1] pixels."""
        if self.log_deviation is not None:
            return self.log_deviation.exp()
        return next(self.parameters()).new_tensor(self.config.deviation or 1.0)

    def log_probability(self, levels: Int[Tensor, "B N"], latents: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        """log p(x|z) of pictures in whole numbers, in nats: Bernoulli, or the Gaussian's integral over each level.

        The lowest and the highest level reach to infinity, so that the probabilities of all pictures sum to one.
        """
        raw = self._raw(latents).flatten(1)
        if self.config.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(raw, levels.to(raw), reduction="none").sum(1)
        return gaussian_levels(levels, raw.tanh(), self.deviation()).sum(1)

    def _weights(self, pixels: Float[Tensor, "B C H W"], samples: int) -> Float[Tensor, "K B"]:
        """log p(x, z) - log q(z|x) for `samples` codes of each picture; the same chance for every picture, whatever the batch."""
        if samples < 1:
            raise UsageError(f"vae: at least one code per picture is needed, found samples={samples}")
        levels, found = self.levels(pixels), self.posterior(pixels)
        rows: list[Tensor] = []
        for chance in Noise(0, samples).normal(self.config.code).to(found.mean):
            codes = reparameterised(found, chance)
            prior = -0.5 * (codes.square() + math.log(2 * math.pi)).sum(1)
            own = -0.5 * (chance.square() + found.log_variance + math.log(2 * math.pi)).sum(1)
            rows.append(self.log_probability(levels, codes) + prior - own)
        return torch.stack(rows)

    def log_likelihood(self, pixels: Float[Tensor, "B C H W"], *, samples: int = CODES) -> Float[Tensor, "B"]:
        """The lower bound of log p(x) in nats (eq. 3): with the KL term in closed form, averaged over `samples` codes."""
        if samples < 1:
            raise UsageError(f"vae: at least one code per picture is needed, found samples={samples}")
        levels, found = self.levels(pixels), self.posterior(pixels)
        chances = Noise(0, samples).normal(self.config.code).to(found.mean)
        each = [self.log_probability(levels, reparameterised(found, chance)) for chance in chances]
        return torch.stack(each).mean(0) - divergence(found)

    def importance_weighted(self, pixels: Float[Tensor, "B C H W"], *, samples: int = 64) -> Float[Tensor, "B"]:
        """A tighter lower bound in nats: log of the mean of p(x, z) / q(z|x) over `samples` codes."""
        return self._weights(pixels, samples).logsumexp(0) - math.log(samples)

    def bound(self, pixels: Float[Tensor, "B C H W"], chance: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor]:
        """-log p(x|z) at z = mean + deviation * chance, as a density of continuous pixels, and KL(q || p): (B,), nats per pixel value.

        Bernoulli: the cross-entropy with pixels in [0, 1], grey ones included, as in the reference.
        """
        found = self.posterior(pixels)
        raw = widened(self._raw(reparameterised(found, chance)))
        if self.config.likelihood == "bernoulli":
            error = F.binary_cross_entropy_with_logits(raw, pixels.to(raw), reduction="none")
        else:
            deviation = self.deviation()
            error = 0.5 * ((raw.tanh() - pixels) / deviation).square() + deviation.log() + 0.5 * math.log(2 * math.pi)
        return error.flatten(1).mean(1), divergence(found) / error[0].numel()


def reparameterised(found: Posterior, chance: Tensor) -> Tensor:
    """mean + deviation * chance (eq. 9)."""
    return found.mean + (0.5 * found.log_variance).exp() * chance


def divergence(found: Posterior) -> Float[Tensor, "B"]:
    """KL(q(z|x) || N(0, I)) in nats (appendix B)."""
    middle, spread = widened(found.mean), widened(found.log_variance)
    return 0.5 * (middle.square() + spread.exp() - 1 - spread).sum(1)


def gaussian_levels(levels: Int[Tensor, "B N"], centres: Float[Tensor, "B N"], deviation: Tensor) -> Float[Tensor, "B N"]:
    """log of a Gaussian's integral over each of 256 levels of [-1, 1]; stable far from the centre."""
    half = 1 / 255
    values = levels.to(centres) / 127.5 - 1
    low, high = (values - half - centres) / deviation, (values + half - centres) / deviation
    low = torch.where(levels == 0, torch.full_like(low, -torch.inf), low)
    high = torch.where(levels == 255, torch.full_like(high, torch.inf), high)
    # of the two tails the smaller one keeps its digits: mirror what lies above the centre
    mirrored = low + high > 0
    below, above = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    top, bottom = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
    return top + torch.log1p(-(bottom - top).exp().clamp(max=1 - 1e-7))


NETWORK = VAE


# --- objective ---------------------------------------------------------------------------------------------------------


class Bound(nn.Module):
    """Minus the variational lower bound in nats per pixel value: "error" = -log p(x|z) and "divergence" = beta KL, divided by C H W."""

    def __init__(self, network: VAE, *, beta: float = 1.0) -> None:
        super().__init__()
        if beta < 0:
            raise UsageError(f"vae: beta must not be negative, found {beta}")
        self.network, self.beta = network, beta
        self._last: tuple[Tensor, Tensor] | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """One code per picture, drawn from torch's own generator."""
        pixels = pixels_of(batch)
        return self.terms(
            pixels, torch.randn(len(pixels), self.network.config.code, dtype=pixels.dtype, device=pixels.device), batch
        )

    def terms(self, pixels: Tensor, chance: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The two terms for given chance (B, D)."""
        error, apart = self.network.bound(pixels, chance)
        self._last = error.detach(), apart.detach()
        return {"error": mean(error, batch), "divergence": self.beta * mean(apart, batch)}

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """Of the last batch, in nats a picture: the bound's two parts."""
        assert self._last is not None, "figures follow a forward pass"
        error, apart = (float(part.mean()) * math.prod(self.network.config.shape) for part in self._last)
        return {"error": error, "divergence": apart}

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """A posterior that equals the prior: the code says nothing."""
        return None if figures["divergence"] > 1e-2 else "the posterior equals the prior, so codes say nothing; lower beta="


def objective(network: VAE, **options: Any) -> Bound:
    """`beta`: the weight of the KL term (1: the variational bound)."""
    return Bound(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config("dense", 16, 1, 16, (512, 256)),
    "tiny-conv": Config("convolutional", 16, 1, 16, (32, 64)),
    "tiny-bernoulli": Config("dense", 16, 1, 16, (512, 256), "bernoulli"),
    "mnist": Config("dense", 28, 1, 20, (400,), "bernoulli"),
    # squared error + 0.00025 KL, the reference's loss for 64x64 RGB: 1 / (2 deviation^2) over 12,288 values = 1 / 0.00025
    "64": Config(deviation=math.sqrt(0.00025 * 12_288 / 2)),
}
OVERFIT = {"lr": 3e-3}
PARAMETERS: dict[str, int] = {"64": 3_937_635, "mnist": 652_824}
FORMATS: dict[str, Names] = {
    "pytorch-examples": Names(
        rename(r"fc1\.(\w+)", r"encoder.layers.0.\1"),
        rename(r"fc21\.(\w+)", r"encoder.fc_mu.\1"),
        rename(r"fc22\.(\w+)", r"encoder.fc_var.\1"),
        rename(r"fc3\.(\w+)", r"decoder.layers.0.\1"),
        rename(r"fc4\.(\w+)", r"decoder.layers.1.\1"),
    ),
    "pytorch-vae": Names(
        rename(r"(?:model\.)?encoder\.(.+)", r"encoder.stages.\1"),
        rename(r"(?:model\.)?(fc_\w+\..+)", r"encoder.\1"),
        rename(r"(?:model\.)?decoder_input\.(.+)", r"decoder.input.\1"),
        rename(r"(?:model\.)?decoder\.(.+)", r"decoder.stages.\1"),
        rename(r"(?:model\.)?final_layer\.(.+)", r"decoder.final.\1"),
    ),
}
WEIGHTS: dict[str, Weights] = {}
