"""Classification numbers: top-1, top-5, balanced and per-class accuracy, and the confusion matrix.

Top-k accuracy as in the ImageNet challenge (Russakovsky et al., IJCV 2015); balanced accuracy is the mean of the per-class recalls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from opticus.structures import Classes, MetricError, Result, Target

BINS = 15  # of the reliability diagram, as in Guo et al. 2017
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class ClassMistake(NamedTuple):
    """One wrongly classified sample; `score` is the probability the model gave to its wrong answer."""

    id: str
    truth: int
    predicted: int
    score: float


class Accuracy:
    """Single-label classification accuracy over a data set; every sample counts once, whichever process saw it.

    `names` are the class names; `data` and `split` identify what was scored (they are part of the protocol).
    """

    def __init__(self, names: Sequence[str], *, data: str = "", split: str = "") -> None:
        self.names = tuple(names)
        self.data = data
        self.split = split
        self._rows: dict[str, tuple[int, int, int, float]] = {}  # id -> truth, predicted, rank of the truth, score

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two accuracies to be comparable."""
        return {
            "metric": "accuracy",
            "task": "single label",
            "top": [1, 5],
            "crops": 1,
            "bins": BINS,
            "data": self.data,
            "split": self.split,
            "samples": len(self._rows),
            "classes": list(self.names),
        }

    def update(self, prediction: Result, target: Target, id: str) -> None:
        """Score one sample. A repeated `id` (a distributed sampler's padding) is counted once.

        Raises MetricError if either side is not a single-label `Classes`, a label is out of range, or fewer ranked labels than
        top-5 needs are given without `probs`.
        """
        if not isinstance(prediction, Classes) or not isinstance(target, Classes):
            found = f"{type(prediction).__name__} and {type(target).__name__}"
            raise MetricError(f"{id}: accuracy needs Classes as prediction and target, found {found}")
        if not id:
            raise MetricError("accuracy: a sample without an id cannot be told from the others, found ''")
        if id in self._rows:
            return
        if len(target) != 1:
            raise MetricError(f"{id}: accuracy needs exactly one true label, found {len(target)}")
        ranked, scores = _ranked(prediction, id, len(self.names))
        truth = int(target.labels[0])
        for label, side in ((truth, "true"), (ranked[0], "predicted")):
            if not 0 <= label < len(self.names):
                raise MetricError(f"{id}: the {side} label must be below {len(self.names)} classes, found {label}")
        rank = ranked.index(truth) if truth in ranked else len(self.names)
        self._rows[id] = (truth, ranked[0], rank, scores[0] if scores else float("nan"))

    def samples(self) -> dict[str, npt.NDArray[Any]]:
        """Per-sample arrays in the order of `ids`: truth, predicted, rank of the truth (0 = right), score; for the bootstrap."""
        rows = [self._rows[key] for key in self.ids]
        truth, predicted, rank = (np.array([row[i] for row in rows], np.int64) for i in range(3))
        return {"truth": truth, "predicted": predicted, "rank": rank, "score": np.array([row[3] for row in rows], np.float64)}

    @property
    def ids(self) -> list[str]:
        """The ids of the scored samples, sorted."""
        return sorted(self._rows)

    def confusion(self) -> Ints:
        """(K, K) counts; rows are the true classes, columns the predicted ones."""
        table = np.zeros((len(self.names), len(self.names)), np.int64)
        arrays = self.samples()
        np.add.at(table, (arrays["truth"], arrays["predicted"]), 1)
        return table

    def per_class(self) -> list[dict[str, Any]]:
        """Per class: name, count, accuracy (recall) and precision; None where there is nothing to divide by."""
        table = self.confusion()
        rows: list[dict[str, Any]] = []
        for index, name in enumerate(self.names):
            right, count, claimed = int(table[index, index]), int(table[index].sum()), int(table[:, index].sum())
            accuracy = right / count if count else None
            rows.append({"name": name, "count": count, "accuracy": accuracy, "precision": right / claimed if claimed else None})
        return rows

    def compute(self) -> dict[str, float]:
        """`top1`, `top5` (from six classes on), `balanced` accuracy and, with probabilities, `ece`, in [0, 1]; MetricError without samples."""
        if not self._rows:
            raise MetricError("accuracy: no sample was scored, expected at least one")
        rank = cast(Ints, self.samples()["rank"])
        numbers = {"top1": float((rank < 1).mean())}
        if len(self.names) > 5:
            numbers["top5"] = float((rank < 5).mean())
        recalls = [row["accuracy"] for row in self.per_class() if row["accuracy"] is not None]
        numbers["balanced"] = float(np.mean(recalls))
        if bins := self.calibration():
            numbers["ece"] = float(sum(b["share"] * abs(b["accuracy"] - b["confidence"]) for b in bins))
        return numbers

    def calibration(self, bins: int = BINS) -> list[dict[str, float]]:
        """The reliability diagram: equal-width bins of confidence with share of samples, mean confidence and accuracy.

        The expected calibration error ("ece") is the share-weighted mean of |accuracy - confidence| (Guo et al. 2017, eq. 3). Empty
        bins are left out; the list is empty where a prediction came without a probability.
        """
        arrays = self.samples()
        score, right = arrays["score"], arrays["rank"] < 1
        if not (np.isfinite(score).all() and (score >= 0).all() and (score <= 1 + 1e-6).all()):
            return []
        place = np.clip(np.ceil(score * bins).astype(np.int64) - 1, 0, bins - 1)
        rows: list[dict[str, float]] = []
        for index in np.unique(place).tolist():
            inside = place == index
            rows.append({"low": index / bins, "high": (index + 1) / bins, "share": float(inside.mean()),
                         "confidence": float(score[inside].mean()), "accuracy": float(right[inside].mean())})  # fmt: skip
        return rows

    def worst(self, limit: int = 20) -> list[ClassMistake]:
        """The most confident mistakes, most confident first."""
        wrong = [ClassMistake(key, row[0], row[1], row[3]) for key, row in self._sorted() if row[2] > 0]
        return sorted(wrong, key=lambda one: -np.nan_to_num(one.score))[:limit]

    def _sorted(self) -> Iterator[tuple[str, tuple[int, int, int, float]]]:
        return ((key, self._rows[key]) for key in self.ids)

    def state(self) -> dict[str, Any]:
        """What another process needs to `merge` (plain Python and numpy, picklable)."""
        return {"ids": self.ids, **self.samples()}

    def merge(self, state: dict[str, Any]) -> None:
        """Add another process's `state`; ids already present are left alone."""
        columns = [state[key].tolist() for key in ("truth", "predicted", "rank", "score")]
        for key, truth, predicted, rank, score in zip(state["ids"], *columns, strict=True):
            self._rows.setdefault(key, (truth, predicted, rank, score))


def _ranked(prediction: Classes, id: str, classes: int) -> tuple[list[int], list[float]]:
    """The labels, best first, and their scores; the whole ranking is rebuilt from `probs` when the given one is too short."""
    needed = min(5, classes)
    if len(prediction) >= needed:
        labels = cast(list[int], prediction.labels.tolist())
        return labels, [] if prediction.scores is None else cast(list[float], prediction.scores.tolist())
    if prediction.probs is None:
        raise MetricError(f"{id}: top-5 accuracy needs {needed} ranked labels or probs, found {len(prediction)} labels")
    order = prediction.probs.argsort(descending=True, stable=True)
    return cast(list[int], order.tolist()), cast(list[float], prediction.probs[order].tolist())
