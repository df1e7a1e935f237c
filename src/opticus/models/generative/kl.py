"""High-Resolution Image Synthesis with Latent Diffusion Models: the autoencoder with a KL penalty (AutoencoderKL).

Rombach, Blattmann, Lorenz, Esser and Ommer, CVPR 2022, arXiv 2112.10752; also the first stage of Stable Diffusion 1.x, 2.x and XL.
Reference: CompVis/latent-diffusion (MIT); diffusers (Apache-2.0), whose AutoencoderKL is the same network.

*Differs*: the variance of the reconstruction, a number that the authors never train, is one. Before the step at which the
discriminator joins in there is no phase "d". The perceptual network is handed over. The mean is the code where no noise is asked for.
*Map*: section 3.1 (encoder E, decoder D, KL penalty towards a standard normal) -> `AutoencoderKL`, `Posterior`; appendix G, eq. 25
(reconstruction, adversarial and regularising terms) -> `vqgan.Restoration`, `objective`; table 8 (f = 4, 8, 16, 32) -> `VARIANTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.models.generative.vqgan import TRAINING as TRAINING
from opticus.models.generative.vqgan import (
    Decoder,
    Distance,
    Encoder,
    Levels,
    Restoration,
    Restored,
    diffusers,
    ldm,
    preparation,
    restored,
)
from opticus.structures import Images, Noise, Picture, Prepare, Task, UsageError, Weights
from opticus.weights.names import Names

EXTENDS = "vqgan"
TASK: Task = "reconstruct"
PREPARE = Prepare(resize="none", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), stride=8)


@dataclass(frozen=True)
class Config:
    """`size`: side that pictures are resized to, 0 = pictures of any size; `latent` channels of the code.

    `scaling` is the factor by which diffusion models multiply the code, so that its values have about unit deviation.
    """

    size: int = 0
    channels: int = 3
    width: int = 128
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    groups: int = 32
    latent: int = 4
    scaling: float = 0.18215

    @property
    def levels(self) -> Levels:
        """The part of it that encoder and decoder share."""
        return Levels(self.channels, self.width, self.multiples, self.blocks, self.attention, True, self.groups)


# --- network -----------------------------------------------------------------------------------------------------------


class Posterior(NamedTuple):
    """q(z | x): a normal distribution for every value of the code, mean and log-variance (B, D, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Noise | Tensor) -> Float[Tensor, "B D h w"]:
        """mean + deviation x noise, which is a stream for every picture or standard normal numbers of the code's shape."""
        if isinstance(noise, Noise):
            if len(noise) != len(self.mean):
                raise UsageError(f"kl: {len(self.mean)} pictures need noise of as many samples, found {len(noise)}")
            noise = noise.normal(*self.mean.shape[1:])
        return self.mean + (self.logvar / 2).exp() * noise.to(self.mean)

    def kl(self) -> Float[Tensor, "B"]:
        """KL(q || N(0, 1)) in nats, summed over the values of a code."""
        return (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1) / 2


class AutoencoderKL(nn.Module):
    """Pictures as maps of `channels` numbers, one place for `stride` x `stride` pixels, and back.

    `forward` returns the reconstruction (B, C, H, W) in [-1, 1] from the mean of the code.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, levels = config, config.levels
        self.stride, self.channels, self.scaling = levels.stride, config.latent, config.scaling
        self.prepare = preparation(config.size, config.channels, self.stride)
        self.encoder, self.decoder = Encoder(levels, 2 * config.latent), Decoder(levels, config.latent)
        self.quant_conv = nn.Conv2d(2 * config.latent, 2 * config.latent, 1)
        self.post_quant_conv = nn.Conv2d(config.latent, config.latent, 1)

    def posterior(self, pixels: Float[Tensor, "B C H W"]) -> Posterior:
        """The distribution of the code; log-variances are kept in -30..20. UsageError for sides that are no multiples of `stride`."""
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, 1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def encode(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The code's mean, not scaled."""
        return self.posterior(pixels).mean

    def decode(self, latents: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Pixels from a code that is not scaled."""
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        return self.decode(self.encode(pixels))

    def results(self, out: Float[Tensor, "B C H W"], images: Images) -> list[Picture]:
        """The restored pictures, of the size that the network saw, without padding."""
        return restored(out, images, self.prepare)


NETWORK = AutoencoderKL


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(
    network: AutoencoderKL, *, penalty: float = 1e-6, perceptual: Distance | None = None, perceptual_weight: float = 1.0,
    start: int = 50_001, weight: float = 0.5, layers: int = 3, filters: int = 64,
) -> Restoration:  # fmt: skip
    """Distance, summed over a picture, + `penalty` x KL + the game (eq. 25). `perceptual`: a distance such as LPIPS, None = none;
    the discriminator of `layers` and `filters` joins in at step `start` with `weight`."""

    def restore(pixels: Tensor, noise: Tensor | None) -> Restored:
        posterior = network.posterior(pixels)
        found = network.decode(posterior.sample(torch.randn_like(posterior.mean) if noise is None else noise))
        nats = posterior.kl()
        return Restored(found, nats, {"nats": nats.detach().mean(), "deviation": posterior.mean.detach().std()})

    return Restoration(
        network, restore, penalty=penalty, per_picture=True, perceptual=perceptual, perceptual_weight=perceptual_weight,
        start=start, weight=weight, layers=layers, filters=filters,
    )  # fmt: skip


# --- variants and weights ------------------------------------------------------------------------------------------------

# models/first_stage_models of latent-diffusion; the scale of the latents is known for those that diffusion models were published with
VARIANTS: dict[str, Config] = {
    "tiny": Config(16, 1, 16, (1, 2, 4), 1, (), 8, latent=1, scaling=1.0),
    "f4": Config(multiples=(1, 2, 4), latent=3, scaling=1.0),
    "f8": Config(),
    "f16": Config(multiples=(1, 1, 2, 2, 4), attention=(4,), latent=16, scaling=1.0),
    "f32": Config(multiples=(1, 1, 2, 2, 4, 4), attention=(4, 5), latent=64, scaling=1.0),
    "sdxl": Config(scaling=0.13025),
}
OVERFIT = {"observable": "restored", "samples": 4, "lr": 4e-3, "options": {"start": 1, "layers": 1, "filters": 8, "weight": 0.1}}
PARAMETERS: dict[str, int] = {}
FORMATS: dict[str, Names] = {
    "ldm": ldm(),
    # a whole Stable Diffusion file: U-Net, text encoder and schedule are left out
    "stable-diffusion": ldm(r"first_stage_model\.", r"(?!first_stage_model\.).+"),
    "diffusers-f4": diffusers(3),
    "diffusers-f8": diffusers(4),
    "diffusers-f16": diffusers(5),
}
FORMATS["diffusers-f8-old"] = FORMATS["diffusers-f8"]  # attention as query, key, value and proj_attn: the same table
WEIGHTS: dict[str, Weights] = {}
