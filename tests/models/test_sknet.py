"""SKNet: fuse and select, and SimCLR v2's encoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.models.backbones.sknet import Config, SamePool, SelectiveKernel, Shrink
from opticus.parity.fill import fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.verbs.models import identify, load


def test_select_weights_are_a_distribution_over_paths() -> None:
    unit = SelectiveKernel(Config(width=16), 16, 16, stride=1).eval()
    x = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        parts = torch.stack([path(x).relu() for path in unit.paths], 1)
        weights = unit.attn(parts.sum(1))
        assert weights.shape == (2, 2, 16, 1, 1)
        torch.testing.assert_close(weights.sum(1), torch.ones(2, 16, 1, 1))
        torch.testing.assert_close(unit(x), weights[:, 0] * parts[:, 0] + weights[:, 1] * parts[:, 1])


def test_equal_paths_give_one_of_them() -> None:
    unit = SelectiveKernel(Config(width=16, kernels=(3, 3)), 16, 16, stride=2).eval()
    unit.paths[1].load_state_dict(unit.paths[0].state_dict())
    x = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(unit(x), unit.paths[0](x).relu())


def test_receptive_fields_of_the_paths() -> None:
    """A path of kernel size k sees k x k pixels (k = 5 by dilation)."""
    unit = SelectiveKernel(Config(kernels=(3, 5, 7)), 4, 4, stride=1)
    for path, side in zip(unit.paths, (3, 5, 7)):
        x = torch.zeros(1, 4, 15, 15, requires_grad=True)
        path.conv(x)[0, :, 7, 7].sum().backward()
        seen = x.grad[0].abs().sum(0).nonzero()
        assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [side, side]


@pytest.mark.parametrize(("side", "out"), [(6, 3), (7, 4)])
def test_same_pooling_starts_at_the_first_pixel_of_even_sides(side: int, out: int) -> None:
    x = torch.arange(side, dtype=torch.float32).expand(1, 1, side, side)
    found = SamePool()(x)
    assert found.shape[-2:] == (out, out)
    assert found[0, 0, 0].tolist() == ([2, 4, 5] if side == 6 else [1, 3, 5, 6])


def test_shrinking_means() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [5.0, 6.0, 7.0]]]])
    assert Shrink(1)(x)[0, 0].tolist() == [[2.5, 3.5, 4.0], [4.5, 5.5, 6.0], [5.5, 6.5, 7.0]]
    assert Shrink(2)(x)[0, 0].tolist() == [[2.5, 2.0], [2.75, 1.75]]  # TensorFlow counts the zeros it has padded itself


def test_the_widest_encoder_has_the_published_parameters() -> None:
    """SimCLR v2, table 1: ResNet-152 (3x) with SK has 795 million parameters without a classifier."""
    assert (
        sum(p.numel() for p in zoo.meta("sknet/simclr152w3", zoo.config_of("sknet/simclr152w3", {"classes": 0})).parameters())
        == 794_704_160
    )


def test_a_converted_checkpoint_is_known_and_loads(tmp_path: Path) -> None:
    """The conversion saves the encoder beside its projection head."""
    shapes = unfold(record("sknet")["manifests"]["simclr"]["simclr50"]["keys"])
    state = fill_state(shapes, torch.float32)
    torch.save({"resnet": state, "head": {"layers.0.weight": torch.zeros(2, 2)}}, tmp_path / "r50_1x_sk1.pth")
    found = identify(tmp_path / "r50_1x_sk1.pth")
    assert (found.name, found.format, found.exact) == ("sknet/simclr50", "simclr", True)
    network = load("sknet/simclr50", tmp_path / "r50_1x_sk1.pth")
    fused = state["net.1.blocks.0.net.2.main_conv.0.weight"]
    paths = network.layer1[0].conv2.paths
    assert torch.equal(torch.cat([paths[0].conv.weight, paths[1].conv.weight]), fused)
    assert network.prepare.mean == (0.0, 0.0, 0.0) and isinstance(network.maxpool, nn.Module)
