"""ConvNeXt: its block, sides that are no multiples, stochastic depth, the authors' files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.convnext import Block, ConvNeXt
from opticus.parity.fill import fill_module, fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.structures import UsageError
from opticus.verbs.models import identify, load
from opticus.verbs.optimize import optimize

SMALL = {"depths": (1, 2, 1, 1), "widths": (8, 16, 32, 64), "classes": 7}


def small(**changes: object) -> ConvNeXt:
    network = zoo.create("convnext/t", **{**SMALL, **changes})
    assert isinstance(network, ConvNeXt)
    return network


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_block_equals_its_figure(scale: float) -> None:
    """Figure 4, literally and channels first: 1x1 convolutions, norm over channels, layer scale."""
    block, x = small(layer_scale=scale).stages[1][0].double(), torch.randn(2, 16, 9, 7, dtype=torch.float64)
    fill_module(block)
    with torch.no_grad():
        y = F.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=16)
        centred = y - y.mean(1, keepdim=True)
        y = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        y = y * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
        y = F.gelu(F.conv2d(y, block.pwconv1.weight[:, :, None, None], block.pwconv1.bias))
        y = F.conv2d(y, block.pwconv2.weight[:, :, None, None], block.pwconv2.bias)
        y = y if block.gamma is None else y * block.gamma[:, None, None]
        torch.testing.assert_close(block(x), x + y)
    assert (block.gamma is None) == (scale == 0)


def test_sides_that_are_no_multiple_are_padded() -> None:
    """Zeros at the right and bottom: where only the stem needs them, a picture padded beforehand gives the same."""
    network = small().eval()
    fill_module(network)
    x = torch.randn(2, 3, 62, 93)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(F.pad(x, (0, 3, 0, 2))))
        maps = network.features(torch.randn(1, 3, 70, 41))
    assert [tuple(m.shape[2:]) for m in maps] == [(18, 11), (9, 6), (5, 3), (3, 2)]


def test_stochastic_depth_and_layer_scale() -> None:
    network = small(drop_path=0.4, layer_scale=0.25)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    assert [getattr(block.drop_path, "rate", 0.0) for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert all(torch.equal(block.gamma, torch.full_like(block.gamma, 0.25)) for block in blocks)
    torch.manual_seed(0)
    x, plain = torch.randn(8, 3, 64, 64), small(layer_scale=0.25)
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network.train()(x))
        torch.testing.assert_close(network.eval()(x), plain.eval()(x))


def test_authors_file_with_another_head(tmp_path: Path) -> None:
    """The authors save {"model": state}; the head's width is the file's, as for the ImageNet-22K files."""
    shapes = unfold(record("convnext")["manifests"]["facebook"]["t"]["keys"])
    shapes |= {"head.weight": (21, 768), "head.bias": (21,)}
    torch.save({"model": fill_state(shapes, torch.float32)}, tmp_path / "convnext_tiny_22k_224.pth")
    found = identify(tmp_path / "convnext_tiny_22k_224.pth")
    assert (found.name, found.format, found.classes) == ("convnext/t", "facebook", 21)
    model = load("convnext/t", tmp_path / "convnext_tiny_22k_224.pth")
    assert model.config.classes == 21 and torch.equal(
        model.stages[2][8].gamma, fill_state(shapes, torch.float32)["stages.2.8.gamma"]
    )


def test_optimized_network_agrees() -> None:
    fast = optimize(small(layer_scale=0.3).eval(), example=torch.randn(1, 3, 64, 64))
    assert fast.error < 1e-4 and fast.fused >= 2 * 5


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"depths \[1, 2\] and widths"):
        small(depths=(1, 2))
