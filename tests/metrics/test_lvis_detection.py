"""LVIS numbers equal a literal transcription of the protocol, and cases worked out by hand."""

import json

import numpy as np
import pytest
import torch

import opticus
from opticus.cli.main import main
from opticus.data.federated import Federation
from opticus.data.records import Strings
from opticus.metrics.detect import CocoDetection
from opticus.metrics.lvis import LvisDetection
from opticus.metrics.passport import Passport, resampled_numbers
from opticus.metrics.tables import average_precision
from opticus.structures import CapabilityError, Instances, MetricError

NAMES, FREQUENCIES = ("a", "b", "c", "d", "e"), ("r", "c", "f", "f", "r")


def federation(absent, partial, frequencies=FREQUENCIES):
    def pairs(lists):
        owners = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
        return owners, np.array([label for one in lists for label in one], np.int64)

    return Federation(Strings(str(i) for i in range(len(absent))), pairs(absent), pairs(partial), frequencies)


def instances(rows, scored):
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    extra = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    return Instances(boxes, labels, (400, 400), extra if scored else None, areas=None if scored else extra)


def problem(seed, images=8):
    """(truths, detections, absent, partial): rows are (box, label, area or score); scores tie, boxes nearly agree."""
    rng = np.random.default_rng(seed)
    truths, found, absent, partial = [], [], [], []
    for _ in range(images):
        present = rng.choice(5, 2, replace=False).tolist() if rng.random() < 0.8 else []
        others = [label for label in range(5) if label not in present]
        absent.append([label for label in others if rng.random() < 0.5])
        partial.append([label for label in present + absent[-1] if rng.random() < 0.4])
        mine, claims = [], []
        for label in present:
            for _ in range(int(rng.integers(1, 4))):
                low, sides = rng.integers(0, 200, 2), rng.integers(8, 150, 2)
                box = np.concatenate([low, low + sides])
                mine.append((box.tolist(), label, float(sides.prod() * rng.uniform(0.5, 1))))
                for _ in range(int(rng.integers(0, 4))):
                    claims.append(((box + rng.integers(-3, 4, 4)).tolist(), label, rng.integers(0, 9) / 9))
        for _ in range(int(rng.integers(0, 12))):
            low = rng.integers(0, 200, 2)
            claims.append(
                (np.concatenate([low, low + rng.integers(8, 150, 2)]).tolist(), int(rng.integers(5)), rng.integers(0, 9) / 9)
            )
        truths.append(mine)
        found.append(claims)
    return truths, found, absent, partial


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def literal(truths, found, absent, partial, low=0.0, high=1e10):
    """{label: ten (AP, recall)} by loops: lists of pictures, of (score, right) and a walk down them."""
    table = {}
    for label in range(5):
        values = []
        for step in range(10):
            threshold, ranked, positives = 0.5 + 0.05 * step, [], 0
            for truth, claims, nots, halves in zip(truths, found, absent, partial, strict=True):
                present = {row[1] for row in truth}
                claims = sorted(claims, key=lambda row: -row[2])[:300]
                if label not in present and label not in nots:
                    continue
                objects = [(row[0], not low <= row[2] <= high) for row in truth if row[1] == label]
                positives += sum(not ignored for _, ignored in objects)
                taken = set()
                for box, kind, score in claims:
                    if kind != label:
                        continue
                    free = [(iou(box, o), -i, i) for i, (o, _) in enumerate(objects) if i not in taken]
                    fits = [one for one in free if one[0] >= min(threshold, 1 - 1e-10)]
                    counted = [one for one in fits if not objects[one[2]][1]]
                    # of equals the last one in the list wins, and an object that counts goes before one that does not
                    best = max(counted or fits, key=lambda one: (one[0], one[2]), default=None)
                    area = (box[2] - box[0]) * (box[3] - box[1])
                    if best is None:
                        ranked.append((score, None if label in halves or not low <= area <= high else False))
                    else:
                        taken.add(best[2])
                        ranked.append((score, None if objects[best[2]][1] else True))
            if not positives:
                values.append(None)
                continue
            right = wrong = 0
            curve = []
            for _, verdict in sorted(ranked, key=lambda row: -row[0]):
                right, wrong = right + (verdict is True), wrong + (verdict is False)
                curve.append((right / positives, right / (right + wrong) if right + wrong else 0.0))
            points = [max((p for r, p in curve if r >= np.linspace(0, 1, 101)[k]), default=0.0) for k in range(101)]
            values.append((sum(points) / 101, right / positives))
        table[label] = values
    return table


