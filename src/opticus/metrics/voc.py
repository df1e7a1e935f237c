"""Pascal VOC's average precision: eleven recall points (2007) or the whole area (2010 and later), objects marked difficult set aside.

Protocol: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, as fixed by the development kit's
VOCevaldet.m and VOCap.m. Boxes are xyxy corners here (the reader turns VOC's inclusive pixels x0..x1 into x0 - 1, x1), so that an
overlap is the kit's. Unlike COCO's rule, a detection goes to the object that it overlaps most even if that is taken already, and
it is then wrong; one that goes to a difficult object (the field `crowd`) counts neither way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opticus.metrics.detect import Scored, ordered, record_of
from opticus.metrics.mistakes import overlap
from opticus.metrics.tables import ELEVEN, Matches, Rule, average_precision
from opticus.structures import MetricError, Result, Target

Array = npt.NDArray[Any]


class VocDetection:
    """The VOC protocol for boxes; labels are 0..K-1 with `names`, `rule` "voc07" or "voc10", `iou` the overlap that is asked for.

    `data` and `split` identify what was scored. mAP is the mean over the classes with ground truth, -1 if there is none.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        rule: Literal["voc07", "voc10"] = "voc10",
        iou: float = 0.5,
        data: str = "",
        split: str = "",
    ) -> None:
        if not 0 < iou <= 1:
            raise MetricError(f"VOC detection: iou must be above 0 and at most 1, found {iou}")
        self.names = tuple(names)
        self.rule: Rule = rule
        self.iou = iou
        self.data = data
        self.split = split
        self._records: dict[str, Scored] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two numbers to be comparable."""
        return {
            "metric": self.rule,
            "iouThr": self.iou,
            "recall": "all points" if self.rule == "voc10" else [round(float(value), 1) for value in ELEVEN],
            "difficult": "ignored",
            "data": self.data,
            "split": self.split,
            "images": len(self._records),
            "truths": sum(len(record.truth_labels) for record in self._records.values()),
            "classes": list(self.names),
        }

    def update(self, prediction: Result, target: Target, id: str) -> None:
        """Score one picture; both in original pixels. A repeated `id` (a distributed sampler's padding) is counted once.

        Raises MetricError for another type, missing scores, a non-finite number or a label out of range.
        """
        if not id:
            raise MetricError("detection: a picture without an id cannot be told from the others, found ''")
        if id not in self._records:
            self._records[id] = record_of(prediction, target, id, len(self.names))

    @property
    def ids(self) -> list[str]:
        """The ids of the scored pictures: whole numbers in numeric order, then the others alphabetically."""
        return ordered(self._records)

    @property
    def records(self) -> Mapping[str, Scored]:
        """Truth and detections of every picture by id."""
        return self._records

    def matches(self) -> Matches:
        """The decision about every detection; `ignored` are those that went to a difficult object."""
        if not self._records:
            raise MetricError("VOC detection: no picture was scored, expected at least one")
        records = [self._records[id] for id in self.ids]
        firsts = np.cumsum([0, *(len(record.truth_labels) for record in records)])
        best = [_best(record) for record in records]
        object_of = np.concatenate([index + first for (index, _), first in zip(best, firsts, strict=False)])
        near = np.concatenate([value for _, value in best]) >= self.iou
        image = np.repeat(np.arange(len(records)), [len(record.labels) for record in records])
        label, score = (np.concatenate([getattr(record, key) for record in records]) for key in ("labels", "scores"))
        order = np.lexsort((image, -score, label))
        image, label, score, object_of, near = (part[order] for part in (image, label, score, object_of, near))
        crowd = np.concatenate([record.crowd for record in records])
        ignored, first = np.zeros(len(order), bool), np.zeros(len(order), bool)
        ignored[near] = crowd[object_of[near]]
        _, place = np.unique(object_of[near], return_index=True)  # the best score that went to each object
        first[np.flatnonzero(near)[place]] = True
        truth_image = np.repeat(np.arange(len(records)), np.diff(firsts))[~crowd]
        truth_label = np.concatenate([record.truth_labels for record in records])[~crowd]
        flags = ((first & ~ignored)[:, None], ignored[:, None])
        return Matches(image, label, score, *flags, truth_image, truth_label, len(records), len(self.names))

    def compute(self) -> dict[str, float]:
        """mAP in [0, 1]."""
        known = self._by_class()
        known = known[np.isfinite(known)]
        return {"mAP": float(known.mean()) if known.size else -1.0}

    def per_class(self) -> list[dict[str, Any]]:
        """Per class: name, ground truths that count, detections, AP (None without ground truth)."""
        values = self._by_class()
        count = len(self.names)
        records = self._records.values()
        truths = sum((np.bincount(r.truth_labels[~r.crowd], minlength=count) for r in records), np.zeros(count, int))
        claims = sum((np.bincount(r.labels, minlength=count) for r in records), np.zeros(count, int))
        return [
            {"name": name, "truths": int(t), "detections": int(c), "AP": float(value) if np.isfinite(value) else None}
            for name, t, c, value in zip(self.names, truths, claims, values, strict=True)
        ]

    def state(self) -> dict[str, Scored]:
        """What another process needs to `merge` (numpy, picklable)."""
        return dict(self._records)

    def merge(self, state: Mapping[str, Scored]) -> None:
        """Add another process's `state`; ids already present are left alone."""
        for key, record in state.items():
            self._records.setdefault(key, record)

    def _by_class(self) -> npt.NDArray[np.float64]:
        return average_precision(self.matches(), rule=self.rule)[0, :, 0]


def _best(record: Scored) -> tuple[Array, Array]:
    """For every detection the object of its class that it overlaps most, taken or not, and that IoU (0, -1.0 where there is none)."""
    if not len(record.truth_labels) or not len(record.labels):
        return np.zeros(len(record.labels), int), np.full(len(record.labels), -1.0)
    same = record.labels[:, None] == record.truth_labels[None]
    values = np.where(same, overlap(record.boxes, record.truth_boxes), -1.0)
    index = values.argmax(1)
    return index, values[np.arange(len(index)), index]
