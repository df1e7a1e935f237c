"""The verbs of the command line as typed records: words first, then keys. Each imports what it needs when it runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from opticus.cli.anchors import Anchors
from opticus.cli.compare_models import CompareModels
from opticus.cli.explain import Explain
from opticus.cli.lab import Lab
from opticus.cli.match import Cascade, Match
from opticus.cli.probe import Features, Probe, TransferCurve
from opticus.cli.proposals import Proposals
from opticus.cli.sample import Reconstruct, Sample
from opticus.structures.errors import DataError, UsageError

Device = str


def word(default: Any = ...) -> Any:
    """A field that is given as a plain word."""
    return field(metadata={"word": True}) if default is ... else field(default=default, metadata={"word": True})


def emit(value: Any, as_json: bool, text: str) -> None:
    """JSON or text on stdout."""
    print(json.dumps(value, indent=1, default=str) if as_json else text)


@dataclass
class Train:
    """Train a model: opticus train centernet/tiny data=scenes epochs=5; other keys go to the recipe or the model's Config."""

    model: str | None = word(None)
    data: str | None = None
    out: str | None = None
    resume: str | None = None  # a run folder to continue
    quarantine: str | None = None  # the doctor's CSV; its records are left out
    on_bad: Literal["raise", "quarantine"] = "raise"
    test: bool = True
    quiet: bool = False
    json: bool = False
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def run(self) -> int:
        """Train, score the best weights on the test split, and write the report."""
        import opticus

        if self.resume is not None and self.out is not None:
            raise UsageError("a resumed run goes on in its own folder; leave out= away")
        if self.resume is None and (self.model is None or self.data is None):
            raise UsageError("opticus train needs MODEL and data=, such as: opticus train centernet/tiny data=scenes")
        result = opticus.train(
            self.model, self.data, out=self.out, resume=self.resume or False, quarantine=self.quarantine,
            on_bad=self.on_bad, test=self.test, quiet=self.quiet, **self.more,
        )  # fmt: skip
        values = {k: round(v, 6) for k, v in result.values.items()}
        emit({"out": str(result.out), "values": values}, self.json, _figures(values) + f"\nrun folder: {result.out}")
        return 0


