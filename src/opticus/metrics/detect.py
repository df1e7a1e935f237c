"""COCO detection numbers through hotcoco (equal to pycocotools): the twelve numbers, per-class AP, curves and match tables.

Protocol: Lin et al., "Microsoft COCO", ECCV 2014, as fixed by cocodataset/cocoapi.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from opticus.metrics.tables import RECALLS, THRESHOLDS, Matches, operating_point
from opticus.ops import masks
from opticus.structures import RLE, Instances, MetricError, Result, Target

if TYPE_CHECKING:
    from hotcoco import COCO, COCOeval

Array = npt.NDArray[Any]
Kind = Literal["bbox", "segm"]
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
LIMITS = (1, 10, 100)


class Scored(NamedTuple):
    """Truth and detections of one picture: boxes (N,4) xyxy pixels, labels (N,), areas in square pixels."""

    size: tuple[int, int]
    truth_boxes: Array
    truth_labels: Array
    truth_areas: Array
    crowd: Array
    boxes: Array
    labels: Array
    scores: Array
    truth_masks: RLE | None = None
    masks: RLE | None = None


class CocoDetection:
    """The COCO protocol for boxes, and for masks too if `masks`; labels are 0..K-1 with `names`.

    `data` and `split` identify what was scored. Without any detection every number is 0; a number without ground truth is -1,
    as in cocoapi, and its class does not enter the mean.
    """

    def __init__(self, names: Sequence[str], *, masks: bool = False, data: str = "", split: str = "") -> None:
        self.names = tuple(names)
        self.masks = masks
        self.data = data
        self.split = split
        self._records: dict[str, Scored] = {}
        self._done: dict[Kind, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two numbers to be comparable."""
        return {
            "metric": "coco",
            "iouType": ["bbox", "segm"] if self.masks else ["bbox"],
            "iouThrs": [round(float(value), 2) for value in THRESHOLDS],
            "recThrs": len(RECALLS),
            "maxDets": list(LIMITS),
            "areaRng": {key: list(value) for key, value in AREAS.items()},
            "library": "hotcoco",
            "version": version("hotcoco"),
            "data": self.data,
            "split": self.split,
            "images": len(self._records),
            "truths": sum(len(record.truth_labels) for record in self._records.values()),
            "classes": list(self.names),
        }

    def update(self, prediction: Result, target: Target, id: str) -> None:
        """Score one picture; both in original pixels. A repeated `id` (a distributed sampler's padding) is counted once.

        Raises MetricError for another type, missing scores or masks, a non-finite number or a label out of range.
        """
        if not id:
            raise MetricError("detection: a picture without an id cannot be told from the others, found ''")
        if id not in self._records:
            self._records[id] = record_of(prediction, target, id, len(self.names), masks=self.masks)
            self._done.clear()

    @property
    def ids(self) -> list[str]:
        """The ids of the scored pictures: whole numbers in numeric order, then the others alphabetically."""
        return ordered(self._records)

    @property
    def records(self) -> Mapping[str, Scored]:
        """Truth and detections of every picture by id."""
        return self._records

    def evaluation(self, kind: Kind = "bbox") -> dict[str, Any]:
        """cocoapi's arrays: `precision` (T,R,K,A,M) and `recall` (T,K,A,M), -1 where there is no ground truth."""
        if kind not in self._done:
            evaluator = self._evaluator(kind)
            evaluator.evaluate()
            evaluator.accumulate()
            self._done[kind] = dict(evaluator.eval or {})
        return self._done[kind]

    def compute(self) -> dict[str, float]:
        """AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl in [0, 1]; those of masks are called mask_AP and so on."""
        numbers = _summary(self.evaluation("bbox"))
        if self.masks:
            numbers |= {f"mask_{key}": value for key, value in _summary(self.evaluation("segm")).items()}
        return numbers

    def per_class(self, kind: Kind = "bbox") -> list[dict[str, Any]]:
        """Per class: name, ground truths, detections, AP, AP50, AP75 and AR100 (None without ground truth)."""
        done = self.evaluation(kind)
        precision, recall = done["precision"][..., 0, -1], done["recall"][..., 0, -1]
        truths, claims = np.zeros(len(self.names), int), np.zeros(len(self.names), int)
        for record in self._records.values():
            truths += np.bincount(record.truth_labels[~record.crowd], minlength=len(self.names))
            claims += np.bincount(record.labels, minlength=len(self.names))
        rows: list[dict[str, Any]] = []
        for index, name in enumerate(self.names):
            parts = {"AP": precision[:, :, index], "AP50": precision[0, :, index], "AP75": precision[5, :, index]}
            numbers = {key: mean_known(part) for key, part in parts.items()} | {"AR100": mean_known(recall[:, index])}
            counts = {"truths": int(truths[index]), "detections": int(claims[index])}
            rows.append({"name": name, **counts, **{key: None if v < 0 else v for key, v in numbers.items()}})
        return rows

    def curves(self, kind: Kind = "bbox") -> dict[str, Any]:
        """Precision at 101 recall points: `recall` (R,), and `AP50`, `AP75`, `AP` (K, R), NaN for a class without ground truth."""
        precision = self.evaluation(kind)["precision"][..., 0, -1].transpose(0, 2, 1)  # T, K, R
        known = np.where(precision < 0, np.nan, precision)
        return {"recall": RECALLS.copy(), "AP50": known[0], "AP75": known[5], "AP": known.mean(0)}

    def matches(self, kind: Kind = "bbox") -> Matches:
        """The decision about every detection (area range "all", 100 detections per class), for the bootstrap."""
        evaluator = self._evaluator(kind)
        params = evaluator.params
        params.area_rng, params.area_rng_lbl, params.max_dets = [list(AREAS["all"])], ["all"], [LIMITS[-1]]
        evaluator.evaluate()
        return table_of([one for one in evaluator.eval_imgs if one is not None], len(self._records), len(self.names))

    def at(self, threshold: float, kind: Kind = "bbox") -> dict[str, float]:
        """Precision and recall over all classes at one score threshold and IoU 0.5."""
        return operating_point(self.matches(kind), threshold)

    def state(self) -> dict[str, Scored]:
        """What another process needs to `merge` (numpy, picklable)."""
        return dict(self._records)

    def merge(self, state: Mapping[str, Scored]) -> None:
        """Add another process's `state`; ids already present are left alone."""
        for key, record in state.items():
            self._records.setdefault(key, record)
        self._done.clear()

    def _evaluator(self, kind: Kind) -> COCOeval:
        from hotcoco import COCO, COCOeval

        if not self._records:
            raise MetricError("COCO detection: no picture was scored, expected at least one")
        if kind == "segm" and not self.masks:
            raise MetricError("COCO detection: masks were not kept; construct the metric with masks=True")
        records = [self._records[key] for key in self.ids]
        truth = truth_of(COCO, records, self.names, kind)
        found = detections_of(truth, records, kind)
        return COCOeval(truth, found, kind)


