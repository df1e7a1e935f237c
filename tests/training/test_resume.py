"""Resume is bit-exact: killed at random moments and in the middle of a save, with and without loader workers."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

import opticus
from opticus.structures import TrainError
from opticus.training.state import FILE, load_state
from opticus.verbs.verify import differences, verify_resume

STEPS = 24


def words(out: Path, workers: int) -> list[str]:
    common = [f"steps={STEPS}", "save_every=2", "evaluate_every=0", "test=false", "quiet=true", "batch=16", "average=0.9"]
    return ["lenet/5", "data=digits", f"out={out}", f"workers={workers}", "accumulate=2", *common]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "opticus", "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_when(process: subprocess.Popen[bytes], folder: Path, during_save: bool, delay: float) -> None:
    state = folder / "state" / FILE
    before = state.stat().st_mtime_ns if state.is_file() else 0
    while process.poll() is None:
        if during_save and any(state.parent.glob(".*.part")) and state.is_file():
            break
        if not during_save and state.is_file() and state.stat().st_mtime_ns != before:
            time.sleep(delay)
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_runs_end_bit_equal(workers: int, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    background = start(words(whole, 0))  # the number of workers must not matter either
    draw = random.Random(workers)
    kill_when(start(words(broken, workers)), broken, during_save=False, delay=draw.random() * 0.05)
    kill_when(start([f"resume={broken}"]), broken, during_save=True, delay=0)
    assert load_state(broken)["step"] < STEPS
    again = start([f"resume={broken}"])
    _, errors = again.communicate()
    assert again.returncode == 0, errors.decode()[-2000:]
    assert background.wait() == 0
    count, different = differences(load_state(whole), load_state(broken))
    assert count > 40
    assert different == []
    leftovers = list(broken.rglob(".*.part"))
    assert len(leftovers) <= 1, "only the file that was being written when the process died may be left"
    rows = (broken / "results.csv").read_text().splitlines()
    assert len({row.split(",")[0] for row in rows}) == len(rows), "no step may be logged twice"


def test_interruption_leaves_valid_weights_and_state(tmp_path: Path) -> None:
    out = tmp_path / "run"
    endless = ["lenet/5", "data=digits", f"out={out}", "steps=100000", "save_every=100000", "evaluate_every=0", "quiet=true"]
    process = start(endless)
    while not (out / "results.csv").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors.decode()[-2000:]
    assert "Traceback" not in errors.decode()
    assert load_state(out)["step"] > 0
    assert opticus.load(out).card.labels == tuple("0123456789")


def test_resume_refuses_other_conditions(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = {"steps": 2, "save_every": 1, "evaluate_every": 0, "test": False, "quiet": True}
    opticus.train("lenet/5", "digits", out=out, **options)
    with pytest.raises(TrainError, match="holds another run"):
        opticus.train("lenet/5", "digits", out=out, **options)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(TrainError, match="threads"):
            opticus.train(resume=out)
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(TrainError, match="sampling=None, this process has sampling=balanced"):
        opticus.train("lenet/5", "digits", out=out, resume=True, **(options | {"steps": 3}), sampling="balanced")
    (out / "state" / FILE).write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(TrainError, match="not a readable training state"):
        opticus.train(resume=out)
    with pytest.raises(TrainError, match="nothing to resume"):
        opticus.train(resume=tmp_path / "none")


def test_verify_resume_proves_it_to_a_user(tmp_path: Path) -> None:
    out = tmp_path / "run"
    opticus.train("lenet/5", "digits", out=out, steps=2, evaluate_every=0, test=False, quiet=True)
    found = verify_resume(out, 8, kills=1)
    assert found.equal
    assert found.tensors > 40
    assert "equal, bit by bit" in found.table()


def test_differences_see_a_single_bit() -> None:
    state = {"a": [torch.tensor([0.0, 1.0]), {"b": 3}]}
    other = {"a": [torch.tensor([-0.0, 1.0]), {"b": 3}]}
    assert differences(state, state) == (1, [])
    assert differences(state, other)[1] == ["/a/0"]
    assert differences(state, {"a": [state["a"][0], {"b": 4}]})[1] == ["/a/1/b"]


@pytest.mark.parametrize("packed", [False, True], ids=["at any place", "forwards only"])
def test_runs_over_shards_resume_bit_equal(packed: bool, tmp_path: Path) -> None:
    data = opticus.export_data("digits", "shards", tmp_path / "data", limit=90)
    shard = data / "train-000000.tar"
    with tarfile.open(shard) as file:
        members = file.getmembers()
        for number in range(3):  # several small shards out of one
            with tarfile.open(data / f"train-00001{number}.tar", "w") as part:
                for member in members[number * 60 : number * 60 + 60]:
                    part.addfile(member, file.extractfile(member))
    shard.unlink()
    for path in sorted(data.glob("*.tar")) if packed else ():
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    out = tmp_path / "run"
    options = {"steps": 2, "evaluate_every": 0, "test": False, "quiet": True, "batch": 16, "workers": 1}
    opticus.train("lenet/5", data, out=out, **options)
    found = verify_resume(out, 14, kills=1)  # more than two epochs
    assert found.killed_at and found.equal
