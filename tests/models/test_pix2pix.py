"""pix2pix: sizes printed in the paper, statistics and noise of each picture, the two games, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from papers import at
from torch import Tensor, nn

import opticus
from opticus import zoo
from opticus.layers.patchgan import PatchGAN, PixelGAN
from opticus.models.generative.pix2pix import Pix2Pix, UNet, objective
from opticus.structures import Batch, DataError, Images, Noise, Picture, Sample, UnknownNameError, UsageError
from opticus.training.optim import factor_at
from opticus.training.recipe import Schedule


def small(**changes: Any) -> UNet:
    torch.manual_seed(0)
    network = zoo.create("pix2pix/tiny", **{"width": 4, **changes})
    assert isinstance(network, UNet)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return network


def pairs(count: int = 3, channels: int = 1, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(count, channels, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    images = [Images(x, None, torch.eye(3, dtype=torch.float64).expand(count, 3, 3), ((32, 32),) * count) for x in (a, b)]
    return Batch(None, (None,) * count, tuple(map(str, range(count))), tuple(images), ("a", "b"))


def test_a_score_sees_seventy_pixels() -> None:
    """Section 3.2.2: 70x70 patches; and 16, 34 and 286 for 1, 2 and 5 layers (appendix 6.1.2)."""
    for layers, field in ((1, 16), (2, 34), (3, 70), (5, 286)):
        judge = PatchGAN(1, lambda _: nn.Identity(), width=2, layers=layers).double()
        pixels = torch.zeros(1, 1, 384, 384, dtype=torch.float64, requires_grad=True)
        scores = judge(pixels + 1)
        scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
        assert pixels.grad is not None
        touched = (pixels.grad[0, 0].abs().sum(0) > 0).nonzero().flatten()
        assert int(touched[-1] - touched[0]) + 1 == field
    assert PatchGAN(6, nn.BatchNorm2d)(torch.zeros(1, 6, 256, 256)).shape == (1, 1, 30, 30)
    assert PixelGAN(6, nn.BatchNorm2d)(torch.zeros(1, 6, 20, 12)).shape == (1, 1, 20, 12)


def test_each_picture_is_normalised_by_its_own() -> None:
    """In training and afterwards a picture's answer is that of a batch of one in training mode, as the authors test."""
    network = small().double()
    pixels = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    answers = network.eval()(pixels)
    torch.testing.assert_close(network.train()(pixels), answers)
    usual = small(statistics="batch").double().train()
    usual.load_state_dict(network.state_dict(), strict=False)
    for picture, answer in zip(pixels, answers):
        torch.testing.assert_close(usual(picture[None])[0], answer)
    assert not torch.allclose(usual(pixels), answers)


def test_running_statistics_are_kept_for_those_who_want_them() -> None:
    """Batches of one move them alike under both kinds of statistics."""
    ours, usual = small().double().train(), small(statistics="batch").double().train()
    for seed in range(3):
        pixels = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed)).double()
        ours(pixels), usual(pixels)
    wanted = {key: value for key, value in usual.state_dict().items() if not key.endswith("num_batches_tracked")}
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, wanted[key])
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    ours.eval()(torch.randn(2, 1, 32, 32).double())
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items()), "eval moves nothing"


def test_noise_stays_on_and_belongs_to_the_picture() -> None:
    """Section 3.3: dropout at test time is z; eval takes one draw for all, `noise` a row per picture, and `dropout=0` none."""
    changes = {"size": 64, "depth": 6}
    network = small(**changes).eval()
    pixels = torch.randn(3, 1, 64, 64)
    fixed, again = network(pixels), network(pixels)
    assert torch.equal(fixed, again)
    torch.testing.assert_close(network(pixels[1:2])[0], fixed[1])
    one, two = (network(pixels, noise=Noise(seed, 3)) for seed in (1, 2))
    assert not torch.allclose(one, two) and not torch.allclose(one, fixed)
    torch.testing.assert_close(network(pixels[2:], noise=Noise(1, 1, first=2))[0], one[2])
    plain = small(**changes, dropout=0.0).eval()
    assert not torch.allclose(plain(pixels), fixed)
    torch.testing.assert_close(plain(pixels, noise=Noise(1, 3)), plain(pixels))
    with pytest.raises(UsageError, match="3 pictures need noise for 1 or 3, found 2"):
        network(pixels, noise=Noise(0, 2))
    assert zoo.meta("pix2pix/unet256").noisy == (4, 5, 6) and small().noisy == ()


