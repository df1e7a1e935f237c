"""A toy adversarial pair: two networks, alternating phases at 5:1, a Sampler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opticus.structures import Batch, Noise, Prepare, Progress, Task

TASK: Task = "generate"
PREPARE = Prepare(channels=1, resize="fixed", size=(28, 28), mean=(0.5,), std=(0.5,))


@dataclass(frozen=True)
class Config:
    width: int = 16
    latent: int = 8


class Maker(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Sequential(
            nn.Linear(config.latent, config.width), nn.BatchNorm1d(config.width), nn.ReLU(), nn.Linear(config.width, 784)
        )

    def forward(self, latents: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.body(latents).tanh().view(-1, 1, 28, 28)

    def sample(self, noise: Noise, *, condition: Any = None, steps: int | None = None) -> Tensor:
        return self(noise.normal(self.config.latent))


class Adversarial(nn.Module):
    def __init__(self, network: Maker) -> None:
        super().__init__()
        self.network = network
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros(2, dtype=torch.int64))

    def phases(self, step: int) -> tuple[str, ...]:
        return ("d", "g") if step % 5 == 4 else ("d",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        return (self.discriminator if phase == "d" else self.network).parameters()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        assert batch.images is not None
        real = batch.images.pixels
        fake = self.network(torch.randn(len(real), self.network.config.latent, dtype=real.dtype, device=real.device))
        if at.phase == "g":
            return {"g/fool": F.softplus(-self.discriminator(fake)).mean()}
        return {
            "d/real": F.softplus(-self.discriminator(real)).mean(),
            "d/fake": F.softplus(self.discriminator(fake.detach())).mean(),
        }

    def before_update(self, at: Progress) -> None:
        frozen = self.network if at.phase == "d" else self.discriminator
        assert all(p.grad is None for p in frozen.parameters()), "the other phase's parameters must stay untouched"

    def after_step(self, at: Progress) -> None:
        self.updates[0 if at.phase == "d" else 1] += 1


def evaluate(network: Maker, data: Any) -> tuple[dict[str, float], dict[str, Any]]:
    real = torch.stack([data[i].picture.pixels for i in range(64)]).float().mean() / 127.5 - 1
    fake = network.sample(Noise(0, 64)).mean()
    return {"gap": float((real - fake).abs())}, {"metric": "mean grey level", "samples": 64}


HEADLINE, LOWER_IS_BETTER = "gap", True
VARIANTS = {"tiny": Config()}
NETWORK = Maker
FORMATS: dict[str, Any] = {}
WEIGHTS: dict[str, Any] = {}
PARAMETERS: dict[str, int] = {}
objective = Adversarial
