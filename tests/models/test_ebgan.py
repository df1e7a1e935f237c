"""EBGAN: energies with a margin (equations 1 and 2) and the pulling-away term (equation 4)."""

from __future__ import annotations

import pytest
import torch

from opticus import zoo
from opticus.models.generative.ebgan import energies, pulling_away
from opticus.structures import Noise, UsageError


def test_energies_are_errors_of_reconstruction() -> None:
    torch.manual_seed(0)
    network = zoo.create("ebgan/tiny")
    discriminator = zoo.paper("ebgan").objective(network).discriminator.eval()
    pixels = network.sample(Noise(0, 3))
    with torch.no_grad():
        again = discriminator.decode(discriminator.encode(pixels))
        scores = discriminator(pixels)
    assert again.shape == pixels.shape and tuple(scores.shape) == (3,)
    for score, one, other in zip(scores, again, pixels):
        assert float(score) == pytest.approx(-float((one - other).square().mean()), rel=1e-5)


def test_the_margin_holds_for_every_picture_alone() -> None:
    scores = -torch.tensor([0.2, 3.0])
    rule = energies(1.0)
    assert rule.real(scores).tolist() == pytest.approx([0.2, 3.0])
    assert rule.fake(scores).tolist() == pytest.approx([0.8, 0.0])
    assert rule.generator(scores).tolist() == pytest.approx([0.2, 3.0])


def test_pulling_away_is_the_mean_squared_cosine() -> None:
    codes = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 3.0]])
    assert pulling_away(codes).tolist() == pytest.approx([0.25, 0.25, 0.5])
    torch.testing.assert_close(pulling_away(-3 * codes), pulling_away(codes))
    written_out = sum(float(torch.cosine_similarity(codes[i], codes[j], 0) ** 2) for i in range(3) for j in range(3) if i != j) / (
        3 * 2
    )
    assert float(pulling_away(codes).mean()) == pytest.approx(written_out, rel=1e-5)
    with pytest.raises(UsageError, match="at least two pictures"):
        pulling_away(codes[:1])


def test_bad_settings_are_refused() -> None:
    network = zoo.create("ebgan/tiny")
    objective = zoo.paper("ebgan").objective
    with pytest.raises(UsageError, match="margin must be positive"):
        objective(network, margin=0.0)
    with pytest.raises(UsageError, match="leave loss= away"):
        objective(network, loss="hinge")
    with pytest.raises(UsageError, match="size must be a multiple of 4"):
        zoo.create("ebgan/tiny", size=18)
