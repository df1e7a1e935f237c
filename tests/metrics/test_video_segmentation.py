"""J&F of DAVIS: equal to a literal transcription of the definitions, and to what davis2017-evaluation gives for the same clips."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from davis_clips import blobs

from opticus.metrics.passport import Passport, compare
from opticus.metrics.video import VideoSegmentation, contour_accuracy, contours, dilated, region_similarity, statistics
from opticus.structures import MetricError

# --- the definitions, pixel by pixel ---------------------------------------------------------------------------------------


def contour_by_hand(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    out = np.zeros_like(mask)
    for i in range(height):
        for j in range(width):
            if i < height - 1 and j < width - 1:
                out[i, j] = any(mask[i, j] != mask[a, b] for a, b in ((i, j + 1), (i + 1, j), (i + 1, j + 1)))
            elif j < width - 1:
                out[i, j] = mask[i, j] != mask[i, j + 1]
            elif i < height - 1:
                out[i, j] = mask[i, j] != mask[i + 1, j]
    return out


def f_by_hand(truth: np.ndarray, said: np.ndarray) -> float:
    reach = math.ceil(0.008 * math.hypot(*truth.shape))
    mine, theirs = (np.argwhere(contour_by_hand(one)) for one in (said, truth))
    if not len(mine) or not len(theirs):
        return 1.0 if len(mine) == len(theirs) else 0.0
    apart = ((mine[:, None] - theirs[None]) ** 2).sum(-1)
    precision, recall = float((apart.min(1) <= reach**2).mean()), float((apart.min(0) <= reach**2).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def numbers_by_hand(truths: list[np.ndarray], saids: list[np.ndarray]) -> dict[str, float]:
    rows: dict[str, list[tuple[float, float, float]]] = {"J": [], "F": []}
    for truth, said in zip(truths, saids):
        for k in range(1, int(truth[0][truth[0] < 255].max()) + 1):
            j, f = [], []
            for t in range(1, len(truth) - 1):
                a, b = truth[t] == k, said[t] == k
                union = (a | b).sum()
                j.append((a & b).sum() / union if union else 1.0)
                f.append(f_by_hand(a, b))
            for letter, values in (("J", j), ("F", f)):
                n = len(values)
                edge = [round(1 + i * (n - 1) / 4 + 1e-10) - 1 for i in range(5)]
                first, last = values[edge[0] : edge[1] + 1], values[edge[3] : edge[4] + 1]
                rows[letter].append(
                    (float(np.mean(values)), float(np.mean(np.array(values) > 0.5)), np.mean(first) - np.mean(last))
                )
    out = {}
    for letter in "JF":
        for i, suffix in enumerate(("", "_recall", "_decay")):
            out[letter + suffix] = float(np.mean([row[i] for row in rows[letter]]))
    return {"J&F": (out["J"] + out["F"]) / 2, **out}


CASES = [(0, 9, (40, 56), 2), (1, 6, (33, 150), 3), (2, 3, (64, 20), 1), (3, 14, (48, 48), 2)]


def test_the_numbers_equal_a_literal_transcription():
    metric = VideoSegmentation()
    pairs = [blobs(*case) for case in CASES]
    for case, (truth, said) in zip(CASES, pairs):
        metric.update(said, truth, str(case[0]))
    expected = numbers_by_hand([t for t, _ in pairs], [s for _, s in pairs])
    found = metric.compute()
    assert found.keys() == expected.keys() and 0.2 < found["J&F"] < 0.99
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_contours_and_disks_at_the_borders():
    rng = np.random.default_rng(0)
    masks = rng.random((5, 13, 17)) < 0.3
    assert np.array_equal(contours(masks), np.stack([contour_by_hand(one) for one in masks]))
    for radius in (0, 1, 2, 5, 8, 30):
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        padded = np.pad(masks, ((0, 0), (radius, radius), (radius, radius)))
        expected = np.zeros_like(masks)
        for dy, dx in zip(y[x**2 + y**2 <= radius**2], x[x**2 + y**2 <= radius**2]):
            expected |= padded[:, radius + dy : radius + dy + 13, radius + dx : radius + dx + 17]
        assert np.array_equal(dilated(masks, radius), expected), radius


# davis2017-evaluation's own db_eval_iou, db_eval_boundary and db_statistics on the clips and values below (tools/references/davis.py)
RECORDED = json.loads((Path(__file__).parent / "davis_reference.json").read_text())


@pytest.mark.parametrize("case", RECORDED["measures"], ids=lambda case: f"{case['size']}-{case['void']}")
def test_measures_equal_the_reference(case: dict[str, Any]):
    truth, said = blobs(case["seed"], 5, tuple(case["size"]), 2, case["void"])
    blank = truth == 255 if case["void"] else None
    for k in (1, 2):
        a, b = truth == k, said == k
        np.testing.assert_allclose(region_similarity(a, b, blank), case["J"][k - 1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(contour_accuracy(a, b, blank), case["F"][k - 1], rtol=0, atol=1e-12)


def test_statistics_equal_the_reference():
    rng = np.random.default_rng(0)
    for length, expected in RECORDED["statistics"]:
        np.testing.assert_allclose(statistics(rng.random(length)), expected, rtol=0, atol=1e-12)


def test_void_is_background_or_left_out():
    truth, said = np.zeros((4, 20, 20), np.uint8), np.zeros((4, 20, 20), np.uint8)
    truth[:, 5:15, 5:15] = 1
    truth[:, 5:15, 15:] = 255
    said[:, 5:15, 5:] = 1
    plain, without = VideoSegmentation(), VideoSegmentation(void=True)
    for metric in (plain, without):
        metric.update(said, truth, "a")
    assert plain.compute()["J"] == pytest.approx(100 / 150) and without.compute()["J"] == 1.0 == without.compute()["F"]
    assert plain.protocol["void"] != without.protocol["void"]


def test_neither_or_one_object_in_a_frame():
    none, some = np.zeros((1, 10, 10), bool), np.zeros((1, 10, 10), bool)
    some[0, 3:6, 3:6] = True
    assert region_similarity(none, none)[0] == contour_accuracy(none, none)[0] == 1.0
    assert region_similarity(some, none)[0] == contour_accuracy(some, none)[0] == contour_accuracy(none, some)[0] == 0.0


def test_ids_that_the_first_frame_lacks_are_background():
    truth, said = blobs(0, 5, (40, 40), 2)
    later = truth.copy()
    later[3, :5, :5] = 7
    one, other = VideoSegmentation(), VideoSegmentation()
    one.update(said, np.where(later == 7, 0, later), "a")
    other.update(said, later, "a")
    assert one.compute() == other.compute()


def test_bad_sequences_are_refused():
    truth, said = blobs(0, 5, (40, 40), 2)
    metric = VideoSegmentation()
    for bad_said, bad_truth, words in (
        (said[:4], truth, r"expected object ids of shape \(5, 40, 40\)"),
        (said[:2], truth[:2], "at least 3 are needed, found 2"),
        (said, np.zeros_like(truth), "shows no object"),
        (np.full_like(said, 3), truth, "object 3 is predicted, but the first frame has objects up to 2"),
        (said[0], truth[0], "must have shape"),
    ):
        with pytest.raises(MetricError, match=f"clip: .*{words}"):
            metric.update(bad_said, bad_truth, "clip")
    with pytest.raises(MetricError, match="no sequence was scored"):
        metric.compute()
    with pytest.raises(MetricError, match="unlike shapes"):
        region_similarity(truth == 1, (said == 1)[:2])


def test_merge_and_passport(tmp_path: Path):
    pairs = {str(case[0]): blobs(*case) for case in CASES}
    whole, parts = VideoSegmentation("x", "val"), [VideoSegmentation("x", "val") for _ in range(2)]
    perfect = VideoSegmentation("x", "val")
    for i, (name, (truth, said)) in enumerate(pairs.items()):
        whole.update(said, truth, name)
        parts[i % 2].update(said, truth, name)
        perfect.update(np.where(truth == 255, 0, truth), truth, name)
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == whole.compute() and perfect.compute()["J&F"] == 1.0
    Passport.of(whole).write(tmp_path / "a")
    Passport.of(perfect).write(tmp_path / "b")
    rows = {row.name: row for row in compare(tmp_path / "a", tmp_path / "b")}
    assert rows["J&F"].significant and rows["J&F"].low <= rows["J&F"].difference <= rows["J&F"].high
