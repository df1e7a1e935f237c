"""CycleGAN: the loop, the pool of earlier fakes, the two directions, what resumes and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from papers import at
from torch import Tensor

import opticus
from opticus import zoo
from opticus.models.generative.cyclegan import Cycle, CycleGAN, Pool, objective, paired
from opticus.recipes.cyclegan import default
from opticus.structures import Batch, CapabilityError, DataError, Images, Picture, Sample, UsageError
from opticus.transforms.chain import apply
from opticus.transforms.draw import draw_for
from opticus.transforms.pairs import Apart

SMALL: dict[str, Any] = {"width": 4, "blocks": 1, "channels": 1}


def small(seed: int = 0, **changes: Any) -> CycleGAN:
    torch.manual_seed(seed)
    network = zoo.create("cyclegan/tiny", **{**SMALL, **changes})
    assert isinstance(network, CycleGAN)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return network


def domains(count: int = 2, seed: int = 0, channels: tuple[int, int] = (1, 1), side: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = tuple(
        Images(
            torch.rand(count, c, side, side, generator=generator) * 2 - 1,
            None,
            torch.eye(3).expand(count, 3, 3),
            ((side, side),) * count,
        )
        for c in channels
    )
    return Batch(views[0], (None,) * count, tuple(f"{seed}-{i}" for i in range(count)), views, ("a", "b"))


def test_the_loop_is_both_generators_after_one_another() -> None:
    network = small().eval()
    pixels = torch.randn(2, 1, 16, 20)
    assert network.reverse is not None
    loop = network.cycle(pixels)
    assert torch.equal(loop.answer, network(pixels)) and torch.equal(loop.answer, network.generator(pixels))
    assert torch.equal(loop.back, network.reverse(loop.answer))


def test_both_directions_of_a_run_are_there(tmp_path: Path) -> None:
    """One file holds the pair; `direction="ba"` answers the other way, and its own loop leads back."""
    network = small(channels=3, other=1)
    opticus.save(opticus.create("cyclegan/tiny", **{**SMALL, "channels": 3, "other": 1}), tmp_path / "pair.safetensors")
    ab = opticus.load(tmp_path / "pair.safetensors", quiet=True)
    ba = opticus.load(tmp_path / "pair.safetensors", direction="ba", quiet=True)
    assert (ab.prepare.channels, ab.produces.channels) == (3, 1) and (ba.prepare.channels, ba.produces.channels) == (1, 3)
    a, b = torch.randn(1, 3, 16, 16), torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(ba(b), ab.reverse(b))
    torch.testing.assert_close(ba.cycle(b).back, ab(ba(b)))
    assert ab(a).shape == (1, 1, 16, 16) and ba.predict(Picture(torch.zeros(8, 8, 1, dtype=torch.uint8)))[
        0
    ].result.pixels.shape == (32, 32, 3)
    with pytest.raises(UsageError, match="only a pair has a direction"):
        small(pair=False, direction="ba")
    with pytest.raises(CapabilityError, match="has one generator"):
        small(pair=False).cycle(b)
    assert network.config.pair


def test_two_files_make_a_pair() -> None:
    """The authors' G_A and G_B, which are published one by one."""
    one, two = small(1, pair=False, other=3), small(2, pair=False, channels=3, other=1)
    pair = paired(one, two)
    pixels = torch.randn(1, 1, 16, 16)
    loop = pair.cycle(pixels)
    assert torch.equal(loop.answer, one(pixels)) and torch.equal(loop.back, two(loop.answer))
    with pytest.raises(UsageError, match="does not lead back"):
        paired(one, small(pair=False))
    with pytest.raises(UsageError, match="two networks of one generator"):
        paired(pair, two)


def test_padding_does_not_reach_the_norms() -> None:
    """A padded picture is answered as it would be alone, and results have its size."""
    network = small().double().eval()
    pixels = torch.zeros(2, 1, 24, 32, dtype=torch.float64)
    valid = torch.zeros(2, 24, 32, dtype=torch.bool)
    for row, (height, width) in enumerate(((24, 20), (16, 32))):
        pixels[row, :, :height, :width] = torch.randn(1, height, width, generator=torch.Generator().manual_seed(row)).double()
        valid[row, :height, :width] = True
    out = network(pixels, valid)
    torch.testing.assert_close(out[:1, :, :24, :20], network(pixels[:1, :, :24, :20]))
    torch.testing.assert_close(out[1:, :, :16], network(pixels[1:, :, :16]))
    images = Images(pixels, valid, torch.eye(3).expand(2, 3, 3), ((24, 20), (16, 32)))
    assert [picture.pixels.shape for picture in network.results(out, images)] == [(24, 20, 1), (16, 32, 1)]
    with pytest.raises(UsageError, match="multiples of 4, found 18x16"):
        network(torch.zeros(1, 1, 18, 16).double())


