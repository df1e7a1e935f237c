"""The adversarial objective: a network that draws, a discriminator that scores, and what each is told, in turns.

Goodfellow et al. 2014 (arXiv 1406.2661), algorithm 1; the options are of Salimans 2016 (one-sided label smoothing, 1606.03498), Arjovsky
and Bottou 2017 (instance noise, 1701.04862), Gulrajani 2017 (gradient penalty, 1704.00028), Miyato 2018 (spectral normalisation,
1802.05957) and Mescheder 2018 (R1, 1801.04406).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from opticus.losses import adversarial
from opticus.losses.adversarial import Rule
from opticus.losses.pathologies import WARNS, Health
from opticus.losses.pictures import mean, pixels_of
from opticus.structures import Batch, Progress, UsageError


@dataclass(frozen=True)
class Play:
    """How the two are trained.

    `loss` names the losses (`losses.adversarial.RULES`). `critics` discriminator updates come before each turn of the generator, which
    makes `favour` updates from step `favour_from` on, one before. `smoothing` takes so much from the label of real pictures,
    `instance_noise` is the deviation at first (0 at the end) of noise on all pictures, `r1` and `penalty` weigh the discriminator's
    gradient penalties, `spectral` bounds its layers. `modes` (points, apart by more than `near`) are what the data is known to have.
    """

    loss: str = "logistic"
    critics: int = 1
    favour: int = 1
    favour_from: int = 0
    smoothing: float = 0.0
    instance_noise: float = 0.0
    r1: float = 0.0
    penalty: float = 0.0
    spectral: bool = False
    modes: Sequence[Sequence[float]] = ()
    near: float = 0.0

    def __post_init__(self) -> None:
        adversarial.rule(self.loss)
        for name in ("critics", "favour"):
            if getattr(self, name) != int(getattr(self, name)) or getattr(self, name) < 1:
                raise UsageError(f"{name} must be a whole number, at least 1, found {getattr(self, name)}")
        for name in ("favour_from", "smoothing", "instance_noise", "r1", "penalty", "near"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least 0, found {getattr(self, name)}")
        if self.smoothing >= 0.5:
            raise UsageError(f"smoothing must be below 0.5, found {self.smoothing}: real pictures would be called fake")


class TwoPlayers(nn.Module):
    """Phases "d" and "g" of every step: the discriminator on real and freshly drawn pictures, then the generator on further ones.

    `network` maps latents (B, network.config.latent) to pictures, `discriminator` pictures to scores (B, ...), the higher the more real.
    `rule` replaces the losses that `play.loss` names; `further(fake)` are more terms of the generator, one value per picture.
    """

    warns = WARNS

    def __init__(
        self, network: nn.Module, discriminator: nn.Module, play: Play, *, rule: Rule | None = None,
        further: Callable[[nn.Module, Tensor], Mapping[str, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.discriminator, self.play = network, discriminator, play
        self.rule = adversarial.rule(play.loss) if rule is None else rule
        self.further = further
        if play.spectral:
            for layer in list(discriminator.modules()):
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    spectral_norm(layer)
        config = cast(Any, network.config)
        self.latent = int(config.latent)
        self.health = Health((config.channels, config.size, config.size), modes=play.modes, near=play.near)
        self._fake: Tensor | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """The discriminator at every step; the generator at every `critics`-th one, `favour` times once it is favoured."""
        if (step + 1) % self.play.critics:
            return ("d",)
        return ("d", *("g",) * (self.play.favour if step >= self.play.favour_from else 1))

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The discriminator's in "d", the network's in "g"."""
        return (self.discriminator if phase == "d" else self.network).parameters()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The terms of one phase, means of one value per picture."""
        real = pixels_of(batch)
        if at.phase == "g":
            return self.generator_terms(self.draw(real), batch, at)
        with torch.no_grad():
            fake = self.draw(real)
        share = torch.rand(len(real), dtype=real.dtype, device=real.device) if self.play.penalty else None
        return self.discriminator_terms(real, fake, share, batch, at)

    def draw(self, like: Tensor) -> Tensor:
        """As many pictures as `like` has, from torch's generator."""
        return self.network(torch.randn(len(like), self.latent, dtype=like.dtype, device=like.device))

    def discriminator_terms(
        self, real: Tensor, fake: Tensor, share: Tensor | None, batch: Batch, at: Progress
    ) -> dict[str, Tensor]:
        """Losses on real and drawn pictures and the penalties; `share` (B,) in [0, 1] is where between them the gradient is looked at."""
        play = self.play
        shown, drawn = self._noisy(real, at), self._noisy(fake, at)
        scores, others = self.discriminator(shown), self.discriminator(drawn)
        self.health.saw(real, fake, scores, others)
        each = self.rule.real(scores)
        if play.smoothing:
            each = (1 - play.smoothing) * each + play.smoothing * self.rule.fake(scores)
        terms = {"d/real": mean(each, batch), "d/fake": mean(self.rule.fake(others), batch)}
        if play.penalty and share is not None:
            terms["d/penalty"] = play.penalty * mean(adversarial.gradient_penalty(self.discriminator, shown, drawn, share), batch)
        if play.r1:
            terms["d/r1"] = play.r1 * mean(adversarial.r1(self.discriminator, shown), batch)
        return terms

    def generator_terms(self, fake: Tensor, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """What the generator loses on pictures that it drew with gradients."""
        self._fake = fake.detach()
        shown = self._noisy(fake, at)
        terms = {"g/fool": mean(self.rule.generator(self.discriminator(shown)), batch)}
        if self.further is not None:
            terms |= {f"g/{name}": mean(values, batch) for name, values in self.further(self.discriminator, shown).items()}
        return terms

    def _noisy(self, pictures: Tensor, at: Progress) -> Tensor:
        deviation = self.play.instance_noise * (1 - at.fraction)
        return pictures + deviation * torch.randn_like(pictures) if deviation else pictures

    @torch.no_grad()
    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The discriminator's scores (B,) of a batch's pictures and of as many drawn ones, each lot judged by itself as in training."""
        real = pixels_of(batch)
        fake = self.draw(real)
        training = self.discriminator.training
        self.discriminator.train()  # its norms know no running statistics that hold for real and for drawn pictures
        scores = tuple(adversarial.per_picture(self.discriminator(pictures)).flatten() for pictures in (real, fake))
        self.discriminator.train(training)
        return scores[0], scores[1]

    def before_update(self, at: Progress) -> None:
        """Looks at the generator's gradient and at what it drew."""
        if at.phase == "g" and self._fake is not None:
            self.health.drew(self._fake, self.network.parameters())

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """How the two are (`losses.pathologies.Health`)."""
        return self.health.figures()

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Mode collapse, vanishing gradient or oscillation."""
        return self.health.alarm(figures)


def latents_like(pixels: Tensor, count: int) -> Tensor:
    """Latents (B, count) made of pictures, without chance: what stands in for a generator's input where only pictures are at hand."""
    flat = pixels.flatten(1)
    return flat.repeat(1, -(-count // flat.shape[1]))[:, :count]
