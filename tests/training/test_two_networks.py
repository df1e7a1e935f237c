"""Two networks in turns under the loop: a run that is cut off goes on as if nothing had happened, and the user is warned."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import opticus
from opticus.training.loop import Run
from opticus.training.state import load_state
from opticus.verbs.verify import differences

SHORT: dict[str, Any] = {"batch": 8, "log_every": 1, "save_every": 1, "workers": 0, "test": False, "precision": "fp32"}


def watched(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k.startswith(("watch/", "train/", "step"))} for row in csv.DictReader(file)]


def test_a_game_that_was_cut_off_goes_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        **SHORT,
        "steps": 5,
        "average": 0.9,
        "quiet": True,
        "options": {"favour": 2, "favour_from": 1, "instance_noise": 0.2},
    }
    opticus.train("gan/tiny", "digits", out=tmp_path / "whole", **options)
    plain = Run.train_step

    def stop(self: Run, batches: Any) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        plain(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            opticus.train("gan/tiny", "digits", out=tmp_path / "broken", **options)
    opticus.train(resume=tmp_path / "broken", quiet=True, test=False)
    count, different = differences(load_state(tmp_path / "whole"), load_state(tmp_path / "broken"))
    assert count > 40 and different == []
    assert watched(tmp_path / "whole") == watched(tmp_path / "broken"), "figures and alarms, too"


def test_the_user_is_told_that_modes_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = tuple(tuple([value] * 64) for value in (5.0, 7.0))  # places where no picture can be
    options = {"modes": far, "near": 0.5}
    opticus.train("gan/tiny", "digits", out=tmp_path / "run", **SHORT, steps=2, options=options)
    told = capsys.readouterr().err
    assert "step 1: adversarial training goes wrong: mode collapse: only 0 of 2 known modes are drawn" in told
    assert watched(tmp_path / "run")[-1]["watch/alarm"] in ("1", "1.0")