# --- the pool ----------------------------------------------------------------------------------------------------------


def numbered(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def test_pool_fills_and_then_swaps_half() -> None:
    """Pictures come back while it fills; then each with probability 1/2 takes the place of an earlier one, which comes out."""
    torch.manual_seed(0)
    pool, inside = Pool(50), set(range(48))
    assert torch.equal(pool.swap(numbered(0, 48)), numbered(0, 48))
    assert torch.equal(pool.swap(numbered(48, 4))[:2], numbered(48, 2)), "two still find room"
    inside |= {48, 49}
    inside = {int(v) for v in pool.kept[:, 0, 0, 0]}
    swapped = 0
    for step in range(200):
        first = 52 + 4 * step
        out = [int(v) for v in pool.swap(numbered(first, 4))[:, 0, 0, 0]]
        for given, found in zip(range(first, first + 4), out, strict=True):
            if found != given:
                assert found in inside
                inside = (inside - {found}) | {given}
                swapped += 1
        assert inside == {int(v) for v in pool.kept[:, 0, 0, 0]}
    assert 340 < swapped < 460
    assert torch.equal(Pool(0).swap(numbered(0, 3)), numbered(0, 3))
    few = Pool(3)
    assert few.swap(numbered(0, 8)).shape == (8, 1, 2, 2) and int(few.filled) == 3


def test_pool_is_part_of_the_state() -> None:
    """A fresh objective takes a saved pool of any picture size and goes on as the first one does."""
    game, other = (objective(small(), layers=1, width=4, pool=5) for _ in range(2))
    for seed in range(4):
        game(domains(seed=seed), at(0, 1)._replace(phase="g"))
        game(domains(seed=seed), at(0, 1)._replace(phase="d"))
    other.load_state_dict(game.state_dict())
    assert int(other.pool_a.filled) == 5 and torch.equal(other.pool_b.kept, game.pool_b.kept)
    found: list[Tensor] = []
    for each in (game, other):
        torch.manual_seed(3)
        found.append(torch.stack(list(each(domains(seed=9), at(0, 1)._replace(phase="d")).values())))
    assert torch.equal(*found)


def test_a_run_resumes_bit_by_bit(tmp_path: Path) -> None:
    """Pools and all: stopped at step 4 and continued equals never stopped."""
    data = [two_domains(i) for i in range(8)]
    options = {"layers": 1, "width": 4, "pool": 3}
    recipe = replace(
        default("cyclegan/tiny", data), changes={**SMALL, "pair": True}, options=options, transforms=(), schedules=(), batch=2
    )
    common: dict[str, Any] = {"data": data, "quiet": True, "recipe": recipe}
    whole = opticus.train("cyclegan/tiny", out=tmp_path / "whole", steps=6, **common)
    opticus.train("cyclegan/tiny", out=tmp_path / "parts", steps=4, **common)
    parts = opticus.train("cyclegan/tiny", out=tmp_path / "parts", steps=6, resume=True, **common)
    one, two = (opticus.load(run.out, quiet=True).state_dict() for run in (whole, parts))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_of_pairs_both_sides_are_used_but_not_which_belongs_to_which() -> None:
    """Paired data become two domains, each side with its own chance; without targets they are refused."""
    pixels = torch.arange(32 * 32, dtype=torch.int64).reshape(32, 32, 1).to(torch.uint8)
    pair = Sample.of(pixels, Picture(255 - pixels), "one")
    seen = [apply(default("cyclegan/tiny", [pair]).transforms, pair, draw_for(0, 0, index)) for index in range(12)]
    assert all([role for role, _ in sample.views] == ["a", "b"] and sample.target is None for sample in seen)
    turned = {
        tuple(bool((view.picture.pixels != side).any()) for (_, view), side in zip(one.views, (pixels, 255 - pixels)))
        for one in seen
    }
    assert len(turned) == 4, "a and b are mirrored independently"
    with pytest.raises(UsageError, match="one: a pair needs a target picture, found NoneType"):
        Apart()(replace(pair, target=None), draw_for(0, 0, 0))


def two_domains(index: int) -> Sample:
    generator = torch.Generator().manual_seed(index)
    a, b = (
        Sample.of(torch.randint(0, 256, (32, 32, 1), dtype=torch.uint8, generator=generator), None, f"{index}") for _ in range(2)
    )
    return Sample({"image": a.picture}, None, f"{index}", views=(("a", a), ("b", b)))


# --- the objective -------------------------------------------------------------------------------------------------------


def test_terms_and_weights() -> None:
    """Eq. 3 with lambda 10 and the identity loss at half of it, in grey numbers."""
    batch, network = domains(), small()
    game = objective(network, layers=1, width=4)
    assert isinstance(game, Cycle) and network.reverse is not None
    a, b = (view.pixels for view in batch.views)
    found = game(batch, at(0, 1)._replace(phase="g"))
    wanted = {
        "g/cycle-a": 10 * (network.reverse(network.generator(a)) - a).abs().mean(),
        "g/cycle-b": 10 * (network.generator(network.reverse(b)) - b).abs().mean(),
        "g/identity-a": 5 * (network.reverse(a) - a).abs().mean(),
        "g/identity-b": 5 * (network.generator(b) - b).abs().mean(),
        "g/real-b": (game.judge_b(network.generator(a)) - 1).square().mean(),
        "g/real-a": (game.judge_a(network.reverse(b)) - 1).square().mean(),
    }
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert not [
        name for name in objective(network, identity=0.0, layers=1)(batch, at(0, 1)._replace(phase="g")) if "identity" in name
    ]


def test_the_discriminators_see_the_fakes_of_the_same_step() -> None:
    """As in the authors' code they were made before the generators' step; without one they are made anew."""
    batch, game = domains(), objective(small(), layers=1, width=4)
    game(batch, at(0, 1)._replace(phase="g"))
    with torch.no_grad():
        for parameter in game.network.parameters():
            parameter.mul_(0.5)
    stale = game(batch, at(0, 1)._replace(phase="d"))
    fresh = game(batch, at(0, 1)._replace(phase="d"))
    assert not torch.allclose(stale["d/fake-a"], fresh["d/fake-a"]) and torch.allclose(stale["d/real-a"], fresh["d/real-a"])


def test_a_network_of_one_generator_gets_a_reverse_that_stays_in_the_objective() -> None:
    network = small(pair=False)
    game = objective(network, layers=1, width=4)
    assert not any(key.startswith("network.reverse") for key in game.state_dict())
    trained = {id(p) for p in game.parameters_of("g")}
    assert {id(p) for p in game.reverse.parameters()} <= trained
    assert len(game(domains(), at(0, 1)._replace(phase="g"))) == 6


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"size": 30}, {}, "size must be a multiple of 4"),
        ({"blocks": -1}, {}, "blocks must not be negative"),
        ({"other": 3}, {}, "identity loss needs domains of as many channels, found 1 and 3: identity=0"),
        ({}, {"cycle": -1.0}, "must not be negative"),
        ({}, {"pool": -1}, "the pool must not be negative"),
    ],
)
def test_bad_settings(changes: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        objective(small(**changes), **options)


def test_bad_batches() -> None:
    game = objective(small(), layers=1, width=4)
    with pytest.raises(UsageError, match=r"domains of 1 and 1 channels are expected, batch .* has 1 and 3"):
        game(domains(channels=(1, 3)), at(0, 1)._replace(phase="g"))
    with pytest.raises(DataError, match="no pictures of the role 'b'"):
        game(replace(domains(), roles=("a", "c")), at(0, 1)._replace(phase="g"))


# --- files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [False, True])
def test_published_files_of_every_age_are_read(tmp_path: Path, dropout: bool) -> None:
    """The authors' names, with or without a dropout layer, with statistics of instance norms that nothing reads; and identified."""
    network = zoo.create("cyclegan/resnet6")
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        name = key.removeprefix("generator.")
        state[name.replace("conv_block.5", "conv_block.6") if dropout else name] = value
    for key in [key for key in state if key.endswith("weight") and not key.startswith("model.23")]:
        stem, _, place = key.removesuffix(".weight").rpartition(".")
        for statistic in ("running_mean", "running_var"):  # of the norm behind the convolution
            wide = state[f"{stem}.{place}.bias"].shape
            state[f"{stem}.{int(place) + 1}.{statistic}"] = torch.full(wide, 7.0)
    torch.save(state, tmp_path / "latest_net_G.pth")
    found = opticus.identify(tmp_path / "latest_net_G.pth")
    assert found.name == "cyclegan/resnet6" and found.exact
    loaded = opticus.load(tmp_path / "latest_net_G.pth", quiet=True)
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels), network(pixels))
