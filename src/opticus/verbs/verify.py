"""verify: prove to a user, on the user's own run, that a killed and resumed run equals an uninterrupted one bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from opticus.structures import TrainError, UsageError
from opticus.training.state import FILE, load_state

PATIENCE = 600.0  # seconds that one process may take to write its first state
SKIPPED = ("steps", "epochs", "save_every", "evaluate_every", "log_every", "patience")


@dataclass(frozen=True)
class Resumption:
    """What `verify_resume` found: the steps at which the run was killed, and every part of the state that differs."""

    run: Path
    steps: int
    killed_at: tuple[int, ...]
    tensors: int
    different: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every bit agrees."""
        return not self.different

    def table(self) -> str:
        """The finding in words."""
        verdict = "equal, bit by bit" if self.equal else f"DIFFERENT in {', '.join(self.different[:10])}"
        kills = ", ".join(map(str, self.killed_at)) or "none"
        return (
            f"{self.run}: {self.steps} steps at once, against the same run killed (SIGKILL) and resumed; "
            f"states on disk when killed: step {kills}\n"
            f"weights, optimisers, averages, generators and counters ({self.tensors} tensors): {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {"run": str(self.run), "steps": self.steps, "killed_at": list(self.killed_at), "tensors": self.tensors}
        return {**found, "equal": self.equal, "different": list(self.different)}


def verify_resume(run: Path, steps: int = 12, *, kills: int = 2, seed: int = 0) -> Resumption:
    """Train `steps` steps from the run's own arguments twice, once uninterrupted and once killed `kills` times and resumed.

    Raises UsageError for fewer than two steps, TrainError if `run` is no run folder or was trained on objects that have no name.
    """
    if steps < 2:
        raise UsageError(f"steps must be at least 2, found {steps}")
    arguments = _arguments(run)
    overrides = [f"{key}={json.dumps(value)}" for key, value in arguments["overrides"].items() if key not in SKIPPED]
    overrides += [f"{key}={arguments[key]}" for key in ("on_bad", "quarantine") if arguments.get(key) is not None]
    common = [f"steps={steps}", "save_every=2", "evaluate_every=0", "test=false", "quiet=true", *overrides]
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="opticus-verify-") as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        start = [arguments["model"], f"data={arguments['data']}"]
        _finish(_train([*start, f"out={whole}", *common]))
        killed = [_kill(_train([*start, f"out={broken}", *common]), broken, draw)]
        killed += [_kill(_train([f"resume={broken}"]), broken, draw) for _ in range(kills - 1)]
        _finish(_train([f"resume={broken}"]))
        first, second = load_state(whole), load_state(broken)
    count, different = differences(first, second)
    return Resumption(run, steps, tuple(step for step in killed if step is not None), count, tuple(different))


def differences(first: Any, second: Any, where: str = "") -> tuple[int, list[str]]:
    """How many tensors two states hold, and the paths at which they differ in any bit."""
    if isinstance(first, Tensor):
        same = isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(_bits(first), _bits(second))
        return 1, [] if same else [where]
    if isinstance(first, Mapping):
        if not isinstance(second, Mapping) or set(cast(Any, first)) != set(cast(Any, second)):
            return 0, [where]
        parts = [differences(value, cast(Any, second)[key], f"{where}/{key}") for key, value in cast(Any, first).items()]
    elif isinstance(first, (list, tuple)):
        if not isinstance(second, (list, tuple)) or len(cast(Any, first)) != len(cast(Any, second)):
            return 0, [where]
        pairs = zip(cast(Sequence[Any], first), cast(Sequence[Any], second))
        parts = [differences(a, b, f"{where}/{i}") for i, (a, b) in enumerate(pairs)]
    else:
        return 0, [] if first == second else [where]
    return sum(count for count, _ in parts), [path for _, paths in parts for path in paths]


def _bits(value: Tensor) -> Tensor:
    """NaN payloads and signs of zero count too."""
    return value.contiguous().view(torch.uint8) if value.ndim else value.reshape(1).view(torch.uint8)


def _arguments(run: Path) -> dict[str, Any]:
    path = run / "args.json"
    if not path.is_file():
        raise TrainError(f"{run}: not a run folder, it has no args.json")
    try:
        arguments: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TrainError(f"{path}: not readable as JSON ({error})") from error
    if arguments.get("model") is None or arguments.get("data") is None:
        raise TrainError(
            f"{run}: was trained on a model object or on data without a name, so it cannot be trained again from its folder"
        )
    return arguments


def _train(words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-m", "opticus", "train", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise TrainError(f"a verifying run failed: {lines[-1] if lines else process.returncode}")


def _kill(process: subprocess.Popen[bytes], folder: Path, draw: random.Random) -> int | None:
    """SIGKILL at a random moment after a new state appeared; the step of the state that is on disk then, None if it had ended."""
    state, start = folder / "state" / FILE, time.monotonic()
    before = state.stat().st_mtime_ns if state.is_file() else 0
    while process.poll() is None and (state.stat().st_mtime_ns if state.is_file() else 0) == before:
        if time.monotonic() - start > PATIENCE:
            process.kill()
            raise TrainError("a verifying run wrote no state in ten minutes")
        time.sleep(0.002)
    time.sleep(draw.random() * 0.3)
    ended = process.poll() is not None
    if not ended:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if ended and process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise TrainError(f"a verifying run failed: {lines[-1] if lines else process.returncode}")
    return None if ended else int(load_state(folder)["step"])
