"""anchors: the box sizes that stand best for a detection data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opticus.data.open import open_data
from opticus.matching.clusters import cluster_sides
from opticus.structures import CapabilityError, DataError, Instances


@dataclass(frozen=True)
class Anchors:
    """`sides` are (width, height) in pixels by rising area; `overlap` the mean IoU of a box with its best anchor."""

    sides: tuple[tuple[float, float], ...]
    boxes: int
    overlap: float
    covered: float  # share of boxes whose best anchor has an IoU of at least 0.5

    def table(self) -> str:
        """Lines for people: one anchor each, and how well they cover the boxes."""
        lines = [f"{width:8.1f} x {height:.1f}" for width, height in self.sides]
        return "\n".join([*lines, f"mean IoU {self.overlap:.3f}, {self.covered:.1%} of {self.boxes:,} boxes above 0.5"])

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {"sides": [list(s) for s in self.sides], "boxes": self.boxes, "overlap": self.overlap, "covered": self.covered}


def anchors(data: str | Path, *, count: int = 9, side: int | None = None, split: str = "train", seed: int = 0) -> Anchors:
    """`count` anchors for the boxes of `data` by k-means on IoU; crowd regions and boxes without area are left out.

    `side` measures boxes in pictures whose longer side is so many pixels (a letterbox network's input), None as annotated.
    """
    source = open_data(data, split)
    if source.task != "detect":
        raise CapabilityError(f"{data}: anchors need boxes, this data is for {source.task}")
    found: list[torch.Tensor] = []
    for i in range(len(source)):
        target = source.target_of(i)
        if not isinstance(target, Instances):
            raise DataError(f"{source.id_of(i)}: has no boxes")
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        usable = (sides > 0).all(1)
        if target.crowd is not None:
            usable &= ~target.crowd.bool()
        found.append(sides[usable] * (1.0 if side is None else side / max(target.size)))
    sides = torch.cat([torch.zeros(0, 2), *found])
    if len(sides) == 0:
        raise DataError(f"{data}: the {split} split has no boxes")
    clusters = cluster_sides(sides, count, seed=seed)
    rows = tuple((round(w, 2), round(h, 2)) for w, h in clusters.sides.tolist())
    return Anchors(rows, len(sides), float(clusters.overlaps.mean()), float((clusters.overlaps >= 0.5).double().mean()))
