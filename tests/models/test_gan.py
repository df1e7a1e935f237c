"""The original GAN: points, samples as a function of their noise, and why its authors maximise log D instead."""

from __future__ import annotations

import pytest
import torch

from opticus import zoo
from opticus.losses.adversarial import rule
from opticus.structures import Latent, Noise, Sampler, UsageError


def test_samples_belong_to_their_noise_and_leave_the_mode_alone() -> None:
    torch.manual_seed(0)
    network = zoo.create("gan/tiny").train()
    assert isinstance(network, Sampler) and isinstance(network, Latent)
    many, one = network.sample(Noise(3, 4)), network.sample(Noise(3, 1, first=2))
    assert tuple(many.shape) == (4, 1, 16, 16) and network.training
    torch.testing.assert_close(many[2:3], one)
    torch.testing.assert_close(network.render(network.latents(Noise(3, 4))), many)
    assert float(many.abs().max()) <= 1 and not many.requires_grad
    with pytest.raises(UsageError, match="gan: pictures are drawn without a condition and in one step"):
        network.sample(Noise(0, 1), steps=3)


def test_points_are_pictures_of_one_pixel_without_norms() -> None:
    network = zoo.create("gan/points", channels=3)
    assert tuple(network.sample(Noise(0, 5)).shape) == (5, 3, 1, 1)
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.Tanh)]
    with pytest.raises(UsageError, match="'points' with size 1, found 'points' with size 16"):
        zoo.create("gan/tiny", layout="points")


def test_minimax_tells_nothing_where_the_discriminator_is_sure() -> None:
    """Section 3: log(1 - D) saturates where D rejects with high confidence, log D does not."""
    found = {}
    for name in ("minimax", "logistic"):
        score = torch.tensor([[-8.0]], requires_grad=True)
        rule(name).generator(score).sum().backward()
        assert score.grad is not None
        found[name] = -float(score.grad)
    assert found["minimax"] == pytest.approx(float(torch.sigmoid(torch.tensor(-8.0))), rel=1e-4)
    assert found["logistic"] == pytest.approx(1.0, abs=1e-3)


def test_at_the_optimum_the_game_is_worth_two_log_two() -> None:
    """Theorem 1: for p_g = p_data the best D is 1/2 everywhere, and the discriminator loses log 4."""
    score = torch.zeros(7, 1)
    assert float((rule("minimax").real(score) + rule("minimax").fake(score)).mean()) == pytest.approx(2 * 0.6931472)
