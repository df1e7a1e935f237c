"""Flow matching: paths, solvers and their order, the likelihood of a field that is known, drawing, bad settings and calls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.models.generative.flow_matching import FlowMatching, Matching, solve
from opticus.structures import Density, Latent, Noise, Sampler, UsageError

SMALL: dict[str, Any] = {"size": 8, "width": 8, "groups": 4, "head_width": 8}


def small(**changes: Any) -> FlowMatching:
    """A small network none of whose zeros are left."""
    torch.manual_seed(0)
    network = zoo.create("flow_matching/tiny", **{**SMALL, **changes})
    assert isinstance(network, FlowMatching)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1) if not bool(parameter.any()) else None
    return network.double().eval()


class Shrinking(nn.Module):
    """The velocity of N(0, I) that becomes N(mean, deviation^2) on straight lines between quantiles: known in closed form."""

    def __init__(self, centre: Tensor, deviation: float) -> None:
        super().__init__()
        self.centre, self.deviation = nn.Parameter(centre, requires_grad=False), deviation

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        t = times[:, None]
        start = (x - t * self.centre) / (1 + t * (self.deviation - 1))
        return self.centre + (self.deviation - 1) * start


def known() -> tuple[FlowMatching, Shrinking]:
    network = zoo.create("flow_matching/points").double().eval()
    assert isinstance(network, FlowMatching)
    field = Shrinking(torch.tensor([1.0, -2.0], dtype=torch.float64), 0.3)
    network.field = field  # type: ignore[assignment]
    return network, field


def test_paths_run_from_noise_to_data() -> None:
    objective = Matching(small(), sigma=0.1)
    data, noise = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64).unbind()
    start, end = (objective.pair(data, noise, torch.full((3,), t, dtype=torch.float64)) for t in (0.0, 1.0))
    torch.testing.assert_close(start.x, noise)
    torch.testing.assert_close(end.x, data + 0.1 * noise)
    torch.testing.assert_close(end.x - start.x, start.velocity)
    straight = Matching(small(), sigma=0).pair(data, noise, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(straight.x, data)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_have_their_order(solver: Any, order: int) -> None:
    """dx/dt = -2 t x^2 with x(0) = 1 is 1 / (1 + t^2): twice the steps, 2^order times smaller an error."""

    def field(x: Tensor, times: Tensor) -> Tensor:
        return -2 * times[:, None] * x.square()

    start = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(float(solve(field, start, steps, solver)) - 0.5) for steps in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_there_and_back() -> None:
    network = small()
    start = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        end = solve(network, start, 200, "heun")
        again = solve(network, end, 200, "heun", backwards=True)
    assert float((end - start).abs().max()) > 0.1 and float((again - start).abs().max()) < 1e-4


def test_the_likelihood_of_a_known_field() -> None:
    network, field = known()
    points = network.sample(Noise(0, 2000), steps=50)
    assert points.mean(0).tolist() == pytest.approx(field.centre.tolist(), abs=0.03)
    assert points.std(0).tolist() == pytest.approx([0.3, 0.3], abs=0.02)
    truth = torch.distributions.Normal(field.centre, 0.3).log_prob(points).sum(1)
    torch.testing.assert_close(network.log_density(points, steps=200), truth, atol=1e-3, rtol=0)


def test_the_estimated_divergence_is_right_on_average() -> None:
    """Over all signs of a small picture's four values, Hutchinson's estimate is the exact divergence."""
    network = small(size=2, mults=(1, 2))
    x, times = torch.randn(1, 1, 2, 2, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    exact = network.divergence(x, times, None)[1]
    every = 2 * torch.cartesian_prod(*(torch.arange(2),) * 4).double() - 1
    estimates = torch.stack([network.divergence(x, times, e.view(1, 1, 2, 2))[1] for e in every])
    torch.testing.assert_close(estimates.mean(0), exact)
    assert float(estimates.std()) > 1e-4


def test_drawing_and_density_are_functions_of_the_noise_and_the_picture() -> None:
    network = small().float()
    assert isinstance(network, Sampler) and isinstance(network, Latent) and isinstance(network, Density)
    many, one = network.sample(Noise(3, 4), steps=3), network.sample(Noise(3, 1, first=2), steps=3)
    torch.testing.assert_close(many[2:3], one, atol=1e-5, rtol=1e-5)
    whole = network.log_likelihood(many, steps=3)
    torch.testing.assert_close(whole[1:2], network.log_likelihood(many[1:2], steps=3), atol=1e-3, rtol=1e-5)
    assert not whole.requires_grad


def test_bad_settings_and_calls_are_refused() -> None:
    for changes in ({"levels": 3}, {"size": 9}, {"width": 10}):
        with pytest.raises(UsageError, match="flow_matching"):
            zoo.create("flow_matching/tiny", **{**SMALL, **changes})
    network = small()
    with pytest.raises(UsageError, match="sigma must be in"):
        Matching(network, sigma=1.0)
    for bad in ({"steps": 0}, {"solver": "rk4"}, {"condition": torch.zeros(1)}):
        with pytest.raises(UsageError, match="solver one of euler, midpoint, heun"):
            network.sample(Noise(0, 1), **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"shape \(1, 8, 8\), found \(3, 8, 8\)"):
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1))