def ordered(ids: Iterable[str]) -> list[str]:
    """Ids of pictures in the order that ties are broken in: whole numbers in numeric order, then the others alphabetically."""
    return sorted(ids, key=lambda key: (0, int(key), key) if key.isdecimal() else (1, 0, key))


def record_of(prediction: Result, target: Target, id: str, classes: int, *, masks: bool = False) -> Scored:
    """Truth and detections of one picture as arrays, masks too if `masks`.

    Raises MetricError for another type than Instances, missing scores or masks, a non-finite number or a label out of range.
    """
    if not isinstance(prediction, Instances) or not isinstance(target, Instances):
        found = f"{type(prediction).__name__} and {type(target).__name__}"
        raise MetricError(f"{id}: detection needs Instances as prediction and target, found {found}")
    boxes, labels = _checked(prediction, id, "predicted", classes)
    if prediction.scores is None or not bool(torch.isfinite(prediction.scores).all()):
        raise MetricError(f"{id}: predictions need finite scores, found {prediction.scores}")
    truth_boxes, truth_labels = _checked(target, id, "true", classes)
    codes = _runs(prediction, id) if masks else None
    truth_codes = _runs(target, id) if masks else None
    crowd = np.zeros(len(target), bool) if target.crowd is None else target.crowd.cpu().numpy().astype(bool)
    areas = _areas(target, truth_boxes, truth_codes)
    scores = prediction.scores.detach().cpu().double().numpy()
    return Scored(target.size, truth_boxes, truth_labels, areas, crowd, boxes, labels, scores, truth_codes, codes)


def _checked(instances: Instances, id: str, side: str, classes: int) -> tuple[Array, Array]:
    boxes = instances.boxes.detach().cpu().double().numpy()
    labels = instances.labels.detach().cpu().numpy().astype(np.int64)
    if not np.isfinite(boxes).all():
        raise MetricError(f"{id}: {side} box {int((~np.isfinite(boxes)).any(1).argmax())} must be finite, found NaN or infinity")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise MetricError(f"{id}: {side} labels must be below {classes} classes, found {labels[wrong][0]}")
    return boxes, labels


