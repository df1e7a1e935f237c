"""Adversarial training: one step of DCGAN at 64x64, both networks updated, against the loop of pytorch/examples in plain torch.nn.

The example is a script, not a package: its two networks and its loop body are written out here from what it does (a sigmoid in the
discriminator, binary cross-entropy, one batch of drawn pictures for both updates, gradients of the discriminator left over from the
generator's update). Both sides hold the same weights, and their first discriminator losses are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import SMALL_ROUNDS, Row, images_of, medians, row, same
from opticus import zoo
from opticus.structures import Batch, Progress

BATCH, LATENT, SIDE = 16, 100, 64
ADAM: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999)}


def peers() -> tuple[nn.Sequential, nn.Sequential]:
    """Generator and discriminator: five layers each between 4x4 and 64x64, widths 512, 256, 128, 64."""
    drawing: list[nn.Module] = []
    for before, after, stride in ((LATENT, 512, 1), (512, 256, 2), (256, 128, 2), (128, 64, 2)):
        drawing += [nn.ConvTranspose2d(before, after, 4, stride, stride - 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True)]
    drawing += [nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh()]
    judging: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for width in (64, 128, 256):
        judging += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*drawing), nn.Sequential(*judging, nn.Conv2d(512, 1, 4, 1, 0, bias=False), nn.Sigmoid())


def peer_step(generator: nn.Module, discriminator: nn.Module, real: Tensor) -> Callable[[], float]:
    optimisers = [torch.optim.Adam(module.parameters(), **ADAM) for module in (discriminator, generator)]

    def step() -> float:
        discriminator.zero_grad()
        on_real = F.binary_cross_entropy(discriminator(real).flatten(), torch.ones(len(real)))
        on_real.backward()
        fake = generator(torch.randn(len(real), LATENT, 1, 1))
        on_fake = F.binary_cross_entropy(discriminator(fake.detach()).flatten(), torch.zeros(len(real)))
        on_fake.backward()
        optimisers[0].step()
        generator.zero_grad()
        fooled = F.binary_cross_entropy(discriminator(fake).flatten(), torch.ones(len(real)))
        fooled.backward()
        optimisers[1].step()
        return float((on_real + on_fake).detach())

    return step


def our_step(objective: Any, real: Tensor) -> Callable[[], float]:
    """What `training.loop` does in a step, phase by phase."""
    sides = {"d": objective.discriminator, "g": objective.network}
    optimisers = {phase: torch.optim.Adam(module.parameters(), **ADAM) for phase, module in sides.items()}
    batch = Batch(images_of(real), (None,) * len(real), tuple(map(str, range(len(real)))))

    def step() -> float:
        found = 0.0
        for phase in objective.phases(0):
            at = Progress(0, 0, 1000, 1, phase)
            for name, module in sides.items():
                module.requires_grad_(name == phase)
            for optimiser in optimisers.values():
                optimiser.zero_grad()
            loss = torch.stack(list(objective(batch, at).values())).sum()
            loss.backward()
            objective.before_update(at)
            optimisers[phase].step()
            objective.after_step(at)
            found = float(loss.detach()) if phase == "d" else found
        return found

    return step


def run(rounds: int = SMALL_ROUNDS, show: Callable[[Row], Any] = lambda row: None) -> list[Row]:
    """The one row."""
    torch.manual_seed(0)
    objective = zoo.paper("dcgan").objective(zoo.create("dcgan/64")).train()
    generator, discriminator = peers()
    generator.load_state_dict({key.removeprefix("main."): value for key, value in objective.network.state_dict().items()})
    discriminator.load_state_dict({key.removeprefix("main."): v for key, v in objective.discriminator.state_dict().items()})
    real = torch.randn(BATCH, 3, SIDE, SIDE).clamp(-1, 1)
    ours, theirs = our_step(objective, real), peer_step(generator.train(), discriminator.train(), real)
    losses: list[float] = []
    for step in (ours, theirs):
        torch.manual_seed(1)
        losses.append(step())
    same("DCGAN's discriminator loss", [torch.tensor(losses[0])], [torch.tensor(losses[1])])
    times = medians({"ours": ours, "peer": theirs}, rounds)
    found = row(f"DCGAN 64x64, batch {BATCH}, training step", times["ours"], times["peer"], "pytorch/examples, written out")
    show(found)
    return [found]
