"""Which recipe trains a model on some data: the paper's own file here, or the task's plain one."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from opticus import zoo
from opticus.data.records import Source
from opticus.structures import Dataset, Prepare, Sample
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Flip, RandomResizedCrop, Resize
from opticus.verbs import explain as explaining
from opticus.verbs import train as verb

FOLDER = Path(__file__).parent


def default(model: str, data: Dataset) -> Recipe:
    """The recipe of `recipes/<paper>.py` where there is one, else `plain`."""
    stem = zoo.split(model)[0]
    if (FOLDER / f"{stem}.py").is_file():
        return importlib.import_module(f"opticus.recipes.{stem}").default(model, data)
    return plain(model, data)


def plain(model: str, data: Dataset) -> Recipe:
    """AdamW with warm-up and a cosine, pictures at the network's own input size; random crops and flips for large classifiers."""
    rule = zoo.paper(zoo.split(model)[0]).PREPARE
    transforms: tuple[Any, ...] = (fit(rule),)
    if data.task == "classify" and min(rule.crop or rule.size) >= 64:
        transforms = (RandomResizedCrop(rule.crop or rule.size), Flip())
    return Recipe(
        model,
        "",
        transforms=transforms,
        batch=32,
        epochs=30,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.99,
    )


def fit(rule: Prepare) -> Resize:
    """The transform that brings a picture to the size that `rule` asks for, without chance."""
    if rule.crop is not None:
        return Resize(rule.crop, "fixed", rule.interpolation, rule.antialias)
    if rule.resize == "none":
        return Resize((512, 512), "letterbox", rule.interpolation, rule.antialias)
    kind = "shortest" if rule.resize in ("scaled", "rounded") else rule.resize
    return Resize(rule.size, kind, rule.interpolation, rule.antialias, rule.fill)


def train(
    model: str | nn.Module | None = None,
    data: str | Path | Source | Iterable[Sample] | None = None,
    *,
    recipe: Recipe | None = None,
    **options: Any,
) -> verb.RunResult:
    """Train a model on data into a run folder; see `opticus.verbs.train.train` for every option.

    Without `recipe` the paper's default for this data is taken; keywords change single settings (`epochs=5`, `lr=1e-3`).
    """
    return verb.train(model, data, recipe=default if recipe is None else recipe, **options)


def explain(kind: str, model: Any = None, source: Any = None, **options: Any) -> explaining.Explanation:
    """Explain a model, a picture or a data set into runs/explain; see `opticus.verbs.explain.explain` for kinds and options.

    The paper's default recipe is what `explain("augmentations", ...)` shows.
    """
    options.setdefault("recipe", default)
    return explaining.explain(kind, model, source, **options)
