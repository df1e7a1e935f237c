"""Image GPT: the chain rule, the cache, completion, the palette, its yardsticks, and that its likelihood beats them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import opticus
from opticus import zoo
from opticus.data.open import open_data
from opticus.models.classical._densities import Contexts, Gaussian, Histograms
from opticus.models.generative.imagegpt import ImageGPT, evaluate, palette_of
from opticus.recipes.choose import default
from opticus.recipes.imagegpt import palette
from opticus.structures import CapabilityError, Classes, DataError, Embedder, Noise, Sample, Sampler, UsageError, WeightsError
from opticus.transforms.prepare import prepare

SMALL: dict[str, Any] = {"size": 4, "width": 16, "depth": 2, "heads": 2, "colours": 5, "probe": 1}
PALETTE = tuple((r, g, b) for r in (-0.8, 0.8) for g in (-0.5, 0.5) for b in (-1.0, 1.0))


def small(**changes: Any) -> ImageGPT:
    """A small network whose predictions are far from uniform."""
    torch.manual_seed(0)
    network = zoo.create("imagegpt/tiny", **{**SMALL, **changes})
    assert isinstance(network, ImageGPT)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)
    return network.double().eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey(levels: Tensor, size: int = 4, count: int = 5) -> Tensor:
    return (levels.double() / (count - 1) * 2 - 1).reshape(len(levels), 1, -1, size)


# --- the density -----------------------------------------------------------------------------------------------------------


def test_probabilities_of_all_pictures_sum_to_one() -> None:
    """2x2 pictures of 3 levels: the 81 likelihoods are those of one distribution."""
    network = small(size=2, colours=3)
    levels = torch.cartesian_prod(*(torch.arange(3),) * 4)
    with torch.no_grad():
        logs = network.log_likelihood(grey(levels, 2, 3))
    assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(logs.std()) > 0.05


def test_a_pixel_depends_on_earlier_ones_only() -> None:
    """Every logit has a gradient from all pixels before its own and from no other."""
    network = small()
    tokens = torch.tensor([[5, *([0, 1, 2, 3, 4] * 3)]])
    x = network._embedded(tokens).detach().requires_grad_()
    y = x
    for block in network.h:
        y = block(y)
    for place in (0, 7, 15):
        (seen,) = torch.autograd.grad(network.lm_head(network.ln_f(y))[0, place].sum(), x, retain_graph=True)
        assert (seen[0].abs().sum(1) > 0).tolist() == [i <= place for i in range(16)]


def test_norm_has_no_mean_and_no_bias() -> None:
    network = small()
    norm: Any = network.h[0].ln_1
    x = torch.randn(3, 16, dtype=torch.float64) + 2
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


def test_levels_are_the_nearest_colours() -> None:
    network = small(colours=8, channels=3, palette=PALETTE, size=8)
    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    apart = (pixels.flatten(2).transpose(1, 2)[:, :, None] - torch.tensor(PALETTE, dtype=torch.float64)).square().sum(-1)
    levels = network.levels(pixels)
    assert torch.equal(levels, apart.argmin(-1))
    assert torch.equal(network.levels(network.pixels(levels)), levels)
    assert network.pictures(network.pixels(levels))[0].pixels[0, 0].tolist() == [
        round((v + 1) * 127.5) for v in PALETTE[int(levels[0, 0])]
    ]


def test_grey_levels_are_even() -> None:
    network = zoo.create("imagegpt/tiny", size=16, colours=16)
    shades = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1)
    pixels = prepare([opticus.structures.Picture(shades)], network.prepare).pixels
    assert network.levels(pixels)[0].tolist() == [round(v / 17) for v in range(256)]


# --- drawing ---------------------------------------------------------------------------------------------------------------


def naive(network: ImageGPT, levels: Tensor, temperature: float, noise: Noise) -> Tensor:
    """Draw the missing pixels of `levels` (B, n) by running the whole network anew for each."""
    places = network.config.size**2
    while (first := levels.shape[1]) < places:
        padded = torch.nn.functional.pad(levels, (0, places - first))
        logits = network(network.pixels(padded))[:, first] / temperature
        levels = torch.cat([levels, noise.choice(logits.softmax(1))[:, None]], 1)
    return levels


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_cache_changes_nothing(rows: int) -> None:
    network = small()
    given = torch.randint(0, 5, (3, 4 * rows))
    condition = grey(given) if rows else None
    with torch.no_grad():
        expected = naive(network, given, 0.8, Noise(4, 3))
        found = network.sample(Noise(4, 3), condition=condition, temperature=0.8)
    assert torch.equal(network.levels(found), expected)
    assert torch.equal(network.levels(found)[:, : 4 * rows], given)
    assert not network.training


def test_sampling_runs_each_pixel_through_the_network_once() -> None:
    network, seen = small(), []
    network.h[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    network.sample(Noise(0, 2))
    assert seen == [1] * 16
    seen.clear()
    network.complete(torch.zeros(2, 1, 4, 4, dtype=torch.float64), 2, noise=Noise(0, 2))
    assert seen == [9] + [1] * 7  # the start and two rows at once, then pixel by pixel


def test_samples_follow_the_density() -> None:
    """2x2 pictures of 2 levels: frequencies of 20,000 samples against the 16 exact probabilities, within five deviations."""
    network, count = small(size=2, colours=2), 20_000
    levels = torch.cartesian_prod(*(torch.arange(2),) * 4)
    with torch.no_grad():
        expected = network.log_likelihood(grey(levels, 2, 2)).exp()
        drawn = network.levels(network.sample(Noise(1, count)))
    found = torch.bincount((drawn * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16) / count
    assert bool(((found - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all())


def test_one_generator_one_picture_and_top_one_is_the_mode() -> None:
    network = small()
    assert torch.equal(network.sample(Noise(3, 2)), network.sample(Noise(3, 2)))
    assert not torch.equal(network.sample(Noise(3, 2)), network.sample(Noise(4, 2)))
    best = network.levels(network.sample(Noise(3, 2), top=1))
    with torch.no_grad():
        assert torch.equal(network(network.pixels(best)).argmax(2), best)
    assert isinstance(network, Sampler) and isinstance(network, Embedder)


def test_bad_requests_are_refused() -> None:
    network = small()
    with pytest.raises(UsageError, match="exactly 16 pixels are missing, found steps=3"):
        network.sample(Noise(0, 1), steps=3)
    with pytest.raises(UsageError, match="upper rows of 2 pictures"):
        network.sample(Noise(0, 2), condition=torch.zeros(1, 1, 2, 4, dtype=torch.float64))
    with pytest.raises(UsageError, match="temperature must be positive"):
        network.sample(Noise(0, 1), temperature=0.0)
    with pytest.raises(UsageError, match=r"shape \(1, 4, 4\), found \(1, 5, 5\)"):
        network(torch.zeros(1, 1, 5, 5, dtype=torch.float64))
    with pytest.raises(UsageError, match="8 colours of 3 numbers"):
        small(colours=8, channels=3, palette=PALETTE[:7])
    with pytest.raises(UsageError, match="no palette"):
        zoo.create("imagegpt/tiny", **{**SMALL, "channels": 3})(torch.zeros(1, 3, 4, 4))
    with pytest.raises(CapabilityError, match="cannot predict"):
        opticus.create("imagegpt/tiny").predict(np.zeros((8, 8), np.uint8))


# --- features, files, palettes ---------------------------------------------------------------------------------------------


def test_the_embedding_is_the_mean_of_a_layer() -> None:
    """Section 2.4: f_l is the mean over pixels of the normalised input of block l; l = depth is the final norm."""
    pixels = grey(torch.randint(0, 5, (2, 16)))
    for probe in (0, 1, 2):
        network, kept = small(probe=probe), []
        where = network.ln_f if probe == 2 else network.h[probe].ln_1
        where.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        with torch.no_grad():
            network(pixels)
            vectors = network.embed(pixels)
        torch.testing.assert_close(vectors, kept[0].mean(1))


def test_older_files_with_masks_load(tmp_path: Path) -> None:
    """Published files keep the causal masks of every layer; kernels are (in, out)."""
    network = small()
    state = {}
    for key, value in network.state_dict().items():
        name = key if key.startswith("lm_head") else f"transformer.{key}"
        state[name] = value.T.contiguous() if ".c_" in key and value.ndim == 2 else value
    for i in range(2):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.bool)
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    again = opticus.load("imagegpt/tiny", tmp_path / "pytorch_model.bin", **SMALL)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key].double(), value, rtol=1e-6, atol=1e-6)


def test_palettes_travel_and_are_read(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"clusters": PALETTE, "size": 32}))
    found = palette_of(tmp_path / "preprocessor_config.json")
    assert found == PALETTE
    model = opticus.create("imagegpt/tiny", **{**SMALL, "colours": 8, "channels": 3, "palette": [list(c) for c in found]})
    again = opticus.load(model.save(tmp_path / "m.safetensors"))
    assert again.config == model.config and torch.equal(again.palette, torch.tensor(PALETTE))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"bad.json: expected JSON with a list of colours"):
        palette_of(tmp_path / "bad.json")


def test_k_means_finds_the_colours() -> None:
    """Pictures of four colours: the palette is those four; and more colours than there are cannot be asked for."""
    shades = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    generator = seeded()
    data = [
        Sample.of(shades[torch.randint(0, 4, (8, 8), generator=generator)], Classes(torch.tensor([0])), f"{i}") for i in range(6)
    ]
    from opticus.data.subset import Samples

    found = palette(Samples(data), 4, 8)
    assert sorted(found) == sorted(tuple(float(v) / 127.5 - 1 for v in shade) for shade in shades.tolist())
    with pytest.raises(DataError, match="fewer than 5 different colours"):
        palette(Samples(data), 5, 8)


# --- yardsticks and training -----------------------------------------------------------------------------------------------


def test_histograms_by_hand() -> None:
    levels = torch.tensor([[0, 1], [0, 1], [1, 1]])
    fitted = Histograms(2).fit(levels)  # with one more count: (3, 2) / 5 and (1, 4) / 5
    expected = -(2 * math.log2(3 / 5) + math.log2(2 / 5) + 3 * math.log2(4 / 5)) / 6
    assert fitted.bits(levels) == pytest.approx(expected)
    with pytest.raises(DataError, match=r"levels in 0..1"):
        Histograms(2).fit(torch.tensor([[2]]))


def test_the_gaussian_bounds_its_integral() -> None:
    """Monte Carlo of -E log2 N(x + u), and above the bits of the exact integral over cubes in one dimension."""
    torch.manual_seed(0)
    levels = (
        (torch.randn(400, 3) @ torch.tensor([[1.5, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]) * 2 + 8)
        .round()
        .clamp(0, 15)
        .long()
    )
    fitted = Gaussian(16).fit(levels)
    law = torch.distributions.MultivariateNormal(fitted.mean, precision_matrix=fitted.precision)
    noisy = levels.double().repeat(200, 1) + torch.rand(80_000, 3, dtype=torch.float64) - 0.5
    assert fitted.bits(levels) == pytest.approx(float(-law.log_prob(noisy).mean()) / 3 / math.log(2), rel=2e-3)
    one = levels[:, :1]
    narrow = Gaussian(16).fit(one)
    line = torch.distributions.Normal(narrow.mean, narrow.precision.flatten().rsqrt())
    exact = -(line.cdf(one + 0.5) - line.cdf(one - 0.5)).log2().mean()
    assert float(exact) < narrow.bits(one) < float(exact) + 0.05


def test_contexts_are_the_counts_of_neighbours() -> None:
    levels = torch.tensor([[0, 1, 1, 0]])  # four pixels, four different pairs of neighbours, both levels equally often
    fitted = Contexts(2, prior=1.0).fit(levels)
    assert fitted.bits(levels) == pytest.approx(-math.log2((1 + 0.5) / 2))
    assert torch.allclose(fitted.logs.exp().sum(1), torch.ones(9, dtype=torch.float64))
    assert fitted.bits(torch.tensor([[1, 1, 1, 0]])) > fitted.bits(levels)
    stripes = torch.tensor([0, 1] * 8).reshape(1, 16).repeat(50, 1)  # the pixel to the left says it all
    assert Contexts(2).fit(stripes).bits(stripes) < 0.15 and Histograms(2).fit(stripes.flip(1)).bits(stripes) > 1
    with pytest.raises(DataError, match="square"):
        Contexts(2).fit(torch.tensor([[0, 1]]))


def levels_of(network: ImageGPT, split: str) -> Tensor:
    data = open_data("digits", split)
    return network.levels(prepare([data[i].picture for i in range(len(data))], network.prepare).pixels)


def test_evaluation_is_bits_per_pixel() -> None:
    network, data = zoo.create("imagegpt/tiny", size=6), open_data("digits", "val")
    assert isinstance(network, ImageGPT)
    values, protocol = evaluate(network.train(), data)
    pixels = prepare([data[i].picture for i in range(len(data))], network.prepare).pixels
    with torch.no_grad():
        expected = -network.eval().log_likelihood(pixels).mean() / 36 / math.log(2)
    assert values["bits/dim"] == pytest.approx(float(expected), rel=1e-5)
    assert values["bits/dim"] == pytest.approx(4, abs=0.2)  # untrained: nearly uniform over 16 levels
    assert protocol["dimensions"] == 36 and protocol["pictures"] == len(data)


def test_a_short_training_beats_histograms_and_a_gaussian(tmp_path: Path) -> None:
    """8x8 digits, 250 steps: bits per pixel on unseen digits below both fitted densities, through train, load and evaluate."""
    run = opticus.train(
        "imagegpt/tiny", data="digits", out=tmp_path, size=8, width=48, depth=3, steps=250, lr=5e-3, average=0.9, transforms=resized(8),
        evaluate_every=0, quiet=True,
    )  # fmt: skip
    network: Any = opticus.load(tmp_path)
    found = run.values["bits/dim"]
    assert opticus.evaluate(network, "digits", quiet=True).values == run.values
    train, test = levels_of(network, "train"), levels_of(network, "test")
    histograms, gaussian = Histograms(16).fit(train).bits(test), Gaussian(16).fit(train).bits(test)
    assert found < histograms - 0.3 and found < gaussian - 0.1, (found, histograms, gaussian)


def resized(size: int) -> tuple[Any, ...]:
    from opticus.transforms.geometry import Resize

    return (Resize((size, size)),)


@pytest.mark.parametrize("name", ["imagegpt/tiny", "imagegpt/s"])
def test_recipes_fit_the_colours_of_the_data(name: str) -> None:
    from opticus.data.subset import Subset

    grey_ones, coloured = open_data("digits", "train"), Subset(open_data("crops", "train"), range(8))
    assert "palette" not in default(name, grey_ones).changes
    recipe = default(name, coloured)
    count = zoo.config_of(name).colours
    assert np.asarray(recipe.changes["palette"]).shape == (count, 3)
    if name.endswith("/s"):
        assert "not run here" in recipe.note and recipe.steps == 1_000_000
