"""Pascal VOC's AP equals a literal transcription of the development kit's loops, and cases worked out by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opticus.metrics.passport import Passport, compare, resampled_numbers
from opticus.metrics.tables import ELEVEN
from opticus.metrics.voc import VocDetection
from opticus.structures import Instances, MetricError


def devkit(pairs, label, rule, minimum=0.5):
    """VOCevaldet.m of one class, loop by loop, on VOC's own inclusive coordinates (x0 + 1, y0 + 1, x1, y1)."""
    truths, detections, positives = [], [], 0
    for image, (prediction, target) in enumerate(pairs):
        mine = []
        for box, kind, difficult in zip(target.boxes.tolist(), target.labels.tolist(), target.crowd.tolist(), strict=True):
            if kind == label:
                mine.append({"box": [box[0] + 1, box[1] + 1, box[2], box[3]], "difficult": difficult, "detected": False})
                positives += not difficult
        truths.append(mine)
        for box, kind, score in zip(prediction.boxes.tolist(), prediction.labels.tolist(), prediction.scores.tolist(), strict=True):
            if kind == label:
                detections.append((score, image, [box[0] + 1, box[1] + 1, box[2], box[3]]))
    detections.sort(key=lambda row: -row[0])
    right, wrong = [0] * len(detections), [0] * len(detections)
    for d, (_, image, bb) in enumerate(detections):
        most, which = -float("inf"), None
        for j, truth in enumerate(truths[image]):
            gt = truth["box"]
            inner = [max(bb[0], gt[0]), max(bb[1], gt[1]), min(bb[2], gt[2]), min(bb[3], gt[3])]
            width, height = inner[2] - inner[0] + 1, inner[3] - inner[1] + 1
            if width > 0 and height > 0:
                union = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1) + (gt[2] - gt[0] + 1) * (gt[3] - gt[1] + 1) - width * height
                if width * height / union > most:
                    most, which = width * height / union, j
        if most < minimum:
            wrong[d] = 1
        elif not truths[image][which]["difficult"]:
            if truths[image][which]["detected"]:
                wrong[d] = 1
            else:
                right[d], truths[image][which]["detected"] = 1, True
    if not positives:
        return None
    recall, precision = [], []
    for d in range(len(detections)):
        tp, fp = sum(right[: d + 1]), sum(wrong[: d + 1])
        recall.append(tp / positives)
        precision.append(tp / (tp + fp) if tp + fp else 0.0)
    if rule == "voc07":
        total = 0.0
        for k in range(11):
            t = k * 0.1 if k <= 5 else 1 - (10 - k) * 0.1
            total += max((p for p, r in zip(precision, recall, strict=True) if r >= t), default=0.0) / 11
        return total
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1])


