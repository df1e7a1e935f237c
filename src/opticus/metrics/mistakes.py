"""What a detector gets wrong: the confusion matrix with a background row and column, and the worst mistakes by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from opticus.metrics.detect import Scored

Array = npt.NDArray[Any]
Fault = Literal["missed", "wrong class", "false positive", "poor box"]
FAULTS: tuple[Fault, ...] = ("wrong class", "false positive", "poor box", "missed")


class Kept(Protocol):
    """What is asked of a detection metric: the records of its pictures."""

    names: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        """The ids of the scored pictures in order."""
        ...

    @property
    def records(self) -> Mapping[str, Scored]:
        """Truth and detections of every picture by id."""
        ...


class Mistake(NamedTuple):
    """One mistake in picture `id`: its class names by index (-1 = background), boxes xyxy in pixels, IoU and severity in [0, 1]."""

    id: str
    kind: Fault
    score: float
    truth: int
    predicted: int
    iou: float
    box: tuple[float, ...]
    severity: float


class _Pairs(NamedTuple):
    """One picture at one threshold: for each kept detection the truth it is paired with (-1 none, -2 inside a crowd)."""

    kept: Array
    partner: Array
    overlaps: Array


def confusion(metric: Kept, *, iou: float = 0.5, score: float = 0.3) -> npt.NDArray[np.int64]:
    """(K+1, K+1) counts over detections with score >= `score`; rows are true, columns predicted, the last of each background.

    Best score first, a detection takes the free object of its own class with the highest IoU >= `iou`; detections and objects left
    over are then paired across classes. Detections covered by a crowd region of their class are not counted.
    """
    size = len(metric.names)
    table = np.zeros((size + 1, size + 1), np.int64)
    for record in metric.records.values():
        pairs = _pair(record, iou, score)
        for index, partner in zip(pairs.kept, pairs.partner, strict=True):
            if partner != -2:
                table[size if partner < 0 else record.truth_labels[partner], record.labels[index]] += 1
        for index in _unpaired(record, pairs):
            table[record.truth_labels[index], size] += 1
    return table


def worst(metric: Kept, limit: int = 24, *, iou: float = 0.5, score: float = 0.3) -> list[Mistake]:
    """The gravest mistakes, the kinds taking turns so that none hides the others.

    Confident wrong classes and false positives first; poor boxes (right class, IoU between 0.1 and `iou`) by score and distance
    from `iou`; missed objects by how little the detector suspected them below the threshold.
    """
    found: dict[Fault, list[Mistake]] = {kind: [] for kind in FAULTS}
    for id in metric.ids:
        for one in _mistakes(id, metric.records[id], iou, score):
            found[one.kind].append(one)
    ranked = [sorted(found[kind], key=lambda one: -one.severity)[:limit] for kind in FAULTS]
    turns = (one for group in zip_longest(*ranked) for one in group if one is not None)
    return [one for _, one in zip(range(limit), turns, strict=False)]


def describe(mistake: Mistake, names: Sequence[str]) -> str:
    """One line for a caption: what was wrong, between which classes, with which score."""
    label = [*names, "background"]
    if mistake.kind == "missed":
        hint = f", suspected with {mistake.score:.2f}" if mistake.score > 0 else ""
        return f"{mistake.id}: missed {label[mistake.truth]}{hint}"
    if mistake.kind == "wrong class":
        return f"{mistake.id}: {label[mistake.truth]} taken for {label[mistake.predicted]} ({mistake.score:.2f})"
    where = f", IoU {mistake.iou:.2f}" if mistake.kind == "poor box" else ""
    return f"{mistake.id}: {mistake.kind}, {label[mistake.predicted]} ({mistake.score:.2f}){where}"


def count(mistakes: Iterable[Mistake]) -> Mapping[Fault, int]:
    """How many mistakes there are of each kind."""
    kinds = [one.kind for one in mistakes]
    return {kind: kinds.count(kind) for kind in FAULTS}


def every(metric: Kept, *, iou: float = 0.5, score: float = 0.3) -> list[Mistake]:
    """All mistakes at one IoU and score threshold, picture by picture."""
    return [one for id in metric.ids for one in _mistakes(id, metric.records[id], iou, score)]


def found_objects(record: Scored, iou: float, score: float) -> npt.NDArray[np.bool_]:
    """Per object (N,) of a picture: whether a detection of its class with score >= `score` is paired with it at IoU >= `iou`."""
    pairs = _pair(record, iou, score)
    out = np.zeros(len(record.truth_labels), bool)
    for index, partner in zip(pairs.kept, pairs.partner, strict=True):
        if partner >= 0:
            out[partner] = record.labels[index] == record.truth_labels[partner]
    return out


def _mistakes(id: str, record: Scored, iou: float, score: float) -> Iterator[Mistake]:
    pairs = _pair(record, iou, score)
    covered: set[int] = set()
    for index, partner in zip(pairs.kept, pairs.partner, strict=True):
        label, value = int(record.labels[index]), float(record.scores[index])
        box = tuple(float(v) for v in record.boxes[index])
        if partner >= 0:
            true = int(record.truth_labels[partner])
            if true != label:
                overlap = float(pairs.overlaps[index, partner])
                yield Mistake(id, "wrong class", value, true, label, overlap, box, value)
        elif partner == -1:
            near = pairs.overlaps[index] * (record.truth_labels == label) * ~record.crowd
            near[list(set(pairs.partner[pairs.partner >= 0]) | covered)] = 0.0
            best = int(near.argmax()) if near.size else -1
            overlap = float(near[best]) if near.size else 0.0
            if overlap >= 0.1:
                covered.add(best)
                yield Mistake(id, "poor box", value, label, label, overlap, box, value * (1 - overlap))
            else:
                yield Mistake(id, "false positive", value, -1, label, overlap, box, value)
    for index in _unpaired(record, pairs):
        if index not in covered:
            box = tuple(float(v) for v in record.truth_boxes[index])
            faint = record.scores[(pairs.overlaps[:, index] >= iou) & (record.scores < score)]
            suspicion = float(faint.max()) if faint.size else 0.0
            yield Mistake(id, "missed", suspicion, int(record.truth_labels[index]), -1, 0.0, box, 1 - suspicion)


def _unpaired(record: Scored, pairs: _Pairs) -> list[int]:
    taken = set(pairs.partner.tolist())
    return [index for index in range(len(record.truth_labels)) if index not in taken and not record.crowd[index]]


def _pair(record: Scored, iou: float, score: float) -> _Pairs:
    overlaps = overlap(record.boxes, record.truth_boxes)
    order = np.argsort(-record.scores, kind="stable")
    kept = order[record.scores[order] >= score]
    partner = np.full(len(kept), -1)
    free = ~record.crowd.copy()
    for same_class in (True, False):
        for position, index in enumerate(kept):
            allowed = free & ((record.truth_labels == record.labels[index]) | (not same_class))
            values = np.where(allowed, overlaps[index], -1.0)
            if partner[position] == -1 and values.size and values.max() >= iou:
                partner[position] = int(values.argmax())
                free[partner[position]] = False
    crowd = np.flatnonzero(record.crowd)
    if crowd.size:
        inside = overlap(record.boxes[kept], record.truth_boxes[crowd], crowd=True)
        same = record.labels[kept][:, None] == record.truth_labels[crowd][None]
        partner[(partner == -1) & ((inside >= iou) & same).any(1)] = -2
    return _Pairs(kept, partner, overlaps)


def overlap(boxes: Array, truths: Array, *, crowd: bool = False) -> Array:
    """IoU (N, M) of xyxy boxes; with `crowd` the intersection is divided by the area of `boxes` alone, as COCO does for crowds."""
    low, high = np.maximum(boxes[:, None, :2], truths[None, :, :2]), np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    area, other = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None], (truths[:, 2:] - truths[:, :2]).prod(1)[None]
    return shared / np.maximum(area if crowd else area + other - shared, 1e-12)
