"""Masks of patches: their number, what they hide first, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opticus.matching.masking import RandomMask, RegionMask, touched
from opticus.structures import Batch, Classes, DataError, Images, Instances, UsageError


def batch_of(*targets: Any, side: int = 32) -> Batch:
    count = len(targets)
    images = Images(torch.zeros(count, 3, side, side), None, torch.eye(3).double().expand(count, 3, 3), ((side, side),) * count)
    return Batch(images, targets, tuple(f"picture {i}" for i in range(count)))


def instances(*boxes: list[float], keypoints: Any = None, masks: Any = None) -> Instances:
    return Instances(
        torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes), dtype=torch.int64), (32, 32), keypoints=keypoints, masks=masks
    )


@pytest.mark.parametrize(("ratio", "patches", "visible"), [(0.75, 196, 49), (0.8, 196, 39), (0.75, 64, 16), (0.9, 40, 4)])
def test_the_published_number_of_patches_stays_visible(ratio: float, patches: int, visible: int) -> None:
    hidden = RandomMask(ratio)(batch_of(None, None, None), 1, patches)
    assert hidden.dtype == torch.bool and (~hidden).sum(1).tolist() == [visible] * 3
    assert not torch.equal(hidden[0], hidden[1])


def test_every_patch_is_hidden_as_often_as_any_other_and_the_generator_decides() -> None:
    batch = batch_of(*[None] * 4000)
    first, again = (RandomMask(0.75)(batch, 4, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert (first.float().mean(0) - 0.75).abs().max() < 0.04  # six standard deviations


def test_boxes_touch_the_patches_that_they_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [7.9, 8, 8.1, 16], [20, 30, 31, 31], [-5, -5, 0, 40]])
    found = touched(boxes, (4, 4), (32, 32)).reshape(4, 4, 4)
    assert [one.nonzero().tolist() for one in found] == [[[0, 0]], [[1, 0], [1, 1]], [[3, 2], [3, 3]], []]
    wide = touched(torch.tensor([[0.0, 0, 33, 15]]), (2, 3), (32, 96))
    assert wide.reshape(2, 3).tolist() == [[True, True, False], [False, False, False]]


@pytest.mark.parametrize("kind", ["boxes", "keypoints", "masks"])
def test_regions_are_hidden_first(kind: Any) -> None:
    """A region of four patches out of 16, and eight are hidden."""
    plane = torch.zeros(1, 32, 32, dtype=torch.bool)
    plane[0, 9:23, 9:23] = True
    points = torch.tensor([[[16.0, 16.0, 2.0], [2.0, 2.0, 0.0]]])  # the second one is not visible
    target = instances([9.0, 9.0, 23.0, 23.0], keypoints=points, masks=plane)
    hidden = RegionMask(0.5, kind, radius=4.0)(batch_of(*[target] * 50), 4, 4).reshape(50, 4, 4)
    assert hidden.flatten(1).sum(1).tolist() == [8] * 50
    assert bool(hidden[:, 1:3, 1:3].all()), "the region itself"
    assert not bool(hidden[:, 0, 0].all()), "the rest is drawn"


def test_a_region_is_chosen_with_its_probability() -> None:
    target = instances([0.0, 0.0, 8.0, 8.0])
    draws = RegionMask(0.25, probability=0.5)(batch_of(*[target] * 4000), 4, 4)
    assert float(draws[:, 0].float().mean()) == pytest.approx(0.5 + 0.5 * 0.25, abs=0.04)
    never = RegionMask(0.25, probability=0.0)(batch_of(*[target] * 4000), 4, 4)
    assert float(never[:, 0].float().mean()) == pytest.approx(0.25, abs=0.04)


def test_parts_are_the_keypoints_that_count() -> None:
    points = torch.tensor([[[4.0, 4.0, 2.0], [28.0, 28.0, 2.0]]])
    target = instances([0.0, 0.0, 32.0, 32.0], keypoints=points)
    hidden = RegionMask(0.25, "keypoints", radius=1.0, parts=(1,))(batch_of(*[target] * 60), 4, 4)
    assert bool(hidden[:, 15].all()) and not bool(hidden[:, 0].all())


def test_regions_larger_than_the_ratio_keep_some_patches_and_none_are_masked_at_random() -> None:
    both = RegionMask(0.5)(batch_of(instances([0.0, 0.0, 32.0, 32.0]), instances()), 4, 4)
    assert both.sum(1).tolist() == [8, 8]


def test_what_is_refused() -> None:
    for ratio in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(UsageError, match="above 0 and below 1"):
            RandomMask(ratio)
    with pytest.raises(UsageError, match="leaves 0 of 16"):
        RandomMask(0.99)(batch_of(None), 4, 4)
    with pytest.raises(UsageError, match="leaves 16 of 16"):
        RandomMask(1e-12)(batch_of(None), 4, 4)
    with pytest.raises(UsageError, match="probability"):
        RegionMask(probability=1.5)
    with pytest.raises(DataError, match=r"picture 1: a mask of boxes needs instances.*Classes"):
        RegionMask()(batch_of(instances(), Classes(torch.tensor([1]))), 4, 4)
    with pytest.raises(DataError, match=r"picture 0: .*needs keypoints.*none"):
        RegionMask(kind="keypoints")(batch_of(instances()), 4, 4)
    with pytest.raises(DataError, match=r"picture 0: .*instance masks"):
        RegionMask(kind="masks")(batch_of(instances([0.0, 0.0, 9.0, 9.0])), 4, 4)
