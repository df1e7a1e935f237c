"""Multi-scale batches and repeat-factor sampling: functions of (seed, step) that equal their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import opticus
from opticus.data.loader import Plan, batches, epoch_order, repeat_factors
from opticus.data.open import open_data
from opticus.data.subset import Samples, Subset
from opticus.structures import DataError, Instances, Prepare, Sample, UnknownNameError, UsageError
from opticus.training.recipe import Recipe
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Flip, MultiScale

SIZES = ((32, 32), (64, 64), (96, 64), (128, 128))


def sizes_of(stream: Any, count: int) -> list[tuple[int, ...]]:
    return [tuple(next(stream).images.pixels.shape[2:]) for _ in range(count)]


def test_a_batch_has_one_size_on_all_processes_and_after_a_restart() -> None:
    data, rule = open_data("scenes"), Prepare()
    scale = (Flip(), MultiScale(SIZES))

    def stream(start: int = 0, rank: int = 0, world: int = 1, every: int = 1) -> Any:
        chain = (Flip(), MultiScale(SIZES, every=every))
        return batches(data, chain, rule, Plan(3, 8, 2), start=start, rank=rank, world=world)

    whole = sizes_of(stream(), 16)
    assert set(whole) <= set(SIZES) and len(set(whole)) > 1
    assert whole[::2] == whole[1::2], "micro-batches of one step share their size"
    assert sizes_of(stream(start=6), 4) == whole[6:10]
    assert sizes_of(stream(rank=0, world=2), 8) == sizes_of(stream(rank=1, world=2), 8) == whole[:8]
    slow = sizes_of(stream(every=3), 12)
    assert len(set(slow[:6])) == len(set(slow[6:12])) == 1
    other = sizes_of(batches(data, scale, rule, Plan(4, 8, 2)), 16)
    assert other != whole


def test_each_sample_may_have_its_own_size_and_boxes_follow() -> None:
    data = open_data("scenes")
    alone = MultiScale(SIZES, every=0)
    outs = [alone(data[0], draw_for(0, 0, i, step=5)) for i in range(20)]
    assert {out.size for out in outs} == set(SIZES)
    again = alone(data[0], draw_for(0, 0, 7, step=9))
    assert again.size == outs[7].size and torch.equal(again.matrix, outs[7].matrix)
    for out in outs:
        x, y = out.matrix[0, 0], out.matrix[1, 1]
        expected = data[0].target.boxes * torch.tensor([x, y, x, y]) + out.matrix[[0, 1, 0, 1], 2]  # type: ignore[union-attr]
        torch.testing.assert_close(out.target.boxes.double(), expected.double(), rtol=0, atol=1e-3)  # type: ignore[union-attr]
    one = MultiScale(SIZES)
    assert len({one(data[0], draw_for(0, 0, i, step=5)).size for i in range(20)}) == 1
    assert one(data[0], draw_for(0, 0, 3)).size in SIZES  # outside of training a sample draws for itself
    with pytest.raises(UsageError, match="at least one size"):
        MultiScale(())(data[0], draw_for(0, 0, 0))


def pictures(rows: list[list[int]]) -> Samples:
    """Pictures that hold these labels, each as one box."""
    samples = []
    for row in rows:
        boxes = torch.tensor([[1.0, 1, 3, 3]]).repeat(len(row), 1)
        samples.append(
            Sample.of(torch.zeros(4, 4, 3, dtype=torch.uint8), Instances(boxes, torch.tensor(row, dtype=torch.int64), (4, 4)))
        )
    return Samples(samples, names=[str(i) for i in range(5)])


ROWS = [[0, 0]] * 80 + [[0, 1]] * 9 + [[2, 0]] * 4 + [[2, 3]] + [[]] * 6


@pytest.mark.parametrize("whole", [True, False])
def test_repeat_factors_are_those_of_the_definition(whole: bool) -> None:
    data: Any = pictures(ROWS)
    data = data if whole else Subset(data, range(len(ROWS)))  # without flat boxes it looks at every target
    threshold, share = 0.2, {k: sum(k in row for row in ROWS) / len(ROWS) for k in range(5)}
    expected = [max((max(1.0, math.sqrt(threshold / share[k])) for k in row), default=1.0) for row in ROWS]
    assert repeat_factors(data, threshold) == pytest.approx(expected)
    assert set(repeat_factors(data, 1e-3)) == {1.0}
    for bad in (0.0, 1.5):
        with pytest.raises(UsageError, match=r"\(0, 1\]"):
            repeat_factors(data, bad)
    empty: Any = pictures([[], []])
    with pytest.raises(DataError, match="needs labels"):
        repeat_factors(empty)


def test_an_even_epoch_keeps_every_share_within_one_draw() -> None:
    factors = np.array(repeat_factors(pictures(ROWS), 0.2))
    wanted, total = len(ROWS) * factors / factors.sum(), np.zeros(len(ROWS))
    for epoch in range(400):
        order = epoch_order(1, epoch, len(ROWS), factors.tolist(), even=True)
        counts = np.bincount(order, minlength=len(ROWS))
        assert len(order) == len(ROWS) and (counts >= np.floor(wanted)).all() and (counts <= np.ceil(wanted)).all()
        total += counts
    assert np.abs(total / 400 - wanted).max() < 0.1
    first, again = (epoch_order(1, 2, len(ROWS), factors.tolist(), even=True) for _ in range(2))
    assert np.array_equal(first, again) and not np.array_equal(first, epoch_order(2, 2, len(ROWS), factors.tolist(), even=True))


def test_a_recipe_trains_with_both(tmp_path: Any) -> None:
    recipe = Recipe(
        "centernet/tiny", "scenes", transforms=(MultiScale(((64, 64), (96, 96))),), batch=4, steps=3, sampling="repeat-factor", rare=0.5,
        evaluate_every=0,
    )  # fmt: skip
    run = opticus.train("centernet/tiny", pictures_of_scenes(), recipe=recipe, out=tmp_path / "run", quiet=True, test=False)
    assert run.outcome.steps == 3
    with pytest.raises(UnknownNameError, match="repeat-factor"):
        Recipe("centernet/tiny", "scenes", steps=1, sampling="repeat")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rare"):
        Recipe("centernet/tiny", "scenes", steps=1, rare=0.0)


def pictures_of_scenes() -> Any:
    scenes = open_data("scenes")
    return Subset(scenes, range(12))
