"""The error breakdown: one picture per kind of error worked out by hand, and figures of the reference implementation."""

import numpy as np
import pytest
import torch

from opticus.metrics.detect import CocoDetection
from opticus.metrics.tide import ERRORS, tide
from opticus.structures import Instances, MetricError

HOME = [[0.0, 0, 20, 20], [40.0, 0, 60, 20]]  # two objects of class 0
SIZE = (120, 120)


def scored(*pictures, classes=2, **options):
    """A metric of (detections (box, label, score), objects (box, label, crowd)) by picture."""
    metric = CocoDetection([f"class {i}" for i in range(classes)], **options)
    for number, (found, true) in enumerate(pictures, 1):
        boxes, labels = torch.tensor([row[0] for row in found]).float().reshape(-1, 4), torch.tensor([row[1] for row in found])
        prediction = Instances(boxes, labels.long(), SIZE, torch.tensor([float(row[2]) for row in found]))
        boxes, labels = torch.tensor([row[0] for row in true]).float().reshape(-1, 4), torch.tensor([row[1] for row in true])
        crowd = torch.tensor([len(row) > 2 and row[2] for row in true], dtype=torch.bool)
        metric.update(prediction, Instances(boxes, labels.long(), SIZE, crowd=crowd), str(number))
    return metric


RIGHT = (HOME[0], 0, 0.9)
OBJECTS = [(HOME[0], 0), (HOME[1], 0)]
HALF = 51 / 101  # one of two objects found without a false positive: the recall points 0.00 ... 0.50 at precision 1


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("classification", (HOME[1], 1, 0.8)),
        ("localisation", ([50.0, 0, 70, 20], 0, 0.8)),  # IoU 1/3 with the second object
        ("both", ([50.0, 0, 70, 20], 1, 0.8)),
        ("duplicate", ([0.0, 0, 20, 21], 0, 0.8)),
        ("background", ([80.0, 80, 99, 99], 0, 0.8)),
    ],
)
def test_one_error_of_each_kind(kind, wrong):
    """One object found at 0.9, the other not; behind it one wrong detection, which costs nothing itself: AP = 51/101."""
    found = tide(scored(([RIGHT, wrong], OBJECTS), classes=2 if wrong[1] else 1))
    missed = kind not in ("classification", "localisation")  # these two explain why the second object was not found
    assert found.counts == {e: int(e == kind) + int(e == "missed" and missed) for e in ERRORS}
    base = HALF / 2 if wrong[1] else HALF  # the reference counts the class that is only detected with AP 0
    assert found.ap == pytest.approx(base, abs=1e-12)
    gains = dict.fromkeys(ERRORS, 0.0)
    if kind in ("classification", "localisation"):
        gains[kind] = 1 - base  # the detection becomes right (and its own class is no longer there)
    elif kind == "both":
        gains[kind] = HALF - base
    if missed:
        gains["missed"] = (0.5 if wrong[1] else 1) - base
    assert found.gains == pytest.approx(gains, abs=1e-12)


def test_a_false_positive_in_front_costs_precision():
    """Background at 0.95 before the one right detection: precision 1/2 up to recall 1; without it 1."""
    found = tide(scored(([([80.0, 80, 99, 99], 0, 0.95), RIGHT], OBJECTS[:1]), classes=1))
    assert found.ap == pytest.approx(0.5) and found.gains["background"] == pytest.approx(0.5)
    assert found.false_positives == pytest.approx(0.5) and found.false_negatives == pytest.approx(0.0)


def test_a_duplicate_in_the_middle_of_the_ranking():
    """Right, duplicate, right: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1: AP = (51 + 50 * 2/3) / 101."""
    found = tide(scored(([RIGHT, ([0.0, 0, 20, 21], 0, 0.8), (HOME[1], 0, 0.7)], OBJECTS), classes=1))
    assert found.ap == pytest.approx((51 + 50 * 2 / 3) / 101) and found.counts["duplicate"] == 1
    assert found.gains["duplicate"] == pytest.approx(1 - found.ap)


def test_only_the_best_of_several_errors_is_repaired_for_an_object():
    """Two poor boxes of one object: the better-scored becomes right, the other is taken away."""
    poor = [([50.0, 0, 70, 20], 0, 0.8), ([51.0, 0, 71, 20], 0, 0.85)]
    found = tide(scored(([RIGHT, *poor], OBJECTS), classes=1))
    assert found.counts["localisation"] == 2 and found.gains["localisation"] == pytest.approx(1 - HALF)


