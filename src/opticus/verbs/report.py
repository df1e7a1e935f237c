"""The pages and passports of a run: where metrics, plots and the run folder meet."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image as image_module
from torch import nn

from opticus.metrics.breakdown import breakdown
from opticus.metrics.classify import Accuracy
from opticus.metrics.detect import CocoDetection
from opticus.metrics.lvis import LvisDetection
from opticus.metrics.mistakes import confusion, describe, worst
from opticus.metrics.multilabel import TagPrecision
from opticus.metrics.passport import Number, Passport
from opticus.metrics.pictures import Restoration
from opticus.metrics.tide import LIMIT as LOOKED_AT
from opticus.metrics.tide import tide
from opticus.metrics.voc import VocDetection
from opticus.plot.figures import read_curves, reliability
from opticus.plot.report import Pair, table, write_report
from opticus.structures import DataError, Dataset, Instances, Picture, Result
from opticus.structures.files import write_atomic
from opticus.training.recipe import Recipe, to_json
from opticus.verbs.evaluate import AnyMetric, Evaluation, infer, label_map, relabel
from opticus.verbs.models import Card
from opticus.verbs.tokens import has_tokens, keep_tokens

PAIRS, MISTAKES = 12, 12
SCORE = 0.3


def keep_passport(folder: Path, done: Evaluation) -> Path:
    """Write passport.json (and the per-sample arrays that `compare` resamples) of an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    if done.metric is None:  # a paper's own figures have no per-sample arrays
        return Passport({name: Number(value, done.protocol) for name, value in done.values.items()}).write(folder)
    return Passport.of(done.metric, done.protocol).write(folder)


