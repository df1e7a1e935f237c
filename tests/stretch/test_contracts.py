"""The contracts stretched on purpose: systems unlike any of the five papers go through train, kill, resume, load and evaluate."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import opticus
from opticus.plot.figures import read_curves
from opticus.structures import Noise
from opticus.training.state import FILE, load_state
from opticus.verbs.verify import differences

sys.path.insert(0, str(Path(__file__).parent))
import drive

SYSTEMS = ("toygan/tiny", "toyteacher/tiny", "toymean/plain")


@pytest.fixture(autouse=True, scope="module")
def toys() -> Iterator[None]:
    """The toys leave the catalogue again: other tests count it."""
    with drive.at_home():
        yield


def start(name: str, out: Path, *more: str) -> subprocess.Popen[bytes]:
    script = Path(__file__).parent / "drive.py"
    return subprocess.Popen([sys.executable, str(script), name, str(out), *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("name", SYSTEMS)
def test_killed_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    whole, moments = tmp_path / "whole", random.Random(name)
    result = drive.run(name, whole)
    for attempt in range(5):  # a short run may end before it is killed; such a one proves nothing
        broken = tmp_path / f"broken {attempt}"
        process, state = start(name, broken), broken / "state" / FILE
        while not state.is_file() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05 / (attempt + 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if load_state(broken)["step"] < 20:
            break
    assert load_state(broken)["step"] < 20, "the kill came too late to prove anything"
    again = drive.run(name, broken, resume=True)
    first, second = load_state(whole), load_state(broken)
    first.pop("values", None), second.pop("values", None)
    assert differences(first, second)[1] == []
    assert result.values == again.values


def test_phases_alternate_five_to_one(tmp_path: Path) -> None:
    result = drive.run("toygan/tiny", tmp_path / "run")
    assert load_state(tmp_path / "run")["objective"]["updates"].tolist() == [20, 4]
    columns = read_curves(tmp_path / "run" / "results.csv")
    assert {"train/d/real", "train/g/fool", "lr/d", "lr/g", "val/gap"} <= set(columns)
    keys = set(result.model.state_dict())
    assert not any("discriminator" in key for key in keys), "training-only members must not enter the saved network"


def test_a_sampler_draws_the_same_after_loading(tmp_path: Path) -> None:
    result = drive.run("toygan/tiny", tmp_path / "run")
    loaded = opticus.load(tmp_path / "run")
    draws = [m.sample(Noise(3, 4)) for m in (result.model, loaded)]
    assert torch.equal(*draws)
    assert opticus.evaluate(loaded, "digits", split="test").values == result.values
    with pytest.raises(opticus.Error, match="cannot predict"):
        loaded.predict(torch.zeros(8, 8, 3, dtype=torch.uint8))


def test_weight_decay_is_scheduled_and_the_teacher_lags(tmp_path: Path) -> None:
    drive.run("toyteacher/tiny", tmp_path / "run")
    state = load_state(tmp_path / "run")
    decayed = [g for g in state["optimisers"]["all"]["param_groups"] if g["base_weight_decay"] > 0]
    assert decayed
    for group in decayed:
        assert 0.04 < group["weight_decay"] < 0.4 + 1e-9
        assert group["weight_decay"] > 0.39 * 1.0 * 0.9
    student, teacher = state["objective"]["network.head.bias"], state["objective"]["teacher.network.head.bias"]
    assert not torch.equal(student, teacher)
    keys = set(opticus.load(tmp_path / "run").state_dict())
    assert not any("teacher" in key for key in keys)


def test_a_loop_of_its_own_writes_the_same_folder(tmp_path: Path) -> None:
    result = drive.run("toymean/plain", tmp_path / "run")
    assert result.values["top1"] > 0.7  # nearest mean on 320 of the training digits
    assert opticus.evaluate(opticus.load(tmp_path / "run"), "digits", split="test").values == result.values
    for name in ("args.json", "env.json", "passport.json", "report.html", "weights/last.safetensors"):
        assert (tmp_path / "run" / name).is_file(), name
