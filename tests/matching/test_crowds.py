"""What lies inside a crowd, by area, by place and by cell of a map, against counting by hand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opticus.matching.anchors import hard_negatives
from opticus.matching.crowds import boxes_crowded, cells_crowded, points_crowded

REGION = torch.tensor([[10.0, 10.0, 30.0, 50.0]])


def test_boxes_are_inside_by_half_of_their_own_area():
    boxes = torch.tensor([[12.0, 12, 20, 20], [0, 10, 20, 20], [0, 10, 19, 20], [0, 0, 100, 100], [15, 15, 15, 15], [5, 5, 5, 9]])
    assert boxes_crowded(boxes, REGION).tolist() == [True, True, False, False, True, False]
    assert boxes_crowded(boxes, REGION, 0.1).tolist() == [True, True, True, False, True, False]
    assert boxes_crowded(boxes, REGION[:0]).tolist() == [False] * 6
    halves = torch.tensor([[10.0, 10, 20, 50], [20, 10, 30, 50]])  # no single one of two regions holds enough
    assert boxes_crowded(torch.tensor([[14.0, 10, 44, 50]]), halves).tolist() == [False]


def test_points_are_inside_up_to_the_border():
    points = torch.tensor([[10.0, 10.0], [30, 50], [9.9, 20], [20, 50.1], [20, 20]])
    assert points_crowded(points, REGION).tolist() == [True, True, False, False, True]
    assert points_crowded(points, REGION[:0]).tolist() == [False] * 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-2, 8, width=32)] * 4), max_size=3), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_a_cell_is_inside_if_a_point_of_it_is(rows, size):
    regions = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in rows]
    found = cells_crowded([torch.tensor(regions).reshape(-1, 4), torch.zeros(0, 4)], size)
    if not regions:
        assert found is None
        return
    assert found is not None and found.shape == (2, 1, *size) and not found[1].any()
    for y in range(size[0]):
        for x in range(size[1]):
            holds = any(x1 < x + 1 and x2 >= x and y1 < y + 1 and y2 >= y for x1, y1, x2, y2 in regions)
            assert bool(found[0, 0, y, x]) == holds


def test_hard_negatives_leave_the_ignored_out():
    loss = torch.tensor([[5.0, 4, 3, 2, 1]])
    positive = torch.tensor([[False, False, False, False, True]])
    ignored = torch.tensor([[True, False, True, False, False]])
    assert hard_negatives(loss, positive, 3.0, ignored).tolist() == [[False, True, False, True, False]]
    assert hard_negatives(loss, positive, 1.0, ignored).tolist() == [[False, True, False, False, False]]
    assert hard_negatives(loss, positive, 3.0, ~positive).tolist() == [[False] * 5]
