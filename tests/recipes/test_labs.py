"""Labs in miniature: the plumbing, not the claims."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.cli.main import main
from opticus.recipes import lab
from opticus.recipes.labs import dropout, pooling, small_data
from opticus.structures import DataError, TrainError, UnknownNameError, UsageError

NAMES = tuple(lab.labs())


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pictures: drawing them takes longer than training on them."""
    plain = lab.pictures

    def fewer(name: str, split: str, count: int, **options: Any) -> Any:
        options["skip"] = min(options.get("skip", 0), 8)
        return plain(name, split, min(count, 24), **options)

    for name in NAMES:
        monkeypatch.setattr(lab.lab(name), "pictures", fewer, raising=False)  # a lab may do without pictures


def test_every_lab_is_found_and_says_what_it_claims() -> None:
    assert {"degradation", "augmentation", "batch-norm", "dropout", "pooling", "small-data"} <= set(NAMES)
    for name in NAMES:
        module = lab.lab(name)
        assert module.CLAIM.endswith(".") and module.SETUP.endswith(".") and module.VERSION >= 1 and module.SEEDS >= 2
        cells = module.cells(module.SEEDS, 1.0)
        assert len({(cell["arm"], cell["seed"]) for cell in cells}) == len(cells)
    with pytest.raises(UnknownNameError, match="batch-norm"):
        lab.lab("batch-nrm")


