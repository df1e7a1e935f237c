"""TridentNet (1901.01892): shared branches, ranges of sizes, the fast form."""

from __future__ import annotations

import pytest
import torch
from papers import batch_for, new

import opticus
from opticus.models.detection.tridentnet import ANY, Block, Config, Losses, TridentNet, in_range
from opticus.ops.iou import iou
from opticus.structures import CapabilityError, Instances


def test_branches_share_weights_and_differ_in_reach() -> None:
    """One pixel moves 3x3 pixels of the block's 3x3 convolution: neighbours at distance 1, 2 and 3."""
    block = Block(Config(norm="batch"), 8, 2, 1).eval().double()
    x = torch.zeros(1, 8, 13, 13, dtype=torch.float64)
    touched = x.clone()
    touched[0, :, 6, 6] = 1
    for dilation in (1, 2, 3):
        moved = (block(touched, dilation) - block(x, dilation)).abs().amax((0, 1)) > 1e-12
        reach = {int(v) - 6 for v in moved.nonzero().flatten()}
        assert reach <= {-dilation, 0, dilation}


def test_ranges_are_of_the_root_of_the_area() -> None:
    boxes = torch.tensor([[0.0, 0, 30, 30], [0, 0, 10, 90], [0, 0, 90, 90], [0, 0, 161, 161]])
    branches = ((1, 0.0, 90.0), (2, 30.0, 160.0), (3, 90.0, ANY))
    found = [in_range(boxes, torch.tensor(i), branches).tolist() for i in range(3)]
    assert found == [[True, True, True, False], [True, True, True, False], [False, False, True, True]]


def test_the_fast_form_learns_with_all_branches_and_uses_the_middle_one() -> None:
    whole, fast = new("tridentnet/tiny"), new("tridentnet/tiny", fast=True)
    assert isinstance(whole, TridentNet) and isinstance(fast, TridentNet)
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        maps = whole.eval().features_of(pixels)
        middle = fast.eval().features_of(pixels)
    assert maps.shape[1] == 3 and middle.shape[1] == 1
    torch.testing.assert_close(middle[:, 0], maps[:, 1])
    assert fast.train().features_of(pixels).shape[1] == 3


def test_a_branch_learns_nothing_from_objects_outside_its_range() -> None:
    """With ranges that no object is in, no region is learned and no anchor is positive; the loss stays finite."""
    network = new("tridentnet/tiny", branches=((1, 0.0, 1.0), (2, 0.0, 1.0))).train()
    assert isinstance(network, TridentNet)
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    out = network(batch.images.pixels)
    terms = {key: float(v.detach()) for key, v in Losses(network)(out, batch).items()}
    assert terms["proposal"] == 0 and terms["box"] == 0 and all(v == v for v in terms.values())


def test_what_one_branch_has_to_find_is_not_background_to_another() -> None:
    """No anchor on an object outside a branch's range is sampled, neither as one nor as background."""
    network = new("tridentnet/tiny", branches=((1, 0.0, 30.0), (1, 30.0, 200.0)), samples=(10_000, 8)).train()
    assert isinstance(network, TridentNet)
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    out = network(batch.images.pixels)
    out.objectness.retain_grad()
    Losses(network)(out, batch)["objectness"].backward()
    gradient = out.objectness.grad
    assert gradient is not None
    anchors = network.anchors((128, 128), torch.zeros(1))
    seen = 0
    for i, target in enumerate(batch.targets):
        assert isinstance(target, Instances)
        small = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(1).sqrt() <= 30
        for branch, others in enumerate((target.boxes[~small], target.boxes[small])):
            if len(others):
                near = iou(others, anchors).amax(0) > 0.3
                seen += int(near.sum())
                assert not gradient[i, branch, near].any()
            assert gradient[i, branch].any()
    assert seen


def test_ranges_that_cannot_be_are_refused() -> None:
    with pytest.raises(CapabilityError, match="least < most"):
        opticus.create("tridentnet/tiny", branches=((1, 50.0, 20.0),))
