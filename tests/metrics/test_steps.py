"""The step-by-step table: the lecture's example by hand, ignored detections, and agreement with the metrics."""

import json

import pytest
import torch
from test_coco_detection import problem, scored

from opticus.metrics.detect import CocoDetection
from opticus.metrics.steps import steps
from opticus.metrics.voc import VocDetection
from opticus.structures import Instances, MetricError, UnknownNameError

OBJECTS = [[0.0, 0, 20, 20], [40.0, 0, 60, 20], [80.0, 0, 100, 20], [0.0, 60, 20, 80]]
FALSE = [[60.0, 60, 80, 80], [90.0, 90, 110, 110]]


def street(metric):
    """Two pictures, four cars; by score: right, wrong, right, in a crowd, right."""
    size, zeros = (120, 120), torch.zeros
    first = Instances(torch.tensor([OBJECTS[0], FALSE[0], OBJECTS[1]]), zeros(3).long(), size, torch.tensor([0.9, 0.8, 0.7]))
    second = Instances(torch.tensor([FALSE[1], OBJECTS[3]]), zeros(2).long(), size, torch.tensor([0.6, 0.5]))
    metric.update(first, Instances(torch.tensor(OBJECTS[:2]), zeros(2).long(), size), "left")
    crowd = torch.tensor([False, False, True])
    metric.update(second, Instances(torch.tensor([*OBJECTS[2:], FALSE[1]]), zeros(3).long(), size, crowd=crowd), "right")
    return metric


ROWS = [
    (1, "left", "TP", 1, 0, 1.0, 0.25),
    (2, "left", "FP", 1, 1, 0.5, 0.25),
    (3, "left", "TP", 2, 1, 2 / 3, 0.5),
    (4, "right", "ignored", 2, 1, 2 / 3, 0.5),
    (5, "right", "TP", 3, 1, 0.75, 0.75),
]


@pytest.mark.parametrize(
    ("metric", "ap"),
    [
        (CocoDetection(["car"]), (26 * 1 + 50 * 0.75) / 101),  # recall points 0 ... 0.25 at 1, 0.26 ... 0.75 at 3/4
        (VocDetection(["car"], rule="voc10"), 0.25 * 1 + 0.5 * 0.75),
        (VocDetection(["car"], rule="voc07"), (3 * 1 + 5 * 0.75) / 11),  # 0, 0.1, 0.2 at 1; 0.3 ... 0.7 at 3/4
    ],
)
def test_the_example_by_hand(metric, ap):
    table = steps(street(metric), "car")
    found = [(s.rank, s.id, s.verdict, s.right, s.wrong, s.precision, s.recall) for s in table.rows]
    assert found == [(*row[:5], pytest.approx(row[5]), pytest.approx(row[6])) for row in ROWS]
    assert [s.score for s in table.rows] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert table.ap == pytest.approx(ap, abs=1e-12) and table.truths == 4
    number = metric.compute()
    assert table.ap == pytest.approx(number.get("mAP", number.get("AP50")), abs=1e-12)


def test_one_matching_by_another_rule():
    metric = street(CocoDetection(["car"]))
    assert steps(metric, "car", rule="voc10").ap == pytest.approx(0.625)
    assert steps(metric, "car", rule="voc07").ap == pytest.approx(6.75 / 11)


@pytest.mark.parametrize("iou", [0.5, 0.55, 0.75, 0.95])
def test_ap_is_that_of_the_metric_at_every_threshold(iou):
    metric = scored(problem(5, 9))
    precision = metric.evaluation()["precision"][round((iou - 0.5) / 0.05), :, :, 0, -1].mean(0)
    for label, name in enumerate(metric.names[:3]):
        table = steps(metric, name, iou=iou)
        assert table.ap == pytest.approx(precision[label], abs=1e-12)
        assert [s.score for s in table.rows] == sorted((s.score for s in table.rows), reverse=True)
        assert all(a.recall <= b.recall for a, b in zip(table.rows, table.rows[1:], strict=False))


def test_a_class_without_ground_truth_has_no_ap():
    metric = scored(problem(5, 9))
    table = steps(metric, "class 3")
    assert table.truths == 0 and table.rows and "is not defined without ground truth" in table.text()
    record = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert record["ap"] is None and record["rows"][0]["recall"] is None and record["rows"][0]["verdict"] == "FP"


def test_the_text_reads_as_a_table():
    lines = steps(street(CocoDetection(["car"])), "car").text(limit=3).splitlines()
    assert lines[0].split() == ["rank", "picture", "score", "verdict", "TP", "FP", "precision", "recall"]
    assert lines[3].split() == ["3", "left", "0.7000", "TP", "2", "1", "0.6667", "0.5000"]
    assert len(steps(street(CocoDetection(["car"])), "car").text().splitlines()) == 7
    assert lines[4:] == ["... 2 more", "car: 4 ground truths, IoU 0.5, AP (coco) 0.6287"]


def test_unknown_classes_and_thresholds_are_named():
    metric = street(CocoDetection(["car"]))
    with pytest.raises(UnknownNameError, match="unknown class 'cat'"):
        steps(metric, "cat")
    with pytest.raises(MetricError, match=r"matches at IoU 0\.5, 0\.55.*found 0\.52"):
        steps(metric, "car", iou=0.52)
    with pytest.raises(MetricError, match=r"matches at IoU 0\.5, found 0\.75"):
        steps(street(VocDetection(["car"])), "car", iou=0.75)
