"""What a detector's errors cost: the AP that would be gained if all errors of one kind were put right.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, arXiv 2008.08115.
Reference: github.com/dbolya/tide (MIT); equal to it, ties and regions to ignore included. As there, AP at one IoU takes 101 recall
points of at most 100 detections a picture (COCO: a picture and class), and a class that is only ever detected counts with AP 0.

*Map*  section 2.2 -> `_judge` (kinds of errors), section 2.3 -> `tide` (dAP by repair)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.metrics.detect import Kind as Shape
from opticus.metrics.detect import Scored
from opticus.metrics.mistakes import Kept, overlap
from opticus.metrics.tables import area_under
from opticus.ops.masks import mask_iou
from opticus.structures import MetricError

Array = npt.NDArray[Any]
Error = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERRORS: tuple[Error, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
LIMIT = 100  # detections of a picture that are looked at
MEANING: dict[Error, str] = {
    "classification": "a good box of a wrong class",
    "localisation": "the right class, a poor box",
    "both": "a wrong class and a poor box",
    "duplicate": "an object that a better detection has already",
    "background": "no object there",
    "missed": "an object that none of the others concerns",
}


class Tide(NamedTuple):
    """`ap` at IoU `iou`; `gains` the AP gained by repairing every error of a kind, `counts` how many there are.

    `false_positives` and `false_negatives` are the gains of perfect precision at equal recall and of perfect recall at equal
    precision. All in [0, 1]; gains do not add up to 1 - ap, because the errors stand in each other's way.
    """

    ap: float
    gains: dict[Error, float]
    counts: dict[Error, int]
    false_positives: float
    false_negatives: float
    iou: float
    background: float

    def rows(self) -> list[dict[str, Any]]:
        """One row per kind of error: its name, how many, the AP gained without them, and what it means."""
        return [{"error": e, "count": self.counts[e], "dAP": self.gains[e], "meaning": MEANING[e]} for e in ERRORS]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(self._asdict())

    def text(self) -> str:
        """A table in plain text."""
        lines = [f"AP at IoU {self.iou:g}: {self.ap:.4f}; gained without the errors of one kind:"]
        lines += [f"  {e:<15}{self.counts[e]:>8}  {self.gains[e]:+.4f}  {MEANING[e]}" for e in ERRORS]
        lines.append(f"  {'all false positives':<25}{self.false_positives:+.4f}")
        return "\n".join([*lines, f"  {'all false negatives':<25}{self.false_negatives:+.4f}"])


class _Judged(NamedTuple):
    """The detections of one picture, best first, and its objects that count."""

    label: Array
    score: Array
    right: Array
    ignored: Array
    error: Array  # index into ERRORS, -1 for right ones
    repaired: Array  # True where the repair makes it right, else it is taken away
    repaired_label: Array
    truth_label: Array
    found: Array
    missed: Array


def tide(metric: Kept, *, iou: float = 0.5, background: float = 0.1, kind: Shape = "bbox") -> Tide:
    """The breakdown of a detection metric's records by boxes, or by masks where they were kept.

    `iou` is asked of a right detection; below `background` with every object a detection is on background. Raises MetricError if
    0 < background < iou <= 1 does not hold or there are no masks.
    """
    if not 0 < background < iou <= 1:
        raise MetricError(f"tide: expected 0 < background < iou <= 1, found background={background} and iou={iou}")
    judged = [_judge(metric.records[id], _overlaps(metric.records[id], id, kind), iou, background) for id in metric.ids]
    if not judged:
        raise MetricError("tide: no picture was scored, expected at least one")
    flat = _Judged._make(np.concatenate(parts) for parts in zip(*judged, strict=True))
    classes = len(metric.names)
    positives = np.bincount(flat.truth_label, minlength=classes)
    counted = ~flat.ignored
    base = _mean_ap(flat.label[counted], flat.score[counted], flat.right[counted], positives)
    # the reference lists wrong detections before right ones when it repairs; ties are broken by that order
    order = np.argsort(flat.right, kind="stable")
    flat = _Judged._make([*(part[order] for part in flat[:7]), *flat[7:]])
    gains: dict[Error, float] = {}
    for index, name in enumerate(ERRORS):
        mine = flat.error == index
        kept = np.where(mine, flat.repaired, ~flat.ignored)
        label = np.where(mine, flat.repaired_label, flat.label)
        missed = np.bincount(flat.truth_label[flat.missed], minlength=classes) if index == MISSED else 0
        fixed = _mean_ap(label[kept], flat.score[kept], (flat.right | mine)[kept], positives - missed)
        gains[name] = max(fixed - base, 0.0)
    counts: dict[Error, int] = {name: int((flat.error == index).sum()) for index, name in enumerate(ERRORS)}
    counts["missed"] = int(flat.missed.sum())
    label, score, right = (part[~flat.ignored] for part in (flat.label, flat.score, flat.right))
    precise = _mean_ap(label, right.astype(float), right, positives) - base
    complete = _mean_ap(label, score, right, np.bincount(flat.truth_label[flat.found], minlength=classes)) - base
    return Tide(base, gains, counts, precise, complete, iou, background)


def _overlaps(record: Scored, id: str, kind: Shape) -> Array:
    """(N, M) IoU of detections and objects; with regions to ignore, the share of the detection that they cover."""
    if kind == "bbox":
        values = overlap(record.boxes, record.truth_boxes)
        values[:, record.crowd] = overlap(record.boxes, record.truth_boxes[record.crowd], crowd=True)
        return values
    if record.masks is None or record.truth_masks is None:
        raise MetricError(f"tide: {id}: masks were not kept; construct the metric with masks=True")
    import torch

    return mask_iou(record.masks, record.truth_masks, torch.from_numpy(record.crowd.copy())).numpy()


def _judge(record: Scored, overlaps: Array, iou: float, background: float) -> _Judged:
    order = np.argsort(-record.scores, kind="stable")[:LIMIT]
    label, truth = record.labels[order], record.truth_labels[~record.crowd]
    values, covered = overlaps[order][:, ~record.crowd], overlaps[order][:, record.crowd]
    same = label[:, None] == truth[None]
    own = values * same
    right, used = _assign(own, iou)
    ignored = ~right & ((covered > iou) & (label[:, None] == record.truth_labels[record.crowd][None])).any(1)
    error, at = np.full(len(order), BACKGROUND), np.zeros(len(order), int)
    if len(truth):
        other = values * ~same
        nearly = (own.max(1) >= background) & (own.max(1) <= iou)
        conditions = [nearly, other.max(1) >= iou, (own * used).max(1) >= iou, values.max(1) <= background]
        error = np.select(conditions, [LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND], BOTH)
        at = np.where(error == LOCALISATION, own.argmax(1), other.argmax(1))
    error[right] = -1
    useful = np.isin(error, (CLASSIFICATION, LOCALISATION))
    useful[useful] = ~used[at[useful]]
    objects, place = np.unique(at[useful], return_index=True)  # one error can be repaired for each object: the best score's
    repaired, usable = np.zeros(len(order), bool), np.zeros(len(truth), bool)
    repaired[np.flatnonzero(useful)[place]] = True
    usable[objects] = True
    repaired_label = np.where(useful, truth[at], label) if len(truth) else label
    return _Judged(label, record.scores[order], right, ignored, error, repaired, repaired_label, truth, used, ~used & ~usable)


def _assign(own: Array, iou: float) -> tuple[Array, Array]:
    """Best score first, a detection takes the free object of its class with the highest IoU >= `iou`."""
    right, used = np.zeros(own.shape[0], bool), np.zeros(own.shape[1], bool)
    if own.size:
        for index in np.flatnonzero(own.max(1) >= iou):
            free = np.where(used, 0.0, own[index])
            best = int(free.argmax())
            if free[best] >= iou:
                right[index] = used[best] = True
    return right, used


_POINTS = np.arange(101) / 100


def _mean_ap(label: Array, score: Array, right: Array, positives: Array) -> float:
    """The mean over the classes that have objects or detections, 0 if there is none."""
    order = np.lexsort((-score, label))
    label, right = label[order], right[order]
    starts = np.searchsorted(label, np.arange(len(positives) + 1))
    values: list[float] = []
    for index, total in enumerate(positives):
        hits = right[starts[index] : starts[index + 1]]
        if total and len(hits):
            true = np.cumsum(hits)
            precision = true / np.arange(1, len(hits) + 1)
            values.append(area_under(np.maximum.accumulate(precision[::-1])[::-1], true / total, _POINTS))
        elif total or len(hits):
            values.append(0.0)
    return float(np.mean(values)) if values else 0.0