def score(case):
    truths, found, absent, partial = case
    metric = LvisDetection(NAMES, federation(absent, partial))
    for number, (truth, claims) in enumerate(zip(truths, found, strict=True)):
        metric.update(instances(claims, True), instances(truth, False), str(number))
    return metric


@pytest.mark.parametrize("seed", range(8))
def test_numbers_equal_the_transcription(seed):
    case = problem(seed)
    metric = score(case)
    got = metric.compute()
    ranges = {"": (0, 1e10), "s": (0, 1024), "m": (1024, 9216), "l": (9216, 1e10)}
    for suffix, (low, high) in ranges.items():
        known = {label: [v for v in values if v is not None] for label, values in literal(*case, low, high).items()}
        rows = [value for values in known.values() for value in values]
        for column, name in enumerate((f"AP{suffix}", f"AR{suffix or 300}")):
            expected = np.mean([row[column] for row in rows]) if rows else -1
            assert got[name] == pytest.approx(expected, abs=1e-9), name
        if not suffix:
            for group in "rcf":
                mine = [v[0] for label, values in known.items() if FREQUENCIES[label] == group for v in values]
                assert got[f"AP{group}"] == pytest.approx(np.mean(mine) if mine else -1, abs=1e-9)
            assert got["AP50"] == pytest.approx(np.mean([values[0][0] for values in known.values() if values]), abs=1e-9)
            for label, row in enumerate(metric.per_class()):
                expected = np.mean([v[0] for v in known[label]]) if known[label] else None
                assert row["AP"] == pytest.approx(expected, abs=1e-9) if expected is not None else row["AP"] is None
    resampled = average_precision(metric.matches())
    assert np.nanmean(resampled) == pytest.approx(got["AP"], abs=1e-9)


BOX, OTHER = [10.0, 10, 50, 60], [200.0, 200, 260, 280]


def test_by_hand():
    """A false positive costs only where the class was searched for and marked completely."""

    def ap(absent, partial, label=1):
        truths = [[(BOX, 0, 2000.0)], [(BOX, 1, 2000.0)]]
        found = [[(BOX, 0, 0.9), (OTHER, label, 0.95)], [(BOX, 1, 0.5)]]
        metric = score((truths, found, absent, partial))
        return round(metric.compute()["AP50"], 9), [row["detections"] for row in metric.per_class()[:2]]

    assert ap([[], []], [[], []]) == (1.0, [1, 1])  # nobody looked for b in the first picture
    assert ap([[1], []], [[], []])[0] == pytest.approx((1 + 0.5) / 2) and ap([[1], []], [[], []])[1] == [1, 2]
    assert ap([[], []], [[0], []], label=0)[0] == 1.0  # more objects of class a may be there, unmarked
    assert ap([[], []], [[], []], label=0)[0] == pytest.approx((0.5 + 1) / 2)
    coco = CocoDetection(NAMES)
    for number, (truth, claims) in enumerate(
        (([(BOX, 0, 2000.0)], [(BOX, 0, 0.9), (OTHER, 1, 0.95)]), ([(BOX, 1, 2000.0)], [(BOX, 1, 0.5)]))
    ):
        coco.update(instances(claims, True), instances(truth, False), str(number))
    assert coco.compute()["AP50"] == pytest.approx(0.75)  # COCO's rule counts it


