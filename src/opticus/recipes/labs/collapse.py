"""Collapse of self-distillation (DINO, Caron et al. 2021, section 5.3 and figure 7): what centring, sharpening and the teacher prevent."""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from opticus.recipes.choose import train
from opticus.recipes.lab import COLOURS, Cell, Check, Row, difference, dress, figures_of, mean, pictures, scaled
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.views import multi_crop

CLAIM = (
    "Without centring one output takes all (entropy to 0), without sharpening all outputs become equal (entropy to log K), and without a "
    "momentum teacher student and teacher agree on nothing: in each case the answers stop telling pictures apart."
)
SETUP = (
    "DINO on 1,500 patches of photographs (textures), a ResNet of 0.3 million parameters, two global views of 32 pixels, 256 outputs, batch 32. "
    "Information is the entropy of the mean answer minus the mean entropy of the answers, in nats: 0 where all pictures get one answer. "
    "Without sharpening the teacher has the student's temperature."
)
VERSION = 2
SEEDS = 3
STEPS = 160
OUTPUTS = 256
ARMS: dict[str, dict[str, Any]] = {
    "DINO": {},
    "no centring": {"balance": "none"},
    "no sharpening": {"teacher": (0.1, 0.1)},
    "no momentum": {"follows": "student"},
}
LOG = 5


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every arm once per seed."""
    return [{"arm": arm, "seed": seed, "steps": scaled(STEPS, scale)} for seed in range(seeds) for arm in ARMS]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """Entropy, divergence and information over the run; their means over its last fifth; whether the alarm was given."""
    options = {"outputs": OUTPUTS, "hidden": 128, "bottleneck": 64, "head_norm": True, "momentum": 0.95, "teacher_epochs": 0,
               "teacher": (0.04, 0.04), "frozen_epochs": 0, **ARMS[cell["arm"]]}  # fmt: skip
    recipe = Recipe(
        "dino/tiny", "textures", options=options, batch=32, steps=cell["steps"], seed=cell["seed"], evaluate_every=0, log_every=LOG,
        transforms=(multi_crop(32, 16, 0, scale=(0.3, 1.0), sigma=(0.1, 0.8)),), save_every=10**9,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=1e-3, clip=3.0)}, schedules=(Schedule("constant", warmup=0.1),), precision="bf16",
    )  # fmt: skip
    data: Any = pictures("textures", "train", 1500)
    with tempfile.TemporaryDirectory() as where:
        out = Path(where) / "run"
        train("dino/tiny", data=data, out=out, recipe=recipe, quiet=True, test=False)
        rows = [row for row in csv.DictReader((out / "results.csv").open()) if row["watch/entropy"]]
    found: dict[str, Any] = {}
    for name in ("entropy", "kl", "information"):
        curve = [round(float(row[f"watch/{name}"]), 5) for row in rows]
        last = curve[-max(len(curve) // 5, 1) :]
        found |= {f"{name}_curve": curve, name: sum(last) / len(last)}
    return found | {"alarm": float(any(float(row["watch/alarm"]) for row in rows))}


def judge(rows: Sequence[Row]) -> list[Check]:
    """Every arm that lacks a part tells pictures apart less than DINO does, and collapses the way that the paper says."""
    checks = [
        Check(f"information in nats, DINO minus {arm}", *difference(rows, "DINO", arm, "information"))
        for arm in ARMS
        if arm != "DINO"
    ]
    sharp = mean(figures_of(rows, "no centring", "entropy"))
    flat = mean(figures_of(rows, "no sharpening", "entropy"))
    return [
        *checks,
        Check("entropy of an answer without centring", *sharp, bound=0.25 * math.log(OUTPUTS), above=False),
        Check("entropy of an answer without sharpening", *flat, bound=0.9 * math.log(OUTPUTS)),
    ]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """The curves of figure 7, and the information beside them."""
    titles = {
        "entropy": "Entropy of the teacher's answers",
        "kl": "KL of teacher and student",
        "information": "Information about pictures",
    }
    for place, (key, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, 3, place + 1)
        for colour, arm in zip(COLOURS, ARMS):
            for number, row in enumerate(row for row in rows if row["arm"] == arm):
                curve = cast("list[float]", row["found"][f"{key}_curve"])
                axes.plot(
                    [LOG * (i + 1) for i in range(len(curve))], curve, color=colour, alpha=0.9, label=arm if number == 0 else None
                )
        if key == "entropy":
            axes.axhline(math.log(OUTPUTS), color="#888", linestyle=":", linewidth=1)
            axes.text(0, math.log(OUTPUTS), " log K", va="bottom", fontsize=9, color="#555")
        dress(axes, title, "step", "nats", legend=place == 2)
