"""Improved Training of Wasserstein GANs (WGAN-GP).

Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, NeurIPS 2017, arXiv 1704.00028.
Reference: caogang/wgan-gp (MIT), gan_cifar10.py and gan_toy.py: a port of the authors' igul222/improved_wgan_training (MIT).

*Differs*: the reference's networks of CIFAR-10 for any side that is a power of two, instead of the paper's ResNets; biases stay in front
of batch norms, as there. `layout="points"` is the reference's network of toy data.
*Map*: eq. 3 and algorithm 1 -> `objective` (penalty 10, five critic updates before each of the generator's), `losses.adversarial.
gradient_penalty`; section 4, "no critic batch normalization" -> `Critic`; section 3 (8 Gaussians) -> the variant "points".
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
PREPARE = Prepare(resize="fixed", size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclass(frozen=True)
class Config:
    """Pictures (channels, size, size), size = 8, 16, 32, ..., or points (channels, 1, 1), from `latent` normal numbers.

    `width` channels before the generator's output and `critic` after the critic's input, doubled with every halving of the side; points
    pass three hidden layers of that width.
    """

    size: int = 32
    channels: int = 3
    latent: int = 128
    width: int = 128
    critic: int = 128
    layout: Literal["pictures", "points"] = "pictures"

    def __post_init__(self) -> None:
        if self.layout not in ("pictures", "points") or (self.layout == "points" and self.size != 1):
            raise UsageError(
                f"wgan: layout must be 'pictures', or 'points' with size 1, found {self.layout!r} with size {self.size}"
            )
        if self.layout == "pictures" and (self.size < 8 or self.size & (self.size - 1)):
            raise UsageError(f"wgan: size must be a power of two, at least 8, found {self.size}")
        if min(self.channels, self.latent, self.width, self.critic) < 1:
            raise UsageError("wgan: channels, latent, width and critic must be at least 1")

    @property
    def stages(self) -> int:
        """Halvings of the side between the picture and a map of 4x4."""
        return self.size.bit_length() - 3


def hidden(*widths: int) -> list[nn.Module]:
    """Linear layers with ReLUs, for points."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers


class Generator(nn.Module):
    """G: latents (B, D) -> a map of 4x4 -> doublings by transposed convolutions -> tanh; or a plain network for points."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        side, half = (config.size, config.size), (0.5,) * config.channels
        self.prepare = Prepare(config.channels, "fixed", side, mean=half, std=half)
        self.blocks = 0
        if config.layout == "points":
            self.main = nn.Sequential(*hidden(config.latent, *(config.width,) * 3), nn.Linear(config.width, config.channels))
            return
        width = config.width * 2 ** (config.stages - 1)
        self.preprocess = nn.Sequential(nn.Linear(config.latent, 16 * width), nn.BatchNorm1d(16 * width), nn.ReLU())
        self.blocks = config.stages - 1
        for number in range(1, config.stages):
            doubling = nn.ConvTranspose2d(width, width // 2, 2, stride=2)
            self.add_module(f"block{number}", nn.Sequential(doubling, nn.BatchNorm2d(width // 2), nn.ReLU()))
            width //= 2
        self.deconv_out = nn.ConvTranspose2d(width, config.channels, 2, stride=2)

    def forward(self, latents: Float[Tensor, "B D"], valid: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        """Pictures in [-1, 1], or points of any value."""
        if self.config.layout == "points":
            return self.main(latents)[:, :, None, None]
        maps = self.preprocess(latents).unflatten(1, (-1, 4, 4))
        for number in range(1, self.blocks + 1):
            maps = self.get_submodule(f"block{number}")(maps)
        return self.deconv_out(maps).tanh()

    def latents(self, noise: Noise) -> Float[Tensor, "n D"]:
        """Standard normal numbers."""
        return noise.normal(self.config.latent)

    def render(self, latents: Float[Tensor, "n D"], *, condition: Any = None, steps: int | None = None) -> Float[Tensor, "n C H W"]:
        """The pictures of latents, without further chance; there is neither a condition nor steps."""
        return render(self, latents, condition, steps)

    def sample(self, noise: Noise, *, condition: Any = None, steps: int | None = None) -> Float[Tensor, "n C H W"]:
        """One picture per sample of `noise`."""
        return self.render(self.latents(noise), condition=condition, steps=steps)


class Critic(nn.Module):
    """The function whose means differ most between real and drawn pictures, for slope 1: scores (B, 1). It has no batch norms, as the
    penalty is on the gradient of every picture alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.points = config.layout == "points"
        if self.points:
            self.main = nn.Sequential(*hidden(config.channels, *(config.critic,) * 3), nn.Linear(config.critic, 1))
            return
        layers: list[nn.Module] = []
        widths = [config.channels, *(config.critic * 2**stage for stage in range(config.stages))]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, padding=1), nn.LeakyReLU()]
        self.main = nn.Sequential(*layers)
        self.linear = nn.Linear(16 * widths[-1], 1)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1"]:
        return self.main(pixels.flatten(1)) if self.points else self.linear(self.main(pixels).flatten(1))


NETWORK = Generator


def inputs(network: Generator, images: Images) -> tuple[Tensor, ...]:
    """What `forward` takes where only pictures are at hand."""
    return (latents_like(images.pixels, network.config.latent),)


def objective(
    network: Generator, *, loss: str = "wasserstein", penalty: float = 10.0, critics: int = 5, **options: Any
) -> TwoPlayers:
    """Algorithm 1; further options are those of `losses.two_players.Play`."""
    return TwoPlayers(network, Critic(network.config), Play(loss=loss, penalty=penalty, critics=critics, **options))


VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, channels=1, latent=32, width=32, critic=32),
    "points": Config(size=1, channels=2, latent=2, width=512, critic=512, layout="points"),
    "cifar10": Config(),
}
PARAMETERS: dict[str, int] = {"cifar10": 1_731_203, "points": 527_874}
OVERFIT = {"observable": "realness", "samples": 8, "lr": 2e-3, "options": {"critics": 1}}

FORMATS: dict[str, Names] = {"pytorch": Names(keep(r"(?:main|preprocess|block\d+|deconv_out)\..+"))}
TRAINING = Names(keep(r"(?:network|discriminator|health)\..+"))
WEIGHTS: dict[str, Weights] = {}
