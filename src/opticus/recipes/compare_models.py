"""Several systems under one protocol: same data, same splits, same clock; one table and one page."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from opticus import zoo
from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.matching.regions import afresh
from opticus.metrics.classify import Accuracy
from opticus.metrics.detect import CocoDetection
from opticus.metrics.passport import Passport, resampled_numbers
from opticus.models.classical._hog_svm import HogSvm
from opticus.models.classical._raw_pixels import NearestMean, Neighbours
from opticus.models.classical._template_matching import TemplateMatching
from opticus.plot.comparison import comparison_page
from opticus.recipes.budgeted import fresh, run_until, seconds_of, steps_of
from opticus.recipes.choose import default
from opticus.structures import DataError, Task, UnknownNameError, UsageError
from opticus.structures.files import write_atomic, write_text
from opticus.training.recipe import Recipe, to_json
from opticus.transforms.prepare import prepare
from opticus.verbs.explain import explain
from opticus.verbs.info import info
from opticus.verbs.models import Model, load
from opticus.weights.save import read_meta

SMALL = 2_000_000  # parameters: what counts as small enough to be trained in minutes
FIGURE = {"classify": "top1", "detect": "AP"}
SHOWN = {"classify": ("top1", "top5", "balanced", "ece"), "detect": ("AP", "AP50", "AP75", "APs", "APm", "APl")}
BASELINES: dict[str, dict[str, Callable[[], Any]]] = {
    "classify": {"nearest class mean": NearestMean, "20-NN on raw pixels": Neighbours},
    "detect": {"template matching": TemplateMatching, "HOG + SVM": HogSvm},
}
INCIDENTAL = {"note", "workers", "device", "log_every", "save_every"}  # fields of a recipe that leave its result as it is
ROUNDS = 9
SHOWN_SYSTEMS, SHOWN_PICTURES = 12, 4  # of the gallery


@dataclass(frozen=True)
class Row:
    """One system: its figures on the test split and what they cost. `low` and `high` are the figure's 95 % interval (bootstrap)."""

    system: str
    values: dict[str, float]
    low: float
    high: float
    parameters: int | None = None
    flops: int | None = None  # of one picture, a multiply-add counted as two
    receptive_field: int | None = None  # pixels; None = the whole picture, or a baseline
    latency: float | None = None  # milliseconds of one picture, network and results, on this machine's processor
    seconds: float | None = None  # of training
    steps: int | None = None
    planned: int | None = None
    baseline: bool = False

    @property
    def finished(self) -> bool:
        """Whether the recipe's steps were all made."""
        return self.baseline or (self.steps or 0) >= (self.planned or 0)


@dataclass(frozen=True)
class Comparison:
    """The rows of a comparison, best first, under one protocol."""

    data: str
    task: str
    figure: str
    rows: tuple[Row, ...]
    protocol: dict[str, Any]
    out: Path

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"data": self.data, "task": self.task, "figure": self.figure, "protocol": self.protocol,
                "rows": [{**dataclasses.asdict(row), "finished": row.finished} for row in self.rows]}  # fmt: skip

    def table(self) -> str:
        """A line per system."""
        lines = [
            f"{'system':<26}{self.figure:>8}  {'95 % interval':<17}{'params':>11}{'MFLOPs':>9}{'field':>7}{'ms':>8}{'train s':>9}"
        ]
        for row in self.rows:
            field = "-" if row.baseline else "all" if row.receptive_field is None else str(row.receptive_field)
            operations = None if row.flops is None else row.flops / 1e6
            cost = (f"{_or_dash(row.parameters, ','):>11}{_or_dash(operations, '.1f'):>9}{field:>7}"
                    f"{_or_dash(row.latency, '.2f'):>8}{_or_dash(row.seconds, '.0f'):>9}")  # fmt: skip
            mark = "" if row.finished else f"  stopped at {row.steps} of {row.planned} steps"
            lines.append(f"{row.system:<26}{row.values[self.figure]:>8.4f}  {row.low:.4f} to {row.high:.4f}{cost}{mark}")
        return "\n".join([*lines, f"page: {self.out / 'comparison.html'}"])


