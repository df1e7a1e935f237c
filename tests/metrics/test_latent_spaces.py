"""Path length and separability on generators and spaces whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opticus.metrics.path_length import PathLength, lerp, path_length, slerp
from opticus.metrics.separability import Separability, conditional_entropy, plane
from opticus.structures import CapabilityError, MetricError, Noise, UnknownNameError, UsageError


class Straight(nn.Module):
    """Pictures are a linear function of styles, styles of latent vectors: all path lengths can be written down."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(width, width, bias=False).double()
        self.second = nn.Linear(width, 8, bias=False).double()
        self.mean_style = torch.zeros(width)
        self.width = width

    def latents(self, noise: Noise) -> Tensor:
        return noise.normal(self.width).double()

    def styles(self, latents: Tensor) -> Tensor:
        return self.first(latents)

    def spread(self, styles: Tensor, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        return styles[:, None]

    def synthesize(self, styles: Tensor) -> Tensor:
        return self.second(styles[:, 0]).view(-1, 2, 2, 2)

    def finished(self, pixels: Tensor) -> Tensor:
        return pixels

    def render(self, latents: Tensor, *, condition: Any = None, steps: int | None = None) -> Tensor:
        return self.synthesize(self.spread(self.styles(latents)))


class Sphere(nn.Module):
    """The picture is the latent vector itself."""

    def latents(self, noise: Noise) -> Tensor:
        return noise.normal(6).double()

    def render(self, latents: Tensor, *, condition: Any = None, steps: int | None = None) -> Tensor:
        return latents.view(-1, 1, 2, 3)


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).square().sum(1)


def ends_of(network: Any, count: int) -> tuple[Tensor, Tensor]:
    noise = Noise(0, count)
    return network.latents(noise), network.latents(noise)


@pytest.mark.parametrize("ends", [False, True])
def test_on_a_line_the_length_is_that_of_the_step(ends: bool) -> None:
    """d(G(w), G(w + e (b - a))) / e^2 = |M (b - a)|^2 for G(w) = M w, wherever on the line."""
    network = Straight()
    one, two = ends_of(network, 40)
    expected = squared(network.render(one), network.render(two)).mean()
    found = path_length(network, squared, space="w", ends=ends, samples=40, batch=7, trim=0.0)["path length"]
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)


def test_on_the_sphere_the_length_is_the_squared_angle() -> None:
    """A chord over the angle e theta is 2 sin(e theta / 2), so d / e^2 -> theta^2."""
    one, two = ends_of(Sphere(), 50)
    angles = nn.functional.cosine_similarity(one, two).acos()
    found = path_length(Sphere(), squared, space="z", samples=50, trim=0.0)["path length"]
    assert found == pytest.approx(float(angles.square().mean()), rel=1e-5)


def test_a_jump_makes_paths_long() -> None:
    """A generator that rounds moves not at all or by leaps; the same pictures reached smoothly have shorter paths."""

    class Leaping(Sphere):
        def render(self, latents: Tensor, *, condition: Any = None, steps: int | None = None) -> Tensor:
            return (latents * 2000).round().view(-1, 1, 2, 3) / 2000

    smooth = path_length(Sphere(), squared, space="z", samples=200)["path length"]
    assert path_length(Leaping(), squared, space="z", samples=200)["path length"] > 1.5 * smooth


def test_samples_do_not_depend_on_the_batch() -> None:
    values = {path_length(Straight(), squared, samples=20, batch=batch, trim=0.0)["path length"] for batch in (20, 3)}
    assert max(values) == pytest.approx(min(values), rel=1e-12)


