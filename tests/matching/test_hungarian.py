"""Assignments against exhaustive search."""

from itertools import permutations

import pytest
import torch

from opticus.matching.hungarian import assign, detection_cost
from opticus.matching.objects import objects_of
from opticus.ops.boxes import cxcywh_to_xyxy
from opticus.ops.iou import giou
from opticus.structures import Instances


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (6, 1), (1, 6)])
def test_assignment_is_the_cheapest(shape):
    cost = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    pairs = assign(cost)
    tall = cost if shape[0] >= shape[1] else cost.T
    best = min(sum(tall[r, c].item() for c, r in enumerate(rows)) for rows in permutations(range(len(tall)), tall.shape[1]))
    assert cost[pairs.queries, pairs.objects].sum().item() == pytest.approx(best)
    assert len(set(pairs.queries.tolist())) == len(set(pairs.objects.tolist())) == min(shape)
    assert pairs.queries.tolist() == sorted(pairs.queries.tolist())


def test_no_objects():
    pairs = assign(torch.rand(7, 0))
    assert pairs.queries.tolist() == pairs.objects.tolist() == []
    assert pairs.queries.dtype == torch.int64


def test_a_diverged_network_is_matched_to_something():
    cost = torch.tensor([[float("nan"), 1.0], [float("inf"), float("nan")], [2.0, 3.0]])
    pairs = assign(cost)
    assert list(zip(pairs.queries.tolist(), pairs.objects.tolist())) == [(0, 1), (2, 0)]


def test_cost_of_detr():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(4, 6, generator=generator).softmax(-1)
    boxes, truth = torch.rand(4, 4, generator=generator), torch.rand(3, 4, generator=generator)
    labels = torch.tensor([5, 0, 2])
    cost = detection_cost(probs, boxes, labels, truth, class_weight=1.5)
    for q in range(4):
        for n in range(3):
            overlap = giou(cxcywh_to_xyxy(boxes[q : q + 1]), cxcywh_to_xyxy(truth[n : n + 1])).item()
            wanted = 5 * (boxes[q] - truth[n]).abs().sum().item() - 1.5 * probs[q, labels[n]].item() - 2 * overlap
            assert cost[q, n].item() == pytest.approx(wanted, abs=1e-5)


def test_objects_leave_out_crowds_and_empty_boxes():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 1.0, 5.0], [2.0, 2.0, 6.0, 6.0], [5.0, 0.0, 4.0, 2.0]])
    target = Instances(boxes, torch.tensor([0, 1, 2, 3]), (8, 8), crowd=torch.tensor([False, False, True, False]))
    (found, none) = objects_of([target, Instances.empty((8, 8))], 4)
    assert found.labels.tolist() == [0]
    assert none.boxes.shape == (0, 4)
