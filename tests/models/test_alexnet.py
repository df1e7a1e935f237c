"""AlexNet: the shapes of figure 2, local response normalisation, the two towers, dropout's places."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.models.backbones.alexnet import AlexNet, LocalNorm

NARROW = {"widths": (8, 12, 16, 12, 12), "hidden": 20, "classes": 5}


def small(variant: str = "owt", **changes: Any) -> AlexNet:
    network = zoo.create(f"alexnet/{variant}", **{**NARROW, **changes})
    assert isinstance(network, AlexNet)
    return network


@pytest.mark.parametrize(("variant", "side"), [("owt", 224), ("2012", 227)])
def test_maps_have_the_sides_of_figure_2(variant: str, side: int) -> None:
    """55, 27 and 13, pooled to 6; with full widths 9216 numbers reach fc6."""
    network = zoo.meta(f"alexnet/{variant}")
    assert isinstance(network, AlexNet)
    maps = network._maps(torch.empty(1, 3, side, side, device="meta"), lambda x: nn.functional.max_pool2d(x, 3, 2))
    assert [m.shape[2] for m in maps] == [55, 27, 13]
    assert network.fc6.in_features == 9216 and network.fc7.out_features == 4096
    assert network.embed(torch.empty(2, 3, side, side, device="meta")).shape == (2, 4096)


def test_2012_has_sixty_million_parameters_and_the_paper_s_kernels() -> None:
    """Abstract: 60 million parameters; section 3.5: kernels 11x11x3, 5x5x48, 3x3x256, 3x3x192, 3x3x192."""
    network = zoo.meta("alexnet/2012")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 61
    kernels = [tuple(network.get_parameter(f"conv{i}.weight").shape) for i in range(1, 6)]
    assert kernels == [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]


def test_local_response_normalisation_is_the_equation() -> None:
    """Section 3.3 with Caffe's k = 1 and alpha over the size of the window, which is cut at the first and last map."""
    x = 300 * torch.rand(2, 7, 3, 4, dtype=torch.float64)
    expected = torch.empty_like(x)
    for i in range(7):
        around = range(max(0, i - 2), min(7, i + 3))
        expected[:, i] = x[:, i] / (1 + 1e-4 / 5 * sum(x[:, j] ** 2 for j in around)) ** 0.75
    found = LocalNorm()(x)
    torch.testing.assert_close(found, expected)
    assert float((found / x).min()) < 0.8, "the test would not see a norm that does nothing"


def test_towers_meet_in_conv3_only() -> None:
    """Section 3.5: conv2, conv4 and conv5 see the maps of their own tower, conv3 sees both."""
    network = small("2012")
    for name, crosses in (("conv2", False), ("conv3", True), ("conv4", False), ("conv5", False)):
        layer = cast(nn.Conv2d, network.get_submodule(name))
        x = torch.randn(1, layer.in_channels, 7, 7)
        changed = x.clone()
        changed[:, layer.in_channels // 2 :] += 1
        half = layer.out_channels // 2
        same = torch.equal(layer(x)[:, :half], layer(changed)[:, :half])
        assert same is not crosses, name


def test_dropout_is_where_each_design_has_it() -> None:
    """2012 drops the outputs of fc6 and fc7 (section 4.2), torchvision's network those of conv5 and fc6."""
    for variant, expected in (("2012", (0, 0.5, 0.5)), ("owt", (0.5, 0.5, 0))):
        network = small(variant)
        assert (network.drop5.p, network.drop6.p, network.drop7.p) == expected
        x = torch.randn(2, 3, 227, 227)
        with torch.no_grad():
            assert not torch.equal(network.train()(x), network(x)) and torch.equal(network.eval()(x), network(x))


def test_features_agree_with_the_classifier_away_from_the_border() -> None:
    network = small().double().eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        own = network._maps(x, lambda m: nn.functional.max_pool2d(m, 3, 2))
        maps = network.features(x)
    assert [m.shape[2] for m in maps] == [56, 28, 14]
    for mine, its in zip(own, maps):
        side = mine.shape[2] - 4  # conv2 to conv5 carry the border's difference inwards
        torch.testing.assert_close(its[..., :side, :side], mine[..., :side, :side])


def test_initial_weights_of_2012() -> None:
    """Section 5 with Caffe's figures: deviation 0.01 (0.005 in hidden layers), biases 0 in conv1, conv3 and fc8, 0.1 elsewhere."""
    torch.manual_seed(0)
    network = small("2012")
    for name, layer in network.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert float(layer.weight.detach().std()) == pytest.approx(0.005 if name in ("fc6", "fc7") else 0.01, rel=0.2)
            assert torch.unique(cast(torch.Tensor, layer.bias)).tolist() == pytest.approx(
                [0.0 if name in ("conv1", "conv3", "fc8") else 0.1]
            )