def test_missed_objects_leave_the_count_when_repaired():
    found = tide(scored(([RIGHT], OBJECTS), ([], [(HOME[0], 0)]), classes=1))
    assert found.counts["missed"] == 2 and found.ap == pytest.approx(34 / 101)  # recall 1/3 reaches 0.00 ... 0.33
    assert found.gains["missed"] == pytest.approx(1 - 34 / 101) == found.false_negatives


def test_detections_in_a_crowd_are_no_points_of_the_curve():
    """As in the reference they are still listed as errors, but costless ones."""
    region = ([60.0, 60, 120, 120], 0, True)
    found = tide(scored(([([70.0, 70, 90, 90], 0, 0.95), RIGHT], [*OBJECTS[:1], region]), classes=1))
    assert found.ap == pytest.approx(1.0) and found.counts["background"] == 1 and max(found.gains.values()) == 0


def test_masks_are_judged_by_masks():
    """Equal boxes with disjoint masks: right by box, on background by mask."""
    boxes, label = torch.tensor([HOME[0]]), torch.tensor([0])
    plane = torch.zeros(1, *SIZE, dtype=torch.bool)
    left, right = plane.clone(), plane.clone()
    left[0, :20, :10], right[0, :20, 10:20] = True, True
    metric = CocoDetection(["a"], masks=True)
    metric.update(Instances(boxes, label, SIZE, torch.tensor([0.9]), left), Instances(boxes, label, SIZE, masks=right), "1")
    assert tide(metric).ap == 1.0 and tide(metric, kind="segm").counts["background"] == 1
    with pytest.raises(MetricError, match="masks were not kept"):
        tide(scored(([RIGHT], OBJECTS)), kind="segm")


def problem(seed, pictures=8, classes=4):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(pictures):
        n = int(rng.integers(0, 7))
        corner = rng.integers(0, 90, (n, 2))
        truth = np.concatenate([corner, corner + rng.integers(8, 60, (n, 2))], 1)
        labels, crowd = rng.integers(0, classes, n), rng.random(n) < 0.15
        pick = rng.integers(0, max(n, 1), 3 * n)
        near = truth[pick] + rng.integers(-6, 7, (3 * n, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        guess = np.where(rng.random(3 * n) < 0.8, labels[pick], rng.integers(0, classes, 3 * n))
        far = rng.integers(0, 90, (int(rng.integers(0, 4)), 2))
        boxes = np.concatenate([near, np.concatenate([far, far + 25], 1)]).tolist()
        guess = [*guess.tolist(), *rng.integers(0, classes, len(far)).tolist()]
        scores = (rng.integers(0, 12, len(boxes)) / 16).tolist()  # many ties
        objects = list(zip(truth.tolist(), labels.tolist(), crowd.tolist(), strict=True))
        made.append((list(zip(boxes, guess, scores, strict=True)), objects))
    return made


# AP, dAP in the order of ERRORS, false positives, false negatives; then the counts: dbolya/tide@49a5d2a, tidecv 1.0.1
RECORDED = {
    3: (
        [0.515527573492, 0.0, 0.007290642396, 0.00685845632, 0.015134668557, 0.033598589125, 0.0, 0.400314010667, -0.014651423336],
        [5, 10, 6, 21, 19, 1],
    ),
    11: (
        [0.5642621405, 0.0, 0.116472182933, 0.065699234759, 0.0, 0.0, 0.0, 0.349104196134, -0.002727683483],
        [6, 17, 8, 20, 20, 1],
    ),
    42: (
        [0.430589392973, 0.03272128037, 0.106164282395, 0.0, 0.038275529234, 0.008908976507, 0.0, 0.445648230789, 0.022971347717],
        [10, 11, 9, 26, 9, 0],
    ),
}


@pytest.mark.parametrize("seed", RECORDED)
def test_figures_of_the_reference(seed):
    numbers, counts = RECORDED[seed]
    found = tide(scored(*problem(seed), classes=4))
    assert [found.ap, *found.gains.values(), found.false_positives, found.false_negatives] == pytest.approx(numbers, abs=1e-9)
    assert list(found.counts.values()) == counts


def test_thresholds_are_checked_and_the_table_reads():
    metric = scored(([RIGHT], OBJECTS))
    for options in ({"background": 0.6}, {"iou": 1.5}, {"background": 0.0}):
        with pytest.raises(MetricError, match="expected 0 < background < iou <= 1"):
            tide(metric, **options)
    with pytest.raises(MetricError, match="no picture was scored"):
        tide(CocoDetection(["a"]))
    assert [row["error"] for row in tide(metric).rows()] == list(ERRORS)
    assert "missed                1  +0.4950" in tide(metric).text()
