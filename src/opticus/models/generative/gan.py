"""Generative adversarial nets.

Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville and Bengio, NeurIPS 2014, arXiv 1406.2661.
Reference: eriklindernoren/PyTorch-GAN (MIT), implementations/gan.

*Differs*: the layers are the reference's (batch norms whose eps is 0.8, leaky ReLUs) instead of the paper's ReLU generator and maxout
discriminator with dropout; scores are logits, the sigmoid is in the losses. `layout="points"` draws points of any dimension: no batch
norms and no tanh, and points are pictures (B, D, 1, 1).
*Map*: eq. 1 and algorithm 1 -> `losses.two_players.TwoPlayers` with the loss "minimax"; section 3, "maximize log D(G(z))" -> the loss
"logistic", the default; k discriminator steps -> `critics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.render import render
from opticus.losses.two_players import Play, TwoPlayers, latents_like
from opticus.structures import Images, Noise, Prepare, Task, UsageError, Weights
from opticus.weights.names import Names, keep

TASK: Task = "generate"
PREPARE = Prepare(channels=1, resize="fixed", size=(28, 28), mean=(0.5,), std=(0.5,))


@dataclass(frozen=True)
class Config:
    """Pictures (channels, size, size) from `latent` normal numbers; `widths` of the generator's layers, `critic` of the discriminator's."""

    size: int = 28
    channels: int = 1
    latent: int = 100
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    critic: tuple[int, ...] = (512, 256)
    eps: float = 0.8
    layout: Literal["pictures", "points"] = "pictures"

    def __post_init__(self) -> None:
        if min(self.size, self.channels, self.latent, *self.widths, *self.critic) < 1:
            raise UsageError("gan: size, channels, latent and all widths must be at least 1")
        if self.layout not in ("pictures", "points") or (self.layout == "points" and self.size != 1):
            raise UsageError(
                f"gan: layout must be 'pictures', or 'points' with size 1, found {self.layout!r} with size {self.size}"
            )


class Generator(nn.Module):
    """G: layers of rising width, all but the first with a batch norm, then tanh."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        side = (config.size, config.size)
        self.prepare = Prepare(config.channels, "fixed", side, mean=(0.5,) * config.channels, std=(0.5,) * config.channels)
        points = config.layout == "points"
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise((config.latent, *config.widths))):
            layers.append(nn.Linear(before, after))
            if place > 0 and not points:
                layers.append(nn.BatchNorm1d(after, config.eps))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Linear(config.widths[-1], config.channels * config.size**2))
        self.model = nn.Sequential(*layers, nn.Identity() if points else nn.Tanh())

    def forward(self, latents: Float[Tensor, "B D"], valid: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        """Pictures in [-1, 1] (points: of any value)."""
        return self.model(latents).unflatten(1, (self.config.channels, self.config.size, self.config.size))

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
    """D: layers of falling width with leaky ReLUs; the logit of being real (B, 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((config.channels * config.size**2, *config.critic)):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Linear(config.critic[-1], 1))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1"]:
        return self.model(pixels.flatten(1))


NETWORK = Generator


def inputs(network: Generator, images: Images) -> tuple[Tensor, ...]:
    """What `forward` takes where only pictures are at hand."""
    return (latents_like(images.pixels, network.config.latent),)


def objective(network: Generator, **options: Any) -> TwoPlayers:
    """The two-player game; options are those of `losses.two_players.Play`."""
    return TwoPlayers(network, Discriminator(network.config), Play(**options))


VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, latent=16, widths=(64, 128, 256), critic=(256, 128)),
    "points": Config(size=1, channels=2, latent=2, widths=(128, 128, 128), critic=(128, 128, 128), layout="points"),
    "mnist": Config(),
}
PARAMETERS: dict[str, int] = {"mnist": 1_510_032}
OVERFIT = {"observable": "realness", "samples": 8, "lr": 2e-3}

FORMATS: dict[str, Names] = {"pytorch-gan": Names(keep(r"model\..+"))}
TRAINING = Names(keep(r"(?:network|discriminator|health)\..+"))
WEIGHTS: dict[str, Weights] = {}
