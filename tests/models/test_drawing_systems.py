"""Every system that draws, encodes or answers pictures: the same seed, any batch; walks, densities and codes of the right shape."""

from __future__ import annotations

import inspect
from typing import Any, cast

import pytest
import torch
from papers import PAPERS, batch_for, images_of, new, rule_of, smallest
from torch import nn

import opticus
from opticus import zoo
from opticus.parity.fill import fill
from opticus.structures import Autoencoder, Density, Latent, Noise, Prepare, Sampler
from opticus.verbs.evaluate_pictures import reconstructions

DRAWING = [paper for paper in PAPERS if zoo.paper(paper).TASK == "generate"]
CODING = [paper for paper in PAPERS if zoo.paper(paper).TASK in ("reconstruct", "generate")]
ANSWERING = [paper for paper in PAPERS if zoo.paper(paper).TASK == "translate"]


def sampler(paper: str) -> nn.Module:
    """The smallest variant, each weight moved a little by a formula, so that nothing is left at a trivial start."""
    network = new(smallest(paper))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter += 0.05 * fill(name, parameter.shape, parameter.dtype)
    return network.eval()


def steps_of(network: nn.Module) -> dict[str, Any]:
    """Few steps, where a sampler is iterative: it says so by a default or by taking any number."""
    if "steps" not in inspect.signature(cast(Any, network).sample).parameters:
        return {}
    try:
        cast(Any, network).sample(Noise(0, 1), steps=3)
    except opticus.Error:
        return {}
    return {"steps": 3}


@pytest.mark.parametrize("paper", DRAWING)
def test_pictures_belong_to_seed_and_number(paper: str) -> None:
    """DESIGN: identical for equal seeds at an equal batch, equal to 1e-5 across batch sizes; the global generator is not touched."""
    network = sampler(paper)
    assert isinstance(network, Sampler)
    few, rule = steps_of(network), cast(Prepare, getattr(network, "produces", rule_of(network)))
    before = torch.get_rng_state()
    with torch.no_grad():
        whole = network.sample(Noise(3, 5), **few)
        again = network.sample(Noise(3, 5), **few)
        parts = torch.cat([network.sample(Noise(3, 2), **few), network.sample(Noise(3, 3, first=2), **few)])
        other = network.sample(Noise(4, 5), **few)
    assert torch.equal(before, torch.get_rng_state())
    assert whole.shape == (5, rule.channels, *rule.size) and bool(torch.isfinite(whole).all())
    assert torch.equal(whole, again) and not torch.equal(whole, other)
    scale = float(whole.abs().max())
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * max(scale, 1.0))
    assert float((whole[0] - whole[1]).abs().max()) > 1e-4 * scale, "pictures differ"


@pytest.mark.parametrize("paper", DRAWING)
def test_sampling_leaves_the_mode_alone(paper: str) -> None:
    network = new(smallest(paper)).train()
    modes = [module.training for module in network.modules()]
    made = opticus.sample(cast(Any, opticus.create(smallest(paper))), 2, **steps_of(network.eval()))
    assert len(made) == 2 and made.pictures[0].pixels.dtype == torch.uint8
    cast(Any, network.train()).sample(Noise(0, 2), **steps_of(network))
    assert [module.training for module in network.modules()] == modes


@pytest.mark.parametrize("paper", DRAWING)
def test_starting_points_give_pictures(paper: str) -> None:
    network = sampler(paper)
    if not isinstance(network, Latent):
        return
    few = steps_of(network)
    with torch.no_grad():
        points = network.latents(Noise(1, 3))
        first, second = (network.render(points, **few) for _ in range(2))
        alone = network.render(points[1:2], **few)
    assert points.shape[0] == 3 and torch.equal(first, second)
    torch.testing.assert_close(alone, first[1:2], rtol=1e-4, atol=1e-4)
    walk = opticus.sample(cast(Any, opticus.create(smallest(paper))), 2, between=3, **few)
    assert len(walk) == 6 and bool(torch.isfinite(walk.pixels).all())


@pytest.mark.parametrize("paper", DRAWING)
def test_densities_are_one_number_a_picture(paper: str) -> None:
    network = new(smallest(paper)).eval()
    if not isinstance(network, Density):
        return
    pixels = images_of(batch_for(network, "generate", 3)).pixels
    with torch.no_grad():
        whole, alone = network.log_likelihood(pixels), network.log_likelihood(pixels[1:2])
    assert whole.shape == (3,) and bool(torch.isfinite(whole).all())
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("paper", CODING)
def test_codes_lead_back_to_pictures(paper: str) -> None:
    network = new(smallest(paper)).eval()
    if not isinstance(network, Autoencoder):
        assert zoo.paper(paper).TASK == "generate"
        return
    images = images_of(batch_for(network, zoo.paper(paper).TASK, 2))
    with torch.no_grad():
        code = network.encode(images.pixels)
        assert code.shape[0] == 2 and torch.equal(code, network.encode(images.pixels)), "without chance"
        assert network.decode(code).shape == images.pixels.shape
    model = opticus.create(smallest(paper))
    shown = opticus.sample(model, 2).pictures if isinstance(model, Sampler) else _grey(model)
    assert [p.size for p in reconstructions(model, shown)] == [rule_of(model).size] * 2


def _grey(model: nn.Module) -> list[Any]:
    rule = rule_of(model)
    return [opticus.Sample.of(torch.full((*rule.size, rule.channels), level, dtype=torch.uint8)).picture for level in (60, 200)]


@pytest.mark.parametrize("paper", ANSWERING)
def test_answers_have_the_promised_size(paper: str) -> None:
    model = opticus.create(smallest(paper))
    rule, scale = rule_of(model), int(getattr(model, "scale", 1))
    side = rule.size if rule.resize != "none" else (24, 32)
    picture = torch.randint(0, 256, (*side, rule.channels), dtype=torch.uint8)
    found = model.predict([picture, picture])
    produced = cast(Prepare, getattr(model, "produces", rule))
    for one in found:
        assert one.result.pixels.shape == (side[0] * scale, side[1] * scale, produced.channels)
    assert one.plot().size == (side[1] * scale, side[0] * scale) and one.to_json()["size"] == [side[0] * scale, side[1] * scale]
