"""The KL autoencoder and VQGAN: sizes, padding, codes, the two places of beta, and what bad input is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from papers import at
from torch import Tensor, nn

import opticus
from opticus import zoo
from opticus.models.generative import kl, vqgan
from opticus.parity.fill import fill
from opticus.structures import Batch, Images, Noise, UsageError
from opticus.weights.load import load_into


def batch_of(pixels: Tensor) -> Batch:
    count = len(pixels)
    images = Images(pixels, None, torch.eye(3, dtype=torch.float64).expand(count, 3, 3), (tuple(pixels.shape[2:]),) * count)
    return Batch(images, (None,) * count, tuple(str(i) for i in range(count)))


# --- posterior -----------------------------------------------------------------------------------------------------------


def test_posterior_is_the_one_of_torch() -> None:
    mean, logvar = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl.Posterior(mean, logvar).kl(), expected)


def test_samples_belong_to_pictures() -> None:
    network = zoo.create("kl/tiny").eval()
    pixels = torch.rand(3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = cast(Any, network).posterior(pixels)
        alone = cast(Any, network).posterior(pixels[1:2])
        torch.testing.assert_close(posterior.sample(Noise(3, 3))[1:2], alone.sample(Noise(3, 1, first=1)))
        torch.testing.assert_close(posterior.sample(torch.zeros_like(posterior.mean)), cast(Any, network).encode(pixels))
    with pytest.raises(UsageError, match="3 pictures need noise of as many samples, found 2"):
        posterior.sample(Noise(0, 2))


def test_log_variances_are_clamped() -> None:
    network = cast(Any, zoo.create("kl/tiny"))
    nn.init.zeros_(network.quant_conv.weight)
    network.quant_conv.bias.data = torch.tensor([0.5, 100.0])
    posterior = network.posterior(torch.zeros(1, 1, 16, 16))
    assert posterior.logvar.unique().tolist() == [20] and posterior.mean.unique().tolist() == [0.5]


# --- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stride", "channels"), [("kl/f8", 8, 4), ("kl/f32", 32, 64), ("vqgan/vq-f4", 4, 3)])
def test_published_sizes_of_the_code(name: str, stride: int, channels: int) -> None:
    network = cast(Any, zoo.meta(name))
    assert (network.stride, network.channels) == (stride, channels)
    assert network.encode(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, channels, 256 // stride, 256 // stride)


@pytest.mark.parametrize("name", ["kl/tiny", "vqgan/tiny"])
def test_pictures_of_any_size_are_padded_and_cropped_back(name: str) -> None:
    model = opticus.create(name, size=0, channels=3)
    assert (model.prepare.resize, model.prepare.stride) == ("none", 4)
    pictures = [np.full((h, w, 3), 90, np.uint8) for h, w in ((17, 30), (8, 9))]
    found = cast(Any, model.predict(pictures))
    assert [result.size for result in found] == [(17, 30), (8, 9)]
    with pytest.raises(UsageError, match=r"multiples of 4, found 17x30"):
        cast(Any, model).encode(torch.zeros(1, 3, 17, 30))


def test_scaling_of_stable_diffusion_and_xl() -> None:
    assert cast(Any, zoo.meta("kl/f8")).scaling == 0.18215 and cast(Any, zoo.meta("kl/sdxl")).scaling == 0.13025


# --- files -----------------------------------------------------------------------------------------------------------------


def test_a_whole_file_of_stable_diffusion_gives_its_autoencoder(tmp_path: Path) -> None:
    """The tiny network inside a file that also holds a U-Net and a text encoder; only `first_stage_model` is read."""
    case = next(c for c in zoo_record("kl")["tiny"] if c["name"] == "whole file")
    config = zoo.config_from_json("kl/tiny", case["config"])
    network = zoo.build("kl/tiny", config)
    from opticus.parity.manifests import unfold

    state = {k: fill(k, shape, torch.float32) for k, shape in unfold(case["state"]).items()}
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "sd.ckpt")
    changes: dict[str, Any] = dict(case["config"])
    loaded = opticus.load("kl/tiny", tmp_path / "sd.ckpt", quiet=True, **changes)
    load_into(network, state, kl.FORMATS["stable-diffusion"])
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values()))
    assert any(k.startswith("model.diffusion_model") for k in state)


def zoo_record(paper: str) -> dict[str, Any]:
    from papers import record

    return record(paper)


# --- codebook --------------------------------------------------------------------------------------------------------------


def test_nearest_codes_are_those_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    quantiser = vqgan.Quantiser(50, 6).double()
    nn.init.normal_(quantiser.embedding.weight)
    latents = torch.randn(3, 6, 5, 7, dtype=torch.float64)
    expected = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 6), quantiser.embedding.weight).argmin(1).reshape(3, 5, 7)
    assert torch.equal(quantiser.nearest(latents), expected)
    monkeypatch.setattr(vqgan, "PLACES", 120)  # two places at a time
    assert torch.equal(quantiser.nearest(latents), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantiser.nearest(latents), expected)


def test_codes_and_back() -> None:
    network = cast(Any, zoo.create("vqgan/tiny")).eval()
    pixels = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        codes = network.codes(pixels)
        assert codes.shape == (2, 4, 4) and codes.dtype == torch.int64
        torch.testing.assert_close(network.decode_codes(codes), network(pixels), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"codes must be in 0\.\.63, found 0\.\.64"):
        network.decode_codes(torch.tensor([[[0, 64]]]))


def test_the_gradient_passes_the_quantiser_and_beta_stands_in_two_places() -> None:
    latents, codes = (torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    vqgan.straight_through(latents, codes).sum().backward()
    assert latents.grad is not None and bool((latents.grad == 1).all()) and codes.grad is None
    for legacy, encoder, codebook in ((True, 1.0, 0.25), (False, 0.25, 1.0)):
        latents.grad = codes.grad = None
        vqgan.commitment(latents, codes, beta=0.25, legacy=legacy).sum().backward()
        unit = 2 * (latents - codes).detach() / 48
        torch.testing.assert_close(latents.grad, encoder * unit)
        torch.testing.assert_close(codes.grad, -codebook * unit)


def test_perplexity_counts_codes() -> None:
    spread, used = vqgan.perplexity(torch.tensor([[[0, 1], [2, 3]]]), 8)
    assert math.isclose(float(spread), 4, rel_tol=1e-9) and int(used) == 4


# --- the game ----------------------------------------------------------------------------------------------------------------


def test_the_opponent_joins_at_its_step() -> None:
    network = zoo.create("vqgan/tiny")
    objective = cast(Any, zoo.paper("vqgan")).objective(network, start=2, layers=1, filters=4)
    assert [objective.phases(step) for step in (1, 2)] == [("g",), ("g", "d")]
    batch = batch_of(torch.rand(2, 1, 16, 16) * 2 - 1)
    assert set(objective(batch, at(1, 9)._replace(phase="g"))) == {"restored", "code"}
    assert set(objective(batch, at(2, 9)._replace(phase="g"))) == {"restored", "code", "g/fool"}
    assert {"perplexity", "used", "adaptive"} == set(objective.figures())
    assert set(objective(batch, at(2, 9)._replace(phase="d"))) == {"d/real", "d/fake"}
    assert objective.alarm({"used": 1.0}) and objective.alarm({"used": 2.0}) is None


def test_a_perceptual_distance_is_added_and_never_saved() -> None:
    """The distance is handed over; its network is in no state dict and is not trained."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.factor * (one - other).abs().flatten(1).mean(1)

    network, paper, net = zoo.create("kl/tiny"), cast(Any, zoo.paper("kl")), Twice()
    objective = paper.objective(network, perceptual=net, perceptual_weight=0.5)
    one, other = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    plain = paper.objective(network).distance(one, other)
    torch.testing.assert_close(objective.distance(one, other), 2 * plain)
    torch.testing.assert_close(plain, (one - other).abs().flatten(1).sum(1))
    assert not net.factor.requires_grad and not any("factor" in key for key in objective.state_dict())


def test_bad_settings_are_named() -> None:
    network = zoo.create("vqgan/tiny")
    with pytest.raises(UsageError, match="at least 1"):
        cast(Any, zoo.paper("vqgan")).objective(network, layers=0)
    with pytest.raises(UsageError, match="a discriminator of 3 layers needs sides of 24, found 16x16"):
        vqgan.PatchGAN(1)(torch.zeros(1, 1, 16, 16))
