"""evaluate: a model, a data set, the official metric; every number with its protocol."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from tqdm import tqdm

from opticus import zoo
from opticus.data.open import open_data
from opticus.data.splits import canonical
from opticus.matching.regions import keeping
from opticus.metrics.classify import Accuracy
from opticus.metrics.detect import CocoDetection
from opticus.metrics.lvis import Knowledge, LvisDetection
from opticus.metrics.multilabel import TagPrecision
from opticus.metrics.pictures import Restoration
from opticus.metrics.voc import VocDetection
from opticus.ops import collectives
from opticus.structures import (
    CapabilityError,
    Classes,
    DataError,
    Dataset,
    Instances,
    Picture,
    Result,
    Sample,
    UnknownNameError,
    UsageError,
)
from opticus.verbs.models import Card
from opticus.verbs.predict import contiguous, infer, place
from opticus.weights.labels import labels

AnyMetric = Accuracy | TagPrecision | CocoDetection | LvisDetection | VocDetection | Restoration
Protocol = Literal["coco", "lvis", "voc07", "voc10"]
PROTOCOLS: tuple[Protocol, ...] = ("coco", "lvis", "voc07", "voc10")  # of detection
HEADLINE = {"classify": "top1", "detect": "AP", "embed": "top1", "translate": "PSNR", "reconstruct": "PSNR", "generate": "FID"}
LOWER = ("FID",)  # of these less is better


def headline_of(card: Card) -> tuple[str, bool] | None:
    """The figure that a system is chosen by and whether lower is better: the paper's own, else its task's; None if there is none."""
    paper = zoo.paper(zoo.split(card.name)[0])
    if hasattr(paper, "HEADLINE"):
        return paper.HEADLINE, getattr(paper, "LOWER_IS_BETTER", False)
    if card.multi_label:
        return "mAP", False
    name = HEADLINE.get(card.task)
    return None if name is None else (name, name in LOWER)


@dataclass
class Evaluation:
    """The figures of one evaluation, the metric that made them (curves, tables, mistakes), and their protocol."""

    values: dict[str, float]
    metric: AnyMetric | None
    protocol: dict[str, Any]
    headline: str
    results: dict[str, Result] = field(default_factory=dict[str, Result])

    def __getitem__(self, name: str) -> float:
        return self.values[name]


def evaluate(
    model: nn.Module,
    data: str | Path | Dataset | Iterable[Sample],
    *,
    split: str = "test",
    batch: int = 16,
    device: str | None = None,
    precision: str = "fp32",
    limit: int | None = None,
    metric: str | None = None,
    quiet: bool = False,
    on_bad: Literal["raise", "quarantine", "keep"] = "raise",
    features: str | Path | nn.Module | None = None,
    samples: int | None = None,
    seed: int = 0,
    steps: int | None = None,
) -> Evaluation:
    """Score `model` on `data` with its task's official metric: top-1/top-5 for classifiers (mAP where pictures
    have several labels), the COCO numbers for detectors (LVIS's on LVIS data; Pascal VOC's mAP with `metric` "voc07" or "voc10"),
    PSNR and SSIM of translators and autoencoders (`metric="y"`: of the luma, as for super-resolution), FID, KID, precision and recall
    of what draws pictures: `samples` of them (`seed`, `steps`) in the space of `features`, a classifier or encoder (a run folder, a
    name, a model), else of pixels; the passport names it.

    Labels are matched by name where the model knows its class names; a model and data set of unlike classes are refused.
    `limit` scores the first so many records only (the protocol says so). Raises DataError, UsageError or CapabilityError.
    """
    for name, value in (("batch", batch), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")
    place(model, device)
    dataset = data if _is_dataset(data) else open_data(cast(Any, data), split, on_bad=on_bad)
    if cast(Any, model).card.task == "embed":
        return _embedded(
            model, data, cast(Any, dataset), split, (limit, metric), batch=batch, device=device, precision=precision, quiet=quiet
        )
    drawing = {
        key: value for key, value in (("features", features), ("samples", samples), ("seed", seed), ("steps", steps)) if value
    }
    if drawing and cast(Any, model).card.task != "generate":
        raise CapabilityError(f"{', '.join(drawing)}: for systems that draw pictures, {cast(Any, model).card.name} does not")
    settings: dict[str, Any] = {"batch": batch, "device": device, "precision": precision, "limit": limit, "metric": metric}
    return score(model, cast(Dataset, dataset), split, quiet=quiet, drawing=drawing, **settings)


def _embedded(model: nn.Module, data: Any, dataset: Any, split: str, refused: tuple[Any, Any], **view: Any) -> Evaluation:
    """Nearest neighbours in the training split, which must be there."""
    from opticus.verbs.embedding import neighbour_accuracy  # it returns this module's Evaluation

    if any(setting is not None for setting in refused):
        raise CapabilityError("limit= and metric= are of results; vectors are scored by their nearest neighbours on all pictures")
    if _is_dataset(data) or canonical(split) == "train":
        raise CapabilityError("vectors are scored by neighbours in the train split: give data by name or path, and another split")
    return neighbour_accuracy(model, cast(Any, open_data(data, "train")), dataset, split, **view)


def _is_dataset(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("task", "names", "target_of", "hash"))


def score(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    *,
    batch: int = 16,
    device: str | None = None,
    precision: str = "fp32",
    limit: int | None = None,
    metric: str | None = None,
    quiet: bool = True,
    keep: int = 0,
    drawing: Mapping[str, Any] | None = None,
) -> Evaluation:
    """`evaluate` on an open data set, shared over the processes of a distributed run; `keep` results are kept for pictures.

    `drawing` are the settings of systems that draw pictures (features, samples, seed, steps).
    """
    card: Card = cast(Any, model).card
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise DataError(f"the {split} split has no samples to evaluate on")
    own = getattr(zoo.paper(zoo.split(card.name)[0]), "evaluate", None)
    if own is not None and not (drawing or {}).get("features"):
        if metric is not None:
            raise CapabilityError(f"metric={metric} is a protocol of detection, {card.name} does {card.task}")
        values, protocol = own(model, dataset)
        return Evaluation(values, None, {**protocol, "data": dataset.hash, "split": split}, cast(Any, headline_of(card))[0])
    view: dict[str, Any] = {"batch": batch, "device": device, "quiet": quiet, "count": count}
    if card.task in ("translate", "reconstruct", "generate"):
        return _pictured(model, dataset, split, metric, keep, dict(drawing or {}), {**view, "precision": precision, "limit": limit})
    if not hasattr(model, "results"):
        raise CapabilityError(f"{card.name} has no results(): it cannot be evaluated")
    scorer, places = metric_for(card, dataset, split, metric), label_map(card, dataset.names)
    classes = getattr(cast(Any, model).config, "classes", None)
    if card.labels is None and classes is not None and classes != len(dataset.names):
        raise UsageError(f"{card.name} has {classes} classes without names, the data set has {len(dataset.names)}")
    indices = range(collectives.rank(), count, collectives.world_size())
    evaluation = Evaluation({}, scorer, {}, headline(scorer))
    bar: Any = tqdm(total=len(indices), unit="img", desc=f"evaluate {split}", file=sys.stderr, disable=quiet, leave=False)
    with bar, keeping():  # the pictures of a data set are seen again
        for first in range(0, len(indices), batch):
            samples = [dataset[i] for i in indices[first : first + batch]]
            for sample, raw in zip(samples, infer(model, [_picture(s) for s in samples], device, precision)):
                result = relabel(raw, places)
                scorer.update(result, _target(sample), sample.id)
                if len(evaluation.results) < keep:
                    evaluation.results[sample.id] = result
            bar.update(len(samples))
    for state in collectives.gather_objects(scorer.state()) if collectives.world_size() > 1 else []:
        scorer.merge(cast(Any, state))
    if len(scorer) != count:
        raise DataError(f"the {split} split has {count} samples but only {len(scorer)} different ids: not all would be scored")
    evaluation.values = scorer.compute()
    evaluation.protocol = {**scorer.protocol, "limit": limit}
    return evaluation


def _pictured(
    model: nn.Module, dataset: Dataset, split: str, metric: str | None, keep: int, drawing: dict[str, Any], view: dict[str, Any]
) -> Evaluation:
    """Systems that answer by pictures; the main process of several scores all."""
    from opticus.verbs.evaluate_pictures import drawn, restored  # it draws with this verb's neighbours

    limit = view.pop("limit")
    if cast(Any, model).card.task == "generate":
        if metric is not None:
            raise CapabilityError(
                f"metric={metric} is no protocol of systems that draw pictures; they are scored in a space of features"
            )
        view.pop("precision")
        values, protocol, shown = drawn(model, dataset, split, **view, **drawing)
        results: dict[str, Result] = dict(list(shown.items())[:keep])
        return Evaluation(values, None, {**protocol, "limit": limit}, "FID", results)
    scorer, kept = restored(model, dataset, split, metric=metric, keep=keep, **view)
    return Evaluation(scorer.compute(), scorer, {**scorer.protocol, "limit": limit}, "PSNR", kept)


def headline(metric: AnyMetric) -> str:
    """The name of a metric's first number, by which runs are chosen."""
    if isinstance(metric, Restoration):
        return "PSNR"
    if isinstance(metric, Accuracy):
        return "top1"
    return "AP" if isinstance(metric, CocoDetection | LvisDetection) else "mAP"


