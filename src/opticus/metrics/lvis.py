"""LVIS detection numbers through hotcoco (equal to lvis-api): AP on data that says nothing about most classes of a picture.

Protocol: Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019 (arXiv:1908.03195), as fixed by
lvis-dataset/lvis-api. A class counts in a picture only if it has objects there or was searched for in vain; detections of other classes
are left out. Where not every object of a class was marked, a detection without a partner is no error. The 300 best detections of a
picture count, over all classes. APr, APc and APf are the means over rare, common and frequent classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from opticus.metrics.detect import AREAS, CocoDetection, Kind, Scored, detections_of, mean_known, table_of, truth_of
from opticus.metrics.tables import RECALLS, Matches
from opticus.structures import MetricError, Result, Target

if TYPE_CHECKING:
    from hotcoco import COCOeval

Array = npt.NDArray[Any]
LIMIT = 300  # detections of a picture
GROUPS = ("r", "c", "f")


class Knowledge(Protocol):
    """What the data set says about classes beyond its objects."""

    frequencies: tuple[str, ...]

    def of(self, id: str) -> tuple[Array, Array]:
        """Labels known to be absent from picture `id`, and labels of which not every object was marked."""
        ...


class LvisDetection:
    """The LVIS protocol for boxes, and for masks too if `masks`; labels are 0..K-1 with `names`.

    `federation` says what is known of every picture; `data` and `split` identify what was scored. A number without ground truth is -1.
    """

    def __init__(
        self, names: Sequence[str], federation: Knowledge, *, masks: bool = False, data: str = "", split: str = ""
    ) -> None:
        if len(federation.frequencies) != len(names):
            raise MetricError(f"LVIS detection: {len(names)} classes, but frequencies of {len(federation.frequencies)}")
        self.names = tuple(names)
        self.masks = masks
        self.federation = federation
        self._kept = CocoDetection(names, masks=masks, data=data, split=split)
        self._done: dict[Kind, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two numbers to be comparable."""
        return {**self._kept.protocol, "metric": "lvis", "maxDets": [LIMIT], "federated": True, "version": version("hotcoco")}

    def update(self, prediction: Result, target: Target, id: str) -> None:
        """Score one picture; both in original pixels. A repeated `id` is counted once. Raises as `CocoDetection.update`."""
        self._kept.update(prediction, target, id)
        self._done.clear()

    @property
    def ids(self) -> list[str]:
        """The ids of the scored pictures: whole numbers in numeric order, then the others alphabetically."""
        return self._kept.ids

    @property
    def records(self) -> Mapping[str, Scored]:
        """Truth and detections of every picture by id."""
        return self._kept.records

    def evaluation(self, kind: Kind = "bbox") -> dict[str, Any]:
        """`precision` (T,R,K,A,1) and `recall` (T,K,A,1), -1 where there is no ground truth."""
        if kind not in self._done:
            evaluator = self._evaluator(kind)
            evaluator.evaluate()
            evaluator.accumulate()
            self._done[kind] = dict(evaluator.eval or {})
        return self._done[kind]

    def compute(self) -> dict[str, float]:
        """AP AP50 AP75 APs APm APl APr APc APf AR300 ARs ARm ARl in [0, 1]; those of masks are called mask_AP and so on."""
        numbers = self._summary("bbox")
        if self.masks:
            numbers |= {f"mask_{key}": value for key, value in self._summary("segm").items()}
        return numbers

    def per_class(self, kind: Kind = "bbox") -> list[dict[str, Any]]:
        """Per class: name, frequency, ground truths, detections that count, AP, AP50, AP75 and AR300 (None without ground truth)."""
        done = self.evaluation(kind)
        precision, recall = done["precision"][..., 0, 0], done["recall"][..., 0, 0]
        truths, claims = np.zeros(len(self.names), int), np.zeros(len(self.names), int)
        for id, record in self.records.items():
            truths += np.bincount(record.truth_labels, minlength=len(self.names))
            known = np.concatenate([record.truth_labels, self.federation.of(id)[0]])
            claims += np.bincount(record.labels[np.isin(record.labels, known)], minlength=len(self.names))
        rows: list[dict[str, Any]] = []
        for index, name in enumerate(self.names):
            parts = {"AP": precision[:, :, index], "AP50": precision[0, :, index], "AP75": precision[5, :, index]}
            numbers = {key: mean_known(part) for key, part in parts.items()} | {"AR300": mean_known(recall[:, index])}
            counts = {
                "frequency": self.federation.frequencies[index],
                "truths": int(truths[index]),
                "detections": int(claims[index]),
            }
            rows.append({"name": name, **counts, **{key: None if v < 0 else v for key, v in numbers.items()}})
        return rows

    def curves(self, kind: Kind = "bbox") -> dict[str, Any]:
        """Precision at 101 recall points: `recall` (R,), and `AP50`, `AP75`, `AP` (K, R), NaN for a class without ground truth."""
        precision = self.evaluation(kind)["precision"][..., 0, 0].transpose(0, 2, 1)  # T, K, R
        known = np.where(precision < 0, np.nan, precision)
        return {"recall": RECALLS.copy(), "AP50": known[0], "AP75": known[5], "AP": known.mean(0)}

    def matches(self, kind: Kind = "bbox") -> Matches:
        """The decision about every detection that counts (area range "all"), for the bootstrap."""
        evaluator = self._evaluator(kind)
        params = evaluator.params
        params.area_rng, params.area_rng_lbl = [list(AREAS["all"])], ["all"]
        evaluator.evaluate()
        return table_of([one for one in evaluator.eval_imgs if one is not None], len(self), len(self.names))

    def state(self) -> dict[str, Scored]:
        """What another process needs to `merge` (numpy, picklable)."""
        return self._kept.state()

    def merge(self, state: Mapping[str, Scored]) -> None:
        """Add another process's `state`; ids already present are left alone."""
        self._kept.merge(state)
        self._done.clear()

    def _evaluator(self, kind: Kind) -> COCOeval:
        from hotcoco import COCO, COCOeval

        if not len(self):
            raise MetricError("LVIS detection: no picture was scored, expected at least one")
        if kind == "segm" and not self.masks:
            raise MetricError("LVIS detection: masks were not kept; construct the metric with masks=True")
        lists = [self.federation.of(id) for id in self.ids]
        pictures = [
            {
                key: (labels + 1).tolist()
                for key, labels in zip(("neg_category_ids", "not_exhaustive_category_ids"), both, strict=True)
            }
            for both in lists
        ]
        classes = [{"frequency": frequency} for frequency in self.federation.frequencies]
        records = [self.records[id] for id in self.ids]
        truth = truth_of(COCO, records, self.names, kind, pictures, classes)
        return COCOeval(truth, detections_of(truth, records, kind), kind, lvis_style=True)

    def _summary(self, kind: Kind) -> dict[str, float]:
        done = self.evaluation(kind)
        precision, recall = done["precision"][..., 0], done["recall"][..., 0]
        numbers = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
        sizes = list(enumerate(list(AREAS)[1:], 1))
        numbers |= {f"AP{area[0]}": precision[..., i] for i, area in sizes}
        groups = np.asarray(self.federation.frequencies)
        numbers |= {f"AP{group}": precision[:, :, groups == group, 0] for group in GROUPS}
        numbers |= {f"AR{LIMIT}": recall[..., 0], **{f"AR{area[0]}": recall[..., i] for i, area in sizes}}
        return {key: mean_known(part) for key, part in numbers.items()}