def test_the_discriminator_sees_the_pair_and_the_targets_are_pictures() -> None:
    """A picture with a target is the pair that the roles a and b make; another input for the same answer has another score."""
    batch = pairs()
    network = small()
    game = objective(network, layers=2, width=8).eval()
    assert isinstance(game, Pix2Pix)
    bytes_ = ((batch.views[1].pixels + 1) * 127.5).round().to(torch.uint8)
    levels = bytes_.float() / 127.5 - 1
    batch.views = (batch.views[0], batch.views[1]._replace(pixels=levels))
    targets = tuple(Picture(one.permute(1, 2, 0).contiguous()) for one in bytes_)
    pictured = replace(batch, images=batch.views[0], views=(), roles=(), targets=targets)
    for phase in ("d", "g"):
        one, two = (game(each, at(0, 1)._replace(phase=phase)) for each in (batch, pictured))
        assert list(one) == list(two)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    other = replace(batch, views=(batch.views[0]._replace(pixels=-batch.views[0].pixels), batch.views[1]))
    assert not torch.allclose(game.realness(batch)[0], game.realness(other)[0])
    with pytest.raises(DataError, match="a target picture is needed"):
        game(replace(pictured, targets=(None,) * 3), at(0, 1)._replace(phase="d"))
    with pytest.raises(DataError, match="two domains that are no pairs"):
        game(replace(batch, images=batch.views[0]), at(0, 1)._replace(phase="d"))


def test_l1_weighs_a_hundred() -> None:
    """Eq. 4 with lambda 100: without the game the generator's term is a hundred times the mean absolute difference."""
    batch, network = pairs(), small()
    game = objective(network, layers=2, width=8)
    found = game(batch, at(0, 1)._replace(phase="g"))
    wanted = 100 * (network(batch.views[0].pixels) - batch.views[1].pixels).abs().mean()
    torch.testing.assert_close(found["g/l1"], wanted)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"size": 48}, {}, "size 48 must be a multiple of 2\\*\\*depth"),
        ({"dropout": 1.0}, {}, "dropout must be in \\[0, 1\\)"),
        ({}, {"judge": "patches"}, "judge of pix2pix"),
        ({}, {"rule": "least"}, "adversarial loss"),
        ({}, {"layers": 0}, "at least 1 strided layer"),
        ({}, {"l1": -1.0}, "l1 must not be negative"),
    ],
)
def test_bad_settings(changes: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=words):
        objective(small(**changes), **options)


def test_bad_pictures() -> None:
    network = small()
    with pytest.raises(UsageError, match="multiples of 32, found 32x40"):
        network(torch.zeros(1, 1, 32, 40))
    with pytest.raises(UsageError, match="with padding"):
        network(torch.zeros(1, 1, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool))
    game = objective(network)
    with pytest.raises(UsageError, match="cannot judge 16x16 pixels"):
        game.discriminator(torch.zeros(1, 2, 16, 16))
    batch = pairs()
    batch.views = (batch.views[0], batch.views[1]._replace(pixels=torch.zeros(3, 1, 64, 64)))
    with pytest.raises(UsageError, match="have answers of \\(64, 64\\) pixels"):
        game(batch, at(0, 1)._replace(phase="g"))


def test_a_rate_is_held_and_then_falls_to_zero() -> None:
    schedule = Schedule("linear", hold=0.5)
    assert [factor_at(schedule, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([1, 1, 1, 0.5, 0])
    warm = Schedule("cosine", warmup=0.2, hold=0.5, end=0.1)
    assert [factor_at(warm, share) for share in (0.0, 0.1, 0.2, 0.6, 0.8, 1.0)] == pytest.approx([0, 0.5, 1, 1, 0.55, 0.1])


def test_a_run_answers_and_a_file_in_the_authors_names_is_read(tmp_path: Any) -> None:
    """Pairs of a list train a model that predicts pictures; its tensors in a file of the authors' names give the same answers."""

    def negative(index: int) -> Sample:
        pixels = torch.randint(0, 256, (32, 32, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        return Sample.of(pixels, Picture(255 - pixels), f"noise {index}")

    run = opticus.train(
        "pix2pix/tiny", data=[negative(i) for i in range(16)], out=tmp_path / "run", quiet=True, steps=3, batch=4, evaluate_every=0
    )
    model = opticus.load(run.out)
    assert model.config.answer == 1 and model.prepare.size == (32, 32)
    answer = model.predict(Picture(negative(0).picture.pixels))[0].result
    assert isinstance(answer, Picture) and answer.pixels.shape == (32, 32, 1)
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        way, level, part, tensor = key.split(".")
        inner = "model.model.1." + "model.3." * (int(level) - 1) + "model."
        last = int(level) == model.config.depth - 1
        place = {"down.conv": "1", "down.norm": "2", "up.conv": "3" if last else "5", "up.norm": "4" if last else "6"}[
            f"{way}.{part}"
        ]
        outer = {"down": "model.model.0.", "up": "model.model.3."}[way]
        state[(outer if level == "0" else f"{inner}{place}.") + tensor] = value
    torch.save(state, tmp_path / "latest_net_G.pth")
    loaded = opticus.load("pix2pix/tiny", tmp_path / "latest_net_G.pth", answer=1, quiet=True)
    pixels = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(loaded(pixels), model(pixels))
