"""probe: exact neighbours, linear classifiers that know their protocol, features that are computed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opticus
from opticus.cli.main import main
from opticus.data.embedded.crops import Crops
from opticus.data.embedded.digits import Digits
from opticus.data.subset import Samples
from opticus.structures import CapabilityError, Classes, DataError, UnknownNameError, UsageError
from opticus.verbs import features
from opticus.verbs.features import Features, extract
from opticus.verbs.probe import neighbours


def test_neighbours_are_the_weighted_vote_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(7, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 50)
    found = neighbours(Features(bank, labels, ()), queries, 4, 5, 0.07, block=3)
    for query, row in zip(queries, found):
        cosines = [float(query @ v / np.linalg.norm(query) / np.linalg.norm(v)) for v in bank]
        votes = np.zeros(4)
        for i in sorted(range(50), key=lambda i: -cosines[i])[:5]:
            votes[labels[i]] += np.exp(cosines[i] / 0.07)
        np.testing.assert_allclose(row, votes / votes.sum(), rtol=1e-3, atol=1e-6)


def test_features_are_computed_once_and_belong_to_weights_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path))
    model, data = opticus.create("resnet/tiny"), Crops("val", count=20)
    first = extract(model, data, "val", quiet=True)
    assert first.vectors.shape == (20, 128) and first.labels.shape == (20,) and isinstance(first.vectors, np.memmap)
    monkeypatch.setattr(features, "rows_of", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(extract(model, data, "val", quiet=True).vectors, first.vectors)
    monkeypatch.undo()
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path))
    with torch.no_grad():
        model.get_parameter("conv1.weight").mul_(2)
    assert not np.array_equal(extract(model, data, "val", quiet=True).vectors, first.vectors)
    plain = extract(model, data, "val", cache=False, batch=7, quiet=True)
    with torch.no_grad():
        batch = features.prepare([data[i].picture for i in range(20)], model.prepare)  # type: ignore[attr-defined]
        torch.testing.assert_close(torch.tensor(plain.vectors), model.eval().embed(batch.pixels), rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    model.train().get_submodule("layer1").eval()
    extract(model, data, "val", cache=False, quiet=True)
    assert model.training and not model.get_submodule("layer1").training, "modes are left as they were found"


def test_probe_scores_every_method_beside_raw_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model = opticus.create("lenet/5")
    found = opticus.probe(model, "digits", methods=("knn", "linear", "svm"), out=tmp_path / "out", quiet=True)
    names = [(row.features, row.method) for row in found.rows]
    assert names == [(f, m) for f in ("lenet/5", "pixels") for m in ("knn", "linear", "svm")]
    pixels = {row.method: row.values["top1"] for row in found.rows if row.features == "pixels"}
    assert pixels["knn"] > 0.94 and pixels["linear"] > 0.9 and pixels["svm"] > 0.9  # known of these digits
    assert all(0.3 < found[m] < 0.99 for m in ("knn", "linear", "svm"))
    knn = found.rows[0].protocol
    assert knn["probe"] == {"method": "knn", "k": 20, "temperature": 0.07, "distance": "cosine"} and knn["samples"] == 500
    saved = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert len(saved) == 6
    difference = opticus.compare(tmp_path / "out" / "lenet-5-knn", tmp_path / "out" / "pixels-knn")["top1"]
    assert difference.difference == pytest.approx(pixels["knn"] - found["knn"])
    with pytest.raises(opticus.Error, match="unlike protocols"):
        opticus.compare(tmp_path / "out" / "lenet-5-knn", tmp_path / "out" / "lenet-5-linear")


def test_bad_questions_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = opticus.create("lenet/5")
    with pytest.raises(UnknownNameError, match="probe method"):
        opticus.probe(model, "digits", methods=("knm",))
    with pytest.raises(UsageError, match="temperature"):
        opticus.probe(model, "digits", temperature=0.0)
    with pytest.raises(UsageError, match="split"):
        opticus.probe(model, "digits", split="train")
    with pytest.raises(CapabilityError, match="no vector to probe"):
        opticus.probe(opticus.load("centernet/tiny:scenes", quiet=True), Digits("train"), cache=False, quiet=True, baseline=False)
    many: Any = [
        opticus.Sample.of(torch.zeros(28, 28, 1, dtype=torch.uint8), Classes(torch.tensor([0, 1]), torch.ones(2)), id="two")
    ]
    with pytest.raises(DataError, match="two: a probe needs exactly one label"):
        extract(model, Samples(many), "train", cache=False)
    assert main(["probe", "lenet/5:x", "data=digits"]) == 2
    assert "lenet/5:x" in capsys.readouterr().err


def test_a_read_only_home_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path / "home"))
    found = extract(opticus.create("resnet/tiny"), Crops("val", count=3), "val", quiet=True)
    assert found.vectors.shape == (3, 128) and "features are not kept" in capsys.readouterr().err
