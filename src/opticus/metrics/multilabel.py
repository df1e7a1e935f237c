"""Multi-label numbers: mean average precision over classes, and precision, recall and F1 at a probability of one half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from opticus.metrics.classify import ClassMistake
from opticus.structures import Classes, MetricError, Result, Target

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
THRESHOLD = 0.5


class TagPrecision:
    """mAP over classes, CF1 (mean of the classes' F1) and OF1 (F1 over all decisions), as the multi-label literature reports them.

    A class without a positive in the data has no average precision and is left out of the means. `names` are the class names.
    """

    def __init__(self, names: Sequence[str], *, data: str = "", split: str = "") -> None:
        self.names = tuple(names)
        self.data = data
        self.split = split
        self._rows: dict[str, tuple[npt.NDArray[np.float32], Bools]] = {}  # id -> probabilities, truth

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two of these numbers to be comparable."""
        return {
            "metric": "mean average precision",
            "task": "several labels",
            "threshold": THRESHOLD,
            "data": self.data,
            "split": self.split,
            "samples": len(self._rows),
            "classes": list(self.names),
        }

    @property
    def ids(self) -> list[str]:
        """The ids of the scored samples, sorted."""
        return sorted(self._rows)

    def update(self, prediction: Result, target: Target, id: str) -> None:
        """Score one sample; a repeated `id` counts once. MetricError if either side is not `Classes` or a label is out of range."""
        if not isinstance(prediction, Classes) or not isinstance(target, Classes):
            found = f"{type(prediction).__name__} and {type(target).__name__}"
            raise MetricError(f"{id}: tags need Classes as prediction and target, found {found}")
        if not id:
            raise MetricError("tags: a sample without an id cannot be told from the others, found ''")
        if id in self._rows:
            return
        probs = np.zeros(len(self.names), np.float32)
        labels = prediction.labels.cpu().numpy()
        if prediction.scores is None or len(np.unique(labels)) != len(self.names):
            raise MetricError(f"{id}: average precision needs a score for each of {len(self.names)} classes, found {len(labels)}")
        truth = np.zeros(len(self.names), np.bool_)
        for values in (labels, target.labels.cpu().numpy()):
            if values.size and not (values.min() >= 0 and values.max() < len(self.names)):
                raise MetricError(f"{id}: labels must be below {len(self.names)} classes, found {values.max()}")
        probs[labels] = prediction.scores.cpu().numpy()
        truth[target.labels.cpu().numpy()] = True
        self._rows[id] = (probs, truth)

    def samples(self) -> dict[str, npt.NDArray[Any]]:
        """(N, K) probabilities and truth in the order of `ids`."""
        rows = [self._rows[key] for key in self.ids]
        return {"probs": np.stack([row[0] for row in rows]), "truth": np.stack([row[1] for row in rows])}

    def compute(self) -> dict[str, float]:
        """`mAP`, `CF1` and `OF1` in [0, 1]; MetricError without samples or without any positive."""
        if not self._rows:
            raise MetricError("tags: no sample was scored, expected at least one")
        known = [row for row in self.per_class() if row["AP"] is not None]
        if not known:
            raise MetricError("tags: no picture of the data has any label, so nothing can be ranked")
        arrays = self.samples()
        said = arrays["probs"] >= THRESHOLD
        overall = _f1(float((said & arrays["truth"]).sum()), float(said.sum()), float(arrays["truth"].sum()))
        return {"mAP": float(np.mean([r["AP"] for r in known])), "CF1": float(np.mean([r["F1"] for r in known])), "OF1": overall}

    def per_class(self) -> list[dict[str, Any]]:
        """Per class: name, count, AP, precision, recall and F1 at one half; None where there is nothing to divide by."""
        arrays = self.samples()
        ones = np.ones((1, len(self)))
        rows: list[dict[str, Any]] = []
        for k, name in enumerate(self.names):
            truth, probs = arrays["truth"][:, k], arrays["probs"][:, k]
            said, count = probs >= THRESHOLD, int(truth.sum())
            right, claimed = int((said & truth).sum()), int(said.sum())
            rows.append({"name": name, "count": count, "AP": float(weighted_precision(probs, truth, ones)[0]) if count else None,
                         "precision": right / claimed if claimed else None, "recall": right / count if count else None,
                         "F1": _f1(right, claimed, count) if count else None})  # fmt: skip
        return rows

    def worst(self, limit: int = 20) -> list[ClassMistake]:
        """The most confident wrong tags: `truth` is the class itself where it was missed, -1 where it was invented."""
        found: list[ClassMistake] = []
        for key in self.ids:
            probs, truth = self._rows[key]
            wrong = np.where(truth, 1 - probs, probs)
            k = int(wrong.argmax())
            if wrong[k] > THRESHOLD:
                found.append(ClassMistake(key, k if truth[k] else -1, k, float(probs[k])))
        return sorted(found, key=lambda one: -abs(one.score - THRESHOLD))[:limit]

    def state(self) -> dict[str, Any]:
        """What another process needs to `merge`."""
        return {"ids": self.ids, **self.samples()} if self._rows else {"ids": []}

    def merge(self, state: dict[str, Any]) -> None:
        """Add another process's `state`; ids already present are left alone."""
        for i, key in enumerate(state["ids"]):
            self._rows.setdefault(key, (state["probs"][i], state["truth"][i]))


def _f1(right: float, claimed: float, count: float) -> float:
    return 2 * right / (claimed + count) if claimed + count else 0.0


def weighted_precision(scores: npt.NDArray[Any], truth: Bools, weights: Floats) -> Floats:
    """Average precision (R,) of one class for R weightings (R, N) of its samples: sum over thresholds of precision x recall step.

    Equal scores share a threshold, as in scikit-learn's `average_precision_score`; NaN where a weighting has no positive.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(weights[:, order] * truth[order], 1)[:, ends]
    seen = np.cumsum(weights[:, order], 1)[:, ends]
    steps = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    total = hits[:, -1]
    summed = (precision * steps).sum(1)
    return cast(Floats, np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0))


def resampled(group: dict[str, npt.NDArray[Any]], draws: Floats) -> dict[str, Floats]:
    """mAP, CF1 and OF1 (R,) of resampled sets; `draws` (R, N) counts how often each sample was drawn."""
    probs, truth = group["probs"], group["truth"].astype(np.bool_)
    precisions = np.stack([weighted_precision(probs[:, k], truth[:, k], draws) for k in range(probs.shape[1])], 1)
    said = probs >= THRESHOLD
    right, claimed, count = (draws @ part.astype(np.float64) for part in (said & truth, said, truth))
    sums = claimed + count
    each = np.divide(2 * right, sums, out=np.full_like(right, np.nan), where=count > 0)
    overall = 2 * right.sum(1) / np.maximum(sums.sum(1), 1e-12)
    return {"mAP": np.nanmean(precisions, 1), "CF1": np.nanmean(each, 1), "OF1": overall}