@dataclass
class Val:
    """Score a model, or results of any program, on a data set: opticus val runs/detect/train data=scenes split=test."""

    model: str | None = word(None)
    results: str | None = None  # instead of MODEL: a COCO results JSON; data= is then a COCO JSON or folder
    data: str | None = None
    weights: str | None = None  # a weights file for MODEL
    split: str = "test"
    batch: int = 16
    device: Device | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    limit: int | None = None
    metric: Literal["coco", "lvis", "voc07", "voc10", "rgb", "y"] | None = (
        None  # the protocol of a detector, COCO's (LVIS's on its data) if not given; the channels of a restored picture
    )
    features: str | None = (
        None  # what drawn pictures are compared in: a classifier or encoder (run folder, name); pixels if not given
    )
    samples: int | None = None  # how many pictures are drawn
    seed: int = 0  # of the drawn pictures
    steps: int | None = None  # of an iterative sampler
    table: str | None = None  # a class of a detector: its detections step by step
    errors: bool = False  # what each kind of a detector's errors costs
    breakdown: bool = False  # how much a detector finds, by size and crowding
    on_bad: Literal["raise", "quarantine", "keep"] = "raise"
    out: str | None = None  # folder for passport.json, of results for report.html too
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Print the official figures; with out= keep them with their protocol."""
        if self.results is None and self.model is None:
            raise UsageError("opticus val needs MODEL, or results= of another program; see opticus val --help")
        if self.data is None:
            subject = f"results={self.results}" if self.model is None else "runs/detect/train"
            raise UsageError(f"opticus val needs data=, such as: opticus val {subject} data=path/to/coco")
        done = self._model(self.data) if self.results is None else self._results(self.results, self.data)
        values = {k: round(v, 6) for k, v in done.values.items()}
        record, text = {"values": values, "protocol": done.protocol}, [_figures(values)]
        for key, found in self._tables(done.metric).items():
            record[key] = found.to_json()
            text.append(found.text())
        emit(record, self.json, "\n\n".join(text))
        return 0

    def _model(self, data: str) -> Any:
        import opticus
        from opticus.verbs.report import keep_passport

        model = opticus.load(cast(str, self.model), self.weights)
        done = opticus.evaluate(
            model, data, split=self.split, batch=self.batch, device=self.device, precision=self.precision,
            limit=self.limit, metric=self.metric, quiet=self.quiet, on_bad=self.on_bad,
            features=self.features, samples=self.samples, seed=self.seed, steps=self.steps,
        )  # fmt: skip
        if self.out is not None:
            keep_passport(Path(self.out), done)
        return done

    def _results(self, results: str, data: str) -> Any:
        import opticus
        from opticus.verbs.report import report_of_results

        for key in ("model", "weights", "limit", "device"):
            if getattr(self, key) is not None:
                raise UsageError(f"opticus val: {key} and results= exclude each other: results are scored as they are")
        done = opticus.evaluate_results(results, data, split=self.split, metric=cast(Any, self.metric))
        if self.out is not None:
            report_of_results(Path(self.out), done, Path(results).name)
        return done

    def _tables(self, metric: Any) -> dict[str, Any]:
        """What was asked for beside the figures."""
        if self.table is None and not self.errors and not self.breakdown:
            return {}
        from opticus.metrics.breakdown import breakdown
        from opticus.metrics.detect import CocoDetection
        from opticus.metrics.lvis import LvisDetection
        from opticus.metrics.steps import steps
        from opticus.metrics.tide import tide
        from opticus.metrics.voc import VocDetection

        if not isinstance(metric, CocoDetection | LvisDetection | VocDetection):
            asked = "errors" if self.errors else "breakdown" if self.breakdown else "table"
            raise UsageError(f"opticus val: {asked} is for detectors")
        if (self.errors or self.breakdown) and isinstance(metric, LvisDetection):
            raise UsageError(
                "opticus val: errors and breakdown need pictures marked completely, LVIS says nothing about most classes of a picture"
            )
        tables: dict[str, Any] = {"errors": tide(metric)} if self.errors else {}
        if self.breakdown:
            tables["breakdown"] = breakdown(metric)
        return tables if self.table is None else {**tables, "table": steps(metric, self.table)}


@dataclass
class Predict:
    """Look at pictures: opticus predict centernet/tiny:scenes street.jpg out=found threshold=0.5."""

    model: str = word()
    source: str = word()
    weights: str | None = None
    threshold: float | None = None
    labels: tuple[str, ...] | None = None
    limit: int | None = None
    batch: int = 8
    device: Device | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    out: str = "runs/predict"
    save: bool = True
    json: bool = False

    def run(self) -> int:
        """Predict in flat memory; writes one picture per input into out=."""
        import opticus

        folder, used, count = Path(self.out), set[str](), 0
        if self.save and folder.resolve() in (Path(self.source).resolve(), Path(self.source).resolve().parent):
            raise UsageError(f"out={self.out} is where the pictures themselves are; choose another folder")
        model: Any = opticus.load(self.model, self.weights)
        stream = model.predict(
            self.source, threshold=self.threshold, labels=self.labels, limit=self.limit, batch=self.batch,
            device=self.device, precision=self.precision, stream=True,
        )  # fmt: skip
        for result in stream:
            count += 1
            if self.save:
                result.save(folder / f"{_file_name(result.id, used)}.png")
            record = result.to_json()
            print(json.dumps(record) if self.json else _line(record))
        if count == 0:
            raise DataError(f"{self.source}: nothing to look at")
        if self.save:
            print(f"{count} picture{'s' if count > 1 else ''} in {folder}", file=sys.stderr)
        return 0


@dataclass
class Models:
    """List the models: opticus models "*detr*" task=detect."""

    pattern: str = word("*")
    task: str | None = None
    json: bool = False

    def run(self) -> int:
        """One line per variant: name, task, published parameters, weights, paper."""
        import opticus

        rows = opticus.list_models(self.pattern, self.task)
        if not rows:
            rows = opticus.list_models(f"*{self.pattern}*", self.task)
        count = {row.name: "" if row.parameters is None else f"{row.parameters / 1e6:.1f}M" for row in rows}
        lines = [
            f"{r.name:<28}{r.task:<10}{count[r.name]:>8}  {r.paper}{'  weights: ' + ', '.join(r.weights) if r.weights else ''}"
            for r in rows
        ]
        records = [
            {"name": r.name, "task": r.task, "paper": r.paper, "parameters": r.parameters, "weights": list(r.weights)} for r in rows
        ]
        emit(records, self.json, "\n".join(lines) if lines else f"no model matches {self.pattern!r}")
        return 0 if rows else 1


@dataclass
class Info:
    """Layers, parameters, FLOPs, receptive field, licence and formats of a model: opticus info resnet/50."""

    model: str = word()
    weights: str | None = None
    size: int | None = None  # input side in pixels for the FLOPs
    json: bool = False

    def run(self) -> int:
        """Print what is known about a model."""
        import opticus

        found = opticus.info(self.model, self.weights, size=self.size)
        emit(found.to_json(), self.json, found.table())
        return 0


@dataclass
class Identify:
    """Which paper, variant and format is a weights file? opticus identify mystery.pth."""

    file: str = word()
    json: bool = False

    def run(self) -> int:
        """Print what the file holds; exit code 1 for a near miss."""
        import opticus

        found = opticus.identify(self.file)
        record = {"name": found.name, "format": found.format, "exact": found.exact, "differences": list(found.differences)}
        emit({**record, "classes": found.classes, "others": list(found.others)}, self.json, str(found))
        return 0 if found.exact else 1


@dataclass
class Doctor:
    """Examine a data set: opticus doctor path/to/data quarantine=quarantine.csv; exit code 1 if something is wrong."""

    data: str = word()
    quarantine: str | None = None
    json: bool = False

    def run(self) -> int:
        """Print the findings as a table or JSON."""
        import opticus

        report = opticus.doctor(self.data)
        if self.quarantine is not None:
            report.write_quarantine(Path(self.quarantine))
        emit(json.loads(report.to_json()), self.json, report.table())
        return report.exit_code


@dataclass
class Report:
    """Write report.html of a run again: opticus report runs/detect/train."""

    run_folder: str = word()
    json: bool = False

    def run(self) -> int:
        """Score the run's best weights once more and rewrite its report."""
        from opticus.verbs.report import rewrite

        path = rewrite(Path(self.run_folder))
        emit({"report": str(path)}, self.json, str(path))
        return 0


