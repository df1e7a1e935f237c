"""The demo: train CenterNet on the embedded scenes, score it beside two classical detectors, look at the result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.metrics.detect import CocoDetection
from opticus.metrics.passport import Difference, Passport
from opticus.models.classical._hog_svm import HogSvm
from opticus.models.classical._template_matching import TemplateMatching
from opticus.recipes.choose import train
from opticus.structures import Instances, Picture, TrainError
from opticus.training.state import load_state
from opticus.verbs.compare import compare
from opticus.verbs.report import report_of

MODEL, DATA = "centernet/tiny", "scenes"
SHOWN = ("AP", "AP50", "AP75", "APs", "APm")


class Row(NamedTuple):
    """One system of the table: its figures, and the network's lead in AP over it with the bootstrap interval."""

    system: str
    values: dict[str, float]
    seconds: float
    lead: Difference | None


@dataclass(frozen=True)
class Shown:
    """What the demo found."""

    out: Path
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [
            {"system": r.system, **{k: round(r.values[k], 4) for k in SHOWN}, "seconds": round(r.seconds, 1)} for r in self.rows
        ]
        return {"out": str(self.out), "report": str(self.out / "report.html"), "rows": rows}

    def text(self) -> str:
        """The table, and where to look and what to try next."""
        lines = [f"{'held-out scenes (500)':<24}" + "".join(f"{name:>8}" for name in SHOWN) + f"{'seconds':>10}"]
        for row in self.rows:
            lines.append(f"{row.system:<24}" + "".join(f"{row.values[name]:8.3f}" for name in SHOWN) + f"{row.seconds:10.0f}")
        for row in self.rows:
            if row.lead is not None:
                lines.append(
                    f"AP beyond {row.system}: {row.lead.difference:+.3f} (95 % interval {row.lead.low:+.3f} to {row.lead.high:+.3f})"
                )
        lines += [
            "",
            f"look:  open {self.out / 'report.html'} (curves, per-class table, mistakes), weights in {self.out / 'weights'}",
            f"next:  .venv/bin/opticus predict {self.out} PICTURE   or   .venv/bin/opticus train {MODEL} data=path/to/your/data epochs=20",
        ]
        return "\n".join(lines)


def demo(out: Path, *, steps: int = 2000, baselines: bool = True) -> Shown:
    """Train for `steps` steps into `out` (an unfinished demo there is resumed, a finished one gets a neighbour), then score."""
    out, resume = _folder(out, steps)
    start = time.perf_counter()
    result = train(MODEL, DATA, out=out, resume=resume, steps=steps)
    seconds = time.perf_counter() - start
    if result.evaluation is None:
        raise TrainError(f"{out}: the demo's data has no test split to score")
    rows = [Row("CenterNet (opticus)", result.values, seconds, None)]
    data = open_data(DATA, "test")
    if baselines:
        learned = open_data(DATA, "train")
        for name, make in (("template matching", TemplateMatching), ("HOG + SVM", HogSvm)):
            rows.append(_baseline(name, make, learned, data, out))
    beside = [{"system": row.system, **{k: round(row.values[k], 4) for k in SHOWN}} for row in rows[1:]]
    notes = [f"AP beyond {row.system}: {row.lead}" for row in rows if row.lead is not None]
    report_of(
        out, result.model, result.evaluation, data, None, seconds=seconds, steps=result.outcome.steps, beside=beside, notes=notes
    )
    return Shown(out, tuple(rows))


def _folder(out: Path, steps: int) -> tuple[Path, bool]:
    """Where to write, and whether to go on with what is there."""
    for number in count(1):
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        if not (folder / "args.json").exists():
            return folder, False
        try:
            if int(load_state(folder)["step"]) < steps:
                return folder, True
        except TrainError:
            continue
    raise TrainError(f"{out}: no free folder")


def _baseline(name: str, make: Callable[[], Any], learned: Source, data: Source, out: Path) -> Row:
    """Fit a classical detector on the training scenes and score it under the network's protocol."""
    start = time.perf_counter()
    fitted = make().fit((learned[i] for i in range(len(learned))), len(data.names))
    metric = CocoDetection(data.names, data=data.hash, split="test")
    for index in tqdm(range(len(data)), unit="img", desc=name, file=sys.stderr, leave=False):
        sample = data[index]
        detect: Callable[[Picture], Instances] = fitted.detect
        if sample.target is not None:
            metric.update(detect(sample.picture), sample.target, sample.id)
    folder = out / "baselines" / name.replace(" + ", "-").replace(" ", "-").lower()
    folder.mkdir(parents=True, exist_ok=True)
    Passport.of(metric, {"limit": None}).write(folder)
    return Row(name, metric.compute(), time.perf_counter() - start, compare(folder, out)["AP"])
