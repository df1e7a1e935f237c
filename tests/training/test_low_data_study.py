"""The low-data study: it trains every arm once, goes on where it stopped, and says what its figures say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import opticus
from opticus.recipes import low_data_distillation as recipe
from opticus.recipes.low_data_distillation import Row, Study, study
from opticus.structures import TrainError, UsageError


def found(undistilled: tuple[float, ...], hard: tuple[float, ...], soft: tuple[float, ...]) -> Study:
    values = {"undistilled": undistilled, "hard": hard, "soft": soft}
    rows = tuple(Row(arm, seed, value, None) for arm, row in values.items() for seed, value in enumerate(row))
    return Study(Path("x"), "deit/tiny", "crops", 20, 100, "resnet/tiny", 0.9, rows)


def test_the_verdict_is_computed_from_the_figures() -> None:
    lines = found((0.3, 0.4, 0.5), (0.35, 0.35, 0.6), (0.2, 0.2, 0.2)).verdict()
    assert lines[0].startswith("hard distillation beats labels alone on 2 of 3 seeds, by +3.3 points (by seed +5.0, -5.0, +10.0)")
    assert lines[1].startswith("soft distillation beats labels alone on 0 of 3 seeds, by -20.0 points")
    assert lines[2] == "the undistilled student reaches at most 50.0 %, below the bound of 90 %"
    assert "NOT below" in found((0.95,), (0.95,), (0.95,)).verdict()[2]
    assert "| hard | 0.350 | 0.350 | 0.600 | 0.433 |" in found((0.3, 0.4, 0.5), (0.35, 0.35, 0.6), (0.2, 0.2, 0.2)).text()


def test_it_trains_what_is_missing_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tmp_path / "teacher"
    opticus.train("lenet/5", "digits", out=teacher, steps=20, evaluate_every=0, test=False, quiet=True, workers=0)
    out = tmp_path / "study"
    words = {"seeds": (0,), "teacher": teacher, "model": "deit/tiny", "data": "digits"}
    first = study(out, steps=2, per_class=2, **words)
    assert first.professor == "lenet/5" and "teacher lenet/5, trained on all of them" in first.text()
    assert [row.arm for row in first.rows] == ["undistilled", "hard", "soft"]
    assert first.rows[0].cosines is None
    assert first.rows[1].cosines is not None and set(first.rows[1].cosines) >= {"tokens", "input", "block 1", "output"}
    kept = json.loads((out / "study.json").read_text())
    assert kept["arms"]["hard"]["top1"] == [first.rows[1].top1] and len(kept["verdict"]) == 3
    assert (out / "hard-0" / "report.html").is_file() and "| soft |" in (out / "study.md").read_text()

    def again(*_: object, **__: object) -> None:
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(recipe, "train", again)
    assert study(out, steps=2, per_class=2, **words) == first
    with pytest.raises(TrainError, match="use another out="):
        study(out, steps=3, per_class=2, **words)
    with pytest.raises(TrainError, match="use another out="):
        study(out, steps=2, per_class=3, **words)
    with pytest.raises(UsageError, match="at least 1"):
        study(out, steps=0)