def metric_for(card: Card, dataset: Dataset, split: str, metric: str | None = None) -> AnyMetric:
    """The official metric of the model's task on this data set; CapabilityError if they do not fit."""
    if metric is not None and card.task != "detect":
        raise CapabilityError(f"metric={metric} is a protocol of detection, {card.name} does {card.task}")
    if card.task != dataset.task:
        raise CapabilityError(f"{card.name} does {card.task}, but the data set is for {dataset.task}")
    several = bool(getattr(dataset, "multi", False))
    if card.multi_label != several and card.task == "classify":
        kinds = ("one label a picture", "several labels a picture")
        raise CapabilityError(f"{card.name} was made for {kinds[card.multi_label]}, the data set has {kinds[several]}")
    if card.multi_label:
        return TagPrecision(dataset.names, data=dataset.hash, split=split)
    if card.task == "classify":
        return Accuracy(dataset.names, data=dataset.hash, split=split)
    if card.task == "detect":
        known = getattr(dataset, "federation", None)
        return detection_metric(dataset.names, metric, data=dataset.hash, split=split, federation=known)
    raise CapabilityError(f"no metric is known for the task {card.task!r}")


def detection_metric(
    names: Sequence[str],
    metric: str | None,
    *,
    masks: bool = False,
    data: str = "",
    split: str = "",
    federation: Knowledge | None = None,
) -> CocoDetection | LvisDetection | VocDetection:
    """The metric of a detection protocol; if None LVIS's where the data has a `federation`, else COCO's.

    UnknownNameError names those that there are, CapabilityError says that "lvis" needs LVIS data.
    """
    chosen = metric or ("coco" if federation is None else "lvis")
    if chosen not in PROTOCOLS:
        raise UnknownNameError("metric", chosen, PROTOCOLS)
    if chosen == "coco":
        return CocoDetection(names, masks=masks, data=data, split=split)
    if chosen == "lvis":
        if federation is None:
            raise CapabilityError("metric=lvis needs LVIS data, which says what every picture was searched for (neg_category_ids)")
        return LvisDetection(names, federation, masks=masks, data=data, split=split)
    return VocDetection(names, rule=chosen, data=data, split=split)


