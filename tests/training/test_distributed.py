"""Two gloo processes under torchrun give the single-process run: batch statistics and count-normalised losses included."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opticus.plot.figures import read_curves
from opticus.training.state import load_state

SCRIPT = str(Path(__file__).parent / "run_distributed.py")


def tensors(value: Any, where: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {where: value} if value.is_floating_point() else {}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {k: v for key, part in items for k, v in tensors(part, f"{where}/{key}").items()}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("model", ["centernet/tiny", "resnet/tiny", "faster_rcnn/tiny"])
def test_two_processes_equal_one(model: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    alone = subprocess.Popen([sys.executable, SCRIPT, model, str(one)], stderr=subprocess.PIPE)
    done = subprocess.run([*launch, SCRIPT, model, str(two)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert alone.wait() == 0, alone.stderr and alone.stderr.read().decode()[-2000:]
    first, second = load_state(one), load_state(two)
    for part in ("objective", "optimisers", "average"):
        a, b = tensors(first[part]), tensors(second[part])
        assert a.keys() == b.keys()
        for key, value in a.items():
            scale = value.abs().max().clamp(min=1e-12)
            assert float((value - b[key]).abs().max() / scale) < 1e-6, f"{part}{key}"
    running = [key for key in tensors(first["objective"]) if "running_var" in key]
    assert running and all(
        not torch.equal(first["objective"][k.strip("/")], torch.ones_like(first["objective"][k.strip("/")])) for k in running
    )
    losses = [read_curves(run / "results.csv")["train/loss"] for run in (one, two)]
    assert len(losses[0]) == 3