def report_of(
    out: Path,
    model: nn.Module,
    done: Evaluation,
    data: Dataset,
    recipe: Recipe | None,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    beside: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write passport.json and report.html of a finished run; `beside` are rows of other systems for the summary table."""
    metric = done.metric
    keep_passport(out, done)
    card: Card = cast(Any, model).card
    row: dict[str, Any] = {
        "system": card.name,
        **(_short(done.values) or done.values),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if seconds is not None:
        row["training"] = f"{seconds / 60:.1f} min" + ("" if steps is None else f", {steps} steps")
    summary = [row, *beside]
    found = {id: data_index for data_index in range(len(data)) if (id := data.id_of(data_index)) in done.results}
    pairs = [_pair(data, index, done.results[id], id) for id, index in list(found.items())[:PAIRS]]
    split = str(done.protocol.get("split", "test"))
    shown = "" if metric is None else f" on {len(metric)} pictures"
    lines = [f"{card.name}{shown} of the {split} split, metric {done.protocol.get('metric')}", *notes]
    return write_report(
        out / "report.html",
        title=f"{card.name}: {done.headline} {done.values[done.headline]:.3f}",
        names=metric.names if metric is not None else (),
        summary=summary,
        curves=_curves(out / "results.csv"),
        per_class=metric.per_class() if metric is not None else (),
        pr=metric.curves() if isinstance(metric, CocoDetection | LvisDetection) else None,
        confusion=_confusion(metric),
        pairs=pairs,
        mistakes=_mistakes(model, data, metric, done.results if card.task == "embed" else {}) if metric is not None else (),
        notes=lines,
        args=_json(out / "args.json") or (None if recipe is None else to_json(recipe)),
        env={**(_json(out / "env.json") or {}), "torch": torch.__version__},
        threshold=SCORE,
        more=[
            *_drawn(out, done, card),
            *_calibration(metric),
            *_errors(metric),
            *_found(metric),
            *([keep_tokens(out, model, data)] if has_tokens(model) else ()),
        ],
    )


def report_of_results(out: Path, done: Evaluation, name: str) -> Path:
    """Write passport.json and report.html of results `name` that another program made; there are no pictures in it."""
    keep_passport(out, done)
    metric = done.metric
    detects = isinstance(metric, CocoDetection | LvisDetection | VocDetection)
    return write_report(
        out / "report.html",
        title=f"{name}: {done.headline} {done.values[done.headline]:.3f}",
        names=metric.names if detects else (),
        summary=[{"results": name, **{key: round(value, 4) for key, value in done.values.items() if value != -1}}],
        per_class=metric.per_class() if detects else (),
        pr=metric.curves() if isinstance(metric, CocoDetection | LvisDetection) else None,
        confusion=_confusion(metric),
        notes=[f"metric {done.protocol.get('metric')}, data {done.protocol.get('data')}"],
        threshold=SCORE,
        more=[*_errors(metric), *_found(metric)],
    )


def rewrite(folder: Path) -> Path:
    """Score the best weights of a finished run again and write its report anew. Raises DataError if its data has no name."""
    from opticus.data.open import open_data
    from opticus.data.splits import canonical
    from opticus.verbs.evaluate import score
    from opticus.verbs.models import load

    arguments = _json(folder / "args.json")
    if arguments is None:
        raise DataError(f"{folder}: not a run folder, it has no args.json")
    if arguments.get("data") is None:
        raise DataError(f"{folder}: was trained on data without a name; write its report where it was trained")
    model = load(folder)
    first = open_data(arguments["data"], arguments["split"][0], on_bad="keep")
    there = {word for name in first.splits for word in (name, canonical(name))}  # "valid" is "val"
    name = next((s for s in arguments["split"][:0:-1] if s in there), arguments["split"][0])
    data = open_data(arguments["data"], name, on_bad="quarantine", quarantine=arguments.get("quarantine"))
    done = score(model, data, name, quiet=False, keep=PAIRS)
    return report_of(folder, model, done, data, None)


SHOWN = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "APr",
    "APc",
    "APf",
    "top1",
    "top5",
    "balanced",
    "ece",
    "mAP",
    "CF1",
    "OF1",
    "PSNR",
    "SSIM",
    "MAE",
)


def _short(values: Mapping[str, float]) -> dict[str, float]:
    """The figures of the summary; COCO's -1 (no ground truth of that size) is no figure."""
    return {name: round(values[name], 4) for name in SHOWN if name in values and values[name] != -1}


def _curves(path: Path) -> dict[str, list[float]] | None:
    """The columns of results.csv worth drawing: of COCO's twelve numbers only the first three."""
    if not path.is_file():
        return None
    hidden = {f"val/{name}" for name in ("APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")}
    return {name: column for name, column in read_curves(path).items() if name not in hidden}


def _pair(data: Dataset, index: int, result: Result, caption: str, focus: tuple[float, ...] | None = None) -> Pair:
    sample = data[index]
    return Pair(sample.picture, sample.target, result, caption, focus)


def _mistakes(model: nn.Module, data: Dataset, metric: AnyMetric, known: Mapping[str, Result]) -> list[Pair]:
    """The worst mistakes, looked at once more where their results are not `known`."""
    where = {data.id_of(i): i for i in range(len(data))}
    places = label_map(cast(Any, model).card, data.names)
    pairs: list[Pair] = []
    if isinstance(metric, LvisDetection):
        return []  # a detection without a partner may be right: not every object is marked
    if isinstance(metric, Restoration):
        if cast(Any, model).card.task != "translate":
            return [
                _pair(data, where[id], known[id], f"{id}: {value:.2f} dB") for id, value in metric.worst(len(metric)) if id in known
            ][:MISTAKES]
        rows = [(id, f"{id}: {value:.2f} dB", None) for id, value in metric.worst(MISTAKES)]
    elif isinstance(metric, CocoDetection | VocDetection):
        rows = [(one.id, describe(one, metric.names), one.box) for one in worst(metric, MISTAKES, score=SCORE)]
    elif isinstance(metric, TagPrecision):
        words = {True: "invented", False: "missed"}
        rows = [
            (w.id, f"{w.id}: {metric.names[w.predicted]} {words[w.truth < 0]} ({w.score:.2f})", None)
            for w in metric.worst(MISTAKES)
        ]
    else:
        names = metric.names
        rows = [
            (w.id, f"{w.id}: {names[w.truth]} taken for {names[w.predicted]} ({w.score:.2f})", None) for w in metric.worst(MISTAKES)
        ]
    for id, caption, box in rows:
        if id in where:
            result = known[id] if id in known else relabel(infer(model, [data[where[id]].picture])[0], places)
            pairs.append(_pair(data, where[id], result, caption, box if isinstance(result, Instances) else None))
    return pairs


def _drawn(out: Path, done: Evaluation, card: Card) -> list[tuple[str, str, str]]:
    """A sheet of what a system drew that draws pictures."""
    if card.task != "generate" or not done.results:
        return []
    from opticus.plot.sheet import sheet

    shown = [result.pixels.numpy() for result in done.results.values() if isinstance(result, Picture)]
    sections = [("samples", "Samples", _image("drawn pictures", sheet(shown, max(int(len(shown) ** 0.5), 1))))]
    rows = [np.asarray(image_module.open(file)) for file in sorted((out / "samples").glob("*.png"))]
    if len(rows) > 1 and len({row.shape for row in rows}) == 1:
        words = f"The same sixteen starting points, from the first evaluation (top) to the last of {len(rows)}."
        strip = image_module.fromarray(np.concatenate(rows))
        sections.append(("progress", "Samples through training", f"<p>{words}</p>{_image('samples through training', strip)}"))
    return sections


def keep_progress(out: Path, done: Evaluation) -> Path:
    """Write what a system draws at an evaluation into samples/NNN.png of its run folder: one row, the same seeds each time."""
    from opticus.plot.sheet import sheet

    shown = [result.pixels.numpy() for result in done.results.values() if isinstance(result, Picture)]
    (out / "samples").mkdir(parents=True, exist_ok=True)
    path = out / "samples" / f"{len(list((out / 'samples').glob('*.png'))):03d}.png"
    image = sheet(shown, len(shown))
    return write_atomic(path, lambda part: image.save(part, "PNG"))


def _image(title: str, image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _calibration(metric: AnyMetric | None) -> list[tuple[str, str, str]]:
    """The reliability diagram of a classifier whose predictions carry probabilities."""
    bins = metric.calibration() if isinstance(metric, Accuracy) else []
    if not bins:
        return []
    error = sum(row["share"] * abs(row["accuracy"] - row["confidence"]) for row in bins)
    words = "How often the most probable class is right, by its probability; a calibrated classifier's bars end on the diagonal."
    return [("calibration", "Calibration", f"<p>{words}</p>{reliability(bins, error)}")]


def _errors(metric: AnyMetric | None) -> list[tuple[str, str, str]]:
    """What each kind of error costs a detector; nothing where there is no object to find."""
    if not isinstance(metric, CocoDetection) or not any((~record.crowd).any() for record in metric.records.values()):
        return []
    found = tide(metric)
    words = (
        f"AP at IoU {found.iou:g} is {found.ap:.3f} of at most {LOOKED_AT} detections a picture. dAP is what it would gain if all "
        f"errors of one kind were put right and nothing else changed (TIDE, Bolya et al. 2020): without any false positive "
        f"{found.false_positives:+.3f}, without any missed object {found.false_negatives:+.3f}."
    )
    return [("errors", "What the errors cost", f"<p>{words}</p>{table(found.rows(), bars=True)}")]


def _found(metric: AnyMetric | None) -> list[tuple[str, str, str]]:
    """How much a detector finds by size and crowding; nothing where there is no object to find."""
    if not isinstance(metric, CocoDetection | VocDetection):
        return []
    found = breakdown(metric, score=SCORE)
    words = f"Objects that a detection of their class finds with IoU >= {found.iou:g} and a score from {found.score:g} on."
    return [("found", "What is found", f"<p>{words}</p>{table(found.rows())}")] if found.shares else []


def _confusion(metric: AnyMetric | None) -> Any:
    if metric is None or isinstance(metric, TagPrecision | LvisDetection | Restoration):
        return None
    return confusion(metric, score=SCORE) if isinstance(metric, CocoDetection | VocDetection) else metric.confusion()


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a mapping, found {type(found).__name__}")
    return cast(dict[str, Any], found)
