"""Recipes: everything that defines a training run, as typed data readable without a second file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from torch import nn

from opticus.structures import Batch, Dataset, Objective, UnknownNameError, UsageError

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list (of its length and types)",
    Mapping: "a mapping",
}


def check_types(record: Any) -> None:
    """Raise UsageError for the first field of a dataclass whose value is not of its type; lists become tuples."""
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if isinstance(value, list):
            value = tuple(cast(list[Any], value))
            object.__setattr__(record, name, value)
        choices = get_args(hint) if type(None) in get_args(hint) else (hint,)
        if any(_fits(value, choice) for choice in choices):
            continue
        if get_origin(choices[0]) is Literal:
            raise UnknownNameError(name, str(value), get_args(choices[0]))
        raise UsageError(f"{name} must be {WORDS.get(get_origin(choices[0]) or choices[0], 'of another type')}, found {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if kind is tuple and isinstance(value, tuple):
        items, kinds = cast("tuple[Any, ...]", value), get_args(hint)
        kinds = kinds[:1] * len(items) if Ellipsis in kinds else kinds
        return len(items) == len(kinds) and all(_fits(item, kind) for item, kind in zip(items, kinds))
    return callable(value) if kind is Callable else kind is Any or isinstance(value, kind)


def check_ranges(record: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise UsageError for the first field that is outside its closed range; None is not looked at."""
    for name, (low, high) in ranges.items():
        value = getattr(record, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            within = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise UsageError(f"{name} must be {within}, found {value}")


@dataclass(frozen=True)
class Group:
    """Parameters whose names match `pattern` (regex search): their own learning-rate factor and weight decay."""

    pattern: str
    factor: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False


@dataclass(frozen=True)
class Optim:
    """One optimiser. Norm weights, biases and other vectors get no weight decay unless `decay_vectors`."""

    kind: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    nesterov: bool = False
    groups: tuple[Group, ...] = ()
    clip: float | None = None  # largest gradient norm
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, {"lr": (0, 1e30), "weight_decay": (0, math.inf), "momentum": (0, 1), "clip": (0, math.inf)})
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas must be two numbers in [0, 1), found {list(self.betas)}")


@dataclass(frozen=True)
class Schedule:
    """How one field of every parameter group moves over the run, as a factor of its base value.

    The factor rises linearly from 0 to `start` over the share `warmup` of all steps, stays there for the share `hold` of the rest (pix2pix:
    half a run), then goes to `end` on a half cosine, stays, falls linearly, or is multiplied by `gamma` at each milestone (shares of the run).
    """

    kind: Literal["constant", "cosine", "linear", "step"] = "cosine"
    field: Literal["lr", "weight_decay", "momentum"] = "lr"
    warmup: float = 0.0
    hold: float = 0.0
    start: float = 1.0
    end: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1