def truth_of(
    coco: type[COCO],
    records: list[Scored],
    names: tuple[str, ...],
    kind: Kind,
    pictures: Sequence[Mapping[str, Any]] | None = None,
    classes: Sequence[Mapping[str, Any]] | None = None,
) -> COCO:
    """The ground truth as the library's data set, picture and class i numbered i + 1; `pictures` and `classes` add fields to those."""
    images = [{"id": i + 1, "height": r.size[0], "width": r.size[1]} for i, r in enumerate(records)]
    more, kinds = pictures or [{}] * len(records), classes or [{}] * len(names)
    boxes = np.concatenate([r.truth_boxes for r in records]).reshape(-1, 4)
    image = np.repeat(np.arange(1, len(records) + 1), [len(r.truth_labels) for r in records])
    return coco.from_arrays(
        [{**picture, **extra} for picture, extra in zip(images, more, strict=True)],
        [{"id": i + 1, "name": name, **extra} for i, (name, extra) in enumerate(zip(names, kinds, strict=True))],
        image,
        np.concatenate([r.truth_labels for r in records]) + 1,
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        ids=np.arange(1, len(boxes) + 1),
        area=np.concatenate([r.truth_areas for r in records]),
        iscrowd=np.concatenate([r.crowd for r in records]).astype(np.int64),
        segmentation=[_rle(c, r.size) for r in records for c in _counts(r.truth_masks)] if kind == "segm" else None,
    )


def detections_of(truth: COCO, records: list[Scored], kind: Kind) -> COCO:
    """The detections as the library's results for `truth`."""
    if kind == "segm":  # without boxes, so that the size ranges go by the masks' areas
        rows = [
            {"image_id": i + 1, "category_id": int(label) + 1, "score": float(score), "segmentation": _rle(counts, r.size)}
            for i, r in enumerate(records)
            for label, score, counts in zip(r.labels, r.scores, _counts(r.masks), strict=True)
        ]
        return truth.load_res(rows if rows else np.zeros((0, 7)))
    image = np.repeat(np.arange(1, len(records) + 1), [len(r.labels) for r in records])
    boxes = np.concatenate([r.boxes for r in records]).reshape(-1, 4)
    labels, scores = np.concatenate([r.labels for r in records]), np.concatenate([r.scores for r in records])
    return truth.load_res(np.column_stack([image, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, labels + 1]))


def _counts(codes: RLE | None) -> tuple[bytes, ...]:
    return () if codes is None else codes.counts


def _rle(counts: bytes, size: tuple[int, int]) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


def _runs(instances: Instances, id: str) -> RLE:
    if isinstance(instances.masks, RLE):
        return instances.masks
    if instances.masks is None:
        if len(instances):
            raise MetricError(f"{id}: mask AP needs masks for all {len(instances)} instances, found None")
        return RLE((), instances.size)
    return masks.encode(instances.masks)


def _areas(target: Instances, boxes: Array, codes: RLE | None) -> Array:
    """The annotation's own areas; else the masks', else the boxes'."""
    if target.areas is not None:
        return target.areas.cpu().double().numpy()
    if codes is not None:
        return masks.areas(codes).double().numpy()
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def mean_known(values: Array) -> float:
    """The mean of what is not -1; -1 if there is nothing."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _summary(done: Mapping[str, Any]) -> dict[str, float]:
    precision, recall = done["precision"], done["recall"]
    numbers = {
        "AP": mean_known(precision[..., 0, 2]),
        "AP50": mean_known(precision[0, ..., 0, 2]),
        "AP75": mean_known(precision[5, ..., 0, 2]),
    }
    numbers |= {f"AP{area[0]}": mean_known(precision[..., i + 1, 2]) for i, area in enumerate(list(AREAS)[1:])}
    numbers |= {f"AR{limit}": mean_known(recall[..., 0, i]) for i, limit in enumerate(LIMITS)}
    return numbers | {f"AR{area[0]}": mean_known(recall[..., i + 1, 2]) for i, area in enumerate(list(AREAS)[1:])}


def table_of(rows: list[dict[str, Any]], images: int, classes: int) -> Matches:
    """The library's decisions, one dictionary a picture and class, as flat arrays."""
    image = np.concatenate([np.full(len(row["dtScores"]), row["image_id"] - 1) for row in rows] or [np.zeros(0, int)])
    label = np.concatenate([np.full(len(row["dtScores"]), row["category_id"] - 1) for row in rows] or [np.zeros(0, int)])
    score = np.concatenate([np.asarray(row["dtScores"], np.float64) for row in rows] or [np.zeros(0)])
    flags = [
        np.concatenate([np.asarray(row[key], bool).reshape(len(THRESHOLDS), -1) for row in rows] or [np.zeros((10, 0), bool)], 1).T
        for key in ("dtMatched", "dtIgnore")
    ]
    order = np.lexsort((image, -score, label))
    counted = [(row["image_id"] - 1, row["category_id"] - 1, int((~np.asarray(row["gtIgnore"], bool)).sum())) for row in rows]
    repeats = [one[2] for one in counted]
    truth_image, truth_label = (np.repeat(np.array([one[i] for one in counted], int), repeats) for i in (0, 1))
    matched, ignored = (flag[order] for flag in flags)
    return Matches(image[order], label[order], score[order], matched, ignored, truth_image, truth_label, images, classes)
