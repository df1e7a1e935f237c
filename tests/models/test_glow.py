"""Glow: an exact inverse and log-determinant, actnorm's first look, 1x1 convolutions, classes, bad settings and calls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.models.generative.glow import ActNorm, Glow, InvertibleConv, Likelihood, LUConv, initialise
from opticus.structures import Batch, Classes, DataError, Density, Images, Latent, Noise, Progress, Sampler, UsageError

SMALL: dict[str, Any] = {"size": 8, "scales": 2, "steps": 2, "width": 8, "classes": 0}


def small(**changes: Any) -> Glow:
    """A small network none of whose zeros are left."""
    torch.manual_seed(0)
    network = zoo.create("glow/tiny", **{**SMALL, **changes})
    assert isinstance(network, Glow)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1) if not bool(parameter.any()) else None
    return network.double().eval()


def grey(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(shape, dtype=torch.float64) * 1.9 - 0.95


VARIANTS = [{}, {"affine": False}, {"lu": False}, {"scales": 3, "channels": 3}, {"learnt_top": False, "scales": 1}]


@pytest.mark.parametrize("changes", VARIANTS, ids=["affine", "additive", "plain", "three scales", "one scale"])
def test_the_inverse_is_exact(changes: dict[str, Any]) -> None:
    network = small(**changes)
    pixels = grey(3, network.config.channels, 8, 8)
    with torch.no_grad():
        latents = network(pixels).latents
        assert latents.shape == (3, pixels[0].numel())
        assert float((network.inverse(latents) - pixels).abs().max()) < 1e-9
        single = network.float()
        assert float((single.inverse(single(pixels.float()).latents) - pixels.float()).abs().max()) < 1e-4


@pytest.mark.parametrize("changes", [{}, {"classes": 3, "lu": False}], ids=["plain", "a label"])
def test_the_log_determinant_is_that_of_the_jacobian(changes: dict[str, Any]) -> None:
    network = small(size=4, **changes)
    pixels, labels = grey(2, 1, 4, 4), torch.tensor([2, 0]) if changes else None
    found = network(pixels, labels).log_det.detach()
    for i in range(2):
        label = None if labels is None else labels[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda x, y=label: network(x[None], y).latents[0], pixels[i])
        assert isinstance(jacobian, Tensor)
        assert float(torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet) == pytest.approx(float(found[i]), abs=1e-8)


def test_actnorms_look_at_the_first_batch() -> None:
    """Afterwards every actnorm's output has mean 0 and deviation 1 on that batch; a trained network is left as it is."""
    torch.manual_seed(0)
    network = zoo.create("glow/tiny", **SMALL).double()
    assert isinstance(network, Glow)
    pixels = grey(16, 1, 8, 8)
    initialise(network, pixels)
    seen: list[tuple[float, float]] = []
    for norm in network.modules():
        if isinstance(norm, ActNorm):
            norm.register_forward_hook(
                lambda m, i, out: seen.append((float(out.mean((0, 2, 3)).abs().max()), float((out.std((0, 2, 3)) - 1).abs().max())))
            )
    network(pixels)
    assert len(seen) == 3 * 4 and all(centre < 1e-5 and deviation < 0.02 for centre, deviation in seen)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    Likelihood(network).forward(batch_of(grey(4, 1, 8, 8)), Progress(0, 0, 1, 1))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def batch_of(pixels: Tensor, labels: tuple[int, ...] = ()) -> Batch:
    n = len(pixels)
    images = Images(pixels, None, torch.eye(3).expand(n, 3, 3), ((8, 8),) * n)
    return Batch(images, tuple(Classes(torch.tensor([y])) for y in labels) or (None,) * n, tuple(f"picture {i}" for i in range(n)))


def test_decomposed_convolutions_are_rotations_at_first() -> None:
    for layer in (LUConv(6), InvertibleConv(6)):
        w = layer.matrix().detach()
        torch.testing.assert_close(w @ w.T, torch.eye(6), atol=1e-5, rtol=0)
        assert float(layer.log_det()) == pytest.approx(0, abs=1e-5)


def test_a_fresh_network_changes_no_volume_but_by_its_scales() -> None:
    """Zero-initialised convolutions: at first a coupling multiplies by sigmoid(2), and additive ones do nothing."""
    torch.manual_seed(0)
    network = zoo.create("glow/tiny", **SMALL, affine=False).double()
    found = float(network(grey(1, 1, 8, 8)).log_det)
    assert found == pytest.approx(64 * math.log(127.5 / 256), abs=1e-5)


def test_classes_are_summed_over() -> None:
    network = small(classes=3)
    pixels = grey(2, 1, 8, 8)
    with torch.no_grad():
        each = torch.stack([network.log_density(pixels, torch.full((2,), y)) for y in range(3)])
        assert float(each.std(0).min()) > 0.01
        torch.testing.assert_close(network.log_density(pixels), each.logsumexp(0) - math.log(3))


def test_drawing() -> None:
    network = small(classes=3).float()
    assert isinstance(network, Sampler) and isinstance(network, Latent) and isinstance(network, Density)
    many, one = network.sample(Noise(3, 4)), network.sample(Noise(3, 1, first=2))
    torch.testing.assert_close(many[2:3], one, atol=1e-5, rtol=1e-5)
    asked = network.sample(Noise(3, 4), condition=torch.tensor([0, 1, 2, 0]))
    assert asked.shape == (4, 1, 8, 8) and not torch.equal(asked, network.sample(Noise(3, 4), condition=torch.tensor([1, 2, 0, 1])))


def test_bad_settings_and_calls_are_refused() -> None:
    for changes in ({"levels": 7}, {"size": 10}, {"steps": 0}):
        with pytest.raises(UsageError, match="glow"):
            zoo.create("glow/tiny", **changes)
    network = small(classes=3)
    with pytest.raises(UsageError, match=r"must have shape \(1, 8, 8\), found \(3, 8, 8\)"):
        network(grey(1, 3, 8, 8))
    with pytest.raises(UsageError, match="labels below classes=3"):
        network.sample(Noise(0, 2), condition=torch.tensor([0, 3]))
    with pytest.raises(UsageError, match="steps="):
        network.sample(Noise(0, 2), steps=3)
    with pytest.raises(UsageError, match="temperature"):
        network.sample(Noise(0, 2), temperature=-1)
    with pytest.raises(DataError, match="picture 1: a label below classes=3 is needed"):
        Likelihood(network).forward(batch_of(grey(2, 1, 8, 8), (0, 5)), Progress(0, 0, 1, 1))
