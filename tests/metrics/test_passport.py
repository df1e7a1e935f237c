"""Passports survive the disk, unlike protocols are refused, and the paired bootstrap finds real differences only."""

import json

import numpy as np
import pytest
import torch
from test_accuracy import answers, metric_of
from test_coco_detection import problem, scored

from opticus.metrics.detect import CocoDetection
from opticus.metrics.passport import Passport, compare
from opticus.structures import MetricError


def test_round_trip(tmp_path):
    passport = Passport.of(scored(problem(1, 6, masks=True), masks=True), {"size": [128, 128]})
    passport.write(tmp_path)
    again = Passport.read(tmp_path)
    assert again.ids == passport.ids and again.numbers == dict(passport.numbers)
    assert again.numbers["AP"].protocol["size"] == [128, 128] and again.numbers["AP"].protocol["library"] == "hotcoco"
    for key, value in passport.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["passport.json", "passport.safetensors"]


def test_a_run_equals_itself(tmp_path):
    Passport.of(scored(problem(2, 12, masks=True), masks=True)).write(tmp_path)
    rows = compare(tmp_path, tmp_path, resamples=50)
    assert [row.name for row in rows] == ["AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"]
    assert all(row.difference == row.low == row.high == 0.0 and not row.significant for row in rows)


def test_accuracy_interval_matches_the_binomial_one(tmp_path):
    truth, probs = answers(400)
    worse = probs.copy()
    rng = np.random.default_rng(5)
    spoiled = rng.random(400) < 0.3
    worse[spoiled] = np.roll(worse[spoiled], 1, axis=1)
    for name, values in (("a", probs), ("b", worse)):
        Passport.of(metric_of(truth, values)).write(tmp_path / name)
    row = next(row for row in compare(tmp_path / "a", tmp_path / "b", resamples=4000) if row.name == "top1")
    gaps = (worse.argmax(1) == truth) * 1.0 - (probs.argmax(1) == truth)
    half = 1.96 * gaps.std() / np.sqrt(400)
    assert row.difference == pytest.approx(gaps.mean())
    assert row.low == pytest.approx(gaps.mean() - half, abs=0.01) and row.high == pytest.approx(gaps.mean() + half, abs=0.01)
    assert row.significant and row.better < 0.01


def test_detection_difference_is_found(tmp_path):
    fair, shuffled = problem(4, 40), problem(4, 40)
    rng = np.random.default_rng(0)
    for prediction, target in shuffled:  # half the true boxes are found exactly: a better detector
        found = torch.from_numpy(rng.random(len(target)) < 0.5)
        prediction.boxes = torch.cat([target.boxes[found], prediction.boxes])
        prediction.labels = torch.cat([target.labels[found], prediction.labels])
        prediction.scores = torch.cat([torch.ones(int(found.sum())), prediction.scores])
    for name, pairs in (("a", fair), ("b", shuffled)):
        Passport.of(scored(pairs)).write(tmp_path / name)
    rows = {row.name: row for row in compare(tmp_path / "a", tmp_path / "b", resamples=300)}
    assert rows["AP"].low <= rows["AP"].difference <= rows["AP"].high
    assert rows["AP"].significant and rows["AP"].better > 0.99
    assert "95 % interval" in str(rows["AP"])


def test_unlike_protocols_are_refused_by_field(tmp_path):
    pairs = problem(1, 4)
    metrics = {"a": {"data": "hash a"}, "b": {"data": "hash b"}}
    for name, keywords in metrics.items():
        metric = CocoDetection([f"class {i}" for i in range(4)], **keywords)
        for index, pair in enumerate(pairs):
            metric.update(*pair, str(index))
        Passport.of(metric).write(tmp_path / name)
    with pytest.raises(MetricError, match="AP was measured by unlike protocols: data is 'hash a' and 'hash b'"):
        compare(tmp_path / "a", tmp_path / "b")
    Passport.of(metric_of(*answers(9))).write(tmp_path / "c")
    with pytest.raises(MetricError, match="no number in common"):
        compare(tmp_path / "a", tmp_path / "c")


def test_unreadable_passports_are_named(tmp_path):
    with pytest.raises(MetricError, match=r"passport\.json: expected a run with"):
        Passport.read(tmp_path)
    Passport.of(metric_of(*answers(9))).write(tmp_path)
    (tmp_path / "passport.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(MetricError, match=r"passport\.json: expected a passport of format 1"):
        Passport.read(tmp_path)
    (tmp_path / "passport.json").write_text(json.dumps([1]))
    with pytest.raises(MetricError, match="expected a passport of format 1"):
        Passport.read(tmp_path)
