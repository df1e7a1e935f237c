"""The recording tool on a small reference written here, and its verdict on a port that is wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.parity.case import build_and_run, differences, network_input, run
from opticus.parity.manifests import unfold
from opticus.structures import Prepare
from opticus.weights.names import Names, keep, rename

ROOT = Path(__file__).parents[2]
ADAPTER = """
import torch
from torch import nn

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

PAPER = "little"


def reference():
    return {"repository": "nowhere/little", "version": "1", "license": "MIT", "kind": "package"}


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def tiny():
    model = network().double().eval()
    pixels, _ = network_input([[9, 11, 1], [9, 11, 2]], Prepare())
    model(pixels)
    state = fill_module(model)
    with torch.no_grad():
        return {"name": "one", "format": "theirs", "variant": "s", "state": state, "pictures": [[9, 11, 1], [9, 11, 2]],
                "outputs": {"out": model(pixels), "features.0": model[:2](pixels)}}


def manifests():
    return {"theirs": {"s": {"0.weight": [4, 3, 3, 3], "0.bias": [4]}}}


def parameters():
    return {"s": 112}
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_parity", ROOT / "tools" / "record_parity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Port(nn.Module):
    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4))
        self.head = nn.Linear(4 * 4 * 5, 5)
        self.prepare = Prepare()
        self.shift = shift

    def features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return [self.stem(pixels)]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(pixels).relu().flatten(1)) + self.shift


NAMES = Names(rename(r"([01])\.(.*)", r"stem.\1.\2"), rename(r"4\.(.*)", r"head.\1"), keep("nothing"))


def record(tool: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str, text: str = ADAPTER) -> int:
    adapter = folder / "little_adapter.py"
    adapter.write_text(text)
    monkeypatch.setattr(tool, "FOLDER", folder)
    monkeypatch.setattr(sys, "argv", ["record_parity.py", str(adapter), *options])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tool.main()


def test_recording_is_repeatable_and_the_port_is_judged(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert record(tool, tmp_path, monkeypatch) == 0
    text = (tmp_path / "little.json").read_text()
    assert record(tool, tmp_path, monkeypatch) == 0 and (tmp_path / "little.json").read_text() == text
    found = json.loads(text)
    case = found["tiny"][0]
    assert unfold(case["state"])["4.weight"] == (5, 80) and found["manifests"]["theirs"]["s"]["count"] == 2
    assert differences(case, run(case, Port(), NAMES)) == []
    wrong = differences(case, run(case, Port(shift=1e-8), NAMES))
    assert len(wrong) == 1 and wrong[0].startswith("one: out (2, 5) differs by")
    case["expected"]["out.logits"] = case["expected"]["out"]
    assert "the port has no 'out.logits'; it has features.0, out" in differences(case, run(case, Port(), NAMES))[0]


def test_check_compares_with_the_file(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert record(tool, tmp_path, monkeypatch) == 0
    assert record(tool, tmp_path, monkeypatch, "--check") == 0
    path = tmp_path / "little.json"
    found = json.loads(path.read_text())
    found["tiny"][0]["expected"]["out"]["slice"][0] += 1e-6
    path.write_text(json.dumps(found))
    assert record(tool, tmp_path, monkeypatch, "--check") == 1
    assert "differ by at most 1.0e-06" in capsys.readouterr().out
    found["parameters"]["s"] = 113
    path.write_text(json.dumps(found))
    assert record(tool, tmp_path, monkeypatch, "--check") == 1


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"kind": "package"', '"kind": "rumour"', "a kind out of"),
        ('"out": model(pixels)', '"out": model(pixels).float()', "run the reference in float64"),
        ('"out": model(pixels)', '"out": model(pixels) / 0', "is not finite"),
        ('"0.bias": [4]', '"0.bias": [4], **{f"k{i:05}x": [i] for i in range(9000)}', "more than 80000"),
    ],
)
def test_poor_records_are_refused(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, match: str
) -> None:
    assert old in ADAPTER
    with pytest.raises(SystemExit, match=match):
        record(tool, tmp_path, monkeypatch, text=ADAPTER.replace(old, new))
    assert not (tmp_path / "little.json").exists()


def test_network_input_pads_and_marks() -> None:
    pixels, valid = network_input([[4, 6, 1], [5, 3, 2]], Prepare())
    assert pixels.shape == (2, 3, 5, 6) and pixels.dtype == torch.float64
    assert valid is not None and valid[0, :4].all() and not valid[0, 4].any() and not valid[1, :, 3:].any()
    assert (pixels[0, :, 4] == 0).all()
    assert network_input([[4, 6, 1], [4, 6, 2]], Prepare())[1] is None
    assert torch.equal(network_input([[4, 6, 1]], Prepare(order="bgr", mean=(0.5,), std=(1.0,)))[0],
                       network_input([[4, 6, 1]], Prepare(mean=(0.5,), std=(1.0,)))[0].flip(1))  # fmt: skip


def test_preparation_cases_need_no_network() -> None:
    case = {
        "name": "p",
        "state": {},
        "pictures": [[300, 400, 1]],
        "prepare": {"size": [64, 0], "crop": [56, 56]},
        "expected": {"prepared": {}},
    }
    assert build_and_run(case, "resnet", zoo)["prepared"].shape == (1, 3, 56, 56)
