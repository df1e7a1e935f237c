"""Train one toy system into a folder: `python drive.py NAME OUT [resume]`. Run as a process so that it can be killed."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import opticus.models
from opticus import zoo
from opticus.recipes.choose import train
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Resize

PAPERS = str(Path(__file__).parent / "papers")


@contextmanager
def at_home() -> Generator[None]:
    """The toys are papers of the catalogue for a while, whoever has looked at it before."""
    opticus.models.__path__.append(PAPERS)
    zoo.paper_files.cache_clear()
    try:
        yield
    finally:
        opticus.models.__path__.remove(PAPERS)
        zoo.paper_files.cache_clear()


COMMON: dict[str, Any] = {"batch": 16, "steps": 20, "save_every": 3, "evaluate_every": 10, "log_every": 5}


def recipe(name: str) -> Recipe:
    if name == "toygan/tiny":
        rules = {"d": Optim("adam", lr=2e-3, weight_decay=0), "g": Optim("adam", lr=1e-3, weight_decay=0, betas=(0.5, 0.999))}
        return Recipe(name, "digits", optim=rules, schedules=(Schedule("constant"),), average=0.9, **COMMON)
    if name == "toyteacher/tiny":
        schedules = (Schedule("cosine", warmup=0.1), Schedule("cosine", field="weight_decay", start=0.1, end=1.0))
        fit = (Resize((32, 32)),)
        return Recipe(
            name, "digits", transforms=fit, optim={"all": Optim(lr=3e-3, weight_decay=0.4)}, schedules=schedules, **COMMON
        )
    from opticus.models.toys import toymean  # type: ignore[import-not-found]

    return Recipe(name, "digits", loop=toymean.loop, **COMMON)


def run(name: str, out: Path, resume: bool = False) -> Any:
    return train(name, "digits", recipe=recipe(name), out=out, resume=resume, quiet=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with at_home():
        print(run(sys.argv[1], Path(sys.argv[2]), "resume" in sys.argv[3:]).values)
