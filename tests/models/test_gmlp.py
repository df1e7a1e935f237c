"""gMLP: the spatial gating unit and how it starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.gmlp import GMLP, SpatialGatingUnit
from opticus.structures import UsageError

SMALL = {"size": 32, "patch": 8, "width": 24, "depth": 3, "hidden": 48, "classes": 5}


def small(**changes: object) -> GMLP:
    network = zoo.create("gmlp/s16", **{**SMALL, **changes})
    assert isinstance(network, GMLP)
    return network


def test_the_gate_starts_as_an_identity() -> None:
    """Section 2.1: W near zero and b = 1, so that every block is at first an ordinary feed-forward layer without mixing."""
    torch.manual_seed(0)
    network = small()
    z = torch.randn(2, 16, 48)
    for block in network.blocks:
        assert float(block.gate.proj.weight.detach().abs().max()) < 1e-5 and bool((block.gate.proj.bias == 1).all())
        with torch.no_grad():
            torch.testing.assert_close(block.gate(z), z[..., :24], atol=1e-3, rtol=0)


def test_the_gate_equals_its_equation() -> None:
    gate = SpatialGatingUnit(8, 5).double()
    z = torch.randn(1, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        gate.proj.weight.normal_()
        z2 = F.layer_norm(z[..., 4:], (4,), gate.norm.weight, gate.norm.bias, 1e-5)
        expected = z[..., :4].clone()
        for n in range(5):
            expected[0, n] *= sum(gate.proj.weight[n, m] * z2[0, m] for m in range(5)) + gate.proj.bias[n]
        torch.testing.assert_close(gate(z), expected)


def test_only_the_gate_mixes_tokens() -> None:
    """With W = 0 a change in one patch stays in its token; with W it reaches all."""
    network = small().eval()
    pixels = torch.randn(1, 3, 32, 32)
    changed = pixels.clone()
    changed[..., :8, :8] += 1
    for scale, everywhere in ((0.0, False), (0.3, True)):
        for block in network.blocks:
            torch.nn.init.constant_(block.gate.proj.weight, scale)
        with torch.no_grad():
            moved = (network.tokens(pixels) - network.tokens(changed)).abs().amax((0, 2)) > 1e-6
        assert bool(moved[0]) and bool(moved[1:].all()) == everywhere and bool(moved[1:].any()) == everywhere


@pytest.mark.parametrize(
    ("variant", "width", "hidden", "millions"), [("ti16", 128, 768, 5.9), ("s16", 256, 1536, 19.5), ("b16", 512, 3072, 73.4)]
)
def test_table_1(variant: str, width: int, hidden: int, millions: float) -> None:
    config = zoo.config_of(f"gmlp/{variant}")
    assert (config.depth, config.width, config.hidden) == (30, width, hidden)
    assert sum(p.numel() for p in zoo.meta(f"gmlp/{variant}").parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"hidden must be even.*found 47"):
        small(hidden=47)
    with pytest.raises(UsageError, match="size 30 must be a positive multiple of patch 8"):
        small(size=30)
    with pytest.raises(UsageError, match=r"must be 32x32 pixels.*found 64x64"):
        small()(torch.zeros(1, 3, 64, 64))
