"""train: a model, a data set and a recipe become a run folder; every run can be killed and resumed."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from opticus import zoo
from opticus.data.loader import Plan, balanced, batches, repeat_factors, steps_per_epoch, target_labels
from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.data.splits import canonical
from opticus.losses.multilabel import MultiLabel
from opticus.losses.supervised import Supervised
from opticus.ops import collectives
from opticus.structures import Batch, CapabilityError, DataError, Objective, Sample, TrainError, UnknownNameError, UsageError
from opticus.structures.files import write_text
from opticus.training.loop import loop
from opticus.training.recipe import Job, Optim, Outcome, Recipe, Schedule, to_json
from opticus.training.state import process_info
from opticus.verbs.embedding import labelled, neighbour_accuracy
from opticus.verbs.evaluate import Evaluation, headline_of, label_map, score
from opticus.verbs.evaluate_pictures import has_answers
from opticus.verbs.models import Card, Model, bind, create, load, meta_of
from opticus.verbs.parts import load_part, save_part
from opticus.verbs.pretrain import pretrain
from opticus.verbs.report import keep_progress, report_of
from opticus.verbs.teach import SETTINGS as TEACHING
from opticus.verbs.teach import Teaching

OPTIM_FIELDS = {field.name for field in dataclasses.fields(Optim)} - {"groups"}
RECIPE_FIELDS = {field.name for field in dataclasses.fields(Recipe)} - {
    "model",
    "data",
    "changes",
    "optim",
    "schedules",
    "loop",
    "note",
}


SPLITS = ("train", "val", "test")
LABELLED = ("classify", "detect", "segment", "panoptic", "pose", "caption")  # tasks that need targets of their own kind


class Splits(NamedTuple):
    """The opened data: what is learned from, what chooses the best weights, what is reported."""

    train: Source
    val: Source | None
    test: Source | None


@dataclass
class RunResult:
    """A finished run: its folder, its best model (the average, where there is one), and the figures on the test split."""

    out: Path
    model: Model
    outcome: Outcome
    evaluation: Evaluation | None = None

    @property
    def values(self) -> dict[str, float]:
        """The final figures."""
        return self.evaluation.values if self.evaluation is not None else self.outcome.values

    @property
    def report(self) -> Path:
        """The self-contained HTML page."""
        return self.out / "report.html"


def train(
    model: str | nn.Module | None = None,
    data: str | Path | Source | Iterable[Sample] | None = None,
    *,
    out: str | Path | None = None,
    recipe: Recipe | Callable[[str, Source], Recipe],
    resume: bool | str | Path = False,
    split: tuple[str, str, str] = SPLITS,
    on_bad: str = "raise",
    quarantine: str | Path | None = None,
    quiet: bool = False,
    test: bool = True,
    **overrides: Any,
) -> RunResult:
    """Train `model` (a name or an object) on `data` (a name, path, data set or iterable of Sample) into the folder `out`.

    `recipe` is a Recipe or makes one for a model's name and its data (the public verb passes the paper's default); `overrides`
    change its fields (`epochs=5`, `batch=32`, `lr=1e-3`, `freeze=-1`,
    `transforms=...`, `options={...}` for the objective) or the model's Config (`classes=`, `backbone=`). `weights=` starts from a
    trained network, `backbone_weights=` (any part's name) fills that part alone; either replaces the recipe's `pretrain`. `resume=True` goes on in
    `out`, `resume="runs/x"` takes everything from that folder. `on_bad` is "raise" or "quarantine".
    `teacher` (a run folder, "resnet/50:imagenet1k_v1", a weights file or a model object) distils a classifier: `distill="hard"` or
    `"soft"` with `temperature=3.0`, `share=0.5` of the loss; its classes are matched by name (`losses.distillation.Distilled`).

    Raises an opticus.Error that names what is wrong before any step is made; Ctrl-C leaves valid weights and state.
    """
    resuming = bool(resume)
    if isinstance(resume, (str, Path)):
        out = Path(resume)
        model, data, overrides, opening = _from_folder(out, model, data, overrides)
        split = tuple(opening["split"]) if split == SPLITS and len(opening["split"]) == 3 else split
        on_bad, quarantine = opening["on_bad"] if on_bad == "raise" else on_bad, quarantine or opening["quarantine"]
    if model is None or data is None:
        raise UsageError("train needs a model and data, such as train('centernet/tiny', data='scenes')")
    opened, asked = _open(data, split, on_bad, quarantine), dict(overrides)
    teaching = Teaching.take(overrides)
    if teaching is not None:
        asked["teacher"] = teaching.stored()
    if isinstance(model, str):  # a network that is made here is made as its recipe wants it
        recipe = recipe if isinstance(recipe, Recipe) else recipe(model.partition(":")[0], opened.train)
        overrides = {**recipe.changes, **overrides}
    network, name = _network(model, opened.train, overrides)
    recipe = _recipe(recipe, name, data, opened.train, overrides)
    card: Card = cast(Any, network).card
    for other in (opened.val, opened.test):  # a class that only they have is an error now, not after an epoch
        if other is not None and card.task == other.task:
            label_map(card, other.names)
    folder = Path(out) if out is not None else Path("runs") / card.task / name.replace("/", "-")
    _check_folder(folder, resuming)
    _check_device(recipe.device)
    given = {"weights", *(f"{part}_weights" for part in recipe.pretrain)} & asked.keys()
    for part, first in recipe.pretrain.items() if isinstance(model, str) and not resuming and not given else ():
        pretrain(network, part, first, folder / "pretrained" / part, train, quiet=quiet)
    torch.manual_seed(recipe.seed)
    objective = _objective(name, network, recipe.options, opened.train)
    if teaching is not None:
        objective = teaching.objective(objective, network, opened.train.names)
    if not resuming:
        arguments = {"model": name if isinstance(model, str) else None, "data": str(data) if isinstance(data, (str, Path)) else None,
                     "overrides": _plain(asked), "split": list(split), "on_bad": on_bad,
                     "quarantine": None if quarantine is None else str(quarantine), "recipe": to_json(recipe)}  # fmt: skip
        write_text(folder / "args.json", json.dumps(arguments, indent=1, default=repr))
        write_text(folder / "env.json", json.dumps({**process_info(), "torch": torch.__version__}, indent=1))
    job = _job(recipe, objective, network, opened, folder, resuming, quiet)
    return _run(job, network, opened, test, quiet)


def _run(job: Job, network: Model, opened: Splits, test: bool, quiet: bool) -> RunResult:
    start = time.perf_counter()
    outcome = (job.recipe.loop or loop)(job)
    best = job.out / "weights" / "best.safetensors"
    model = load(best if best.is_file() else job.out / "weights" / "last.safetensors", quiet=True)
    result = RunResult(job.out, model, outcome)
    embeds = cast(Any, model).card.task == "embed"
    if embeds and collectives.rank() == 0:
        save_part(model, "backbone", job.out / "weights" / "backbone.safetensors")
    final = opened.test or opened.val
    card: Card = cast(Any, model).card
    scored = final is not None and headline_of(card) is not None and _scorable(card, final) and not (embeds and not labelled(final))
    if test and final is not None and scored:
        name = "test" if opened.test is not None else "val"
        if embeds:
            result.evaluation = neighbour_accuracy(model, opened.train, final, name, batch=64, cache=False, quiet=quiet)
        else:
            quick: dict[str, Any] = (
                {"drawing": {"likelihood": False}} if card.task == "generate" else {}
            )  # `val` takes its time for it
            result.evaluation = score(model, final, name, batch=job.recipe.batch, quiet=quiet, keep=64, **quick)
        seconds = time.perf_counter() - start
        if collectives.rank() == 0:
            report_of(job.out, model, result.evaluation, final, job.recipe, seconds=seconds, steps=outcome.steps)
    return result


def _job(recipe: Recipe, objective: Objective, network: Model, opened: Splits, out: Path, resume: bool, quiet: bool) -> Job:
    data = opened.train
    shares, even = None, recipe.sampling == "repeat-factor"
    if recipe.sampling != "uniform":
        shares = repeat_factors(data, recipe.rare) if even else balanced(data)
    plan = Plan(recipe.seed, recipe.batch, recipe.accumulate, recipe.workers, shares, even)
    draw = functools.partial(_batches, data, recipe, network, plan)
    validation = opened.val
    card: Card = cast(Any, network).card
    headline, evaluate = headline_of(card), None
    if validation is not None and headline is not None and card.task == "embed":
        if labelled(data) and labelled(validation):
            evaluate = functools.partial(_neighbours, card, data, validation, getattr(objective, "compared", dict))
        else:
            headline = None
    elif validation is not None and headline is not None and not _scorable(card, validation):
        headline = None
    elif validation is not None and headline is not None:
        evaluate = functools.partial(_validate, card, validation, recipe, out)
    return Job(
        recipe, objective, draw, steps_per_epoch(len(data), recipe.batch), out, meta_of(network), evaluate,
        metric=recipe.metric or (headline[0] if headline else "loss"),
        lower_is_better=headline is not None and headline[1] and recipe.metric in (None, headline[0]), resume=resume, quiet=quiet,
        data=data,
    )  # fmt: skip


def _scorable(card: Card, data: Source) -> bool:
    """Whether the data says what is right: unpaired pictures of two domains do not."""
    own = hasattr(zoo.paper(zoo.split(card.name)[0]), "evaluate")
    return card.task != "translate" or own or has_answers(data)


def _batches(data: Source, recipe: Recipe, network: Model, plan: Plan, start: int, rank: int, world: int) -> Iterator[Batch]:
    return batches(data, recipe.transforms, network.prepare, plan, start=start, rank=rank, world=world)


def _validate(card: Card, data: Source, recipe: Recipe, out: Path, network: nn.Module) -> dict[str, float]:
    bound = network if hasattr(network, "card") else bind(network, card)
    drawn: dict[str, Any] = {"keep": 16, "drawing": {"likelihood": False}} if card.task == "generate" else {}
    done = score(bound, data, "val", batch=recipe.batch, precision="fp32", **drawn)
    if collectives.rank() == 0 and done.results:
        keep_progress(out, done)
    return done.values


BANK = (2000, 1000)  # pictures of the training and validation splits that neighbours are looked for in during training


def _neighbours(
    card: Card, bank: Source, data: Source, others: Callable[[], dict[str, nn.Module]], network: nn.Module
) -> dict[str, float]:
    """Validation of what describes pictures by vectors; `others` (a student, say) get a figure under their own name."""

    def top1(module: nn.Module) -> dict[str, float]:
        bound = module if hasattr(module, "card") else bind(module, card)
        return neighbour_accuracy(bound, bank, data, "val", limit=BANK, batch=64, cache=False, quiet=True).values

    return top1(network) | {f"{name}_top1": top1(module)["top1"] for name, module in others().items()}


def _open(data: Any, split: tuple[str, str, str], on_bad: str, quarantine: str | Path | None) -> Splits:
    if on_bad not in ("raise", "quarantine"):
        raise UnknownNameError("on_bad", on_bad, ("raise", "quarantine"))
    options: dict[str, Any] = {"on_bad": on_bad, "quarantine": quarantine}
    if hasattr(data, "target_of"):
        return Splits(data, None, None)
    first = open_data(data, split[0], **options)
    there = {word for name in first.splits if name != first.split for word in (name, canonical(name))}  # "val2017" is "val"
    others = {name: open_data(data, name, **options) if {name, canonical(name)} & there else None for name in split[1:]}
    skipped = getattr(first, "quarantined", None)
    if skipped:
        reasons = "; ".join(f"{key}: {reason}" for key, reason in list(skipped.items())[:3])
        print(f"opticus: {len(skipped)} records left out as bad ({reasons}{' ...' if len(skipped) > 3 else ''})", file=sys.stderr)  # noqa: T201
    return Splits(first, others[split[1]], others[split[2]])


def _network(model: str | nn.Module, data: Source, overrides: dict[str, Any]) -> tuple[Model, str]:
    """The model with a head for the data's classes and their names on its card."""
    if isinstance(model, str):
        config_fields = _config_fields(model)
        changes = {key: overrides.pop(key) for key in list(overrides) if key in config_fields and key not in RECIPE_FIELDS}
        start = overrides.pop("weights", None)
        parts = {key: overrides.pop(f"{key}_weights") for key in config_fields if f"{key}_weights" in overrides}
        if "classes" in config_fields:
            draws = zoo.paper(zoo.split(model.partition(":")[0])[0]).TASK in ("generate", "reconstruct", "translate")
            plain_classes = zoo.config_of(model.partition(":")[0]).classes
            asked = changes.setdefault("classes", 0 if draws and not plain_classes else len(data.names))
            if asked != len(data.names) and not (draws and asked == 0):
                raise UsageError(
                    f"classes={asked} was asked for, but the data has {len(data.names)} classes ({', '.join(data.names[:5])}...)"
                )
        torch.manual_seed(_seed(overrides.get("seed", 0)))
        plain = model.partition(":")[0]
        network = create(plain, **changes) if start is None and ":" not in model else _start(model, start, changes, data)
        for part, source in parts.items():
            load_part(network, part, source)
    else:
        network, plain = cast("Model", model), ""
        if not hasattr(network, "card"):
            raise CapabilityError("train takes a model made by opticus.create or opticus.load, or a name")
        plain = network.card.name
        classes = getattr(cast(Any, network).config, "classes", None)
        if classes is not None and classes != len(data.names) and not (classes == 0 and network.card.task == "generate"):
            raise UsageError(
                f"{plain} has {classes} classes, the data has {len(data.names)}; create it with classes={len(data.names)}"
            )
        if not _in_order(network.card, data.names) and set(network.card.labels or ()) == set(data.names):
            raise UsageError(f"{plain} has the data's classes in another order; train it by name with weights= for a new head")
    card = network.card
    if card.task != data.task and card.task in LABELLED:
        raise CapabilityError(f"{plain} does {card.task}, but the data set is for {data.task}")
    card.labels, card.label_ids, card.own = tuple(data.names), tuple(data.label_ids), True
    card.multi_label = card.task == "classify" and bool(getattr(data, "multi", False))
    card.provenance = {**card.provenance, "trained_on": data.hash}
    return network.train(), plain


def _start(model: str, start: Any, changes: dict[str, Any], data: Source) -> Model:
    """Fine-tuning: published or own weights with a new head where the classes (or their order) differ."""
    stem = zoo.split(model.partition(":")[0])[0]
    fresh = getattr(zoo.paper(stem), "HEAD", None)
    classes = changes.pop("classes", None)
    loaded = load(model) if start is None else load(model.partition(":")[0], start)
    same = getattr(cast(Any, loaded).config, "classes", None) == classes and _in_order(loaded.card, data.names)
    if same and not changes:
        return loaded
    head: dict[str, Any] = {} if same else {"fresh": fresh, "classes": classes}
    if start is None:
        return load(model, **head, **changes)
    return load(model.partition(":")[0], start, **head, **changes)


def _in_order(card: Card, names: tuple[str, ...]) -> bool:
    """Whether the model's outputs are the data's classes in the data's order, as far as is known."""
    try:
        return label_map(card, names) in (None, list(range(len(names))))
    except UsageError:
        return False


def _config_fields(model: str) -> set[str]:
    return {field.name for field in dataclasses.fields(zoo.config_of(model.partition(":")[0]))}


def _recipe(
    recipe: Recipe | Callable[[str, Source], Recipe], name: str, data: Any, opened: Source, overrides: dict[str, Any]
) -> Recipe:
    if not isinstance(recipe, Recipe):
        recipe = recipe(name, opened)
    known = RECIPE_FIELDS | OPTIM_FIELDS
    for key in overrides:
        if key in TEACHING:
            raise UsageError(
                f"{key}={overrides[key]!r} needs a teacher: give teacher= a run folder, a model with its weights or a model"
            )
        if key not in known:
            raise UnknownNameError("training option", key, sorted(known | set(TEACHING) | _config_fields(name)))
    optim = {key: overrides[key] for key in overrides if key in OPTIM_FIELDS}
    changes = {key: value for key, value in overrides.items() if key in RECIPE_FIELDS}
    if "epochs" in changes and "steps" not in changes:
        changes["steps"] = None
    rules = {phase: dataclasses.replace(rule, **optim) for phase, rule in recipe.optim.items()}
    return dataclasses.replace(recipe, model=name, data=_name_of(data), optim=rules, **changes)


def _name_of(data: Any) -> str:
    return str(data) if isinstance(data, (str, Path)) else type(data).__name__


def _from_folder(
    folder: Path, model: Any, data: Any, overrides: dict[str, Any]
) -> tuple[str | nn.Module | None, str | Path | Source | Iterable[Sample] | None, dict[str, Any], dict[str, Any]]:
    path = folder / "args.json"
    if not path.is_file():
        raise TrainError(f"{folder}: nothing to resume, {path} does not exist")
    try:
        saved = json.loads(path.read_text())
        stored = {**saved["overrides"], **overrides}
        for key in [key for key in stored if key == "weights" or key.endswith("_weights")]:
            stored.pop(key)  # the state holds what became of them
        opening = {
            "split": saved.get("split", SPLITS),
            "on_bad": saved.get("on_bad", "raise"),
            "quarantine": saved.get("quarantine"),
        }
        return model or saved["model"], data if data is not None else saved["data"], stored, opening
    except (ValueError, KeyError) as error:
        raise TrainError(f"{path}: not the arguments of a run ({error})") from error


def _check_folder(folder: Path, resuming: bool) -> None:
    if resuming and not (folder / "args.json").is_file():
        raise TrainError(f"{folder}: nothing to resume, there is no args.json in it")
    if not resuming and any((folder / part).is_dir() and any((folder / part).iterdir()) for part in ("state", "weights")):
        raise TrainError(f"{folder}: holds another run; use resume=True to continue it, out= for a new folder, or remove it")


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise UnknownNameError("device to train on", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' was asked for, but torch sees no CUDA GPU here")


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed must be a whole number, found {seed!r}")
    return seed


def _objective(name: str, network: Model, options: Mapping[str, Any], data: Source) -> Objective:
    make = zoo.paper(zoo.split(name)[0]).objective
    if options.get("class_weights") == "balanced":
        options = {**options, "class_weights": _balancing(data)}
    try:
        return Supervised(network, MultiLabel(**options)) if network.card.multi_label else make(network, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UsageError(f"options of {name}'s objective: {str(error).split('() ')[-1]}") from error


def _balancing(data: Source) -> list[float]:
    """Weights that make every class count the same: N / (K n_k), or (N - n_k) / n_k for the present labels of multi-label data."""
    counts = torch.zeros(len(data.names))
    for i in range(len(data)):
        counts[torch.from_numpy(target_labels(data.target_of(i)))] += 1
    if not bool((counts > 0).all()):
        absent = ", ".join(name for name, n in zip(data.names, counts.tolist()) if n == 0)
        raise DataError(f"class_weights='balanced': the training split has no record of {absent}")
    several = bool(getattr(data, "multi", False))
    weights = (len(data) - counts).clamp(min=1) / counts if several else len(data) / (len(counts) * counts)
    return [round(w, 6) for w in weights.tolist()]


def _plain(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: to_json(value) for key, value in overrides.items()}


__all__ = ["RunResult", "Schedule", "train"]
