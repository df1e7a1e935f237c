"""MegDet's large batches and SNIPER's chips as recipes of Faster R-CNN."""

from __future__ import annotations

import pytest

import opticus
from opticus.recipes.faster_rcnn import coco, megdet, sniper
from opticus.structures import Instances, UsageError
from opticus.transforms.draw import draw_for


def test_the_learning_rate_and_the_warm_up_grow_with_the_batch() -> None:
    small, large = megdet("faster_rcnn/r50", 16), megdet("faster_rcnn/r50", 256)
    assert small.optim["all"].lr == coco("faster_rcnn/r50").optim["all"].lr
    assert large.optim["all"].lr == pytest.approx(16 * small.optim["all"].lr)
    assert large.steps is not None and small.steps == pytest.approx(16 * large.steps, rel=1e-3)
    assert 0 < large.schedules[0].warmup <= 0.1
    with pytest.raises(UsageError, match="accumulate=3 divides, found 256"):
        megdet("faster_rcnn/r50", 256, 3)
    assert megdet("faster_rcnn/r50", 256, 4).accumulate == 4


def test_chips_of_the_demo_teach_every_object() -> None:
    """Over a few visits every object of a scene is learned at one scale or another, and every chip has the network's size."""
    recipe = sniper("faster_rcnn/tiny")
    chips = recipe.transforms[0]
    data = opticus.open_data("scenes", "val")
    for i in range(5):
        sample = data[i]
        assert isinstance(sample.target, Instances)
        learned: set[int] = set()
        for visit in range(40):
            out = chips(sample, draw_for(0, visit, i))
            assert out.size == (128, 128) and isinstance(out.target, Instances) and out.target.crowd is not None
            learned |= set(out.target.labels[~out.target.crowd].tolist())
        assert learned == set(sample.target.labels.tolist())
