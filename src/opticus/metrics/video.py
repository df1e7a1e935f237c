"""Video object segmentation as DAVIS scores it: region similarity J, contour accuracy F, and their mean J&F.

Perazzi et al., CVPR 2016 (J and F); Pont-Tuset et al., arXiv 1704.00675 (DAVIS 2017: objects averaged).
Reference: davisvideochallenge/davis2017-evaluation (BSD-3-Clause), whose semi-supervised figures these equal.

*Differs*: the reference holds frame numbers in eight bits, so that its decay is meaningless beyond 257 frames; here it is not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from opticus.structures import MetricError

TOLERANCE = 0.008  # of the frame's diagonal: how far contours may lie apart
VOID = 255  # id of pixels that belong to no object and to no background
HALF = 0.5  # recall: share of frames above it
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.uint8]


class Statistics(NamedTuple):
    """One object's figures over its frames: mean, share of frames above one half, and what is lost from first to last quarter."""

    mean: float
    recall: float
    decay: float


def region_similarity(truth: Bools, predicted: Bools, void: Bools | None = None) -> Floats:
    """Jaccard index of masks (..., H, W), per frame; 1 where neither shows the object. `void` pixels count for nothing."""
    _alike(truth, predicted, void)
    seen = np.ones_like(truth) if void is None else ~void
    both = np.count_nonzero(truth & predicted & seen, (-2, -1))
    either = np.count_nonzero((truth | predicted) & seen, (-2, -1))
    return np.divide(both, either, out=np.ones(np.shape(both), np.float64), where=np.asarray(either) > 0)


def contour_accuracy(truth: Bools, predicted: Bools, void: Bools | None = None, tolerance: float = TOLERANCE) -> Floats:
    """F measure of contours of masks (..., H, W), per frame: harmonic mean of precision and recall of contour pixels.

    A contour pixel is right if the other contour has one within ceil(`tolerance` x diagonal) pixels. Without either contour F is 1,
    with one of them 0. `void` pixels are taken as background before contours are drawn.
    """
    _alike(truth, predicted, void)
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    shape = truth.shape
    radius = math.ceil(tolerance * math.hypot(*shape[-2:]))
    mine, theirs = (contours(np.reshape(one, (-1, *shape[-2:]))) for one in (predicted, truth))
    window = _window(mine | theirs)  # nothing outside of it is on a contour
    mine, theirs = mine[window], theirs[window]
    near_mine, near_theirs = dilated(mine, radius), dilated(theirs, radius)
    count, total = (np.count_nonzero(one, (1, 2)) for one in (mine, theirs))
    right = np.count_nonzero(mine & near_theirs, (1, 2))
    found = np.count_nonzero(theirs & near_mine, (1, 2))
    precision = np.where(count > 0, right / np.maximum(count, 1), 1.0)
    recall = np.where(total > 0, found / np.maximum(total, 1), 1.0)
    both = precision + recall
    return np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0).reshape(shape[:-2])


def contours(masks: Bools) -> Bools:
    """One-pixel contours of masks (N, H, W): pixels that differ from their right, lower or lower right neighbour."""
    out = np.zeros_like(masks)
    out[:, :-1, :-1] = masks[:, :-1, :-1] ^ masks[:, :-1, 1:]
    out[:, :-1, :-1] |= masks[:, :-1, :-1] ^ masks[:, 1:, :-1]
    out[:, :-1, :-1] |= masks[:, :-1, :-1] ^ masks[:, 1:, 1:]
    out[:, -1, :-1] = masks[:, -1, :-1] ^ masks[:, -1, 1:]
    out[:, :-1, -1] = masks[:, :-1, -1] ^ masks[:, 1:, -1]
    return out


def dilated(masks: Bools, radius: int) -> Bools:
    """Masks (N, H, W) grown by a disk of `radius` pixels, x^2 + y^2 <= radius^2.

    Rows are grown by one pixel at a time; whenever the disk has lines of that half length, they are laid over the rows they reach.
    """
    rows, out = masks.copy(), np.zeros_like(masks)
    halves = [math.isqrt(radius * radius - dy * dy) for dy in range(radius + 1)]
    for half in range(radius + 1):
        if half:
            rows[:, :, half:] |= masks[:, :, :-half]
            rows[:, :, :-half] |= masks[:, :, half:]
        for dy in (dy for dy, one in enumerate(halves) if one == half):
            out[:, dy:] |= rows[:, : max(rows.shape[1] - dy, 0)]
            out[:, : max(rows.shape[1] - dy, 0)] |= rows[:, dy:]
    return out


def statistics(values: Floats) -> Statistics:
    """Mean, recall and decay of one object's values (T,) over frames; the decay is the first of four overlapping bins less the last."""
    edges = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(np.int64)
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return Statistics(float(values.mean()), float((values > HALF).mean()), float(first.mean() - last.mean()))


