"""Which layers to freeze: a trained network is fine-tuned on other data with its first 0, 1, 2, ... units frozen (Yosinski et al. 2014)."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.data.subset import few
from opticus.plot.transfer import transfer_figure
from opticus.recipes.choose import default, train
from opticus.structures import DataError, UsageError
from opticus.structures.files import write_bytes, write_text
from opticus.training.freeze import units
from opticus.verbs.evaluate import score
from opticus.verbs.models import load
from opticus.verbs.report import keep_passport

SCRATCH = "from scratch"


@dataclass(frozen=True)
class Row:
    """One fine-tuning: how many units were frozen (None: trained from scratch), the last of them, and the test accuracy."""

    frozen: int | None
    last: str
    top1: float
    samples: int

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the accuracy (normal approximation)."""
        return 1.96 * (self.top1 * (1 - self.top1) / self.samples) ** 0.5


@dataclass(frozen=True)
class Curve:
    """The rows of a transferability curve, from scratch first."""

    model: str
    data: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [{**dataclasses.asdict(row), "half_width": round(row.half_width, 4)} for row in self.rows]
        return {"model": self.model, "data": self.data, "rows": rows}

    def table(self) -> str:
        """A line per depth, and the best."""
        lines = [f"{'frozen':<10}{'up to':<24}{'top1':>8}  95 %"]
        for row in self.rows:
            lines.append(f"{'-' if row.frozen is None else row.frozen!s:<10}{row.last:<24}{row.top1:>8.4f}  +-{row.half_width:.3f}")
        best = max(self.rows, key=lambda row: row.top1)
        lines.append(f"best: {SCRATCH if best.frozen is None else f'{best.frozen} units frozen'} ({best.top1:.4f})")
        return "\n".join(lines)


def transfer_curve(
    source: str | Path, data: str, out: Path, *, steps: int = 300, images: int | None = None, seed: int = 0, quiet: bool = False
) -> Curve:
    """Fine-tune the trained network `source` (a run folder or published weights) on `data` once per depth of freezing.

    `images` keeps so many training pictures of every class. Every run has the recipe of the model for this data with `steps`
    steps, the same seed and order; frozen norms keep their statistics. Finished depths are not repeated. Writes transfer.json and
    transfer.png into `out`.
    """
    if steps < 1 or (images is not None and images < 1):
        raise UsageError(f"steps and images must be at least 1, found steps={steps}, images={images}")
    model = load(source, quiet=True)
    name, depths = model.card.name, [unit.name for unit in units(model)]
    whole = open_data(data, "train")
    if whole.task != "classify":
        raise DataError(f"{data}: the curve is about classifiers, this data is for {whole.task}")
    there = [s for s in ("test", "val") if s in whole.splits]
    if not there:
        raise DataError(f"{data}: has no test or val split to score on")
    shown = whole if images is None else few(whole, images, seed)
    scored, rows = open_data(data, there[0]), list[Row]()
    for frozen in (None, *range(len(depths))):
        folder = out / (f"frozen-{frozen}" if frozen is not None else "scratch")
        last = SCRATCH if frozen is None else (depths[frozen - 1] if frozen else "nothing")
        top1 = _top1(folder, name, source, shown, scored, frozen, {"steps": steps, "seed": seed}, quiet)
        rows.append(Row(frozen, last, top1, len(scored)))
        if not quiet:
            print(f"{last}: top1 {top1:.4f}", file=sys.stderr)  # noqa: T201 - progress
    curve = Curve(name, data, tuple(rows))
    write_text(out / "transfer.json", json.dumps(curve.to_json(), indent=1))
    points = [(row.frozen, row.last, row.top1, row.half_width) for row in rows]
    write_bytes(out / "transfer.png", transfer_figure(points, f"{name} from {Path(source).name} on {data}"))
    return curve


def _top1(
    folder: Path,
    name: str,
    source: str | Path,
    shown: Source,
    scored: Source,
    frozen: int | None,
    words: dict[str, Any],
    quiet: bool,
) -> float:
    """Accuracy of one depth, trained now or read from its finished folder."""
    done, asked = folder / "done.json", {**words, "data": [shown.hash, scored.hash], "source": str(source)}
    if done.is_file():
        found = json.loads(done.read_text("utf-8"))
        if found["asked"] != asked:
            raise UsageError(f"{folder}: holds a curve of other settings; choose another out= or remove it")
        return float(found["top1"])
    started = (folder / "args.json").is_file() and any((folder / "state").glob("*")) if folder.is_dir() else False
    recipe = default(name, shown)
    options: dict[str, Any] = {"evaluate_every": 0, "save_every": 100, "test": False, "quiet": quiet, **words}
    start: dict[str, Any] = {} if frozen is None else {"weights": str(source), "freeze": frozen or None}
    run = train(name, shown, recipe=recipe, out=folder, resume=started, **start, **options)
    evaluation = score(run.model, scored, scored.split, quiet=quiet)
    keep_passport(folder, evaluation)
    value = evaluation.values["top1"]
    write_text(done, json.dumps({"asked": asked, "top1": value}))
    return value