def test_three_hundred_detections_of_all_classes_count():
    many = [(OTHER, 4, 0.5)] * 300
    for extra, expected in ((many[:299], 1.0), (many, 0.0)):
        metric = score(([[(BOX, 0, 2000.0)]], [[*extra, (BOX, 0, 0.4)]], [[]], [[]]))
        assert metric.compute()["AP"] == pytest.approx(expected) and metric.protocol["maxDets"] == [300]


def test_no_detection_and_bad_use():
    metric = score(([[(BOX, 0, 2000.0)]], [[]], [[]], [[]]))
    numbers = metric.compute()
    assert numbers["AP"] == numbers["AP50"] == numbers["APr"] == 0 and numbers["APc"] == numbers["APs"] == -1
    with pytest.raises(MetricError, match="no picture"):
        LvisDetection(NAMES, federation([[]], [[]])).compute()
    with pytest.raises(MetricError, match="4 classes, but frequencies of 5"):
        LvisDetection(NAMES[:4], federation([[]], [[]]))


def test_merging_and_the_passport(tmp_path):
    case = problem(3)
    whole, parts = score(case), [LvisDetection(NAMES, federation(*case[2:])) for _ in range(2)]
    for number, (truth, claims) in enumerate(zip(case[0], case[1], strict=True)):
        parts[number % 2].update(instances(claims, True), instances(truth, False), str(number))
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == whole.compute() and len(parts[0]) == 8
    Passport.of(whole).write(tmp_path)
    kept = Passport.read(tmp_path)
    low, high = resampled_numbers(kept, "AP", resamples=100)
    assert low <= kept.numbers["AP"].value <= high and kept.numbers["AP"].protocol["metric"] == "lvis"


def annotations(path):
    square = [[10.0, 10, 50, 10, 50, 60, 10, 60]]
    kinds = [{"id": 3 + i, "name": name, "frequency": f} for i, (name, f) in enumerate(zip(NAMES, FREQUENCIES, strict=True))]
    images = [
        {
            "id": i,
            "coco_url": f"http://x/val2017/{i}.jpg",
            "height": 400,
            "width": 400,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }
        for i in range(2)
    ]
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 3 + i, "bbox": [10, 10, 40, 50], "area": 2000.0, "segmentation": square}
        for i in range(2)
    ]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    return path


def test_results_of_any_program_on_lvis(tmp_path, capsys):
    file = annotations(tmp_path / "lvis_v1_val.json")
    square = [[10.0, 10, 50, 10, 50, 60, 10, 60]]
    rows = [{"image_id": i, "category_id": 3 + i, "bbox": [10, 10, 40, 50], "score": 0.9} for i in range(2)]
    stray = {"image_id": 0, "category_id": 4, "bbox": [200, 200, 20, 30], "score": 0.99}
    done = opticus.evaluate_results([*rows, stray], file, split="val")
    assert done.headline == "AP" and done["AP"] == pytest.approx(1) == done["APr"] and done["APf"] == -1
    assert opticus.evaluate_results([*rows, stray], file, split="val", metric="coco")["AP50"] == pytest.approx(0.75)
    masked = [{key: value for key, value in row.items() if key != "bbox"} | {"segmentation": square} for row in rows]
    assert opticus.evaluate_results(masked, file, split="val")["mask_AP"] == pytest.approx(1)
    (tmp_path / "found.json").write_text(json.dumps([*rows, stray]))
    command = ["val", f"results={tmp_path / 'found.json'}", f"data={file}", "split=val", "metric=lvis"]
    assert main([*command, "table=b", f"out={tmp_path / 'out'}", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (
        record["values"]["APc"] == pytest.approx(1)
        and record["protocol"]["metric"] == "lvis"
        and (tmp_path / "out" / "report.html").is_file()
    )
    with pytest.raises(CapabilityError, match="neg_category_ids"):
        opticus.evaluate_results([], "scenes", metric="lvis")
    assert main([*command, "errors=true"]) == 2
    assert "LVIS says nothing" in capsys.readouterr().err
