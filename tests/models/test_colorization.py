"""Colourisation: encodings and losses of Zhang 2016, and that lightness is kept, beyond what every paper is tested for."""

import pytest
import torch

from opticus.models.generative.colorization import (
    AB,
    Colorization,
    Colours,
    Config,
    encoded,
    nearest_bins,
    rebalanced,
)
from opticus.ops.lab import to_lab, to_rgb
from opticus.structures import Batch, Picture, Progress, UsageError
from opticus.transforms.prepare import prepare

TINY = Config(size=None, width=4, temperature=0.38)
AT = Progress(0, 0, 1, 1, "all")


def coloured(count: int = 2, side: int = 16) -> list[Picture]:
    maker = torch.Generator().manual_seed(3)
    return [Picture(torch.randint(256, (side, side, 3), generator=maker, dtype=torch.uint8)) for _ in range(count)]


def batch_of(network: Colorization, count: int = 2) -> Batch:
    wanted = coloured(count)
    return Batch(prepare(wanted, network.prepare), tuple(wanted), tuple(f"picture {i}" for i in range(count)))


def test_the_bins_are_313_points_of_the_grid_near_colours() -> None:
    bins = nearest_bins(313)
    assert bins.shape == (313, 2) and len(torch.unique(bins, dim=0)) == 313 and bool((bins % 10 == 0).all())
    pure = torch.eye(3).reshape(3, 3, 1, 1)
    assert float(torch.cdist(to_lab(pure)[:, 1:, 0, 0], bins).min(1).values.max()) < 10
    assert not bool((bins.abs() > 105).all(1).any()), "no sRGB colour is near a corner of the grid"


def test_soft_encoding() -> None:
    """Five nearest bins, shares by a Gaussian of deviation 5, summing to one; a colour on a bin gives it the most."""
    bins = nearest_bins(313)
    shares, places = encoded(bins[[100]] + torch.tensor([[2.0, 0.0]]), bins)
    far = (bins[places[0]] - bins[100] - torch.tensor([2.0, 0.0])).square().sum(1)
    torch.testing.assert_close(shares[0], (-far / 50).exp() / (-far / 50).exp().sum())
    assert int(places[0, 0]) == 100 and float(shares.sum()) == pytest.approx(1)
    assert torch.isfinite(encoded(torch.tensor([[500.0, 500.0]]), bins)[0]).all()


def test_rebalancing_weights_average_to_one_and_favour_rare_colours() -> None:
    bins = nearest_bins(313)
    prior = (-bins.square().sum(1) / 400).exp()
    weights = rebalanced(prior, bins, 0.5)
    assert float((weights * prior).sum() / prior.sum()) == pytest.approx(1, abs=1e-5)
    assert weights[prior.argmax()] < 1 < weights[prior.argmin()]
    torch.testing.assert_close(rebalanced(prior, bins, 1.0), torch.ones(313))