def problem(seed, images=6, classes=3):
    """Whole-pixel boxes with duplicates, neighbours, ties, difficult objects and empty pictures."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        n = int(rng.integers(0, 7)) * int(rng.random() < 0.85)
        corner = rng.integers(0, 90, (n, 2))
        truth = torch.from_numpy(np.concatenate([corner, corner + rng.integers(8, 60, (n, 2))], 1)).float()
        labels = torch.from_numpy(rng.integers(0, classes, n))
        pick = torch.from_numpy(rng.integers(0, max(n, 1), 3 * n))
        near = truth[pick] + torch.from_numpy(rng.integers(-7, 8, (3 * n, 4))).float()
        corner = rng.integers(0, 90, (int(rng.integers(0, 4)), 2))
        boxes = torch.cat([near, torch.from_numpy(np.concatenate([corner, corner + 25], 1)).float()])
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        guess = torch.from_numpy(rng.integers(0, classes, len(boxes)))
        same = torch.from_numpy(rng.random(len(pick)) < 0.8)
        guess[: len(pick)] = torch.where(same, labels[pick], guess[: len(pick)])
        scores = torch.from_numpy(rng.integers(0, 12, len(boxes)) / 12.0).float()
        target = Instances(truth, labels, (160, 160), crowd=torch.from_numpy(rng.random(n) < 0.25))
        pairs.append((Instances(boxes, guess, (160, 160), scores), target))
    return pairs


def scored(pairs, rule="voc10", classes=3, **options):
    metric = VocDetection([f"class {i}" for i in range(classes)], rule=rule, **options)
    for index, (prediction, target) in enumerate(pairs):
        metric.update(prediction, target, str(index + 1))
    return metric


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from(["voc07", "voc10"]), st.sampled_from([0.3, 0.5, 0.7]))
def test_ap_equals_the_development_kits_loops(seed, images, rule, minimum):
    pairs = problem(seed, images)
    expected = [devkit(pairs, label, rule, minimum) for label in range(3)]
    metric = scored(pairs, rule, iou=minimum)
    assert [row["AP"] for row in metric.per_class()] == pytest.approx(expected, abs=1e-12)
    known = [value for value in expected if value is not None]
    assert metric.compute()["mAP"] == pytest.approx(np.mean(known) if known else -1.0, abs=1e-12)


def one_class(boxes, scores, truths, difficult=None):
    crowd = torch.tensor(difficult or [False] * len(truths))
    target = Instances(torch.tensor(truths).float(), torch.zeros(len(truths), dtype=torch.int64), (200, 200), crowd=crowd)
    found = torch.tensor(boxes).float().reshape(-1, 4)
    return Instances(found, torch.zeros(len(found), dtype=torch.int64), (200, 200), torch.tensor(scores)), target


ROW = [[x, 0.0, x + 20, 20] for x in (0.0, 40, 80, 120)]
AWAY = [0.0, 100, 20, 120]


@pytest.mark.parametrize(("rule", "expected"), [("voc07", (6 * 1 + 2 * 0.75) / 11), ("voc10", 0.5 * 1 + 0.25 * 0.75)])
def test_hit_hit_miss_hit_of_four_objects(rule, expected):
    """Recalls 1/4, 2/4, 2/4, 3/4 at precisions 1, 1, 2/3, 3/4: by hand 6 points at 1, 2 at 3/4 (0.6, 0.7), 3 at 0."""
    pair = one_class([ROW[0], ROW[1], AWAY, ROW[2]], [0.9, 0.8, 0.7, 0.6], ROW)
    assert scored([pair], rule, 1).compute()["mAP"] == pytest.approx(expected, abs=1e-12)


def test_recall_points_are_those_of_matlab():
    """Its 0:0.1:1 has 3 * 0.1 > 0.3, so three of ten objects do not reach the point 0.3, while seven reach 0.7."""
    assert ELEVEN.tolist() == [0, 0.1, 0.2, 3 * 0.1, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    truths = [[25.0 * i, 0, 25 * i + 20, 20] for i in range(10)]
    for count, points in ((3, 3), (7, 8), (10, 11)):
        pair = one_class(truths[:count], [0.5] * count, truths)
        assert scored([pair], "voc07", 1).compute()["mAP"] == pytest.approx(points / 11, abs=1e-12)


def test_difficult_objects_count_neither_way():
    """Two detections of a difficult object in front of the right one change nothing; it is not missed either."""
    pair = one_class([ROW[0], ROW[0], ROW[1]], [0.9, 0.8, 0.7], ROW[:2], [True, False])
    metric = scored([pair], classes=1)
    assert metric.compute()["mAP"] == pytest.approx(1.0, abs=1e-12)
    assert metric.per_class()[0] == {"name": "class 0", "truths": 1, "detections": 3, "AP": pytest.approx(1.0)}
    only = one_class([ROW[0]], [0.9], ROW[:1], [True])
    assert scored([only], classes=1).compute() == {"mAP": -1.0}


def test_a_second_detection_is_wrong_even_if_a_free_object_is_near():
    """VOC's rule: the object overlapped most decides, taken or not; COCO's would give the second detection the free object."""
    truths = [[0.0, 0, 20, 20], [0.0, 6, 20, 26]]
    pair = one_class([[0.0, 0, 20, 20], [0.0, 2, 20, 22]], [0.9, 0.8], truths)
    matches = scored([pair], classes=1).matches()
    assert matches.matched[:, 0].tolist() == [True, False] and not matches.ignored.any()


def test_ranks_merge_and_padding_counts_once():
    pairs = problem(3, 9)
    parts = [VocDetection([f"class {i}" for i in range(3)]) for _ in range(2)]
    for index in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]:
        parts[index % 2 if index else 1].update(*pairs[index], str(index + 1))
    parts[0].update(*pairs[0], "1")
    parts[0].merge(parts[1].state())
    assert len(parts[0]) == 9 and parts[0].compute() == scored(pairs).compute()


@pytest.mark.parametrize("rule", ["voc07", "voc10"])
def test_the_passport_says_the_protocol_and_can_be_resampled(tmp_path, rule):
    metric = scored(problem(5, 12), rule, data="sha", split="test")
    passport = Passport.of(metric)
    passport.write(tmp_path / "a")
    protocol = json.loads((tmp_path / "a" / "passport.json").read_text())["protocols"][0]
    assert protocol["metric"] == rule and protocol["iouThr"] == 0.5 and protocol["difficult"] == "ignored"
    low, high = resampled_numbers(Passport.read(tmp_path / "a"), "mAP", resamples=200)
    assert low < passport.numbers["mAP"].value < high
    other = scored(problem(5, 12), "voc07" if rule == "voc10" else "voc10", data="sha", split="test")
    Passport.of(other).write(tmp_path / "b")
    with pytest.raises(MetricError, match="unlike protocols: metric"):
        compare(tmp_path / "a", tmp_path / "b")


def test_faults_are_named():
    with pytest.raises(MetricError, match="no picture was scored"):
        VocDetection(["a"]).compute()
    with pytest.raises(MetricError, match="iou must be above 0"):
        VocDetection(["a"], iou=0)
    with pytest.raises(MetricError, match="street: detection needs Instances"):
        VocDetection(["a"]).update(torch.zeros(1), Instances.empty((9, 9)), "street")
