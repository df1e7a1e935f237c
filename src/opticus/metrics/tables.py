"""Match tables: what a COCO evaluation decided about every detection, in flat arrays, and the numbers that follow from them.

The bootstrap needs AP of thousands of resampled data sets. Matching never crosses pictures, so it is done once; a resampled AP is
then a cumulative sum weighted by how often each picture was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)  # COCO's IoU thresholds
RECALLS: Floats = np.linspace(0.0, 1.0, 101)  # COCO's recall points
ELEVEN: Floats = np.array(
    [0, 0.1, 0.2, 3 * 0.1, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
)  # VOC 2007's 0:0.1:1 as MATLAB builds it from both ends
Rule = Literal["coco", "voc07", "voc10"]
POINTS: dict[Rule, Floats | None] = {"coco": RECALLS, "voc07": ELEVEN, "voc10": None}  # None: the whole area under the envelope


class Matches(NamedTuple):
    """One evaluation: D detections sorted by class, then score (best first), then picture; G ground truths that count.

    `image` (D,) index of the picture; `label` (D,); `score` (D,); `matched`, `ignored` (D, T) at each IoU threshold; `truth_image`,
    `truth_label` (G,); `images`, `classes` their numbers.
    """

    image: Array
    label: Array
    score: Array
    matched: Array
    ignored: Array
    truth_image: Array
    truth_label: Array
    images: int
    classes: int

    def to_arrays(self) -> dict[str, Array]:
        """Flat arrays to be stored; the match flags of up to 16 thresholds are packed into one integer each."""
        bits = 1 << np.arange(self.matched.shape[1], dtype=np.int32)
        return {
            "image": self.image.astype(np.int32),
            "label": self.label.astype(np.int32),
            "score": self.score.astype(np.float64),
            "matched": (self.matched * bits).sum(1, dtype=np.int32),
            "ignored": (self.ignored * bits).sum(1, dtype=np.int32),
            "truth_image": self.truth_image.astype(np.int32),
            "truth_label": self.truth_label.astype(np.int32),
            "shape": np.array([self.images, self.classes, self.matched.shape[1]], np.int32),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, Array]) -> Matches:
        """The inverse of `to_arrays`."""
        images, classes, thresholds = (int(value) for value in arrays["shape"])
        bits = 1 << np.arange(thresholds, dtype=np.int32)
        flags = [(arrays[key][:, None] & bits) > 0 for key in ("matched", "ignored")]
        head = (arrays["image"], arrays["label"], arrays["score"])
        return Matches(*head, flags[0], flags[1], arrays["truth_image"], arrays["truth_label"], images, classes)


def average_precision(matches: Matches, weights: Floats | None = None, rule: Rule = "coco") -> Floats:
    """AP (R, K, T) of R resampled data sets; NaN where a class has no ground truth in the resample.

    `rule`: the mean of the precision envelope at COCO's 101 or VOC 2007's 11 recall points, or (VOC from 2010 on) the area under it.
    `weights` (R, images) says how often each picture was drawn; None is the data set itself (R = 1). Equal to COCO's AP for whole
    weights, because the copies of a picture carry tied scores and lie side by side.
    """
    draws = np.ones((1, matches.images)) if weights is None else weights
    values = np.full((len(draws), matches.classes, matches.matched.shape[1]), np.nan)
    starts = np.searchsorted(matches.label, np.arange(matches.classes + 1))
    for label in range(matches.classes):
        totals = draws[:, matches.truth_image[matches.truth_label == label]].sum(1)
        rows = slice(starts[label], starts[label + 1])
        for column in range(values.shape[2]):
            values[:, label, column] = _one(matches, rows, column, draws, totals, POINTS[rule])
    return values


def _one(matches: Matches, rows: slice, column: int, draws: Floats, totals: Floats, points: Floats | None) -> Floats:
    """AP (R,) of one class at one IoU threshold; detections behind the last true positive cannot change it and are left out."""
    counts = ~matches.ignored[rows, column]
    hits = matches.matched[rows, column][counts]
    found = np.flatnonzero(hits)
    result = np.where(totals > 0, 0.0, np.nan)
    if not len(found):
        return result
    image = matches.image[rows][counts][: found[-1] + 1]
    for start in range(0, len(draws), chunk := max(1, 4_000_000 // len(image))):
        part = slice(start, start + chunk)
        weight = draws[part][:, image]
        both = np.cumsum(weight, 1)[:, found]
        right = np.cumsum(weight[:, found], 1)
        precision = right / (both + np.spacing(1.0))
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        for row in range(len(weight)):
            total = totals[start + row]
            if total > 0:
                result[start + row] = area_under(envelope[row], right[row] / total, points)
    return result


def area_under(envelope: Floats, recall: Floats, points: Floats | None) -> float:
    """The mean of a falling precision `envelope` at recall `points` (0 beyond the last `recall`), or the whole area if None."""
    if points is None:
        return float((np.diff(recall, prepend=0.0) * envelope).sum())
    index = np.searchsorted(recall, points, side="left")
    return float(envelope[index[index < len(recall)]].sum() / len(points))


def operating_point(matches: Matches, threshold: float, column: int = 0) -> dict[str, float]:
    """Precision and recall over all classes of the detections with score >= `threshold`, at IoU threshold number `column`."""
    kept = (matches.score >= threshold) & ~matches.ignored[:, column]
    right = int((kept & matches.matched[:, column]).sum())
    claimed, truths = int(kept.sum()), len(matches.truth_label)
    return {
        "precision": right / claimed if claimed else 0.0,
        "recall": right / truths if truths else 0.0,
        "right": right,
        "detections": claimed,
        "truths": truths,
    }
