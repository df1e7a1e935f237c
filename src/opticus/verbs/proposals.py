"""proposals: how many of a data set's objects class-free boxes find (recall at N, mean average best overlap)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from opticus.data.open import open_data
from opticus.matching.selective_search import selective_search
from opticus.models.classical._edge_boxes import edge_boxes
from opticus.ops.iou import iou
from opticus.structures import CapabilityError, DataError, Instances, Picture, UnknownNameError, UsageError


def sliding_windows(picture: Picture, *, limit: int = 2000, seed: int = 0) -> Any:
    """(N, 4) boxes of a dense grid over positions, sizes and shapes, in random order: what proposals have to beat."""
    height, width = picture.size
    boxes: list[list[float]] = []
    for share in (0.12, 0.2, 0.33, 0.55, 0.9):
        for ratio in (0.5, 1.0, 2.0):
            w, h = min(height, width) * share / ratio**0.5, min(height, width) * share * ratio**0.5
            for y in range(0, max(int(height - h), 0) + 1, max(int(h / 3), 1)):
                boxes += [[float(x), float(y), x + w, y + h] for x in range(0, max(int(width - w), 0) + 1, max(int(w / 3), 1))]
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed))[:limit]
    return torch.tensor(boxes)[order].numpy()


METHODS: dict[str, Callable[..., Any]] = {
    "selective-search": selective_search,
    "edge-boxes": edge_boxes,
    "sliding-windows": sliding_windows,
}


@dataclass(frozen=True)
class Proposals:
    """`recall` at IoU 0.5 by number of boxes a picture, and `mabo`, the mean over classes of the mean best overlap."""

    method: str
    pictures: int
    objects: int
    boxes: float  # a picture, on average
    recall: dict[int, float]
    mabo: float

    def table(self) -> str:
        """One line for people."""
        shares = ", ".join(f"{value:.3f} at {n}" for n, value in self.recall.items())
        return f"{self.method}: recall {shares}; MABO {self.mabo:.3f}; {self.boxes:.0f} boxes a picture, {self.objects} objects"

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        recall = {str(n): value for n, value in self.recall.items()}
        return {"method": self.method, "pictures": self.pictures, "objects": self.objects, "boxes": self.boxes,
                "recall": recall, "mabo": self.mabo, "iou": 0.5}  # fmt: skip


def proposals(
    data: str | Path,
    *,
    method: str = "selective-search",
    limit: int = 2000,
    pictures: int | None = None,
    split: str = "test",
    seed: int = 0,
    file: str | Path | None = None,
    quiet: bool = False,
) -> Proposals:
    """Score `method` with at most `limit` boxes on the first `pictures` of `data`.

    Methods: "selective-search", "sliding-windows", and "edge-boxes", which needs opencv-contrib and its edge model in `file`.
    """
    if method not in METHODS:
        raise UnknownNameError("proposal method", method, METHODS)
    if file is not None and method != "edge-boxes":
        raise UsageError(f"proposals: file= is the edge model of method=edge-boxes, {method} needs none")
    more = {"file": file} if method == "edge-boxes" else {}
    source = open_data(data, split)
    if source.task != "detect":
        raise CapabilityError(f"{data}: proposals are scored on boxes, this data is for {source.task}")
    count = len(source) if pictures is None else min(pictures, len(source))
    at = [n for n in (10, 100, 1000) if n < limit] + [limit]
    best: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    boxes = 0
    for i in tqdm(range(count), desc=method, unit="img", file=sys.stderr, disable=quiet, leave=False):
        sample = source[i]
        if not isinstance(sample.target, Instances):
            raise DataError(f"{sample.id}: has no boxes")
        found = torch.as_tensor(METHODS[method](sample.picture, limit=limit, seed=seed, **more), dtype=torch.float32)
        overlaps = iou(sample.target.boxes, found)
        boxes += len(found)
        best.append(torch.stack([_most(overlaps[:, :n]) for n in at], 1))
        labels.append(sample.target.labels)
    every, kinds = torch.cat([torch.zeros(0, len(at)), *best]), torch.cat([torch.zeros(0, dtype=torch.int64), *labels])
    if len(every) == 0:
        raise DataError(f"{data}: the first {count} pictures of the {split} split have no objects")
    recall = {n: float((every[:, k] >= 0.5).double().mean()) for k, n in enumerate(at)}
    means = [float(every[kinds == kind, -1].mean()) for kind in kinds.unique()]
    return Proposals(method, count, len(every), boxes / count, recall, sum(means) / len(means))


def _most(overlaps: torch.Tensor) -> torch.Tensor:
    return overlaps.amax(1) if overlaps.shape[1] else overlaps.new_zeros(len(overlaps))
