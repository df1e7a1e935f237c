"""The feed-forward network: the paper's equations literally, and its two hidden kinds of units."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import opticus
from opticus import zoo
from opticus.structures import UnknownNameError, UsageError


def test_units_follow_the_equations() -> None:
    """Eq. 1 and 2, unit by unit: x_j = sum_i y_i w_ji + b_j, y_j = 1 / (1 + exp(-x_j))."""
    network: Any = zoo.create("mlp/sigmoid", channels=1, size=2, hidden=(3,), classes=2).double()
    pixels = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    below = pixels.flatten().tolist()
    weight, bias = network.hidden[0].weight.tolist(), network.hidden[0].bias.tolist()
    above = [1 / (1 + math.exp(-(sum(y * w for y, w in zip(below, weight[j])) + bias[j]))) for j in range(3)]
    assert network.embed(pixels)[0].tolist() == pytest.approx(above)
    head, shift = network.head.weight.tolist(), network.head.bias.tolist()
    assert network(pixels)[0].tolist() == pytest.approx([sum(y * w for y, w in zip(above, head[k])) + shift[k] for k in range(2)])


def test_the_backward_pass_is_the_papers() -> None:
    """Eq. 4-6 for logistic units: dE/dx = dE/dy y (1 - y), dE/dw_ji = dE/dx_j y_i, dE/dy_i = sum_j dE/dx_j w_ji."""
    network: Any = zoo.create("mlp/sigmoid", channels=1, size=2, hidden=(3, 4), classes=0).double()
    pixels, wanted = torch.randn(1, 1, 2, 2, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    y1 = torch.sigmoid(network.hidden[0](pixels.flatten(1)))
    y2 = torch.sigmoid(network.hidden[1](y1))
    (0.5 * (network(pixels) - wanted).square().sum()).backward()
    dx2 = (y2 - wanted) * y2 * (1 - y2)
    dx1 = (dx2 @ network.hidden[1].weight) * y1 * (1 - y1)
    torch.testing.assert_close(network.hidden[1].weight.grad, dx2.T @ y1)
    torch.testing.assert_close(network.hidden[0].weight.grad, dx1.T @ pixels.flatten(1))
    torch.testing.assert_close(network.hidden[0].bias.grad, dx1[0])


def test_published_sizes() -> None:
    """LeCun et al. 1998: 28x28-300-10 and 28x28-300-100-10."""
    widths = [
        [tuple(p.shape) for n, p in zoo.meta(f"mlp/{v}").named_parameters() if n.endswith("weight")] for v in ("300", "300-100")
    ]
    assert widths == [[(300, 784), (10, 300)], [(300, 784), (100, 300), (10, 100)]]


def test_initial_scale_is_kept_through_many_layers() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(256, 1, 16, 16)
    for activation, low, high in (("relu", 0.3, 3.0), ("tanh", 0.05, 1.0), ("sigmoid", 0.05, 0.5)):
        network: Any = zoo.create("mlp/tiny", channels=1, size=16, hidden=(200,) * 8, activation=activation)
        assert low < float(network.embed(pixels).detach().std()) < high, activation


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match=r"found \(3, 16, 16\)"):
        zoo.create("mlp/tiny")(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UnknownNameError, match="activation"):
        zoo.create("mlp/tiny", activation="rleu")


def test_dropout_acts_in_training_only() -> None:
    network, pixels = zoo.create("mlp/tiny", dropout=0.5), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network.train()(pixels), network.train()(pixels))
        assert torch.equal(network.eval()(pixels), network.eval()(pixels))


def test_a_settings_file_keeps_the_layers(tmp_path: Any) -> None:
    model = opticus.create("mlp/tiny", hidden=(20, 10), classes=4)
    again = opticus.load(model.save(tmp_path / "m.safetensors"))
    assert again.config == model.config and len(again.hidden) == 2
