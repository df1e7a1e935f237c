"""Study: does a CNN teacher help a student that has twenty pictures a class? (Hinton et al. 2015; DeiT, Touvron et al. 2021)

For every seed the same student, on the same few pictures, with the same steps and augmentation, is trained from labels alone, by
hard and by soft distillation. The teacher is `resnet/tiny`, trained on the whole training split. No validation picture chooses
anything: the last weights (their moving average) are scored once on the test pictures. The student is LeNet-5, for a transformer
sees next to nothing in 200 colour pictures within the same time; any other classifier and data set may be named.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from opticus.data.open import open_data
from opticus.data.subset import Samples, few
from opticus.recipes.choose import train
from opticus.structures import TrainError, UsageError
from opticus.structures.files import write_text
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.training.state import load_state
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Resize
from opticus.verbs.evaluate import score
from opticus.verbs.models import load
from opticus.verbs.report import report_of
from opticus.verbs.tokens import FILE as COSINES

TEACHER, STUDENT, DATA = "resnet/tiny", "lenet/5", "crops"
PER_CLASS, SEEDS, STEPS = 20, (0, 1, 2), 800
ARMS: dict[str, dict[str, Any]] = {
    "undistilled": {},
    "hard": {"distill": "hard"},
    "soft": {"distill": "soft", "temperature": 3.0, "share": 0.5},
}
# a patch of 8 pixels makes 16 patches, so that the steps fit into two minutes on one core; LeNet's pictures are grey otherwise
CHANGES: dict[str, dict[str, Any]] = {"deit/tiny": {"patch": 8}, "lenet/5": {"channels": 3}}
RATES = {"lenet/5": 5e-3}  # as its own recipe has it


def student(model: str = STUDENT, data: str = DATA, steps: int = STEPS) -> Recipe:
    """What all arms share."""
    return Recipe(
        model,
        data,
        changes=CHANGES.get(model, {}),
        transforms=(
            Resize((32, 32)),
            Affine(degrees=15, translate=(0.1, 0.1), scale=(0.8, 1.2), fill=114),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=32,
        steps=steps,
        optim={"all": Optim("adamw", lr=RATES.get(model, 1e-3), weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.01),),
        average=0.98,
        evaluate_every=0,
        note="the same for every arm of the study",
    )


class Row(NamedTuple):
    """One trained student: its accuracy on the test pictures, and the cosine of its two tokens where it has two."""

    arm: str
    seed: int
    top1: float
    cosines: dict[str, float] | None


@dataclass(frozen=True)
class Study:
    """What the study found."""

    out: Path
    student: str
    data: str
    per_class: int
    steps: int
    professor: str
    teacher: float
    rows: tuple[Row, ...]

    def of(self, arm: str) -> list[float]:
        """The arm's accuracies, by seed."""
        return [row.top1 for row in sorted(self.rows, key=lambda row: row.seed) if row.arm == arm]

    def gains(self, arm: str) -> list[float]:
        """By seed, how much better than the undistilled student."""
        return [a - b for a, b in zip(self.of(arm), self.of("undistilled"), strict=True)]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        arms = {arm: {"top1": self.of(arm), "mean": statistics.fmean(self.of(arm))} for arm in ARMS}
        gains = {arm: self.gains(arm) for arm in ARMS if arm != "undistilled"}
        rows = [{**row._asdict(), "top1": round(row.top1, 4)} for row in self.rows]
        settings = {
            "data": self.data,
            "per_class": self.per_class,
            "steps": self.steps,
            "student": self.student,
            "teacher": self.professor,
        }
        return {**settings, "teacher_top1": self.teacher, "arms": arms, "gains": gains, "verdict": self.verdict(), "rows": rows}

    def verdict(self) -> list[str]:
        """What the figures say, in sentences."""
        lines: list[str] = []
        for arm in ("hard", "soft"):
            gains = self.gains(arm)
            won, mean = sum(gain > 0 for gain in gains), statistics.fmean(gains)
            spread = f" (by seed {', '.join(f'{100 * gain:+.1f}' for gain in gains)})"
            lines.append(
                f"{arm} distillation beats labels alone on {won} of {len(gains)} seeds, by {100 * mean:+.1f} points{spread}"
            )
        best = max(self.of("undistilled"))
        bound = "below" if best < 0.9 else "NOT below"
        lines.append(f"the undistilled student reaches at most {100 * best:.1f} %, {bound} the bound of 90 %")
        return lines

    def text(self) -> str:
        """A table in Markdown, and the verdict."""
        seeds = sorted({row.seed for row in self.rows})
        head = f"| top-1 on {self.data} (test) | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |"
        lines = [head, "|---|" + "---:|" * (len(seeds) + 1)]
        for arm in ARMS:
            values = self.of(arm)
            lines.append(f"| {arm} | {' | '.join(f'{v:.3f}' for v in values)} | {statistics.fmean(values):.3f} |")
        what = f"{self.student} with {self.per_class} pictures a class, {self.steps} steps; teacher {self.professor}, trained on all of them"
        return "\n".join([f"{what}: {self.teacher:.3f}", "", *lines, "", *(f"- {line}" for line in self.verdict())])


