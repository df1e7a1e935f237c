"""evaluate_results: score what any program has detected, with the code that scores our own detectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from opticus.data import coco
from opticus.data.coco_results import Size, Truth, read_results
from opticus.data.detections import Detections
from opticus.data.findings import check_cheap, refuse
from opticus.data.open import open_data
from opticus.structures import CapabilityError, DataError, Dataset, Instances, Sample
from opticus.verbs.evaluate import Evaluation, Protocol, detection_metric, headline

# what makes an annotation useless; boxes that are empty or leave their picture are scored, as cocoapi does
FATAL = ("malformed record", "unknown image", "duplicate id", "unknown category", "non-finite box", "negative box")


def evaluate_results(
    results: str | Path | Iterable[Mapping[str, Any]],
    data: str | Path | Dataset | Iterable[Sample],
    *,
    split: str = "test",
    metric: Protocol | None = None,
) -> Evaluation:
    """Score `results`, a COCO results JSON (or its records), on `data`: a COCO JSON or folder, or any other detection data.

    Of COCO data the annotations suffice, no picture is read. The figures are the COCO numbers (those of masks too if the records
    carry a segmentation), LVIS's on LVIS data, or Pascal VOC's mAP with `metric` "voc07" or "voc10"; every picture counts, with or without records.
    Raises DataError naming the first record that is malformed or whose picture or category is unknown.
    """
    truth = _truth(data, split)
    targets = [_target(truth, index) for index in range(len(truth))]
    sizes: list[Size] = [target.size for target in targets]
    found = read_results(results, cast(Truth, truth), sizes)
    masks = found.masks and metric in (None, "coco", "lvis")
    if masks:
        targets = _with_masks(truth, targets)
    known = getattr(truth, "federation", None)
    scorer = detection_metric(truth.names, metric, masks=masks, data=truth.hash, split=split, federation=known)
    for index, (prediction, target) in enumerate(zip(found.instances, targets, strict=True)):
        scorer.update(prediction, target, truth.id_of(index))
    return Evaluation(scorer.compute(), scorer, {**scorer.protocol, "limit": None}, headline(scorer))


def _truth(data: Any, split: str) -> Dataset:
    path = Path(data).expanduser() if isinstance(data, str | Path) else None
    if path is not None and path.exists() and coco.matches(path):
        annotated = coco.read(path, split, pictures=False)
        refuse(annotated, [finding for finding in check_cheap(annotated) if finding.kind in FATAL])
        return annotated
    opened = cast(Dataset, data if hasattr(data, "target_of") else open_data(data, split))
    if opened.task != "detect":
        raise CapabilityError(f"results hold boxes, but the data set is for {opened.task}")
    return opened


def _target(truth: Dataset, index: int) -> Instances:
    if isinstance(truth, Detections) and not truth.relative:  # the stated size will do: boxes are scored without it
        height, width = truth.sizes[index].tolist()
        return truth.table.instances(index, (height, width))
    target = truth.target_of(index)
    if not isinstance(target, Instances):
        raise DataError(f"{truth.id_of(index)}: expected objects as its target, found {type(target).__name__}")
    return target


def _with_masks(truth: Dataset, targets: list[Instances]) -> list[Instances]:
    if isinstance(truth, Detections):
        if truth.read_masks is None:
            raise CapabilityError("the results hold masks, but the data set has none")
        for index, target in enumerate(targets):
            target.masks = truth.read_masks(truth.table.rows(index), target.size)
    for index, target in enumerate(targets):
        if target.masks is None and len(target):
            raise CapabilityError(f"the results hold masks, but picture {truth.id_of(index)} of the data set has none")
    return targets