@pytest.mark.parametrize("name", NAMES)
def test_a_lab_in_miniature(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes its three files, says whether the claim holds, and does not train again what it has."""
    finding = lab.run(name, tmp_path, seeds=2, scale=0.005, quiet=True)
    found = json.loads((tmp_path / "lab.json").read_text())
    assert found["claim"] == lab.lab(name).CLAIM and found["holds"] is finding.holds
    assert len(found["trainings"]) == len(lab.lab(name).cells(2, 0.005)) and found["checks"]
    for check in found["checks"]:
        assert check["low"] <= check["value"] <= check["high"] and all(math.isfinite(check[k]) for k in ("value", "low", "high"))
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == (1100, 440) and len(np.unique(np.asarray(picture.convert("L")))) > 20
    page = (tmp_path / "lab.html").read_text()
    assert (
        "data:image/png;base64," in page
        and "http" not in page.split("</style>")[1]
        and found["claim"] in page.replace("&#x27;", "'")
    )

    def never(cell: Any, folder: Any) -> Any:
        raise AssertionError(f"{cell} is trained again")

    monkeypatch.setattr(lab.lab(name), "measure", never)
    assert lab.run(name, tmp_path, seeds=2, scale=0.005, quiet=True).to_json() == finding.to_json()
    with pytest.raises(AssertionError, match="trained again"):  # other settings are other trainings
        lab.run(name, tmp_path, seeds=2, scale=0.02, quiet=True)


def test_a_stopped_lab_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measure(cell: Any, folder: Any) -> dict[str, float]:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(cell["arm"])
        return {"train": 1.0, "test": 0.5 + 0.1 * cell["seed"], "gap": 0.5 - 0.1 * cell["seed"]}

    monkeypatch.setattr(dropout, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        lab.run("dropout", tmp_path, seeds=2, quiet=True)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 3 and not (tmp_path / "lab.json").exists()
    calls.clear()
    lab.run("dropout", tmp_path, seeds=2, quiet=True)
    assert len(calls) == 1


def test_the_exit_code_is_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for gain, code, word in ((0.2, 0, "The claim holds here."), (-0.2, 1, "The claim does not hold here.")):

        def measure(cell: Any, folder: Any, gain: float = gain) -> dict[str, float]:
            gap = 0.5 + 0.01 * cell["seed"] * (cell["arm"] == dropout.ARMS[0]) - gain * (cell["arm"] == dropout.ARMS[1])
            return {"train": 1.0, "test": 1.0 - gap, "gap": gap}

        monkeypatch.setattr(dropout, "measure", measure)
        out = tmp_path / str(code)
        assert main(["lab", "dropout", "seeds=3", f"out={out}", "quiet=true"]) == code
        assert word in capsys.readouterr().out
        assert main(["lab", "dropout", "seeds=3", f"out={out}", "quiet=true", "--json"]) == code
        assert json.loads(capsys.readouterr().out)["holds"] is (code == 0)


def test_the_command_lists_labs_and_refuses_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert main(["lab", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(NAMES)
    assert main(["lab", "dropuot"]) == 2 and "dropout" in capsys.readouterr().err
    for words, sentence in (
        (["seeds=1"], "seeds must be at least 2"),
        (["scale=0"], "scale must be in"),
        (["scale=nan"], "scale must be in"),
    ):
        assert main(["lab", "dropout", f"out={tmp_path}", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_cell_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "measure", lambda cell, folder: {"train": 1.0, "test": 0.5, "gap": 0.1 * cell["seed"]})
    lab.run("dropout", tmp_path, seeds=2, quiet=True)
    broken = sorted((tmp_path / "cells").glob("*.json"))[0]
    broken.write_text("{")
    with pytest.raises(TrainError, match=broken.name):
        lab.run("dropout", tmp_path, seeds=2, quiet=True)


# --- numbers -----------------------------------------------------------------------------------------------------------------


def test_intervals() -> None:
    """Student's t for three values: mean +- 4.303 s / sqrt(3)."""
    value, low, high = lab.mean([1.0, 2.0, 3.0])
    assert (
        value == 2
        and high - value == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
        and value - low == pytest.approx(high - value)
    )
    rows = [{"arm": arm, "seed": s, "found": {"x": x}} for arm, xs in (("a", (3, 5)), ("b", (1, 4))) for s, x in enumerate(xs)]
    assert lab.difference(rows[::-1], "a", "b", "x").value == 1.5
    assert lab.Check("x", 0.1, 0.01, 0.2).holds and not lab.Check("x", 0.1, -0.01, 0.2).holds
    assert lab.Check("x", 0.9, 0.8, 0.95, bound=1.0, above=False).holds


def test_pictures_of_some_classes() -> None:
    data = lab.pictures("digits", "train", 30, classes=(7, 3), skip=5)
    again = lab.pictures("digits", "train", 40, classes=(7, 3))
    assert len(data) == 30 and data.names == ("7", "3") and set(data.labels.tolist()) == {0, 1}
    assert np.array_equal(data.pixels, again.pixels[5:35])
    small = lab.pictures("digits", "train", 3, side=14)
    assert small.pixels.shape == (3, 14, 14, 1)
    whole = lab.pictures("digits", "train", 3).pixels.astype(float)
    assert np.abs(small.pixels[0, 3, 4] - whole[0, 6:8, 8:10].mean((0, 1))).max() <= 0.5
    with pytest.raises(DataError, match="fewer than 5001"):
        lab.pictures("digits", "train", 3, skip=5000)


def test_a_diverging_training_ends_at_chance() -> None:
    """The loss is no number any more: the curve goes on at what guessing gives."""
    network = pooling.Small("stride")
    learned = lab.learn(network, pooling.framed("train", 24), steps=30, rule=lab.Optim("sgd", lr=1e12, weight_decay=0.0))
    assert len(learned.losses) == len(learned.accuracies) == 30
    assert learned.accuracies[-1] == 0.1 and learned.losses[-1] == pytest.approx(math.log(10))


@pytest.mark.parametrize("arm", pooling.ARMS)
def test_ways_of_halving(arm: str) -> None:
    network = pooling.Small(arm)
    assert network(torch.zeros(2, 1, 36, 36)).shape == (2, 10)
    if arm == "blur":
        constant = pooling.Blur(3)(torch.full((1, 3, 8, 8), 2.5))
        torch.testing.assert_close(constant, torch.full((1, 3, 4, 4), 2.5))


def test_a_frozen_network_stays_as_it_is() -> None:
    network = small_data.fresh()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    data = lab.pictures("digits", "train", 60, classes=range(5), side=14)
    assert small_data.probed(network, data, data) > 0.9  # 64 features separate 60 pictures
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_usage_errors_are_of_the_right_kind() -> None:
    with pytest.raises(UsageError):
        lab.run("dropout", seeds=0)