def compare_models(
    data: str,
    models: Sequence[str] = (),
    out: Path | None = None,
    *,
    task: str | None = None,
    seconds: float = 150.0,
    slow: Sequence[str] = (),
    slow_seconds: float = 1200.0,
    steps: int | None = None,
    seed: int = 0,
    baselines: bool = True,
    quiet: bool = False,
) -> Comparison:
    """Train every system in `models` on `data` by its own recipe, at most `seconds` of training each, and score all alike.

    Without `models` every paper of the data's task that has a small variant. Those of `slow`, such as "detr/tiny", get `slow_seconds`.
    `task`, where it is given, must be the data's. A finished run is not repeated, an interrupted one is resumed; one that the clock
    stopped is scored as it is and marked, or left out if it had not begun. Writes comparison.json and comparison.html, of detectors
    also gallery.png, into `out`.
    Raises UnknownNameError for a model that does not exist, DataError for data without a test split, UsageError for bad settings.
    """
    for name, value in (("seconds", seconds), ("slow_seconds", slow_seconds)):
        if not value > 0:
            raise UsageError(f"{name} must be greater than 0, found {value}")
    learned = open_data(data, "train")
    if task is not None and task != learned.task:
        raise UsageError(f"{data}: is data for {learned.task}, not for {task!r}")
    if "test" not in learned.splits:
        raise DataError(f"{data}: has no test split to score on (it has {', '.join(learned.splits)})")
    held, task = open_data(data, "test"), learned.task
    if task not in FIGURE or getattr(learned, "multi", False):
        raise DataError(f"{data}: systems can be compared on classification (one label) and detection, this data is for {task}")
    names = [zoo.split(name)[0] + "/" + zoo.split(name)[1] for name in models] or small_models(task)
    for name in names:
        if task != zoo.paper(zoo.split(name)[0]).TASK:
            raise UsageError(f"{name} does {zoo.paper(zoo.split(name)[0]).TASK}, but the data set is for {task}")
    known = [zoo.split(name)[0] + "/" + zoo.split(name)[1] for name in slow]
    for name in known:
        if name not in names:
            raise UnknownNameError("slow system", name, names)
    folder = out or Path("runs/compare") / Path(data).name
    rows: list[Row] = []
    for name in names:
        clock = slow_seconds if name in known else seconds
        recipe = dataclasses.replace(default(name, learned), seed=seed, model=name, data=data)
        once = recipe.loop is not None and recipe.steps is None  # such as k-NN, which sees every picture one time
        recipe = recipe if steps is None or once else dataclasses.replace(recipe, steps=steps)
        row = _row(name, data, learned, held, folder / name.replace("/", "-"), recipe, clock, quiet)
        rows += [] if row is None else [row]
    if not rows:
        raise UsageError(f"nothing to compare: seconds={seconds:g} ended before any of {', '.join(names)} began to learn")
    for name, make in BASELINES[task].items() if baselines else ():
        rows.append(_baseline(name, make, learned, held, folder / "baselines" / slug(name), quiet))
    figure = FIGURE[task]
    rows.sort(key=lambda row: -row.values[figure])
    protocol = {"data": held.hash, "trained on": learned.hash, "split": "test", "samples": len(held), "seed": seed,
                "seconds": seconds, **({f"seconds of {', '.join(known)}": slow_seconds} if known else {}),
                "threads": torch.get_num_threads(), "recipes": "each system's own for this data"}  # fmt: skip
    found = Comparison(data, task, figure, tuple(rows), protocol, folder)
    write_text(folder / "comparison.json", json.dumps(found.to_json(), indent=1))
    pictures = _gallery(found, data) if task == "detect" else None
    write_text(folder / "comparison.html", comparison_page(found.to_json(), SHOWN[task], pictures))
    return found


def _gallery(found: Comparison, data: str) -> Path:
    """What the best systems find on the first test pictures, written beside the page."""
    models = [load(found.out / row.system.replace("/", "-"), quiet=True) for row in found.rows if not row.baseline][:SHOWN_SYSTEMS]
    drawn = explain("gallery", models, data=data, limit=SHOWN_PICTURES, threshold=0.4, out=found.out / "gallery")
    return write_atomic(found.out / "gallery.png", lambda part: drawn.picture.save(part, "PNG"))


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def small_models(task: Task) -> list[str]:
    """Per paper of `task` the variant called "tiny", else its smallest one below SMALL parameters."""
    chosen: list[str] = []
    for stem in zoo.paper_files():
        module = zoo.paper(stem)
        if task != module.TASK:
            continue
        if "tiny" in module.VARIANTS:
            chosen.append(f"{stem}/tiny")
            continue
        sizes = {v: sum(p.numel() for p in zoo.meta(f"{stem}/{v}").parameters()) for v in module.VARIANTS}
        least = min(sizes, key=sizes.__getitem__)
        if sizes[least] < SMALL:
            chosen.append(f"{stem}/{least}")
    return chosen


def slug(name: str) -> str:
    """A name as a folder."""
    return name.replace(" + ", "-").replace(" ", "-").lower()


