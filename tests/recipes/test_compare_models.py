"""compare-models in miniature: one protocol, nothing trained twice, a page with every system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from opticus.cli.main import main
from opticus.data.open import open_data
from opticus.metrics.passport import Passport, resampled_numbers
from opticus.recipes import budgeted, compare_models
from opticus.structures import DataError, UnknownNameError, UsageError


def test_systems_are_compared_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "cmp"
    words = ["compare-models", "data=digits", "models=lenet/5,mlp/tiny,knn/nn", "steps=3", f"out={out}", "quiet=true"]
    assert main(words) == 0
    found = json.loads((out / "comparison.json").read_text())
    systems = [row["system"] for row in found["rows"]]
    assert set(systems) == {"lenet/5", "mlp/tiny", "knn/nn", "nearest class mean", "20-NN on raw pixels"}
    tops = [row["values"]["top1"] for row in found["rows"]]
    assert tops == sorted(tops, reverse=True)
    for row in found["rows"]:
        assert row["low"] <= row["values"]["top1"] <= row["high"] and row["finished"]
    net = next(row for row in found["rows"] if row["system"] == "lenet/5")
    assert net["parameters"] == 60850 and net["flops"] > 0 and net["latency"] > 0 and net["steps"] == net["planned"] == 3
    page = (out / "comparison.html").read_text()
    assert (
        all(name in page for name in systems)
        and page.count("<svg") >= 3
        and "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    )
    monkeypatch.setattr(budgeted, "train", lambda *_, **__: pytest.fail("trained again"))
    assert main(words) == 0
    with pytest.raises(UsageError, match="another recipe"):
        compare_models.compare_models("digits", ["lenet/5"], out, steps=4, quiet=True)


def test_the_clock_stops_a_run_which_goes_on_later(tmp_path: Path) -> None:
    first = compare_models.compare_models("digits", ["lenet/5"], tmp_path / "c", seconds=1.5, baselines=False, quiet=True)
    row = first.rows[0]
    assert not row.finished and 0 < (row.steps or 0) < (row.planned or 0) and "stopped at" in first.table()
    again = compare_models.compare_models(
        "digits", ["lenet/5"], tmp_path / "c", seconds=(row.seconds or 0) + 1.5, baselines=False, quiet=True
    )
    assert (again.rows[0].steps or 0) > (row.steps or 0)


def test_intervals_are_those_of_the_bootstrap(tmp_path: Path) -> None:
    compare_models.compare_models("digits", ["lenet/5"], tmp_path / "c", steps=2, baselines=False, quiet=True)
    passport = Passport.read(tmp_path / "c" / "lenet-5")
    low, high = resampled_numbers(passport, "top1")
    p = passport.numbers["top1"].value
    assert high - low == pytest.approx(2 * 1.96 * (p * (1 - p) / 500) ** 0.5, rel=0.2)


def test_bad_comparisons_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="lenet/6"):
        compare_models.compare_models("digits", ["lenet/6"], tmp_path)
    with pytest.raises(UsageError, match="detect"):
        compare_models.compare_models("digits", ["centernet/tiny"], tmp_path)
    with pytest.raises(DataError, match="one label"):
        compare_models.compare_models("tags:scenes", ["resnet/tiny"], tmp_path)
    with pytest.raises(UsageError, match="seconds"):
        compare_models.compare_models("digits", ["lenet/5"], tmp_path, seconds=0)
    assert main(["compare-models"]) == 2
    small = compare_models.small_models("classify")
    assert {"lenet/5", "resnet/tiny", "vit/tiny"} <= set(small) and not any(name.startswith("detr") for name in small)


def digits_in_yolo_layout(folder: Path) -> Path:
    """Eight scenes to learn from and three to be scored on, as a folder."""
    (folder / "data.yaml").parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(f"'{digit}'" for digit in range(10))
    (folder / "data.yaml").write_text(f"train: images/train\ntest: images/test\nnames: [{names}]\n")
    for split, count in (("train", 8), ("test", 3)):
        source = open_data("scenes", split)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            sample = source[i]
            height, width = sample.size
            Image.fromarray(sample.picture.pixels.numpy()).save(folder / "images" / split / f"{i}.png")
            boxes, labels = sample.target.boxes / torch.tensor([width, height, width, height]), sample.target.labels
            rows = [[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.tolist()]
            lines = [f"{label} " + " ".join(f"{v:.6f}" for v in row) for label, row in zip(labels.tolist(), rows, strict=True)]
            (folder / "labels" / split / f"{i}.txt").write_text("\n".join(lines))
    return folder


def test_detectors_are_compared_with_pictures(tmp_path: Path) -> None:
    out, data = tmp_path / "det", digits_in_yolo_layout(tmp_path / "data")
    words = ["compare-models", "task=detect", f"data={data}", "models=fcos/tiny,yolov8/tiny", "slow=yolov8/tiny", "slow_seconds=100", "steps=1",
             "baselines=false", f"out={out}", "quiet=true"]  # fmt: skip
    assert main(words) == 0
    found = json.loads((out / "comparison.json").read_text())
    assert {row["system"] for row in found["rows"]} == {"fcos/tiny", "yolov8/tiny"} and found["protocol"][
        "seconds of yolov8/tiny"
    ] == 100
    assert {"AP", "AP50"} <= set(found["rows"][0]["values"]) and all(row["latency"] > 0 for row in found["rows"])
    assert (out / "gallery.png").stat().st_size > 10_000 and "data:image/png;base64," in (out / "comparison.html").read_text()
    with pytest.raises(UsageError, match="is data for detect, not for 'classify'"):
        compare_models.compare_models(str(data), ["fcos/tiny"], out, task="classify")
    with pytest.raises(UnknownNameError, match="slow system"):
        compare_models.compare_models(str(data), ["fcos/tiny"], out, slow=["detr/tiny"])


def test_a_clock_that_ends_before_the_first_step_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = digits_in_yolo_layout(tmp_path / "data")
    with pytest.raises(UsageError, match=r"nothing to compare: seconds=0\.5 ended before any of ssd/tiny began"):
        compare_models.compare_models(str(data), ["ssd/tiny"], tmp_path / "c", seconds=0.5, baselines=False, quiet=True)
    assert "ssd/tiny: left out" in capsys.readouterr().err
