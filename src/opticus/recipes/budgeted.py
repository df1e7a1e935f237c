"""Runs under a budget of time: trained as far as it allows, resumed where they were, scored as they are."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path
from typing import Any

from opticus.data.records import Source
from opticus.recipes.choose import train
from opticus.training.recipe import Recipe
from opticus.training.state import FILE, load_state
from opticus.verbs.evaluate import score
from opticus.verbs.models import load
from opticus.verbs.report import keep_passport


class Budget:
    """A context that ends the training inside it at `stop` (of `time.monotonic`) as Ctrl-C would: the state is written first."""

    def __init__(self, stop: float) -> None:
        self.left = stop - time.monotonic()
        self.told = False

    def __enter__(self) -> None:
        if self.left != float("inf"):
            signal.signal(signal.SIGALRM, self.end)
            signal.setitimer(signal.ITIMER_REAL, max(self.left, 0.01), 0.1)  # again, until the loop is there to hear it

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def end(self, *_: object) -> None:
        """Only the training loop handles SIGTERM, and once is enough; outside it nothing is interrupted."""
        if not self.told and signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            self.told = True
            os.kill(os.getpid(), signal.SIGTERM)


def run_until(stop: float, model: str, data: str, folder: Path, recipe: Recipe, scored: Source, **options: Any) -> None:
    """Train into `folder` until it is finished or the clock reaches `stop`; what was reached by then is scored there."""
    resume = steps_of(folder) is not None
    if not resume and (folder / "args.json").is_file():  # stopped before its first state
        (folder / "args.json").unlink()
    try:
        with Budget(stop):
            train(model, data, recipe=recipe, out=folder, resume=resume, **options)
    except KeyboardInterrupt:
        if time.monotonic() < stop:
            raise
        if steps_of(folder) is None:  # the budget ended while a part was trained first
            return
        reached = score(load(folder / "weights" / "last.safetensors", quiet=True), scored, "test", quiet=False)
        keep_passport(folder, reached)


def steps_of(folder: Path) -> int | None:
    """Optimiser steps made in `folder`, None if there is no state."""
    return int(load_state(folder)["step"]) if (folder / "state" / FILE).is_file() else None


def fresh(folder: Path) -> bool:
    """Whether the figures in `folder` are those of its last state."""
    passport, state = folder / "passport.json", folder / "state" / FILE
    return passport.is_file() and (not state.is_file() or passport.stat().st_mtime >= state.stat().st_mtime)


def seconds_of(folder: Path) -> float:
    """Wall time of training, over all its sittings: the clock of results.csv starts anew with each."""
    file = folder / "results.csv"
    if not file.is_file():
        return 0.0
    total = before = 0.0
    with file.open(newline="") as stream:
        for line in csv.DictReader(stream):
            now = float(line["seconds"] or 0)
            total += now - before if now >= before else now
            before = now
    return total
