"""DDPM: its equations, its samplers on a real network, what it refuses, and the conditions that it can be given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from opticus import zoo
from opticus.diffusion.samplers import Known
from opticus.models.generative.ddpm import Config, coarse, discretised, holes, sinusoid, with_hole
from opticus.structures import Batch, Classes, DataError, Images, Noise, Progress, UsageError

AT = Progress(0, 0, 1, 1)
SMALL: dict[str, Any] = {"size": 8, "width": 16, "multiples": (1, 2), "attention": (4,)}


def small(name: str = "ddpm/tiny", **changes: Any) -> Any:
    torch.manual_seed(0)
    network: Any = zoo.create(name, **{**SMALL, **changes})
    for part in (network.unet.conv_out, network.unet.mid_block.resnets[0].conv2):  # they start at zero
        torch.nn.init.normal_(part.weight, std=0.05)
    return network.eval()


def batch_of(pixels: Tensor, labels: list[int] | None = None) -> Batch:
    size, n = (pixels.shape[2], pixels.shape[3]), len(pixels)
    images = Images(pixels, None, torch.eye(3, dtype=torch.float64).expand(n, 3, 3), (size,) * n)
    targets = tuple(None if labels is None else Classes(torch.tensor([labels[i]])) for i in range(n))
    return Batch(images, targets, tuple(map(str, range(n))))


def test_times_are_embedded_as_sines_then_cosines() -> None:
    found = sinusoid(torch.tensor([0.0, 1.0]), 6, last=True)
    assert found[0].tolist() == [0, 0, 0, 1, 1, 1]
    wanted = torch.tensor([1.0, 0.01, 1e-4])  # the last frequency is 1/10000
    assert torch.allclose(found[1], torch.cat([wanted.sin(), wanted.cos()]))
    assert sinusoid(torch.tensor([1.0]), 6, last=False)[0, 2] == pytest.approx(10_000 ** (-2 / 3), rel=1e-4)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_the_loss_is_that_of_equation_14(predicts: str) -> None:
    network = small(predicts=predicts)
    objective = zoo.paper("ddpm").objective(network)
    pixels, noise, times = torch.rand(2, 1, 8, 8) * 2 - 1, torch.randn(2, 1, 8, 8), torch.tensor([10, 900])
    bars = network.path.signal.square()[times].float().view(2, 1, 1, 1)
    x = bars.sqrt() * pixels + (1 - bars).sqrt() * noise
    wanted = {"eps": noise, "x0": pixels, "v": bars.sqrt() * noise - (1 - bars).sqrt() * pixels}[predicts]
    by_hand = (network(x, times) - wanted).square().mean((1, 2, 3))
    assert torch.allclose(objective.errors(pixels, times, noise), by_hand, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "dpm++"])
def test_every_sampler_draws_and_a_picture_belongs_to_its_number(sampler: str) -> None:
    network = small()
    some = network.sample(Noise(4, 3), sampler=sampler, steps=4)
    one = network.sample(Noise(4, 1, first=2), sampler=sampler, steps=4)
    assert some.shape == (3, 1, 8, 8) and torch.allclose(some[2:], one, atol=1e-4)
    assert not torch.allclose(some[0], some[1], atol=1e-2)


def test_ddim_without_chance_is_a_function_of_its_starting_points() -> None:
    network = small()
    points = network.latents(Noise(1, 2))
    assert torch.allclose(network.render(points, steps=5), network.sample(Noise(1, 2), steps=5), atol=1e-5)


def test_classes_and_guidance() -> None:
    network = small("ddpm/tiny-classes")
    torch.nn.init.normal_(network.class_embedding.weight, std=3.0)
    labels = torch.tensor([3, 3, 7])
    plain = network.sample(Noise(0, 3), condition=labels, steps=3)
    strong = network.sample(Noise(0, 3), condition=labels, steps=3, guidance=4.0)
    none = network.sample(Noise(0, 3), condition=labels, steps=3, guidance=0.0)
    assert not torch.allclose(plain, strong, atol=1e-3)
    assert torch.allclose(none, network.sample(Noise(0, 3), condition=network.nothing(3), steps=3), atol=1e-5)
    assert torch.equal(network.sample(Noise(0, 3), steps=3), network.sample(Noise(0, 3), steps=3))  # drawn from the noise
    with pytest.raises(UsageError, match=r"whole numbers in 0\.\.9"):
        network.sample(Noise(0, 1), condition=torch.tensor([12]))
    with pytest.raises(UsageError, match="2 pictures are drawn"):
        network.sample(Noise(0, 2), condition=torch.tensor([1]))
    with pytest.raises(UsageError, match="guidance needs a network with classes"):
        small().sample(Noise(0, 1), guidance=2.0)


def test_labels_are_left_out_as_often_as_asked() -> None:
    network = small("ddpm/tiny-classes")
    pixels = torch.zeros(400, 1, 8, 8)
    objective = zoo.paper("ddpm").objective(network, unlabelled=0.25)
    torch.manual_seed(0)
    condition = objective._condition(batch_of(pixels, [5] * 400), pixels)
    assert set(condition.tolist()) == {5, 10} and 60 < int((condition == 10).sum()) < 140
    with pytest.raises(DataError, match=r"0: a label in 0\.\.9 is needed"):
        objective(batch_of(pixels[:1]), AT)


def test_a_known_part_is_kept() -> None:
    network = small()
    pixels, mask = torch.rand(2, 1, 8, 8) * 2 - 1, torch.zeros(1, 1, 8, 8)
    mask[:, :, :4] = 1
    out = network.sample(Noise(0, 2), steps=4, known=Known(pixels, mask))
    assert torch.equal(out[:, :, :4], pixels[:, :, :4]) and not torch.equal(out[:, :, 4:], pixels[:, :, 4:])


@pytest.mark.parametrize(("hides", "given"), [("detail", 1), ("part", 2)])
def test_a_given_picture(hides: str, given: int) -> None:
    network = small(given=given)
    objective = zoo.paper("ddpm").objective(network, hides=hides, factor=4)
    pixels = torch.rand(3, 1, 8, 8) * 2 - 1
    assert float(objective(batch_of(pixels), AT)["noise"]) > 0
    condition = coarse(pixels, 4) if hides == "detail" else with_hole(pixels, holes(pixels))
    assert condition.shape == (3, given, 8, 8)
    assert network.sample(Noise(0, 3), condition=condition, steps=2).shape == pixels.shape
    with pytest.raises(UsageError, match="needs a picture"):
        network.sample(Noise(0, 1), steps=2)
    with pytest.raises(UsageError, match="cannot learn with hides"):
        zoo.paper("ddpm").objective(network)


def test_holes_are_rectangles_inside_the_picture() -> None:
    torch.manual_seed(0)
    for one in holes(torch.zeros(20, 1, 16, 16)):
        rows, columns = one[0].any(1), one[0].any(0)
        assert float(one.sum()) == float(rows.sum() * columns.sum()) and 3 <= int(rows.sum()) <= 13
        assert int(rows.int().diff().abs().sum()) <= 2


def test_the_bound_of_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels' masses sum to one; few times are summed as by hand."""
    levels = torch.arange(256).view(256, 1, 1, 1) / 127.5 - 1
    assert float(discretised(levels, torch.full_like(levels, 0.2), 0.05).exp().sum()) == pytest.approx(1, abs=1e-6)
    network = small()
    monkeypatch.setattr(type(network), "TIMES", 3)
    network.path = type(network.path)(network.path.signal[[0, 300, 999]], network.path.noise[[0, 300, 999]])
    pixels = torch.randint(0, 256, (2, 1, 8, 8)) / 127.5 - 1
    found = network.log_likelihood(pixels)
    assert found.shape == (2,) and bool((found < 0).all()) and torch.equal(found, network.log_likelihood(pixels))
    assert torch.allclose(found[:1], network.log_likelihood(pixels[:1]), rtol=1e-4)


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="multiple of 8"):
        Config(size=12)
    with pytest.raises(UsageError, match="either classes or a given picture"):
        Config(classes=3, given=1)
    with pytest.raises(UsageError, match="was told a condition"):
        small()(torch.zeros(1, 1, 8, 8), torch.zeros(1).long(), torch.zeros(1).long())
