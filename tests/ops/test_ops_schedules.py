"""Schedules: known values, joints, and steps that land on rounded progress."""

from functools import partial

import pytest

from opticus.ops import schedules as S
from opticus.structures import UsageError


def test_known_values():
    assert [S.linear(p) for p in (-1.0, 0.0, 0.25, 1.0, 2.0)] == [1, 1, 0.75, 0, 0]
    assert [round(S.cosine(p, end=0.2), 12) for p in (0.0, 0.5, 1.0)] == [1, 0.6, 0.2]
    assert S.polynomial(0.5, power=2.0) == 0.25 and S.constant(0.3) == 1 and S.constant(0.3, value=2.0) == 2
    assert [round(S.multistep(p, milestones=(0.5, 0.75)), 6) for p in (0.49, 0.5, 0.75, 1.0)] == [1, 0.1, 0.01, 0.01]


def test_milestones_that_are_reached_in_rounded_steps():
    for steps in range(3, 400, 3):
        values = [S.step(i / steps, every=1 / 3) for i in range(steps)]
        assert [values.count(pytest.approx(0.1**k)) for k in range(3)] == [steps // 3] * 3
        values = [S.multistep(i / steps, milestones=(1 / 3, 2 / 3)) for i in range(steps)]
        assert [values.count(pytest.approx(0.1**k)) for k in range(3)] == [steps // 3] * 3


def test_warm_up_joins_what_follows():
    rule = partial(S.warmup, share=0.1, then=partial(S.cosine, end=0.1))
    assert rule(0.0) == 0 and rule(0.05) == pytest.approx(0.5) and rule(0.1) == 1 and rule(1.0) == pytest.approx(0.1)
    assert rule(0.55) == pytest.approx(0.55)
    assert S.warmup(0.5, share=1.0, then=S.constant) == 0.5
    rule = partial(S.held, share=0.2, then=partial(S.multistep, milestones=(0.5,)), start=0.5)
    assert [rule(0.0), rule(0.1), rule(0.2), rule(0.49)] == pytest.approx([0.5, 0.75, 1, 1]) and rule(0.5) == pytest.approx(0.1)


def test_pieces():
    rule = partial(S.pieces, ends=(0.5, 1.0), parts=(S.linear, partial(S.constant, value=3.0)))
    assert [rule(0.0), rule(0.25), rule(0.5), rule(1.0)] == [1, 0.5, 3, 3]
    for ends in ((0.5,), (0.7, 0.5), (0.2, 0.9)):
        with pytest.raises(UsageError, match="rising"):
            S.pieces(0.1, ends=ends, parts=(S.linear, S.linear))
    with pytest.raises(UsageError, match="positive"):
        S.step(0.1, every=0.0)
