"""Anchors by hand, assignment against a loop, and the two ways to pick what is learned from."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from opticus.matching.anchors import (
    IGNORED,
    NEGATIVE,
    balanced_sample,
    base_anchors,
    grid_anchors,
    hard_negatives,
    ignore_inside,
    max_iou,
)


def test_anchors_of_the_rpn_by_hand():
    assert base_anchors([32.0], [0.5, 1.0, 2.0]).tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    exact = base_anchors([32.0, 64.0], [2.0], whole=False)
    sides = exact[:, 2:] - exact[:, :2]
    torch.testing.assert_close(sides.prod(1), torch.tensor([1024.0, 4096.0]))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([2.0, 2.0]))


def test_a_grid_goes_row_by_row_with_a_cells_anchors_together():
    base = torch.tensor([[-1.0, -1, 1, 1], [-2, -2, 2, 2]])
    grid = grid_anchors(base, (2, 3), (10.0, 8.0))
    assert grid.shape == (12, 4) and grid[2:4].tolist() == [[7, -1, 9, 1], [6, -2, 10, 2]]
    assert grid[6].tolist() == [-1, 9, 1, 11]
    assert grid_anchors(base, (1, 1), (10.0, 8.0), offset=0.5)[0].tolist() == [3, 4, 5, 6]


def assigned(overlaps, positive, negative, rescue):
    found = []
    for n in range(len(overlaps[0])):
        column = [row[n] for row in overlaps]
        best, nearest = max(column), column.index(max(column))
        kept = nearest if best >= positive else NEGATIVE if best < negative else IGNORED
        if rescue and any(row[n] == max(row) for row in overlaps):
            kept = nearest
        found.append(kept)
    return found


@given(st.integers(1, 4), st.integers(1, 7), st.booleans(), st.data())
def test_assignment_equals_a_loop(objects, anchors, rescue, data):
    rows = [[data.draw(st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.7, 0.9])) for _ in range(anchors)] for _ in range(objects)]
    assert max_iou(torch.tensor(rows), 0.7, 0.3, rescue=rescue).tolist() == assigned(torch.tensor(rows).tolist(),
        *torch.tensor([0.7, 0.3]).tolist(), rescue)  # fmt: skip


def test_nothing_to_find_is_background():
    assert max_iou(torch.zeros(0, 3), 0.7, 0.3).tolist() == [NEGATIVE] * 3
    assert max_iou(torch.zeros(2, 0), 0.7, 0.3).tolist() == []


@given(st.lists(st.sampled_from([NEGATIVE, IGNORED, 0, 1]), max_size=40), st.integers(1, 16), st.sampled_from([0.25, 0.5]))
def test_samples_are_balanced_and_complete(matches, count, share):
    labels = torch.tensor(matches, dtype=torch.int64)
    picked = balanced_sample(labels, count, share)
    positives, negatives = matches.count(0) + matches.count(1), matches.count(NEGATIVE)
    assert len(picked.positives) == min(positives, int(count * share))
    assert len(picked.negatives) == min(negatives, count - len(picked.positives))
    assert (labels[picked.positives] >= 0).all() and (labels[picked.negatives] == NEGATIVE).all()
    both = torch.cat([picked.positives, picked.negatives]).tolist()
    assert len(set(both)) == len(both)


def test_hard_negatives_are_the_worst_ones():
    loss = torch.tensor([[9.0, 1, 5, 3, 4, 2], [1, 2, 3, 4, 5, 6]])
    positive = torch.tensor([[True, False, False, False, False, False], [False] * 6])
    assert hard_negatives(loss, positive).tolist() == [[False, False, True, True, True, False], [False] * 6]


def test_background_inside_a_region_is_ignored_and_objects_are_not() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [0, 0, 10, 10]])
    matches = torch.tensor([NEGATIVE, NEGATIVE, NEGATIVE, 3])
    region = torch.tensor([[0.0, 0, 10, 10]])
    assert ignore_inside(matches, anchors, region).tolist() == [IGNORED, IGNORED, NEGATIVE, 3]
    assert ignore_inside(matches, anchors, region[:0]).tolist() == matches.tolist()