@dataclass
class Compare:
    """Compare two runs scored under one protocol: opticus compare runs/a runs/b."""

    first: str = word()
    second: str = word()
    json: bool = False

    def run(self) -> int:
        """The difference of their figures with its paired-bootstrap interval; unlike protocols are refused."""
        import opticus

        found = opticus.compare(self.first, self.second)
        emit(found.to_json(), self.json, found.table())
        return 0


@dataclass
class Prove:
    """Check an operation against its literal definition: opticus prove nms."""

    name: str = word("")
    json: bool = False

    def run(self) -> int:
        """Run the fast operation and its loop twin on random and adversarial input; exit code 1 if they differ."""
        from opticus.verbs.prove import known, prove

        names = [self.name] if self.name else list(known())
        proofs = [prove(name) for name in names]
        records = [{**asdict(p), "holds": p.holds} for p in proofs]
        emit(records, self.json, "\n".join(_proof(record) for record in records))
        return 0 if all(p.holds for p in proofs) else 1


@dataclass
class Verify:
    """Prove a property of a run: opticus verify resume runs/detect/train."""

    what: Literal["resume"] = word()
    run_folder: str = word()
    steps: int = 12
    json: bool = False

    def run(self) -> int:
        """Train twice from the run's arguments, once killed and resumed, and compare every bit; exit code 1 if they differ."""
        from opticus.verbs.verify import verify_resume

        found = verify_resume(Path(self.run_folder), self.steps)
        emit(found.to_json(), self.json, found.table())
        return 0 if found.equal else 1


