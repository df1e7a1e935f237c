"""The table that AP is taught with: the detections of one class by falling score, each right or wrong, with precision and recall so far."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from opticus.metrics.detect import CocoDetection
from opticus.metrics.lvis import LvisDetection
from opticus.metrics.tables import THRESHOLDS, Matches, Rule, average_precision
from opticus.metrics.voc import VocDetection
from opticus.structures import MetricError, UnknownNameError

Verdict = Literal["TP", "FP", "ignored"]


class Step(NamedTuple):
    """Detection `rank` (from 1) in picture `id`: its score and verdict, and the counts, precision and recall down to it.

    "ignored" (a crowd region or a difficult object) changes no count. Precision is NaN before the first detection that counts, recall
    where there is no ground truth.
    """

    rank: int
    id: str
    score: float
    verdict: Verdict
    right: int
    wrong: int
    precision: float
    recall: float


class Steps(NamedTuple):
    """All detections of class `name` at IoU `iou`, its `truths` ground truths, and the AP that follows by `rule`."""

    name: str
    rule: Rule
    iou: float
    truths: int
    ap: float
    rows: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; None for what is not defined."""
        rows = [step._asdict() | {"precision": _known(step.precision), "recall": _known(step.recall)} for step in self.rows]
        return {**self._asdict(), "ap": _known(self.ap), "rows": rows}

    def text(self, limit: int | None = 50) -> str:
        """A table in plain text, of the first `limit` detections (None: of all)."""
        shown = self.rows if limit is None else self.rows[:limit]
        width = max([len("picture"), *(len(step.id) for step in shown)])
        heads = ("rank", "score", "verdict", "TP", "FP", "precision", "recall")
        line = f"{{:>4}}  {{:<{width}}}  {{:>6}}  {{:<7}}  {{:>5}}  {{:>5}}  {{:>9}}  {{:>6}}"
        lines = [line.format(heads[0], "picture", *heads[1:])]
        for step in shown:
            shares = ["-" if _known(value) is None else f"{value:.4f}" for value in (step.precision, step.recall)]
            lines.append(line.format(step.rank, step.id, f"{step.score:.4f}", step.verdict, step.right, step.wrong, *shares))
        if len(shown) < len(self.rows):
            lines.append(f"... {len(self.rows) - len(shown)} more")
        ap = "is not defined without ground truth" if _known(self.ap) is None else f"{self.ap:.4f}"
        lines.append(f"{self.name}: {self.truths} ground truths, IoU {self.iou:g}, AP ({self.rule}) {ap}")
        return "\n".join(lines)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def steps(metric: CocoDetection | LvisDetection | VocDetection, name: str, *, iou: float = 0.5, rule: Rule | None = None) -> Steps:
    """The table of class `name`, matched as `metric` matches; AP by its own rule, or by another one to compare them.

    `iou` is one of COCO's ten thresholds, or the one of a VOC metric. Raises UnknownNameError for a class that the metric does not
    know, MetricError for another threshold.
    """
    if name not in metric.names:
        raise UnknownNameError("class", name, metric.names)
    known = [metric.iou] if isinstance(metric, VocDetection) else [round(float(value), 2) for value in THRESHOLDS]
    if iou not in known:
        raise MetricError(f"steps: the metric matches at IoU {', '.join(f'{value:g}' for value in known)}, found {iou}")
    chosen: Rule = rule or (metric.rule if isinstance(metric, VocDetection) else "coco")
    return _steps(metric.matches(), metric.ids, metric.names.index(name), name, known.index(iou), iou, chosen)


def _steps(matches: Matches, ids: list[str], label: int, name: str, column: int, iou: float, rule: Rule) -> Steps:
    mine, true = matches.label == label, matches.truth_label == label
    one = Matches(
        *(part[mine] for part in (matches.image, np.zeros_like(matches.label), matches.score)),
        *(part[mine, column : column + 1] for part in (matches.matched, matches.ignored)),
        *(part[true] for part in (matches.truth_image, np.zeros_like(matches.truth_label))),
        images=matches.images,
        classes=1,
    )
    ignored = one.ignored[:, 0]
    hits = one.matched[:, 0] & ~ignored
    right, wrong, truths = np.cumsum(hits), np.cumsum(~hits & ~ignored), int(true.sum())
    both = right + wrong
    precision = np.divide(right, both, out=np.full(len(both), np.nan), where=both > 0)
    recall = right / truths if truths else np.full(len(right), np.nan)
    verdicts: list[Verdict] = ["ignored" if i else "TP" if h else "FP" for i, h in zip(ignored, hits, strict=True)]
    columns = (one.image, one.score, verdicts, right, wrong, precision, recall)
    rows = tuple(
        Step(rank, ids[image], float(score), verdict, int(tp), int(fp), float(p), float(r))
        for rank, (image, score, verdict, tp, fp, p, r) in enumerate(zip(*columns, strict=True), 1)
    )
    return Steps(name, rule, iou, truths, float(average_precision(one, rule=rule)[0, 0, 0]), rows)