def test_slerp_and_lerp() -> None:
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    torch.testing.assert_close(slerp(x, y, torch.tensor([1 / 3])), torch.tensor([[math.cos(math.pi / 6), 0.5]]))
    torch.testing.assert_close(slerp(x, 3 * x, torch.tensor([0.4])), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(lerp(x, y, torch.tensor([0.25])), torch.tensor([[1.5, 1.25]]))


def test_extremes_are_left_out() -> None:
    metric = PathLength(trim=0.1)
    metric.update(torch.tensor([1000.0, *[2.0] * 5, *[4.0] * 5, 0.0]))
    assert metric.compute() == {"path length": pytest.approx(3.0)}
    with pytest.raises(MetricError, match="no sample"):
        PathLength().compute()
    with pytest.raises(MetricError, match="not negative"):
        metric.update(torch.tensor([-1.0]))


def test_path_length_refuses() -> None:
    with pytest.raises(CapabilityError, match="Sphere has no styles"):
        path_length(Sphere(), squared, space="w")
    with pytest.raises(CapabilityError, match="Linear has no latents"):
        path_length(nn.Linear(2, 2), squared)
    with pytest.raises(UnknownNameError, match="space"):
        path_length(Straight(), squared, space="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="epsilon"):
        path_length(Straight(), squared, epsilon=0.0)


# --- separability ----------------------------------------------------------------------------------------------------------


def test_conditional_entropy_of_known_tables() -> None:
    assert conditional_entropy(np.array([[5, 0], [0, 7]])) == 0
    assert conditional_entropy(np.array([[4, 4], [3, 3]])) == pytest.approx(math.log(2))
    # H(Y | X) = 1/2 H(1/4): one side knows, the other is three to one
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert conditional_entropy(np.array([[4, 0], [1, 3]])) == pytest.approx(quarter / 2)
    with pytest.raises(MetricError, match="table of counts"):
        conditional_entropy(np.zeros((2, 2)))


def cloud(count: int = 400) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_what_a_plane_divides_scores_one() -> None:
    """The attributes are two half-spaces with a gap between their sides."""
    x = cloud()
    x = x[(x[:, 0].abs() > 0.1) & ((x[:, 1] + x[:, 2] - 0.3).abs() > 0.1)]
    metric = Separability(keep=1.0)
    metric.update(x, torch.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] > 0.3], 1).double())
    assert metric.compute() == {"separability": pytest.approx(1.0), "entropy/0": 0.0, "entropy/1": 0.0}


def test_what_no_plane_divides_scores_two() -> None:
    """Exclusive or: four equal clouds at the corners of a square; knowing the side of any line through them helps by little."""
    corners = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dtype=torch.float64)
    x = corners.repeat(100, 1)
    metric = Separability(keep=1.0)
    metric.update(x, (x[:, :1] * x[:, 1:] > 0).double())
    found = metric.compute()["separability"]
    # the best line cuts one corner off: H = 3/4 H(1/3), exp of it is 1.61; none at all gives 2
    assert 1.6 < found <= 2.0 + 1e-9
    alike = Separability()
    alike.update(cloud(), torch.ones(400, 1))
    assert alike.compute()["separability"] == 1.0


def test_the_unsure_are_left_out() -> None:
    """Half of the pictures have labels without sense, which the classifier is unsure about."""
    x = cloud()
    x[:, 0] += x[:, 0].sign()
    sure = torch.arange(400) % 2 == 0
    noise = 0.5 + 0.1 * torch.where(torch.arange(400) % 4 == 1, 1.0, -1.0)
    probs = torch.where(sure, (x[:, 0] > 0).float(), noise)[:, None]
    scores: list[float] = []
    for keep in (0.5, 1.0):
        metric = Separability(keep)
        for some in (slice(0, 100), slice(100, 400)):
            metric.update(x[some], probs[some])
        scores.append(metric.compute()["separability"])
    assert scores[0] == pytest.approx(1.0) and scores[1] > 1.2


def test_a_plane_does_not_depend_on_scale_and_place() -> None:
    x = cloud().numpy()
    labels = x @ np.array([1.0, -2.0, 0.0, 0.5]) > 0.2
    normal, offset = plane(x * 1e-3 + 7, labels)
    assert (((x * 1e-3 + 7) @ normal + offset > 0) == labels).mean() > 0.97


def test_separability_refuses() -> None:
    metric = Separability()
    with pytest.raises(MetricError, match=r"found \(3, 2\) and \(4, 1\)"):
        metric.update(torch.zeros(3, 2), torch.zeros(4, 1))
    with pytest.raises(MetricError, match="in \\[0, 1\\]"):
        metric.update(torch.zeros(3, 2), torch.full((3, 1), 1.5))
    with pytest.raises(MetricError, match="no sample"):
        metric.compute()
    with pytest.raises(UsageError, match="keep"):
        Separability(0.0)
