"""VGG: the configurations of table 1, dense evaluation, formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.models.backbones.vgg import VARIANTS, VGG
from opticus.verbs.models import load

NARROW = {"width": 4, "hidden": 20, "classes": 5}


def small(**changes: Any) -> VGG:
    torch.manual_seed(0)
    network = zoo.create("vgg/16", **{**NARROW, **changes})
    assert isinstance(network, VGG)
    return network


@pytest.mark.parametrize(("variant", "millions"), [("11", 133), ("13", 133), ("16", 138), ("19", 144)])
def test_table_1_and_table_2(variant: str, millions: int) -> None:
    """A network is named by its weight layers, its stages have 64 to 512 channels, table 2 counts its parameters."""
    network = zoo.meta(f"vgg/{variant}")
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == int(variant)
    assert all(m.kernel_size == (3, 3) for m in layers if isinstance(m, nn.Conv2d))
    assert network.widths == (64, 128, 256, 512, 512, 512) and network.strides == (1, 2, 4, 8, 16, 32)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions
    assert network(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    assert network.embed(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 4096)


def test_batch_norm_variants_differ_by_the_norms_alone() -> None:
    for variant, config in VARIANTS.items():
        if variant.endswith("_bn"):
            with_norm, plain = (zoo.meta(f"vgg/{v}") for v in (variant, variant.removesuffix("_bn")))
            norms = sum(2 * width * count for width, count in zip(with_norm.widths, config.layers))
            assert sum(p.numel() for p in with_norm.parameters()) - sum(p.numel() for p in plain.parameters()) == norms


def test_dense_evaluation_is_the_average_over_windows() -> None:
    """Section 3.2: the class scores of every 7x7 window of the last map, averaged; one window is the plain network."""
    network, dense = small().double().eval(), small(dense=True).double().eval()
    dense.load_state_dict(network.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
        torch.testing.assert_close(dense(x), network(x))
        x = torch.randn(2, 3, 256, 288, dtype=torch.float64)
        trunk = network.trunk(x)  # 8x9
        scores = []
        for top in range(2):
            for left in range(3):
                window = trunk[:, :, top : top + 7, left : left + 7].flatten(1)
                scores.append(network.fc8(network.fc7(network.fc6(window).relu()).relu()))
        torch.testing.assert_close(dense(x), torch.stack(scores).mean(0))
        assert not torch.allclose(network(x), dense(x)), "without it the map is averaged to the grid"


def test_features_of_even_pictures_are_the_classifier_s() -> None:
    network = small(norm=True).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.features(x)[-1], network.trunk(x))


def test_one_network_in_two_formats(tmp_path: Path) -> None:
    """timm stores the hidden layers as 7x7 and 1x1 kernels; both files give the same network."""
    network = small(norm=True).eval()
    places = {
        "fc6": ("classifier.0", "pre_logits.fc1"),
        "fc7": ("classifier.3", "pre_logits.fc2"),
        "fc8": ("classifier.6", "head.fc"),
    }
    files: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    for key, value in network.state_dict().items():
        layer, _, rest = key.partition(".")
        for form, state in enumerate(files):
            name = f"features.{rest}" if layer == "trunk" else f"{places[layer][form]}.{rest}"
            if form and rest == "weight" and layer in ("fc6", "fc7"):
                value = value.unflatten(1, (-1, 7, 7) if layer == "fc6" else (-1, 1, 1))
            state[name] = value
    x = torch.randn(1, 3, 224, 224)
    for form, state in zip(("torchvision", "timm"), files):
        torch.save(state, tmp_path / f"{form}.pth")
        again = load("vgg/16", tmp_path / f"{form}.pth", quiet=True, norm=True, **NARROW)
        assert again.card.provenance["format"] == form
        with torch.no_grad():
            assert torch.equal(again(x), network(x))


def test_without_hidden_layers_it_is_a_trunk(tmp_path: Path) -> None:
    """A detector's VGG has no fc6 to fc8: it takes a whole file's convolutions and leaves the rest."""
    whole = small(norm=True).eval()
    names = {"trunk": "features", "fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
    state = {f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in whole.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    trunk = load("vgg/16", tmp_path / "vgg.pth", quiet=True, norm=True, **{**NARROW, "hidden": 0, "classes": 0})
    assert not any(key.startswith("fc") for key in trunk.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(trunk.features(x), whole.features(x))
        pooled = torch.nn.functional.adaptive_avg_pool2d(whole.features(x)[-1], trunk.config.grid)
        torch.testing.assert_close(trunk(x), pooled.flatten(1))
        assert small(hidden=0)(x).shape == (1, 5)