def _row(
    name: str, data: str, learned: Source, held: Source, folder: Path, recipe: Recipe, seconds: float, quiet: bool
) -> Row | None:
    """Train what is missing, then look at what is there; None if the clock stopped while a part of it was trained first."""
    if (folder / "args.json").is_file() and _unlike(folder, recipe, learned):
        raise UsageError(f"{folder}: holds a run of another recipe or of other data; choose another out= or remove it")
    planned = recipe.steps if recipe.steps is not None else round((recipe.epochs or 0) * max(len(learned) // recipe.batch, 1))
    spent, done = seconds_of(folder), steps_of(folder) or 0
    if not (fresh(folder) and (done >= planned or spent >= seconds)):
        if not quiet:
            print(f"{name}: {'from the start' if done == 0 else f'from step {done}'}, of {planned}", file=sys.stderr)  # noqa: T201 - progress
        run_until(time.monotonic() + max(seconds - spent, 1.0), name, data, folder, recipe, held, quiet=quiet)
    if steps_of(folder) is None and not fresh(folder):
        print(f"{name}: left out, {seconds:g} seconds ended while a part of it was trained first", file=sys.stderr)  # noqa: T201 - says why
        return None
    model, facts = load(folder, quiet=True), info(load(folder, quiet=True))
    passport = Passport.read(folder)
    low, high = interval(folder, FIGURE[learned.task])
    return Row(name, {key: number.value for key, number in passport.numbers.items() if key in SHOWN[learned.task]}, low, high,
               facts.parameters, facts.flops, facts.receptive_field, latency(model, held), seconds_of(folder),
               steps_of(folder), planned)  # fmt: skip


def _unlike(folder: Path, recipe: Recipe, learned: Source) -> bool:
    then, now = json.loads((folder / "args.json").read_text("utf-8"))["recipe"], json.loads(json.dumps(to_json(recipe)))
    file = folder / "weights" / "last.safetensors"
    other = file.is_file() and read_meta(file)["provenance"].get("trained_on") != learned.hash
    return other or any(then[key] != now[key] for key in then.keys() & now.keys() - INCIDENTAL)


def interval(folder: Path, figure: str) -> tuple[float, float]:
    """The 95 % bootstrap interval of a figure over the scored samples."""
    return resampled_numbers(Passport.read(folder), figure)


def latency(model: Model, held: Source) -> float:
    """Milliseconds of one picture through network and results, prepared beforehand: the median of ROUNDS after one untimed call.

    Systems that propose regions from outside search for them every time: that is what a new picture costs.
    """
    times: list[float] = []
    model.eval()
    with torch.inference_mode(), afresh():
        for index in range(ROUNDS + 1):
            images = prepare([held[index % len(held)].picture], model.prepare)
            start = time.perf_counter()
            out: Any = model(images.pixels) if images.valid is None else model(images.pixels, images.valid)
            model.results(out, images)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])


def _baseline(name: str, make: Callable[[], Any], learned: Source, held: Source, folder: Path, quiet: bool) -> Row:
    passport, seconds = baseline(name, make, learned, held, folder, quiet)
    task = held.task
    low, high = interval(folder, FIGURE[task])
    values = {key: number.value for key, number in passport.numbers.items() if key in SHOWN[task]}
    return Row(name, values, low, high, seconds=seconds, baseline=True)


def baseline(
    name: str, make: Callable[[], Any], learned: Source, held: Source, folder: Path, quiet: bool
) -> tuple[Passport, float | None]:
    """The passport of a classical system fitted on the training split, made once for each version of the data, and its seconds."""
    clock = folder / "seconds.json"
    if (folder / "passport.json").is_file():
        known = Passport.read(folder)
        if next(iter(known.numbers.values())).protocol.get("data") == held.hash:
            return known, json.loads(clock.read_text("utf-8")) if clock.is_file() else None
    start = time.perf_counter()
    fitted = make().fit((learned[i] for i in range(len(learned))), len(learned.names))
    seconds = time.perf_counter() - start
    detects = held.task == "detect"
    metric = (CocoDetection if detects else Accuracy)(held.names, data=held.hash, split="test")
    for i in tqdm(range(len(held)), unit="img", desc=name, file=sys.stderr, leave=False, disable=quiet):
        sample = held[i]
        if sample.target is not None:
            metric.update((fitted.detect if detects else fitted.classify)(sample.picture), sample.target, sample.id)
    folder.mkdir(parents=True, exist_ok=True)
    Passport.of(metric, {"limit": None}).write(folder)
    write_text(clock, json.dumps(seconds))
    return Passport.read(folder), seconds


__all__ = ["BASELINES", "FIGURE", "INCIDENTAL", "SHOWN", "Comparison", "Row", "baseline", "compare_models", "slug", "small_models"]
