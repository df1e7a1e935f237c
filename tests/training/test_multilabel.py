"""Several labels a picture, imbalance and calibration: losses, metric, data, training and report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import opticus
from opticus.data.loader import Plan, balanced, batches, epoch_order
from opticus.data.subset import Samples
from opticus.losses.multilabel import MultiLabel, asymmetric, multi_hot, tagged
from opticus.metrics.classify import Accuracy
from opticus.metrics.multilabel import TagPrecision, resampled
from opticus.metrics.passport import Passport, compare
from opticus.structures import Batch, CapabilityError, Classes, DataError, UsageError

SHORT: dict[str, Any] = {"steps": 3, "batch": 16, "evaluate_every": 0, "quiet": True, "average": None, "workers": 0}


def labels(*values: int) -> Classes:
    return Classes(torch.tensor(values, dtype=torch.int64))


def test_asymmetric_loss_is_its_equation_and_bce_without_focus() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4, dtype=torch.float64), (torch.rand(5, 4) > 0.5).double()
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(asymmetric(logits, target, positive=0.0, negative=0.0, margin=0.0), plain)
    for x, y, found in zip(logits.flatten(), target.flatten(), asymmetric(logits, target).flatten()):
        p = float(x.sigmoid())
        shifted = max(p - 0.05, 0)
        wanted = -((1 - p) * np.log(p)) if y else -(shifted**4 * np.log(1 - shifted))
        assert float(found) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_targets_may_be_empty_and_bad_ones_are_named() -> None:
    dense = multi_hot([labels(), labels(2, 0), Classes(torch.tensor([1]), torch.tensor([0.25]))], 3)
    assert dense.tolist() == [[0, 0, 0], [1, 0, 1], [0, 0.25, 0]]
    with pytest.raises(DataError, match=r"b: label 3 is outside 0\.\.2"):
        multi_hot([labels(), labels(3)], 3, ["a", "b"])
    with pytest.raises(DataError, match=r"a: scores of several labels must be in \[0, 1\]"):
        multi_hot([Classes(torch.tensor([1]), torch.tensor([2.0]))], 3, ["a"])
    with pytest.raises(UsageError, match="class_weights go with"):
        MultiLabel(loss="asymmetric", class_weights=[1.0])
    result = tagged(torch.tensor([[0.0, 2.0, -1.0]]))[0]
    assert isinstance(result, Classes) and result.labels.tolist() == [1, 0, 2] and float(result.probs[0]) == 0.5  # type: ignore[index]


def test_sample_weights_scale_the_loss() -> None:
    logits = torch.randn(2, 3)
    batch = Batch(None, (labels(0), labels(1, 2)), ("a", "b"), weights=torch.tensor([2.0, 0.0]))
    plain = F.binary_cross_entropy_with_logits(logits[0], torch.tensor([1.0, 0, 0]), reduction="sum")
    assert float(MultiLabel()(logits, batch)["classify"]) == pytest.approx(float(plain), rel=1e-5)


def test_numbers_equal_scikit_learn_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    probs, truth = np.round(rng.random((80, 5)), 1).astype(np.float32), rng.random((80, 5)) < 0.3
    truth[:, 4] = False  # a class without a positive
    metric = TagPrecision(list("abcde"), data="x", split="test")
    for i in range(80):
        order = np.argsort(-probs[i], kind="stable")
        metric.update(
            Classes(torch.from_numpy(order), torch.from_numpy(probs[i][order])), labels(*np.flatnonzero(truth[i])), f"{i:03d}"
        )
    found = metric.compute()
    assert found["mAP"] == pytest.approx(np.mean([average_precision_score(truth[:, k], probs[:, k]) for k in range(4)]))
    said = probs >= 0.5
    assert found["OF1"] == pytest.approx(f1_score(truth.ravel(), said.ravel()))
    assert found["CF1"] == pytest.approx(np.mean([f1_score(truth[:, k], said[:, k]) for k in range(4)]))
    assert metric.per_class()[4]["AP"] is None
    again = resampled(metric.samples(), np.ones((1, 80)))
    assert {k: pytest.approx(float(v[0])) for k, v in again.items()} == found
    draws = rng.multinomial(80, np.full(80, 1 / 80), 3).astype(float)
    for r, weights in enumerate(draws):
        wanted = [average_precision_score(truth[:, k], probs[:, k], sample_weight=weights) for k in range(4)]
        assert resampled(metric.samples(), draws)["mAP"][r] == pytest.approx(np.mean(wanted))


def test_tags_of_scenes_train_and_score_end_to_end(tmp_path: Path) -> None:
    data = opticus.open_data("tags:scenes", "test")
    assert data.task == "classify" and data.target_of(0).labels.tolist() == sorted(set(data.base.target_of(0).labels.tolist()))  # type: ignore[union-attr,attr-defined]
    for name, options in (("a", {}), ("b", {"options": {"loss": "asymmetric"}}), ("c", {"options": {"class_weights": "balanced"}})):
        run = opticus.train("resnet/tiny", "tags:scenes", out=tmp_path / name, **SHORT, **options)
        assert set(run.values) == {"mAP", "CF1", "OF1"} and 0 < run.values["mAP"] < 1
    assert "Calibration" not in run.report.read_text()
    model = opticus.load(tmp_path / "a")
    assert model.card.multi_label
    result = model.predict(data[0].picture, threshold=0.0)[0]
    assert len(result) == 10 and float(result.probs.sum()) != pytest.approx(1.0, abs=1e-3)
    assert opticus.evaluate(model, "tags:scenes", quiet=True).values["mAP"] == pytest.approx(
        Passport.read(tmp_path / "a").numbers["mAP"].value
    )
    assert {row.name for row in compare(tmp_path / "a", tmp_path / "b", resamples=20)} == {"mAP", "CF1", "OF1"}
    with pytest.raises(CapabilityError, match="several labels a picture, the data set has one label"):
        opticus.evaluate(model, "crops", quiet=True)


def write_table(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for file, _, _ in rows:
        Image.new("RGB", (32, 32)).save(folder / file)
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "labels", "split"), *rows])
    return folder


def test_a_table_of_files_is_read(tmp_path: Path) -> None:
    rows = [("ä b.png", "cat; dog", "train"), ("c.png", "", "train"), ("d.png", "bird", "valid")]
    data = opticus.open_data(write_table(tmp_path / "t", rows))
    assert data.names == ("bird", "cat", "dog") and data.splits == ("train", "val") and data.multi  # type: ignore[attr-defined]
    assert [data.target_of(i).labels.tolist() for i in range(2)] == [[1, 2], []]  # type: ignore[union-attr]
    assert opticus.open_data(tmp_path / "t", "val")[0].picture.size == (32, 32)
    single = opticus.open_data(write_table(tmp_path / "s", [("a.png", "x", "train"), ("b.png", "y", "train")]))
    assert not single.multi  # type: ignore[attr-defined]
    for bad, words in ((("../x.png", "a", "train"), "leaves the folder"), (("a.png", "a", "holdout"), "train, val or test")):
        (tmp_path / "s" / "labels.csv").write_text("file,labels,split\n" + ",".join(bad) + "\n")
        with pytest.raises(DataError, match=f"line 2: .*{words}"):
            opticus.open_data(tmp_path / "s")


def test_balanced_sampling_draws_classes_equally_and_stays_a_function_of_the_seed() -> None:
    counts = {0: 90, 1: 9, 2: 1}
    pictures = [
        opticus.Sample.of(torch.zeros(4, 4, 1, dtype=torch.uint8), labels(k), id=f"{k}-{i}")
        for k, n in counts.items()
        for i in range(n)
    ]
    data = Samples(pictures)
    shares = balanced(data)
    assert sum(shares) == pytest.approx(1) and sum(shares[:90]) == pytest.approx(1 / 3)
    first, again = (epoch_order(7, 2, 100, shares) for _ in range(2))
    assert np.array_equal(first, again) and not np.array_equal(first, epoch_order(7, 3, 100, shares))
    rule = opticus.create("lenet/5").prepare
    drawn = batches(data, (), rule, Plan(0, 50, shares=shares))
    seen = [int(t.labels[0]) for _ in range(20) for t in next(drawn).targets]  # type: ignore[union-attr]
    assert np.bincount(seen) / len(seen) == pytest.approx([1 / 3] * 3, abs=0.06)


def test_balanced_class_weights_are_scikit_learns(tmp_path: Path) -> None:
    from opticus.verbs.train import _balancing

    data: Any = Samples([opticus.Sample.of(torch.zeros(4, 4, 1, dtype=torch.uint8), labels(k)) for k in (0, 0, 0, 1)])
    assert _balancing(data) == pytest.approx([4 / 6, 4 / 2])
    missing: Any = Samples(list(data), names=("a", "b", "c"))
    with pytest.raises(DataError, match="no record of c"):
        _balancing(missing)
    run = opticus.train(
        "lenet/5", "digits", out=tmp_path / "x", sampling="balanced", options={"class_weights": "balanced"}, **SHORT
    )
    assert 0 <= run.values["ece"] <= 1 and "Calibration" in run.report.read_text()
    assert json.loads((tmp_path / "x" / "args.json").read_text())["overrides"]["sampling"] == "balanced"


def test_calibration_error_is_guos_equation() -> None:
    rng = np.random.default_rng(1)
    metric = Accuracy(("a", "b"), data="x", split="test")
    confidence, right = rng.uniform(0.5, 1, 300), rng.random(300) < 0.7
    for i in range(300):
        p = torch.tensor([confidence[i], 1 - confidence[i]])
        metric.update(Classes(torch.tensor([0, 1]), p, p), labels(0 if right[i] else 1), f"{i}")
    wanted = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metric.compute()["ece"] == pytest.approx(wanted, abs=1e-6)
