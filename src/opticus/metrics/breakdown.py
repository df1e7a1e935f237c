"""How much a detector finds, by the size of the objects and by how crowded they stand."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.metrics.detect import AREAS
from opticus.metrics.mistakes import Kept, found_objects, overlap

Array = npt.NDArray[Any]
CROWDING = (("alone", 0.0, 1e-9), ("touched", 1e-9, 0.1), ("overlapped", 0.1, 0.3), ("crowded", 0.3, 1.01))  # IoU with a neighbour
COMPANY = (("1 object", 1, 2), ("2 to 3 objects", 2, 4), ("4 to 7 objects", 4, 8), ("8 and more", 8, 10**9))  # in the picture


class Share(NamedTuple):
    """A group of objects: how many there are, and how many of them are found."""

    axis: str
    group: str
    objects: int
    found: int

    @property
    def recall(self) -> float:
        """Found objects per object."""
        return self.found / self.objects


class Breakdown(NamedTuple):
    """The groups of every axis, at one IoU and score threshold."""

    iou: float
    score: float
    shares: tuple[Share, ...]

    def rows(self) -> list[dict[str, Any]]:
        """For a table of a report."""
        return [
            {"by": s.axis, "group": s.group, "objects": s.objects, "found": s.found, "recall": round(s.recall, 4)}
            for s in self.shares
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"iou": self.iou, "score": self.score, "groups": self.rows()}

    def text(self) -> str:
        """A table in plain text."""
        lines = [f"found by a detection of the class with IoU >= {self.iou:g} and score >= {self.score:g}:"]
        return "\n".join(
            [*lines, *(f"  {s.axis:<22}{s.group:<16}{s.found:>7} of {s.objects:<7}{s.recall:.4f}" for s in self.shares)]
        )


def breakdown(metric: Kept, *, iou: float = 0.5, score: float = 0.3) -> Breakdown:
    """Shares of the objects that are found: by a detection of the object's class that scores at least `score` and overlaps it by `iou` or more.

    Groups: COCO's three sizes; the largest IoU with another object of the picture; the number of objects in the picture. Crowd
    regions are no objects, and groups without objects are left out.
    """
    sizes: list[Array] = []
    nearest: list[Array] = []
    company: list[Array] = []
    hits: list[Array] = []
    for id in metric.ids:
        record = metric.records[id]
        own = ~record.crowd.astype(bool)
        boxes, count = record.truth_boxes[own], int(own.sum())
        with_others = overlap(boxes, boxes) * (1 - np.eye(count))
        sizes.append(record.truth_areas[own])
        nearest.append(with_others.max(1) if count else np.zeros(0))
        company.append(np.full(count, count))
        hits.append(found_objects(record, iou, score)[own])
    area, near, many, hit = (np.concatenate([np.zeros(0), *parts]) for parts in (sizes, nearest, company, hits))
    bounds = [(name, *AREAS[name]) for name in ("small", "medium", "large")]
    axes = (("size", area, bounds), ("IoU with a neighbour", near, CROWDING), ("company", many, COMPANY))
    shares: list[Share] = []
    for axis, values, groups in axes:
        for name, low, high in groups:
            inside = (values >= low) & (values < high)
            if inside.any():
                shares.append(Share(axis, name, int(inside.sum()), int(hit[inside].sum())))
    return Breakdown(iou, score, tuple(shares))
