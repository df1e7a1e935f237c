"""transfer-curve in miniature: every depth is trained once, and a stopped curve goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import opticus
from opticus.cli.main import main
from opticus.recipes import transfer
from opticus.structures import DataError, UsageError


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    out = tmp_path / "lenet"
    opticus.train("lenet/5", "digits", out=out, steps=2, evaluate_every=0, test=False, quiet=True, average=None)
    return out


def test_every_depth_is_tried_once(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["transfer-curve", str(trained), "data=digits", f"out={tmp_path / 'curve'}", "steps=2", "images=3", "quiet=true"]
    assert main([*words, "--json"]) == 0
    found = json.loads((tmp_path / "curve" / "transfer.json").read_text())
    assert [row["frozen"] for row in found["rows"]] == [None, 0, 1, 2, 3, 4, 5, 6]
    assert found["rows"][-1]["last"] == "f6" and all(0 <= row["top1"] <= 1 for row in found["rows"])
    assert Image.open(tmp_path / "curve" / "transfer.png").size == (960, 540)
    before, after = (opticus.load(folder, quiet=True) for folder in (trained, tmp_path / "curve" / "frozen-6"))
    assert (before.get_parameter("f6.weight") == after.get_parameter("f6.weight")).all()
    assert not (before.get_parameter("output.weight") == after.get_parameter("output.weight")).all()
    monkeypatch.setattr(transfer, "train", lambda *_, **__: pytest.fail("trained again"))
    assert main(words) == 0
    with pytest.raises(UsageError, match="other settings"):
        transfer.transfer_curve(trained, "digits", tmp_path / "curve", steps=3, images=3, quiet=True)


def test_what_cannot_be_curved_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="detect"):
        transfer.transfer_curve(trained, "scenes", tmp_path / "a", quiet=True)
    with pytest.raises(UsageError, match="at least 1"):
        transfer.transfer_curve(trained, "digits", tmp_path / "a", steps=0)
    assert main(["transfer-curve", str(trained)]) == 2