def test_the_annealed_mean() -> None:
    """T = 1 is the mean of the distribution, T towards 0 its strongest bin (section 2.3)."""
    logits = torch.zeros(1, 313, 1, 1)
    logits[0, 40], logits[0, 200] = 9.0, 8.0
    one, two = nearest_bins(313)[[40, 200]]
    share = torch.tensor([9.0, 8.0]).softmax(0)
    means = {t: Colorization(Config(size=None, width=4, temperature=t)).decoded(logits)[0, :, 0, 0] for t in (1.0, 0.05)}
    torch.testing.assert_close(means[1.0], share[0] * one + share[1] * two, rtol=0.05, atol=2)
    torch.testing.assert_close(means[0.05], one, rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", ["eccv16", "siggraph17"])
def test_lightness_is_kept_and_colour_is_not_looked_at(kind: str) -> None:
    network = Colorization(Config(kind, size=None, width=4)).eval()
    pixels = torch.rand(1, 3, 16, 24) * 0.6 + 0.2
    lab = to_lab(pixels)
    lab[:, 1:] = 0
    out, grey = network(pixels), network(to_rgb(lab))
    torch.testing.assert_close(out.ab, grey.ab, rtol=1e-4, atol=1e-3)
    inside = ((out.pixels > 0) & (out.pixels < 1)).all(1, keepdim=True)  # elsewhere sRGB has no such colour and it is cut
    assert float(inside.float().mean()) > 0.1
    torch.testing.assert_close(to_lab(out.pixels)[:, :1][inside], lab[:, :1][inside], rtol=0, atol=1e-3)
    assert out.logits.shape[2:] == (4, 6) and out.pixels.shape == pixels.shape and out.ab.shape == (1, 2, 16, 24)


def test_a_large_picture_is_looked_at_small_and_answered_large() -> None:
    network = Colorization(Config(size=16, width=4)).eval()
    pictures = [Picture(torch.randint(256, size, dtype=torch.uint8)) for size in ((40, 50, 3), (30, 20, 3))]
    images = prepare(pictures, network.prepare)
    with torch.no_grad():
        out = network(images.pixels, images.valid)
        alone = network(prepare(pictures[1:], network.prepare).pixels)
    assert out.ab.shape == (2, 2, 16, 16)
    torch.testing.assert_close(out.ab[1:], alone.ab, rtol=1e-4, atol=1e-4)
    results = network.results(out, images)
    assert [r.size for r in results] == [(40, 50), (30, 20)]
    assert (
        int((results[1].pixels.int() - network.results(alone, prepare(pictures[1:], network.prepare))[0].pixels.int()).abs().max())
        <= 1
    )


def test_hints_are_for_the_network_of_2017() -> None:
    network = Colorization(Config("siggraph17", size=None, width=4)).eval()
    pixels, hints = torch.rand(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    hints[:, :, 4:8, 4:8] = torch.tensor([60.0, -20.0, 1.0])[:, None, None]
    assert not torch.allclose(network(pixels).ab, network(pixels, hints=hints).ab)
    with pytest.raises(UsageError, match="hints are for the variant"):
        Colorization(TINY)(pixels, hints=hints)


def test_losses() -> None:
    network = Colorization(TINY)
    batch = batch_of(network)
    out = network(batch.images.pixels)
    wanted = torch.nn.functional.avg_pool2d(to_lab(batch.images.pixels)[:, 1:], 4)
    shares, places = encoded(wanted.permute(0, 2, 3, 1).reshape(-1, 2), nearest_bins(313))
    logs = out.logits.log_softmax(1).permute(0, 2, 3, 1).reshape(-1, 313)
    full = torch.zeros_like(logs).scatter(1, places, shares)
    torch.testing.assert_close(Colours(network)(batch, AT)["classes"], -(full * logs).sum(1).mean())
    squared = Colours(network, loss="squared")(batch, AT)["squared"]
    torch.testing.assert_close(squared, ((out.ab - to_lab(batch.images.pixels)[:, 1:]) / AB).square().mean())


def test_the_discriminator_s_game() -> None:
    torch.manual_seed(0)
    objective = Colours(Colorization(TINY), loss="adversarial", width=4)
    batch = batch_of(objective.network)
    assert objective.phases(3) == ("d", "g")
    sum(objective(batch, AT._replace(phase="d")).values()).backward()
    assert all(p.grad is None for p in objective.network.parameters())
    sum(objective(batch, AT._replace(phase="g")).values()).backward()
    assert float(objective.network.net.conv1[0].weight.grad.abs().max()) > 0
    assert [scores.shape for scores in objective.realness(batch)] == [(2,), (2,)]


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("kind must be", lambda: Config("vgg")),
        ("size must be a multiple of 8", lambda: Config(size=20)),
        ("temperature must be in", lambda: Config(temperature=0)),
        ("loss must be", lambda: Colours(Colorization(TINY), loss="l1")),
        ("the prior must be 313 frequencies, found 2", lambda: Colours(Colorization(TINY), prior=(0.5, 0.5))),
        ("multiples of 8 without size=", lambda: Colorization(TINY)(torch.rand(1, 3, 12, 16))),
    ],
)
def test_bad_settings(words: str, make) -> None:
    with pytest.raises(UsageError, match=words):
        make()
