"""Recipes: everything that defines a training run, as typed data readable without a second file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from opticus.structures import Batch, Objective, UsageError


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

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    nesterov: bool = False
    groups: tuple[Group, ...] = ()
    clip: float | None = None  # largest gradient norm
    decay_vectors: bool = False


@dataclass(frozen=True)
class Schedule:
    """How one field of every parameter group moves over the run, as a factor of its base value.

    The factor rises linearly from 0 to `start` over the share `warmup` of all steps, then goes to `end` on a half cosine, stays,
    falls linearly, or is multiplied by `gamma` at each milestone (shares of the run).
    """

    kind: Literal["constant", "cosine", "linear", "step"] = "cosine"
    field: Literal["lr", "weight_decay", "momentum"] = "lr"
    warmup: float = 0.0
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
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])  # keywords of the paper's `objective`
    transforms: tuple[Any, ...] = ()
    batch: int = 16
    steps: int | None = None
    epochs: float | None = None
    optim: Mapping[str, Optim] = field(default_factory=lambda: {"all": Optim()})
    schedules: tuple[Schedule, ...] = (Schedule(),)
    average: float | None = None  # decay of the network's moving average; None = no average
    metric: str | None = None  # the figure that chooses `best`; None = the task's own
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
        for name in ("batch", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, found {getattr(self, name)}")
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

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        recipe = self.recipe
        return recipe.steps if recipe.steps is not None else max(round((recipe.epochs or 0) * self.steps_per_epoch), 0)


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
