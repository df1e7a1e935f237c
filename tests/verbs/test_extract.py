"""Vectors in a file of the user's: resumed after a kill, read when done, float16, constant memory; neighbours by faiss; SGD by the sweep."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opticus
from opticus.cli.main import main
from opticus.data.subset import Samples
from opticus.structures import Classes, DataError, MissingPackageError, Sample, UsageError
from opticus.verbs import extract as verb
from opticus.verbs.features import Features
from opticus.verbs.probe import neighbours
from opticus.verbs.probe_linear import sgd_scores, sweep
from opticus.verbs.search import nearest


def pictures(count: int = 10) -> Samples:
    rng = np.random.default_rng(0)
    made = [
        Sample.of(torch.from_numpy(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)), Classes(torch.tensor([i % 3])), f"p\n{i}")
        for i in range(count)
    ]
    return Samples(made, "train")


def test_a_killed_extraction_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, out = opticus.create("resnet/tiny"), pictures(), tmp_path / "new" / "x.npy"
    whole = opticus.extract(model, data, tmp_path / "whole.npy", batch=2, quiet=True)
    assert whole.vectors.shape == (10, 128) and whole.vectors.dtype == np.float32 and isinstance(whole.vectors, np.memmap)
    assert whole.names() == [f"p\n{i}" for i in range(10)] and whole.labels().tolist() == [i % 3 for i in range(10)]
    monkeypatch.setattr(verb, "SAVE_EVERY", 0.0)
    calls: list[int] = []
    plain = type(data).__getitem__

    def failing(self: Samples, index: int) -> Sample:
        calls.append(index)
        if index == 6 and calls.count(6) == 1:
            raise KeyboardInterrupt
        return plain(self, index)

    monkeypatch.setattr(Samples, "__getitem__", failing)
    with pytest.raises(KeyboardInterrupt):
        opticus.extract(model, data, out, batch=2, quiet=True)
    assert not out.exists()
    calls.clear()
    calls.append(6)
    done = opticus.extract(model, data, out, batch=2, quiet=True)
    assert done.resumed == 6 and calls == [6, 6, 7, 8, 9], "only what was missing is computed"
    assert np.array_equal(done.vectors, whole.vectors) and sorted(f.name for f in out.parent.iterdir()) == [
        "x.ids.jsonl",
        "x.json",
        "x.labels.npy",
        "x.npy",
    ]
    calls.clear()
    assert opticus.extract(model, data, out, quiet=True).resumed == 10 and calls == [], "a finished file is read"
    assert json.loads((out.parent / "x.json").read_text())["model"] == "resnet/tiny"
    monkeypatch.setattr(Samples, "__getitem__", plain)
    with torch.no_grad():
        model.get_parameter("conv1.weight").mul_(2)
    with pytest.raises(UsageError, match="exists and holds other vectors"):
        opticus.extract(model, data, out, quiet=True)
    changed = opticus.extract(model, data, out, overwrite=True, quiet=True)
    assert changed.resumed == 0 and not np.array_equal(changed.vectors, whole.vectors)


def test_a_part_of_other_weights_is_not_gone_on_with(tmp_path: Path) -> None:
    model, data, out = opticus.create("resnet/tiny"), pictures(4), tmp_path / "x.npy"
    np.save(tmp_path / ".x.part.npy", np.full((4, 128), 7, np.float32))
    (tmp_path / ".x.part.json").write_text(json.dumps({"key": "another", "done": 4, "shape": [4, 128]}))
    done = opticus.extract(model, data, out, dtype="float16", quiet=True)
    assert done.resumed == 0 and done.vectors.dtype == np.float16 and not (done.vectors == 7).any()
    exact = opticus.extract(model, data, tmp_path / "y.npy", quiet=True)
    np.testing.assert_allclose(done.vectors, exact.vectors, rtol=1e-3, atol=1e-6)


def test_bad_files_and_vectors_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = opticus.create("resnet/tiny"), pictures(4)
    with pytest.raises(UsageError, match=r"ends in \.npy"):
        opticus.extract(model, data, tmp_path / "x.bin")
    with pytest.raises(UsageError, match="float32 or float16"):
        opticus.extract(model, data, tmp_path / "x.npy", dtype="int8")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(opticus.Error, match="cannot be written"):
        opticus.extract(model, data, tmp_path / "file" / "x.npy", quiet=True)
    with pytest.raises(DataError, match="no pictures"):
        opticus.extract(model, Samples([]), tmp_path / "x.npy")
    with torch.no_grad():
        bn = next(m for m in reversed(list(model.modules())) if isinstance(m, torch.nn.BatchNorm2d))
        bn.bias.fill_(1e6)
    with pytest.raises(DataError, match="does not fit into float16"):
        opticus.extract(model, data, tmp_path / "x.npy", dtype="float16", quiet=True)
    with torch.no_grad():
        bn.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="values that are not finite"):
        opticus.extract(model, data, tmp_path / "z.npy", quiet=True)
    assert main(["features", "lenet/5:x", "data=digits"]) == 2 and "needs data= and out=" in capsys.readouterr().err


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opticus.save(opticus.create("resnet/tiny"), tmp_path / "net.safetensors")
    data = tmp_path / "photos" / "train" / "a"
    data.mkdir(parents=True)
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (40, 30), (i, 9, 9)).save(data / f"{i}.png")
    words = [
        "features",
        str(tmp_path / "net.safetensors"),
        f"data={tmp_path / 'photos'}",
        f"out={tmp_path / 'f.npy'}",
        "quiet=true",
    ]
    assert main([*words, "dtype=float16", "scales=1,0.5", "json=true"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 3 and np.load(tmp_path / "f.npy").dtype == np.float16
    assert main(words) == 2 and "other vectors" in capsys.readouterr().err


# --- neighbours ------------------------------------------------------------------------------------------------------------


def spaces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 16)).astype(np.float32), rng.normal(size=(50, 16)).astype(np.float32), rng.integers(0, 5, 400)


@pytest.mark.parametrize("search", ["faiss", "faiss-hnsw"])
def test_faiss_finds_what_the_exact_search_finds(search: Any) -> None:
    pytest.importorskip("faiss")
    bank, queries, labels = spaces()
    near, where = next(nearest(bank, queries, 10, search))
    exact, truth = next(nearest(bank, queries, 10))
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(where, truth)])
    assert recall == 1.0 if search == "faiss" else recall > 0.97
    if search == "faiss":
        torch.testing.assert_close(near, exact, rtol=1e-5, atol=1e-6)
        votes = [neighbours(Features(bank, labels, ()), queries, 5, 10, 0.07, search=s) for s in ("exact", "faiss")]
        np.testing.assert_allclose(votes[0], votes[1], rtol=1e-4, atol=1e-6)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    bank, queries, _ = spaces()
    with pytest.raises(MissingPackageError, match=r"opticus\[search\]"):
        next(nearest(bank, queries, 3, "faiss"))
    with pytest.raises(UsageError, match="unknown search"):
        next(nearest(bank, queries, 3, "fais"))  # type: ignore[arg-type]
    bank[3, 2] = np.nan
    with pytest.raises(DataError, match="vector 3 of 400"):
        next(nearest(bank, queries, 3))


# --- the linear layer by SGD -------------------------------------------------------------------------------------------------


def test_the_sweep_is_torch_sgd_for_every_rate() -> None:
    bank, _, labels = spaces()
    rates = (0.01, 0.3, 3.0)
    found = sweep(bank, labels, bank[:60], labels[:60], 5, rates=rates, epochs=3, batch=64, seed=3)
    for place, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(3)
        layer = torch.nn.Linear(16, 5)
        with torch.no_grad():
            layer.weight.copy_((torch.randn(16, 5, generator=generator) * 0.01).T)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), rate * 64 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        for _ in range(3):
            for picks in torch.randperm(400, generator=generator).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(layer(torch.from_numpy(bank)[picks]), torch.from_numpy(labels)[picks]).backward()
                optimizer.step()
            schedule.step()
        torch.testing.assert_close(found.weight[place], layer.weight.detach().T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bias[place], layer.bias.detach(), rtol=1e-4, atol=1e-5)


def test_the_sweep_learns_and_a_divergence_is_said() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    vectors = (np.eye(3)[labels] * 2 + rng.normal(size=(300, 3)) * 0.3).astype(np.float32)
    parts = [Features(vectors[a:b], labels[a:b], ()) for a, b in ((0, 200), (200, 300))]
    probs, settings = sgd_scores(parts[0], parts[1], parts[1].vectors, 3, epochs=10)
    assert (probs.argmax(1) == parts[1].labels).mean() > 0.98 and settings["rate"] in settings["sweep"]
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    huge = Features(np.full((20, 3), 3e38, np.float32), labels[:20], ())
    with pytest.raises(DataError, match="diverged at every learning rate"):
        sgd_scores(huge, huge, huge.vectors, 3, epochs=2)


def test_it_is_a_method_of_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path))
    found = opticus.probe(opticus.create("lenet/5"), "digits", methods=("sgd-linear",), baseline=False, quiet=True)
    assert found["sgd-linear"] > 0.6 and found.rows[0].protocol["probe"]["epochs"] == 100
