"""PANet (1803.01534): the way up, the fusion of levels, what it refuses."""

from __future__ import annotations

import pytest
import torch
from papers import new
from torch import nn

import opticus
from opticus.models.detection.panet import BottomUp, PANet
from opticus.structures import CapabilityError


@pytest.fixture(scope="module")
def tiny() -> PANet:
    network = new("panet/tiny").eval()
    assert isinstance(network, PANet)
    return network


def test_the_finest_map_reaches_the_coarsest_by_four_convolutions() -> None:
    """N2 is P2 itself; sizes follow the pyramid's also where they are odd; fine pixels move the coarsest map."""
    maps = [torch.randn(1, 32, h, w, requires_grad=True) for h, w in ((13, 9), (7, 5), (4, 3))]
    found = BottomUp(3, 32)(maps)
    assert found[0] is maps[0] and [n.shape for n in found] == [p.shape for p in maps]
    found[-1].square().sum().backward()
    assert maps[0].grad is not None and float(maps[0].grad.abs().sum()) > 0


def test_a_region_is_seen_on_every_level_and_the_strongest_wins(tiny: PANet) -> None:
    """Figure 3c: the fused vector is the largest of the levels' own; a change of any level alone changes the answer."""
    torch.manual_seed(0)
    maps = [torch.randn(1, 64, 128 // stride, 128 // stride) for stride in tiny.strides]
    box, first = torch.tensor([[10.0, 20, 60, 90]]), torch.tensor([0])
    with torch.no_grad():
        logits, deltas = tiny.regions(maps, box, first)
        assert logits.shape == (1, 11) and deltas.shape == (1, 11, 4)
        for i in range(len(maps)):
            changed = [x * (-1 if j == i else 1) for j, x in enumerate(maps)]
            assert not torch.allclose(tiny.regions(changed, box, first)[0], logits)
        reordered = tiny.head([torch.zeros(2, 64, 7, 7)] * 3)[0]
    assert reordered.shape == (2, 11) and torch.equal(reordered[0], reordered[1])


def test_no_regions_give_no_answers(tiny: PANet) -> None:
    maps = [torch.randn(1, 64, 128 // stride, 128 // stride) for stride in tiny.strides]
    logits, deltas = tiny.regions(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert logits.shape == (0, 11) and deltas.shape == (0, 11, 4)


def test_widths_that_the_norms_cannot_take_are_refused() -> None:
    with pytest.raises(CapabilityError, match="multiples of 32, found 64 and 100"):
        opticus.create("panet/tiny", hidden=100)
    with pytest.raises(CapabilityError, match="stride 64"):
        opticus.create("panet/tiny", finest=64)


def test_groups_of_the_head_hold_enough_units(tiny: PANet) -> None:
    """A norm takes mean and deviation out of a vector's group: of three units one number would be left."""
    norms = [module for module in tiny.head.modules() if isinstance(module, nn.GroupNorm)]
    assert norms and all(norm.num_channels // norm.num_groups >= 8 for norm in norms)