def label_map(card: Card, names: Sequence[str]) -> list[int] | None:
    """For each raw output of the model its label in the data set, -1 for outputs that the data set lacks; None = as they are.

    Raises UsageError if the data set has a class that the model does not.
    """
    if card.labels is None or tuple(card.labels) == tuple(names):
        return None
    table = card.labels
    if tuple(table) == labels("imagenet1k") and set(names) <= set(labels("imagenet1k_synsets")):
        table = labels("imagenet1k_synsets")  # ImageNet as published: folders named by WordNet ids
    known = set(table)
    absent = [name for name in names if name not in known]
    if absent:
        raise UsageError(
            f"{card.name} does not know the data set's classes {', '.join(map(repr, absent[:5]))} ({len(absent)} in all)"
        )
    where = {name: i for i, name in enumerate(names)}
    return [where.get(name, -1) for name in table]


def relabel(result: Result, places: list[int] | None) -> Result:
    """Labels of the data set instead of the network's own."""
    if places is None:
        return result
    if isinstance(result, Instances):
        order = sorted((place, raw) for raw, place in enumerate(places) if place >= 0)
        return contiguous(result, [raw for _, raw in order])
    if isinstance(result, Classes):
        moved = torch.tensor(places)[result.labels]
        keep = moved >= 0
        return Classes(moved[keep], None if result.scores is None else result.scores[keep])
    return result


def _picture(sample: Sample) -> Picture:
    return sample.picture


def _target(sample: Sample) -> Any:
    if sample.target is None:
        raise DataError(f"{sample.id}: has no target, so it cannot be scored")
    return sample.target
