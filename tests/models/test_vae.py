"""The VAE's equations against distributions and integrals that are known, its chance, and bad settings."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from opticus import zoo
from opticus.models.generative.vae import VAE, Posterior, divergence, gaussian_levels, objective, reparameterised
from opticus.recipes import vae as recipes
from opticus.structures import (
    Autoencoder,
    Batch,
    Density,
    Images,
    Latent,
    Noise,
    Progress,
    Sampler,
    UnknownNameError,
    UsageError,
)

AT = Progress(0, 0, 1, 1)


def network_of(name: str = "tiny", **changes: Any) -> VAE:
    torch.manual_seed(0)
    return cast(VAE, zoo.create(f"vae/{name}", **changes)).double().eval()


def some(network: VAE, count: int = 3) -> Tensor:
    """Pictures whose pixels are 8-bit levels."""
    levels = torch.randint(256, (count, *network.config.shape), generator=torch.Generator().manual_seed(0)).double()
    return levels / 255 if network.config.likelihood == "bernoulli" else levels / 127.5 - 1


def batch(pixels: Tensor) -> Batch:
    count = len(pixels)
    images = Images(pixels, None, torch.eye(3).expand(count, 3, 3), ((16, 16),) * count)
    return Batch(images, (None,) * count, tuple(str(i) for i in range(count)))


# --- equations -----------------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_distributions() -> None:
    found = Posterior(torch.randn(5, 7).double(), torch.randn(5, 7).double())
    wanted = kl_divergence(Normal(found.mean, (0.5 * found.log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(found), wanted)


def test_reparameterised_codes_have_the_posteriors_moments() -> None:
    found = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9.0)]]))
    codes = reparameterised(found, torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(codes.mean(0), torch.tensor([1.0, -2.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(codes.std(0), torch.tensor([1.0, 3.0]), atol=0.03, rtol=0)


@pytest.mark.parametrize("deviation", [0.005, 0.1, 2.0])
@pytest.mark.parametrize("centre", [-1.0, 0.123, 0.99])
def test_probabilities_of_levels_sum_to_one(deviation: float, centre: float) -> None:
    levels = torch.arange(256)
    found = gaussian_levels(levels[None], torch.full((1, 256), centre).double(), torch.tensor(deviation).double())[0]
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-9)
    normal = Normal(centre, deviation)
    middle = levels[1:-1].double() / 127.5 - 1
    wanted = normal.cdf(middle + 1 / 255) - normal.cdf(middle - 1 / 255)
    torch.testing.assert_close(found[1:-1].exp(), wanted, atol=1e-12, rtol=1e-6)


def test_levels_far_from_the_centre_keep_their_digits() -> None:
    """Forty deviations away the difference of two cumulated probabilities is 0; its logarithm must not be infinite."""
    near, far = (gaussian_levels(torch.tensor([[255 - k, k]]), torch.zeros(1, 2), torch.tensor(0.02))[0] for k in (100, 40))
    assert bool(torch.isfinite(near).all() and torch.isfinite(far).all())
    torch.testing.assert_close(far[0], far[1], rtol=1e-4, atol=0)  # as far above as below
    assert float(far[0]) < -400 < float(near[0]) < -50


@pytest.mark.parametrize("name", ["tiny", "tiny-bernoulli", "tiny-conv"])
def test_the_training_bound_is_eq_10(name: str) -> None:
    network = network_of(name)
    pixels, chance = some(network), torch.randn(3, network.config.code).double()
    error, apart = network.bound(pixels, chance)
    found = network.posterior(pixels)
    drawn = network.decode(reparameterised(found, chance))
    if network.config.likelihood == "bernoulli":
        wanted = -(pixels * drawn.log() + (1 - pixels) * (1 - drawn).log())
    else:
        wanted = -Normal(drawn, network.deviation()).log_prob(pixels)
    torch.testing.assert_close(error, wanted.flatten(1).mean(1))
    torch.testing.assert_close(apart, divergence(found) / 256)
    terms = objective(network, beta=3.0).terms(pixels, chance, batch(pixels))
    torch.testing.assert_close(terms["divergence"], 3 * apart.mean())


@pytest.mark.parametrize(("name", "changes"), [("tiny", {"deviation": 1.0}), ("tiny-bernoulli", {})])
def test_the_estimates_bound_the_integral_over_codes(name: str, changes: dict[str, Any]) -> None:
    """With a code of one number log p(x) is an integral that can be summed up."""
    network = network_of(name, code=1, **changes)
    pixels = some(network)
    grid = torch.linspace(-8, 8, 4001).double()
    joint = torch.stack(
        [network.log_probability(network.levels(pixels), z.expand(3, 1)) + Normal(0.0, 1.0).log_prob(z) for z in grid]
    )
    true = joint.logsumexp(0) + math.log(16 / 4000)
    with torch.no_grad():
        bound, close = network.log_likelihood(pixels, samples=400), network.importance_weighted(pixels, samples=4000)
    torch.testing.assert_close(close, true, atol=0.05, rtol=0)
    assert bool((bound < true + 0.02).all())


def test_a_code_that_says_nothing_leaves_the_likelihood_exact() -> None:
    """q = p(z) and a decoder that ignores z: bound, weighted estimate and log p(x) are one."""
    network = network_of()
    with torch.no_grad():
        for part in (network.encoder.fc_mu, network.encoder.fc_var):
            part.weight.zero_()
            part.bias.zero_()
        cast(Any, network.decoder).layers[0].weight.zero_()
        pixels = some(network)
        true = network.log_probability(network.levels(pixels), torch.zeros(3, 16).double())
        torch.testing.assert_close(network.log_likelihood(pixels), true)
        torch.testing.assert_close(network.importance_weighted(pixels), true)


def test_levels_are_those_of_the_picture() -> None:
    network = network_of()
    pixels = some(network)
    assert torch.equal(network.levels(pixels), ((pixels + 1) * 127.5).round().long().flatten(1))
    binary = network_of("tiny-bernoulli")
    assert set(binary.levels(some(binary)).unique().tolist()) == {0, 1} and binary.config.levels == 2
    assert binary.prepare.mean == (0.0,) and network.prepare.mean == (0.5,)


# --- chance --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-bernoulli", "tiny-conv"])
def test_samples_belong_to_their_index_and_stay_in_range(name: str) -> None:
    network = network_of(name).train()
    assert isinstance(network, Sampler) and isinstance(network, Latent)
    assert isinstance(network, Density) and isinstance(network, Autoencoder)
    many, one = network.sample(Noise(1, 4)), network.sample(Noise(1, 1, first=2))
    torch.testing.assert_close(many[2:3], one)
    assert network.training, "drawing leaves the mode as it was"
    low = 0 if network.config.likelihood == "bernoulli" else -1
    assert many.shape == (4, 1, 16, 16) and low <= float(many.min()) and float(many.max()) <= 1
    torch.testing.assert_close(network.render(network.latents(Noise(1, 4))), many)
    assert network.latents(Noise(0, 2000)).std().item() == pytest.approx(1, abs=0.03)


def test_a_likelihood_does_not_depend_on_the_batch() -> None:
    network = network_of()
    pixels = some(network)
    with torch.no_grad():
        for estimate in (network.log_likelihood, network.importance_weighted):
            torch.testing.assert_close(estimate(pixels)[1:2], estimate(pixels[1:2]))


# --- bad settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 10, "layout": "convolutional"}, "size 10 must be a multiple of 4"),
        ({"widths": ()}, "one width at least"),
        ({"deviation": 0.0}, "deviation must be positive"),
        ({"deviation": 0.1, "likelihood": "bernoulli"}, "is for the gaussian likelihood"),
    ],
)
def test_bad_configurations_are_sentences(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        network_of(**changes)


def test_bad_words_and_shapes_are_named() -> None:
    with pytest.raises(UnknownNameError, match="gaussian"):
        network_of(likelihood="gausian")
    network = network_of()
    with pytest.raises(UsageError, match=r"shape \(1, 16, 16\), found \(1, 8, 8\)"):
        network.encode(torch.zeros(2, 1, 8, 8).double())
    with pytest.raises(UsageError, match=r"shape \(B, 16\), found \(2, 3\)"):
        network.decode(torch.zeros(2, 3).double())
    with pytest.raises(UsageError, match="found condition None and steps 5"):
        network.sample(Noise(0, 1), steps=5)
    for estimate in (network.log_likelihood, network.importance_weighted):
        with pytest.raises(UsageError, match="samples=0"):
            estimate(some(network), samples=0)
    with pytest.raises(UsageError, match="beta must not be negative"):
        objective(network, beta=-1.0)


def test_a_posterior_that_equals_the_prior_is_noticed() -> None:
    network = network_of()
    method = objective(network)
    method.forward(batch(some(network)), AT)
    assert method.alarm(method.figures()) is None
    with torch.no_grad():
        for part in (network.encoder.fc_mu, network.encoder.fc_var):
            part.weight.zero_()
            part.bias.zero_()
    method.forward(batch(some(network)), AT)
    assert method.figures()["divergence"] == 0 and "codes say nothing" in cast(str, method.alarm(method.figures()))


def test_recipes() -> None:
    assert recipes.small().options == {"beta": 8.0} and recipes.small("vae/tiny-bernoulli").options == {"beta": 1.0}
    assert recipes.small(beta=2.0).options == {"beta": 2.0}
    # the reference's loss, squared error + 0.00025 KL, is the bound times 2 deviation^2 / 12,288
    assert 2 * network_of("64").deviation().item() ** 2 / 12_288 == pytest.approx(0.00025)
