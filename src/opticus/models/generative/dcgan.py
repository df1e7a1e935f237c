"""Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks.

Radford, Metz and Chintala, ICLR 2016, arXiv 1511.06434.
Reference: pytorch/examples (BSD-3-Clause), dcgan.

*Differs*: as in the reference, the first layer is a transposed convolution instead of a projection that is reshaped, kernels are 4x4
instead of 5x5, and latents are normal instead of uniform. Scores are logits, the sigmoid is in the losses.
*Map*: section 3 (strided convolutions, no pooling, batch norms but in D's input and G's output, ReLU in G, leaky ReLU in D) and figure 1
-> `Generator`, `Discriminator`; section 4 (weights from N(0, 0.02), slope 0.2) -> `initialise`; walking in the latent space (section 6.1)
-> `Generator.render`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.render import render
from opticus.losses.two_players import Play, TwoPlayers, latents_like
from opticus.structures import Images, Noise, Prepare, Task, UsageError, Weights
from opticus.weights.names import Names, keep

TASK: Task = "generate"
PREPARE = Prepare(resize="shortest", size=(64, 0), crop=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclass(frozen=True)
class Config:
    """Pictures (channels, size, size), size = 8, 16, 32, 64, ..., from `latent` normal numbers.

    `width` channels before the generator's output and `critic` after the discriminator's input, doubled with every halving of the side.
    """

    size: int = 64
    channels: int = 3
    latent: int = 100
    width: int = 64
    critic: int = 64

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise UsageError(f"dcgan: size must be a power of two, at least 8, found {self.size}")
        if min(self.channels, self.latent, self.width, self.critic) < 1:
            raise UsageError("dcgan: channels, latent, width and critic must be at least 1")

    @property
    def stages(self) -> int:
        """Halvings of the side between the picture and a map of 4x4."""
        return self.size.bit_length() - 3


def initialise(module: nn.Module) -> None:
    """Kernels from N(0, 0.02), norms' weights from N(1, 0.02), their biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, 0.02)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)
            nn.init.zeros_(part.bias)


class Generator(nn.Module):
    """G: latents (B, D) -> a map of 4x4 -> doublings by transposed convolutions -> tanh."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        side, half = (config.size, config.size), (0.5,) * config.channels
        self.prepare = Prepare(config.channels, "fixed", side, mean=half, std=half)
        width = config.width * 2 ** (config.stages - 1)
        layers: list[nn.Module] = [nn.ConvTranspose2d(config.latent, width, 4, 1, 0, bias=False)]
        for _ in range(config.stages - 1):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)]
            width //= 2
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, config.channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)
        initialise(self)

    def forward(self, latents: Float[Tensor, "B D"], valid: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        """Pictures in [-1, 1]."""
        return self.main(latents[:, :, None, None])

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
    """D: strided convolutions down to a map of 4x4, then one number: the logit of being real (B, 1, 1, 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.critic
        layers: list[nn.Module] = [nn.Conv2d(config.channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for _ in range(config.stages - 1):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 0, bias=False))
        initialise(self)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 1 1"]:
        return self.main(pixels)


NETWORK = Generator


def inputs(network: Generator, images: Images) -> tuple[Tensor, ...]:
    """What `forward` takes where only pictures are at hand."""
    return (latents_like(images.pixels, network.config.latent),)


def objective(network: Generator, **options: Any) -> TwoPlayers:
    """The two-player game; options are those of `losses.two_players.Play`."""
    return TwoPlayers(network, Discriminator(network.config), Play(**options))


VARIANTS: dict[str, Config] = {
    "tiny": Config(size=16, channels=1, latent=32, width=32, critic=32),
    "32": Config(size=32),
    "64": Config(),
}
PARAMETERS: dict[str, int] = {"64": 3_576_704}
OVERFIT = {"observable": "realness", "samples": 8, "lr": 2e-3}

FORMATS: dict[str, Names] = {"pytorch-examples": Names(keep(r"main\..+"))}
TRAINING = Names(keep(r"(?:network|discriminator|health)\..+"))
WEIGHTS: dict[str, Weights] = {}
