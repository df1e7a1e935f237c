"""CenterNet on its other backbones: what the necks look like, intermediate supervision, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from papers import batch_for

from opticus import zoo
from opticus.models.detection.centernet import Aggregation, CenterNet, Config, Deformable, Iterative, criterion
from opticus.structures import CapabilityError, Part, UsageError

STACKS = Part("hourglass/tiny", classes=0, side=0, width=16, widths=(8, 12), depths=(1, 1), stem=16)
SMALL: dict[str, Any] = {"classes": 3, "head": 16}


def build(**changes: Any) -> CenterNet:
    torch.manual_seed(0)
    network = zoo.build("centernet/hourglass", Config(**{**SMALL, **changes}))
    assert isinstance(network, CenterNet)
    return network


def test_every_stack_is_supervised_and_the_last_one_answers() -> None:
    network = build(backbone=STACKS, up="none")
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    out = network.train()(batch.images.pixels)
    assert out.earlier is not None and len(out.earlier) == 1 and network.eval()(batch.images.pixels).earlier is None
    terms = criterion(3)
    both, last, first = terms(out, batch), terms(out._replace(earlier=None), batch), terms(out.earlier[0], batch)
    for key, value in both.items():
        torch.testing.assert_close(value, (last[key] + first[key]) / 2)
    sum(both.values()).backward()  # type: ignore[union-attr]
    assert float(network.earlier[0].get_parameter("hm.2.weight").grad.abs().max()) > 0  # type: ignore[union-attr]


def test_a_deformable_convolution_starts_as_half_a_plain_one() -> None:
    conv, x = Deformable(4, 6), torch.randn(2, 4, 7, 9)
    plain = torch.nn.functional.conv2d(x, conv.weight, None, padding=1)
    torch.testing.assert_close(conv(x), plain / 2 + conv.bias[:, None, None], rtol=1e-4, atol=1e-5)


def test_enlargement_starts_bilinear() -> None:
    joined = Iterative(2, (4, 4), (2, 4))
    for name, factor in (("up_1", 2), ("up_2", 4)):
        x = torch.arange(8.0).expand(1, 2, 8, 8)
        up = joined.get_submodule(name)(x)
        expected = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear")
        inner = slice(2 * factor, -2 * factor)
        torch.testing.assert_close(up[..., inner, inner], expected[..., inner, inner])


def test_aggregation_cuts_what_is_enlarged_too_far() -> None:
    maps = [torch.randn(1, width, -(-37 // 2**i), -(-50 // 2**i)) for i, width in enumerate((4, 6, 8, 10))]
    assert Aggregation((4, 6, 8, 10)).eval()(maps).shape == (1, 4, 37, 50)


@pytest.mark.parametrize("up", ["deformable", "aggregation"])
def test_other_backbones_carry_them(up: Any) -> None:
    part = Part("resnet/18", classes=0, layers=(1, 1, 1, 1), width=8)
    network = build(backbone=part, up=up, neck=32)
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    out = network(batch.images.pixels)
    assert out.heat.shape == (2, 3, 24, 24) and all(bool(torch.isfinite(v)) for v in criterion(3)(out, batch).values())


def test_what_they_cannot_stand_on() -> None:
    short = Part("resnet/18", classes=0, layers=(1, 1), width=8)
    for up, match in (
        ("none", "whose maps have stride 4"),
        ("aggregation", "last strides are 4, 8, 16"),
        ("deformable", "last stride is 32"),
    ):
        with pytest.raises(CapabilityError, match=match):
            build(backbone=short, up=up)
    with pytest.raises(UsageError, match="without a backbone"):
        build(up="aggregation", widths=(8, 16), depths=(1,))
