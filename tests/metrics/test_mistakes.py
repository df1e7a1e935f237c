"""Confusion matrix and the list of mistakes on a picture whose every mistake was put there by hand."""

import numpy as np
import torch

from opticus.metrics.detect import CocoDetection
from opticus.metrics.mistakes import confusion, count, every, worst
from opticus.structures import Instances


def metric_with_known_mistakes():
    truth = Instances(
        torch.tensor([[0.0, 0, 20, 20], [40, 0, 60, 20], [80, 0, 100, 20], [0, 50, 20, 70], [40, 50, 60, 70], [70, 50, 100, 80]]),
        torch.tensor([0, 1, 0, 1, 1, 0]),
        (100, 100),
        crowd=torch.tensor([False, False, False, False, False, True]),
    )
    found = [
        ([0, 0, 20, 20], 0, 0.9),  # right
        ([41, 0, 61, 20], 0, 0.8),  # wrong class
        ([90, 0, 110, 20], 0, 0.7),  # poor box: IoU 1/3 with object 2
        ([0, 80, 10, 90], 1, 0.6),  # false positive on background
        ([0, 0, 20, 21], 0, 0.5),  # duplicate: false positive
        ([0, 51, 20, 71], 1, 0.2),  # suspected, below the threshold: object 3 is missed, object 4 too
        ([75, 55, 85, 65], 0, 0.95),  # inside the crowd: not counted
    ]
    boxes = torch.tensor([row[0] for row in found]).float()
    prediction = Instances(boxes, torch.tensor([r[1] for r in found]), (100, 100), torch.tensor([r[2] for r in found]))
    metric = CocoDetection(["a", "b"])
    metric.update(prediction, truth, "street")
    return metric


def test_confusion_matrix_with_background():
    expected = [[1, 0, 1], [1, 0, 2], [2, 1, 0]]
    np.testing.assert_array_equal(confusion(metric_with_known_mistakes()), expected)


def test_every_mistake_is_named():
    mistakes = every(metric_with_known_mistakes())
    assert dict(count(mistakes)) == {"wrong class": 1, "false positive": 2, "poor box": 1, "missed": 2}
    by_kind = {one.kind: one for one in mistakes}
    assert (by_kind["wrong class"].truth, by_kind["wrong class"].predicted) == (1, 0)
    assert abs(by_kind["poor box"].iou - 1 / 3) < 1e-6
    missed = [one for one in mistakes if one.kind == "missed"]
    assert sorted(round(one.severity, 6) for one in missed) == [0.8, 1.0]
    assert all(one.id == "street" for one in mistakes)


def test_worst_lets_the_kinds_take_turns():
    kinds = [one.kind for one in worst(metric_with_known_mistakes(), 5)]
    assert kinds == ["wrong class", "false positive", "poor box", "missed", "false positive"]
    assert len(worst(metric_with_known_mistakes(), 2)) == 2


def test_empty_pictures_have_no_mistakes():
    metric = CocoDetection(["a"])
    metric.update(Instances.empty((9, 9), scored=True), Instances.empty((9, 9)), "1")
    assert every(metric) == [] and confusion(metric).sum() == 0
