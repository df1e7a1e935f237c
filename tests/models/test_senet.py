"""SENet: the equations, the two places of the stride, and the published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.models.backbones.senet import SqueezeExcite


def test_squeeze_and_excitation_is_equations_2_to_4() -> None:
    unit = SqueezeExcite(8, 4)
    x = torch.randn(2, 8, 5, 6)
    z = x.mean((2, 3))
    hidden = (z @ unit.fc1.weight[:, :, 0, 0].T + unit.fc1.bias).clamp(min=0)
    s = torch.sigmoid(hidden @ unit.fc2.weight[:, :, 0, 0].T + unit.fc2.bias)
    torch.testing.assert_close(unit(x), x * s[:, :, None, None])


def test_an_open_gate_halves_what_passes() -> None:
    """With a zero second layer every gate is sigmoid(0) = 1/2."""
    unit = SqueezeExcite(8, 4)
    nn.init.zeros_(unit.fc2.weight)
    nn.init.zeros_(unit.fc2.bias)
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(unit(x), x / 2)


def test_where_the_stride_is() -> None:
    for variant, first, second in (("50", 1, 2), ("caffe_50", 2, 1), ("caffe_resnext50_32x4d", 1, 2), ("caffe_154", 1, 2)):
        block = zoo.meta(f"senet/{variant}").layer2[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == (first, second)


def test_parameters_added_by_the_paper() -> None:
    """Section 4: 2/r sum N C^2 weights, about 2.5 million for ResNet-50 at r = 16; the biases of both layers come on top."""
    plain, ours = zoo.meta("resnet/50"), zoo.meta("senet/50")
    extra = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in plain.parameters())
    weights = sum(2 * n * c * c // 16 for n, c in zip((3, 4, 6, 3), (256, 512, 1024, 2048)))
    biases = sum(n * (c + c // 16) for n, c in zip((3, 4, 6, 3), (256, 512, 1024, 2048)))
    assert extra == weights + biases and round(weights / 1e6, 1) == 2.5


@pytest.mark.parametrize("variant", ["50", "caffe_50", "154", "caffe_154"])
def test_maps_at_the_published_size(variant: str) -> None:
    network = zoo.create(f"senet/{variant}", layers=(1, 1, 1, 1), width=16, classes=3, groups=1, group_width=64).eval()
    with torch.no_grad():
        maps = network.features(torch.randn(1, 3, 224, 224))
    assert [m.shape[-1] for m in maps] == [56, 28, 14, 7] and [m.shape[1] for m in maps] == list(network.widths)
