"""WGAN-GP: algorithm 1, a critic without batch norms, and the penalty of equation 3."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.losses.adversarial import gradient_penalty
from opticus.structures import Noise, UsageError


def test_five_critic_updates_before_each_of_the_generator() -> None:
    objective = zoo.paper("wgan").objective(zoo.create("wgan/tiny"))
    phases = [phase for step in range(10) for phase in objective.phases(step)]
    assert phases == (["d"] * 5 + ["g"]) * 2
    assert objective.play.penalty == 10.0


@pytest.mark.parametrize("name", ["wgan/tiny", "wgan/points"])
def test_the_critic_judges_every_picture_alone(name: str) -> None:
    network = zoo.create(name)
    critic = zoo.paper("wgan").objective(network).discriminator.double().train()
    assert not [m for m in critic.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    pixels = network.sample(Noise(0, 6)).double()
    torch.testing.assert_close(critic(pixels)[2:3], critic(pixels[2:3]))


def test_the_penalty_is_zero_for_slope_one_only() -> None:
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    real, fake, share = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64), torch.rand(5).double()
    for slope, expected in ((1.0, 0.0), (3.0, 4.0), (0.0, 1.0)):
        found = gradient_penalty(lambda x, slope=slope: slope * x @ direction, real, fake, share)
        torch.testing.assert_close(found, torch.full((5,), expected, dtype=torch.float64))


def test_layouts_are_checked() -> None:
    with pytest.raises(UsageError, match="'points' with size 1"):
        zoo.create("wgan/tiny", layout="points")
    with pytest.raises(UsageError, match="size must be a power of two, at least 8, found 20"):
        zoo.create("wgan/tiny", size=20)
