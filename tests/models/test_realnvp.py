"""Real NVP: an exact inverse and log-determinant, masks, the density of levels, points with a known density, bad settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.losses import dequantise
from opticus.models.generative.realnvp import RealNVP, checkerboard, collect, deal, squeeze, unsqueeze
from opticus.structures import Density, Latent, Noise, Sampler, UsageError

SMALL: dict[str, Any] = {"size": 8, "channels": 1, "width": 6, "blocks": 1, "scales": 2}


def small(**changes: Any) -> RealNVP:
    """A small network that is far from the identity."""
    torch.manual_seed(0)
    network = zoo.create("realnvp/tiny", **{**SMALL, **changes})
    assert isinstance(network, RealNVP)
    return network.double().eval()


def grey(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(shape, dtype=torch.float64) * 1.9 - 0.95


@pytest.mark.parametrize("changes", [{}, {"scales": 3, "channels": 3}, {"scales": 1}], ids=["two scales", "three, colour", "one"])
def test_the_inverse_is_exact(changes: dict[str, Any]) -> None:
    network = small(**changes)
    pixels = grey(3, *network.shape)
    with torch.no_grad():
        latents = network(pixels).latents
        assert float((network.inverse(latents) - pixels).abs().max()) < 1e-9
        assert float((latents - pixels).abs().max()) > 0.1
        single = network.float()
        error = (single.inverse(single(pixels.float()).latents) - pixels.float()).abs().max()
    assert float(error) < 1e-4


def test_the_log_determinant_is_that_of_the_jacobian() -> None:
    network = small(size=4, scales=2)
    pixels = grey(2, 1, 4, 4)
    found = network(pixels).log_det.detach()
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None]).latents[0], pixels[i])
        assert isinstance(jacobian, Tensor)
        assert float(torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet) == pytest.approx(float(found[i]), abs=1e-8)


def test_half_of_the_values_leave_after_the_first_scale() -> None:
    """With two scales, the latents of a checkerboard's half do not pass the second scale."""
    network = small()
    pixels = grey(1, *network.shape)
    before = network(pixels).latents
    nn.init.normal_(network.flow.get_parameter("scales.1.in_couplings.0.st_net.out_conv.weight_v"))
    moved = (network(pixels).latents - before).abs()[0, 0] > 1e-9
    assert not moved[checkerboard(pixels, False) == 1].any() and moved[checkerboard(pixels, True) == 1].any()


def test_squeezing() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert squeeze(x)[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert deal(squeeze(x))[0, :, 0, 0].tolist() == [0, 5, 1, 4]
    assert torch.equal(unsqueeze(collect(deal(squeeze(x)))), x)
    assert checkerboard(x, False).tolist()[0] == [0, 1, 0, 1]


def test_the_density_of_points_integrates_to_one() -> None:
    network = zoo.create("realnvp/points", width=8, scales=2).double().eval()
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = float(network.log_likelihood(points).exp().sum()) * 0.05**2
        again = network.inverse(network(points[:50]).latents)
    assert mass == pytest.approx(1, abs=1e-3)
    assert float((again - points[:50]).abs().max()) < 1e-9


def test_levels_are_bins_of_the_eight_bits() -> None:
    bytes_ = torch.arange(256.0)
    pixels = bytes_ / 127.5 - 1
    assert torch.equal(dequantise.levels_of(pixels.view(1, 1, 16, 16), 256)[0], torch.arange(256))
    assert torch.equal(dequantise.levels_of(pixels.view(1, 1, 16, 16), 32)[0], torch.arange(256) // 8)
    low, high = (dequantise.spread(pixels.view(1, 1, 16, 16), 32, torch.full((), u)).flatten() for u in (0.0, 1.0))
    torch.testing.assert_close(high - low, torch.full((256,), dequantise.width(32)))
    torch.testing.assert_close(dequantise.from_unit(dequantise.unit(pixels)), pixels)
    places = torch.stack([dequantise.fixed_uniform(torch.zeros(1, 1, 16, 16), i, 4) for i in range(4)])
    assert float(places.min()) >= 0 and float(places.max()) < 1
    torch.testing.assert_close(places.sort(0).values.diff(dim=0), torch.full((3, 1, 16, 16), 0.25))


def test_the_likelihood_is_that_of_levels() -> None:
    """Of a network whose density of one pixel value is known, the estimate of the bound is near the integral over the bin."""
    network = small(size=4, scales=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_() if parameter.ndim < 2 else None
        for name, parameter in network.named_parameters():
            if name.endswith(("out_conv.weight_g", "rescale.weight_g")):
                parameter.zero_()
        pixels = (torch.tensor([0, 40, 128, 255.0], dtype=torch.float64) / 127.5 - 1).repeat(4).view(1, 1, 4, 4)
        found = float(network.log_likelihood(pixels, draws=8))
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)
    edges = (0.05 + 0.9 * torch.tensor([[0, 1], [40, 41], [128, 129], [255, 256]], dtype=torch.float64) / 256).logit()
    exact = 4 * float((normal.cdf(edges[:, 1]) - normal.cdf(edges[:, 0])).log().sum())
    assert found == pytest.approx(exact, abs=0.01)


def test_it_draws_by_the_noise_alone() -> None:
    network = small().float()
    assert isinstance(network, Sampler) and isinstance(network, Latent) and isinstance(network, Density)
    many, one = network.sample(Noise(3, 4)), network.sample(Noise(3, 1, first=2))
    torch.testing.assert_close(many[2:3], one, atol=1e-5, rtol=1e-5)
    assert float(many.abs().max()) <= 1
    cold = network.sample(Noise(3, 4), temperature=0.01)
    assert float(cold.std(0).mean()) < 0.2 * float(many.std(0).mean())


@pytest.mark.parametrize(
    "changes",
    [{"alpha": 0.5}, {"levels": 100}, {"size": 10}, {"layout": "points", "channels": 3}, {"scales": 0}],
    ids=lambda c: next(iter(c)),
)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="realnvp"):
        zoo.create("realnvp/tiny", **changes)


def test_bad_calls_are_refused() -> None:
    network = small()
    with pytest.raises(UsageError, match=r"must have shape \(1, 8, 8\), found \(1, 9, 8\)"):
        network(grey(1, 1, 9, 8))
    with pytest.raises(UsageError, match="steps"):
        network.sample(Noise(0, 1), steps=4)
    with pytest.raises(UsageError, match="temperature"):
        network.sample(Noise(0, 1), temperature=0)


def test_a_gaussian_is_learned_exactly() -> None:
    """Points of a correlated Gaussian: the likelihood nears the true entropy."""
    torch.manual_seed(0)
    network = zoo.create("realnvp/points", width=16, blocks=1, scales=2)
    factor = torch.tensor([[1.0, 0.0], [1.5, 0.5]])
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(300):
        loss = -network.log_likelihood(torch.randn(256, 2) @ factor.T).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    entropy = math.log(2 * math.pi * math.e) + float(factor.det().log())
    with torch.no_grad():
        found = -float(network.log_likelihood(torch.randn(20000, 2) @ factor.T).mean())
    assert found == pytest.approx(entropy, abs=0.08)
