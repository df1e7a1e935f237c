"""Energy-based Generative Adversarial Network (EBGAN).

Zhao, Mathieu and LeCun, ICLR 2017, arXiv 1609.03126.
Reference: eriklindernoren/PyTorch-GAN (MIT), implementations/ebgan: networks and key names.

*Differs*: the networks are the reference's (nearest upsampling and convolutions, batch norms with eps 0.8), the losses the paper's: the
margin holds for every picture alone (the reference: for the batch's mean), the cosine of the pulling-away term is squared (there: not),
and the generator's energy has a gradient through both the picture and its reconstruction (there: through the latter only). The energy is
the mean squared error of a pixel, so that a margin does not depend on the size; scores are minus the energy.
*Map*: eq. 1 and 2 -> `energies`; eq. 3 (D(x) = ||Dec(Enc(x)) - x||) -> `Discriminator.forward`; eq. 4 (f_PT) -> `pulling_away`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.render import render
from opticus.losses.adversarial import Rule
from opticus.losses.two_players import Play, TwoPlayers, latents_like
from opticus.structures import Images, Noise, Prepare, Task, UsageError, Weights
from opticus.weights.names import Names, keep

TASK: Task = "generate"
PREPARE = Prepare(channels=1, resize="fixed", size=(32, 32), mean=(0.5,), std=(0.5,))


@dataclass(frozen=True)
class Config:
    """Pictures (channels, size, size), size a multiple of 4, from `latent` normal numbers.

    `width` channels of the generator's first maps, half as many of its last and of the discriminator's; `code` numbers between encoder
    and decoder.
    """

    size: int = 32
    channels: int = 1
    latent: int = 62
    width: int = 128
    code: int = 32
    eps: float = 0.8

    def __post_init__(self) -> None:
        if self.size < 4 or self.size % 4 or self.width < 2 or self.width % 2:
            raise UsageError(f"ebgan: size must be a multiple of 4 and width even, found {self.size} and {self.width}")
        if min(self.channels, self.latent, self.code) < 1:
            raise UsageError("ebgan: channels, latent and code must be at least 1")


def initialise(module: nn.Module) -> None:
    """Kernels from N(0, 0.02), norms' weights from N(1, 0.02); linear layers and their norms as they are."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, 0.0, 0.02)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)


class Generator(nn.Module):
    """G: a linear layer to maps of a quarter of the side, two doublings with convolutions, tanh."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        side, half = (config.size, config.size), (0.5,) * config.channels
        self.prepare = Prepare(config.channels, "fixed", side, mean=half, std=half)
        width = config.width
        self.l1 = nn.Sequential(nn.Linear(config.latent, width * (config.size // 4) ** 2))
        layers: list[nn.Module] = []
        for after in (width, width // 2):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after, config.eps)]
            layers.append(nn.LeakyReLU(0.2))
        self.conv_blocks = nn.Sequential(*layers, nn.Conv2d(width // 2, config.channels, 3, padding=1), nn.Tanh())
        initialise(self)

    def forward(self, latents: Float[Tensor, "B D"], valid: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        """Pictures in [-1, 1]."""
        side = self.config.size // 4
        return self.conv_blocks(self.l1(latents).unflatten(1, (-1, side, side)))

    def latents(self, noise: Noise) -> Float[Tensor, "n D"]:
        """Standard normal numbers."""
        return noise.normal(self.config.latent)

    def render(self, latents: Float[Tensor, "n D"], *, condition: Any = None, steps: int | None = None) -> Float[Tensor, "n C H W"]:
        """The pictures of latents, without further chance; there is neither a condition nor steps."""
        return render(self, latents, condition, steps)

    def sample(self, noise: Noise, *, condition: Any = None, steps: int | None = None) -> Float[Tensor, "n C H W"]:
        """One picture per sample of `noise`."""
        return self.render(self.latents(noise), condition=condition, steps=steps)


class Discriminator(nn.Module):
    """D: an autoencoder; `forward` scores pictures (B,) by minus their energy, the error of their reconstruction."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.side = config.width // 2, config.size // 2
        count = width * self.side**2
        self.down = nn.Sequential(nn.Conv2d(config.channels, width, 3, 2, 1), nn.ReLU())
        self.embedding = nn.Linear(count, config.code)
        self.fc = nn.Sequential(
            nn.BatchNorm1d(config.code, config.eps), nn.ReLU(), nn.Linear(config.code, count), nn.BatchNorm1d(count), nn.ReLU()
        )
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, config.channels, 3, 1, 1))
        initialise(self)

    def encode(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The code, whose directions the pulling-away term spreads."""
        return self.embedding(self.down(pixels).flatten(1))

    def decode(self, codes: Float[Tensor, "B K"]) -> Float[Tensor, "B C H W"]:
        """The reconstruction."""
        return self.up(self.fc(codes).unflatten(1, (-1, self.side, self.side)))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        return -(self.decode(self.encode(pixels)) - pixels).square().flatten(1).mean(1)


NETWORK = Generator


def inputs(network: Generator, images: Images) -> tuple[Tensor, ...]:
    """What `forward` takes where only pictures are at hand."""
    return (latents_like(images.pixels, network.config.latent),)


# --- objective ---------------------------------------------------------------------------------------------------------


def energies(margin: float) -> Rule:
    """Eq. 1 and 2 of scores, which are minus the energy: real pictures lose it, drawn ones what is missing to the margin."""
    return Rule(lambda scores: -scores, lambda scores: F.relu(margin + scores), lambda scores: -scores)


def pulling_away(codes: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Eq. 4, f_PT: for every picture the mean squared cosine of its code and those of the others; UsageError for a single picture."""
    if len(codes) < 2:
        raise UsageError("ebgan: the pulling-away term needs at least two pictures in a batch")
    unit = F.normalize(codes.float() if codes.dtype in (torch.bfloat16, torch.float16) else codes, dim=1)
    return ((unit @ unit.T).square().sum(1) - 1) / (len(codes) - 1)


def objective(network: Generator, *, margin: float = 1.0, pull: float = 0.1, **options: Any) -> TwoPlayers:
    """Eq. 1 and 2 with `pull` times eq. 4 (0 = plain EBGAN); further options are those of `losses.two_players.Play` but `loss`."""
    if margin <= 0 or pull < 0:
        raise UsageError(f"ebgan: margin must be positive and pull at least 0, found {margin} and {pull}")
    if "loss" in options:
        raise UsageError("ebgan: its losses are those of energies with a margin; leave loss= away")

    def further(discriminator: nn.Module, fake: Tensor) -> Mapping[str, Tensor]:
        return {"away": pull * pulling_away(cast(Discriminator, discriminator).encode(fake))}

    play = Play(**options)
    return TwoPlayers(network, Discriminator(network.config), play, rule=energies(margin), further=further if pull else None)


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, latent=16, width=32, eps=1e-5),  # 0.8 would level narrow maps: all pictures alike
    "mnist": Config(),
}
PARAMETERS: dict[str, int] = {"mnist": 738_433}
OVERFIT = {"observable": "realness", "samples": 8, "lr": 4e-3}

FORMATS: dict[str, Names] = {"pytorch-gan": Names(keep(r"(?:l1|conv_blocks)\..+"))}
TRAINING = Names(keep(r"(?:network|discriminator|health)\..+"))
WEIGHTS: dict[str, Weights] = {}