@dataclass
class ExportData:
    """Write an embedded data set in a published format: opticus export-data scenes coco DIR."""

    name: str = word()
    format: str = word()
    folder: str = word()
    limit: int | None = None
    json: bool = False

    def run(self) -> int:
        """Write every split; prints the folder."""
        import opticus

        path = opticus.export_data(self.name, cast(Any, self.format), Path(self.folder), limit=self.limit)
        emit({"folder": str(path)}, self.json, str(path))
        return 0


@dataclass
class Demo:
    """Train CenterNet on the embedded scenes, score it, look at it: about seven minutes on two cores."""

    out: str = "runs/detect/demo"
    steps: int = 2000
    baselines: bool = True
    json: bool = False

    def run(self) -> int:
        """Train, evaluate beside two classical detectors, write report.html, and say where to look."""
        from opticus.recipes.demo import demo

        found = demo(Path(self.out), steps=self.steps, baselines=self.baselines)
        emit(found.to_json(), self.json, found.text())
        return 0


@dataclass
class Study:
    """Run a study of several trainings: opticus study low-data-distillation out=runs/studies/distillation."""

    name: Literal["low-data-distillation"] = word()
    out: str | None = None
    data: str | None = None
    steps: int | None = None
    student: str | None = None
    teacher: str | None = None  # a finished run to use as the teacher; it is trained otherwise
    json: bool = False

    def run(self) -> int:
        """Train what is missing (finished runs are kept, interrupted ones go on) and print the table."""
        from opticus.recipes import low_data_distillation as recipe

        folder = Path(self.out or f"runs/studies/{self.name}")
        teacher = None if self.teacher is None else Path(self.teacher)
        steps = recipe.STEPS if self.steps is None else self.steps
        found = recipe.study(
            folder, steps=steps, teacher=teacher, model=self.student or recipe.STUDENT, data=self.data or recipe.DATA
        )
        emit(found.to_json(), self.json, found.text())
        return 0


def _figures(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


def _proof(record: dict[str, Any]) -> str:
    verdict = "holds" if record["holds"] else "DOES NOT HOLD"
    cases = f"{record['random']} random and {record['adversarial']} adversarial inputs"
    return (
        f"{record['name']}: {record['formula']}\n"
        f"  {cases}, largest error {record['error']:.3g} (tolerance {record['tolerance']:.3g}): {verdict}"
    )


def _file_name(id: str, used: set[str]) -> str:
    """A picture's id as a file name without suffix; with it where another picture has the name already."""
    whole = id.replace("/", "_").replace("\\", "_").replace("#", "_")
    stem = Path(whole).stem if "#" not in id else whole
    name = whole if stem in used else stem
    used.add(name)
    return name


def _line(record: dict[str, Any]) -> str:
    if "objects" in record:
        parts = [f"{o['name']} {o['score']:.2f} [{', '.join(f'{v:.0f}' for v in o['box'])}]" for o in record["objects"]]
        return f"{record['id']}: " + ("; ".join(parts) or "nothing above the threshold")
    if "classes" in record:
        return f"{record['id']}: " + "; ".join(f"{c['name']} {c['score']:.3f}" for c in record["classes"][:5])
    return json.dumps(record)


COMMANDS: dict[str, Any] = {
    "train": Train,
    "val": Val,
    "predict": Predict,
    "models": Models,
    "info": Info,
    "identify": Identify,
    "probe": Probe,
    "features": Features,
    "transfer-curve": TransferCurve,
    "anchors": Anchors,
    "proposals": Proposals,
    "sample": Sample,
    "reconstruct": Reconstruct,
    "match": Match,
    "cascade": Cascade,
    "doctor": Doctor,
    "report": Report,
    "compare": Compare,
    "compare-models": CompareModels,
    "prove": Prove,
    "verify": Verify,
    "export-data": ExportData,
    "demo": Demo,
    "study": Study,
    "lab": Lab,
    "explain": Explain,
}