def study(
    out: Path,
    *,
    steps: int = STEPS,
    per_class: int = PER_CLASS,
    seeds: Sequence[int] = SEEDS,
    teacher: Path | None = None,
    model: str = STUDENT,
    data: str = DATA,
) -> Study:
    """Train whatever is missing in `out` (finished runs are kept, interrupted ones go on), score it, write study.json and study.md.

    `teacher` is a finished run of a classifier of `data` to use instead of training one, `model` the student's name. A DeiT
    learns from labels alone without its distillation token.
    """
    if steps < 1 or per_class < 1 or not seeds:
        raise UsageError(
            f"steps and per_class must be at least 1 and there must be a seed, found {steps}, {per_class}, {list(seeds)}"
        )
    learned, test = open_data(data, "train"), open_data(data, "test")
    professor = teacher or out / "teacher"
    if teacher is None:
        _trained(professor, None, TEACHER, data, {})
    wise = load(professor, quiet=True)
    known = score(wise, test, "test").values["top1"]
    rows: list[Row] = []
    for seed in seeds:
        pictures = Samples(few(learned, per_class, seed), names=learned.names)
        for arm, settings in ARMS.items():
            folder = out / f"{arm}-{seed}"
            words = {**settings, **({"teacher": professor} if "distill" in settings else {})}
            words |= {"distilled": "distill" in settings} if model.startswith("deit/") else {}
            recipe = replace(student(model, data, steps), seed=seed)
            if _trained(folder, recipe, model, pictures, words):
                found = load(folder / "weights" / "last.safetensors", quiet=True)
                report_of(folder, found, score(found, test, "test", keep=64), test, recipe, steps=steps)
            rows.append(Row(arm, seed, _top1(folder), _cosines(folder)))
    done = Study(out, model, data, per_class, steps, wise.card.name, known, tuple(rows))
    write_text(out / "study.json", json.dumps(done.to_json(), indent=1))
    write_text(out / "study.md", done.text() + "\n")
    return done


def _trained(folder: Path, recipe: Recipe | None, model: str, data: Any, words: dict[str, Any]) -> bool:
    """Train into `folder` unless it is finished there; whether its report has still to be written. TrainError for another study's run."""
    if (folder / "passport.json").is_file():
        done, seen = int(load_state(folder)["step"]), load(folder, quiet=True).card.provenance.get("trained_on")
        if recipe is not None and (done, seen) != (recipe.steps, data.hash):
            raise TrainError(
                f"{folder}: a run of {done} steps or on other pictures than this study's {recipe.steps}; use another out="
            )
        return False
    resume = (folder / "state").is_dir()
    if not resume and (folder / "args.json").is_file():  # stopped before its first state
        (folder / "args.json").unlink()
    train(model, data, out=folder, recipe=recipe, resume=resume, **words)
    return recipe is not None


def _top1(folder: Path) -> float:
    return float(json.loads((folder / "passport.json").read_text("utf-8"))["numbers"]["top1"]["value"])


def _cosines(folder: Path) -> dict[str, float] | None:
    path = folder / COSINES
    if not path.is_file():
        return None
    return {row["layer"]: round(row["cosine"], 4) for row in json.loads(path.read_text("utf-8"))}