class VideoSegmentation:
    """J&F of DAVIS 2017, semi-supervised: the first frame's objects are given; the first and the last frame are not scored.

    Numbers: "J&F", "J", "J_recall", "J_decay", "F", "F_recall", "F_decay", averaged over the objects of all sequences. An object id that
    the first frame does not show is background in the truth. Pixels of id 255 are background, as in the reference's semi-supervised
    task, or, with `void=True`, left out, as in its unsupervised one.
    """

    def __init__(self, data: str = "", split: str = "", *, void: bool = False) -> None:
        self.void = void
        self.protocol: dict[str, Any] = {
            "measure": "DAVIS 2017 J&F",
            "task": "semi-supervised",
            "frames": "all but first and last",
            "contour tolerance": TOLERANCE,
            "void": "left out" if void else "background",
            "data": data,
            "split": split,
        }
        self._rows: dict[str, tuple[Floats, Floats]] = {}

    @property
    def ids(self) -> list[str]:
        """The scored sequences, sorted."""
        return sorted(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def update(self, prediction: Tensor | npt.NDArray[Any], target: Tensor | npt.NDArray[Any], id: str) -> None:
        """Score sequence `id`: object ids (T, H, W) of all its frames, 0 background; a sequence that was scored before is left alone.

        MetricError for unlike sizes, fewer than three frames, no object in the first frame, or a predicted id above its largest.
        """
        if id in self._rows:
            return
        said, truth = (_ids(one, id) for one in (prediction, target))
        if said.shape != truth.shape:
            raise MetricError(f"{id}: expected object ids of shape {truth.shape} (frames, H, W), found {said.shape}")
        if len(truth) < 3:
            raise MetricError(f"{id}: the first and the last frame are not scored, so at least 3 are needed, found {len(truth)}")
        void = truth == VOID
        count = int(truth[0][~void[0]].max(initial=0))
        if count == 0:
            raise MetricError(f"{id}: the first frame's annotation shows no object")
        said, truth, void = said[1:-1], np.where(void, 0, truth)[1:-1], void[1:-1]
        if int(said.max()) > count:
            raise MetricError(f"{id}: object {int(said.max())} is predicted, but the first frame has objects up to {count}")
        blank = void if self.void else None
        pairs = [(truth == k, said == k) for k in range(1, count + 1)]
        regions = np.stack([region_similarity(a, b, blank) for a, b in pairs])
        edges = np.stack([contour_accuracy(a, b, blank) for a, b in pairs])
        self._rows[id] = (regions, edges)

    def per_object(self) -> list[dict[str, Any]]:
        """A row per object: "sequence", "object" (1..), "J", "J_recall", "J_decay", "F", "F_recall", "F_decay"."""
        return [
            {
                "sequence": name,
                "object": k + 1,
                **{
                    f"{letter}{suffix}": value
                    for letter, values in zip("JF", self._rows[name], strict=True)
                    for suffix, value in zip(("", "_recall", "_decay"), statistics(values[k]), strict=True)
                },
            }
            for name in self.ids
            for k in range(len(self._rows[name][0]))
        ]

    def per_frame(self, id: str) -> tuple[Floats, Floats]:
        """J and F (objects, frames - 2) of one sequence."""
        return self._rows[id]

    def compute(self) -> dict[str, float]:
        """The numbers, in [0, 1] (decays in [-1, 1]); MetricError without a sequence."""
        if not self._rows:
            raise MetricError("J&F: no sequence was scored, expected at least one")
        rows = self.per_object()
        names = ("J", "J_recall", "J_decay", "F", "F_recall", "F_decay")
        means = {name: float(np.mean([row[name] for row in rows])) for name in names}
        return {"J&F": (means["J"] + means["F"]) / 2, **means}

    def state(self) -> dict[str, Any]:
        """What another process needs to `merge`."""
        return dict(self._rows)

    def merge(self, state: dict[str, Any]) -> None:
        """Add another process's `state`; sequences already present are left alone."""
        for key, value in state.items():
            self._rows.setdefault(key, value)

    def samples(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays for a passport: `starts` (S + 1,) of each sequence's objects, and (N, 6) figures of the objects."""
        rows = self.per_object()
        counts = [len(self._rows[name][0]) for name in self.ids]
        names = ("J", "J_recall", "J_decay", "F", "F_recall", "F_decay")
        return {
            "starts": np.cumsum([0, *counts]),
            "objects": np.asarray([[row[name] for name in names] for row in rows], np.float64),
        }


def resampled(group: dict[str, npt.NDArray[Any]], draws: Floats) -> dict[str, Floats]:
    """Every number for R weightings (R, S) of the sequences: `compare`'s bootstrap over sequences."""
    counts = np.diff(group["starts"])
    totals = np.stack([part.sum(0) for part in np.split(group["objects"], group["starts"][1:-1])])
    means = (draws @ totals) / np.maximum(draws @ counts, 1)[:, None]
    names = ("J", "J_recall", "J_decay", "F", "F_recall", "F_decay")
    found = {name: means[:, i] for i, name in enumerate(names)}
    return {"J&F": (found["J"] + found["F"]) / 2, **found}


def _alike(truth: Bools, predicted: Bools, void: Bools | None) -> None:
    for name, one in (("predicted", predicted), ("void", void)):
        if one is not None and one.shape != truth.shape:
            raise MetricError(f"masks of unlike shapes: truth {truth.shape}, {name} {one.shape}")


def _ids(values: Tensor | npt.NDArray[Any], id: str) -> Ids:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 3 or (array.size and not (array.min() >= 0 and array.max() <= VOID)):
        raise MetricError(f"{id}: object ids must have shape (frames, H, W) and lie in 0..{VOID}, found shape {array.shape}")
    return array.astype(np.uint8)


def _window(masks: Bools) -> tuple[slice, slice, slice]:
    """The smallest window of all frames that holds every True."""
    rows, columns = np.flatnonzero(masks.any((0, 2))), np.flatnonzero(masks.any((0, 1)))
    if not len(rows):
        return slice(None), slice(0, 1), slice(0, 1)
    return slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


__all__ = [
    "VOID",
    "Statistics",
    "VideoSegmentation",
    "contour_accuracy",
    "contours",
    "dilated",
    "region_similarity",
    "resampled",
    "statistics",
]