@dataclass(frozen=True)
class Recipe:
    """A training run. `batch` is the number of samples of one optimiser step over all processes."""

    model: str
    data: str
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])  # overrides of the model's Config
    pretrain: Mapping[str, Recipe] = field(default_factory=dict[str, "Recipe"])  # parts that are trained first, and how
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])  # keywords of the paper's `objective`
    transforms: tuple[Any, ...] = ()
    batch: int = 16
    steps: int | None = None
    epochs: float | None = None
    optim: Mapping[str, Optim] = field(default_factory=lambda: {"all": Optim()})
    schedules: tuple[Schedule, ...] = (Schedule(),)
    average: float | None = None  # decay of the network's moving average; None = no average
    metric: str | None = None  # the figure that chooses `best`; None = the task's own
    freeze: int | str | tuple[str, ...] | None = None  # so many first units (-1: all but the head), or patterns of parameter names
    unfreeze: tuple[float, ...] = ()  # shares of the run at which frozen units are let go, those nearest the output first
    layer_decay: float | None = None  # learning rate of a unit = this ** its distance from the head
    # balanced: an epoch draws every class equally often, with replacement; repeat-factor: samples of rare classes more often (LVIS)
    sampling: Literal["uniform", "balanced", "repeat-factor"] = "uniform"
    rare: float = 1e-3  # repeat-factor: classes in a smaller share of the samples are rare
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    seed: int = 0
    workers: int = 0
    patience: int | None = None  # evaluations without improvement before stopping
    evaluate_every: int | None = None  # optimiser steps; None = once an epoch, 0 = never
    save_every: int = 500  # optimiser steps between states
    log_every: int = 20
    device: str = "auto"
    loop: Callable[[Job], Outcome] | None = None  # a system's own loop; None = train.loop
    note: str = ""  # where the figures come from, what was published, whether it was run

    def __post_init__(self) -> None:
        if isinstance(self.unfreeze, (int, float)):  # one share may be given as a number
            object.__setattr__(self, "unfreeze", (float(self.unfreeze),))
        check_types(self)
        least = {"batch": 1, "accumulate": 1, "save_every": 1, "log_every": 1, "patience": 1, "workers": 0, "evaluate_every": 0}
        check_ranges(self, {name: (low, math.inf) for name, low in least.items()})
        check_ranges(self, {"rare": (1e-12, 1), "average": (0, 1), "layer_decay": (0, 1), "seed": (-(2**63), 2**63)})
        if not all(0 <= share <= 1 for share in self.unfreeze):
            raise UsageError(f"unfreeze must be shares of the run in [0, 1], found {list(self.unfreeze)}")
        for transform in self.transforms:
            if not callable(transform):
                raise UsageError(f"transforms must be functions from sample to sample, found {transform!r}")
        if self.batch % self.accumulate:
            raise UsageError(f"batch={self.batch} is not a multiple of accumulate={self.accumulate}")
        if self.steps is None and self.epochs is None:
            raise UsageError("a recipe needs steps= or epochs=")
        if (self.steps or 0) < 0 or (self.epochs or 0) < 0:
            raise UsageError(f"steps and epochs must not be negative, found steps={self.steps}, epochs={self.epochs}")


@dataclass
class Job:
    """A recipe with its objects: what a loop needs to run, built by the `train` verb."""

    recipe: Recipe
    objective: Objective
    batches: Callable[[int, int, int], Iterator[Batch]]  # (first micro-batch, rank, world) -> endless micro-batches
    steps_per_epoch: int
    out: Path
    meta: dict[str, Any]  # travels in the weights files: model name, config, labels, prepare, licence
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    metric: str = "loss"
    lower_is_better: bool = False
    resume: bool = False
    quiet: bool = False
    data: Dataset | None = None  # the training pictures as they are, for loops that look at them all

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        recipe = self.recipe
        return recipe.steps if recipe.steps is not None else max(round((recipe.epochs or 0) * self.steps_per_epoch), 0)

    def conditions(self) -> dict[str, Any]:
        """What decides which samples a step sees and how: a resumed run with any of it changed would be another run."""
        names = ("seed", "batch", "accumulate", "precision")
        data = self.meta.get("provenance", {}).get("trained_on")
        drawn = {} if self.recipe.sampling == "uniform" else {name: getattr(self.recipe, name) for name in ("sampling", "rare")}
        return {"data": data, **{name: getattr(self.recipe, name) for name in names}, **drawn}


@dataclass
class Outcome:
    """What a loop leaves: the network to use (the average, if there is one), its folder and its last figures."""

    network: nn.Module
    out: Path
    steps: int
    values: dict[str, float]
    best: float | None = None
    stopped: str = "finished"  # or "patience", "interrupted"


def to_json(value: Any) -> Any:
    """A JSON-ready picture of a recipe or any part of it; callables and transforms appear by name with their fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{k: to_json(v) for k, v in _fields(value).items()}}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return getattr(value, "__qualname__", None) or repr(value)


def _fields(value: Any) -> dict[str, Any]:
    names = value.__dataclass_fields__
    return {name: getattr(value, name) for name in names} if names else asdict(value)
