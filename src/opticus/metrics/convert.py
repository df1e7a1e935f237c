"""Instances in other tools' terms: COCO result records and supervision's Detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from opticus.ops import masks
from opticus.structures import RLE, Instances, MissingPackageError, UsageError

if TYPE_CHECKING:
    from supervision import Detections


def to_coco(instances: Instances, image_id: int | str, label_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """One JSON-ready record per instance: image_id, category_id, bbox [x, y, w, h] in pixels, and what else is there.

    Predictions carry `score`, targets `area` and `iscrowd`; masks become compressed RLE, keypoints a flat list. `label_ids[i]` is the
    data set's own id of label i (None: the label itself). Raises UsageError for a label that `label_ids` lacks.
    """
    boxes = instances.boxes.detach().cpu().double()
    corners = cast("list[list[float]]", boxes.tolist())
    labels = cast("list[int]", instances.labels.tolist())
    runs = [] if instances.masks is None else encoded(instances.masks)
    records: list[dict[str, Any]] = []
    for index, ((x0, y0, x1, y1), label) in enumerate(zip(corners, labels, strict=True)):
        if label_ids is not None and not 0 <= label < len(label_ids):
            raise UsageError(f"{image_id}: label {label} has no category id, expected a label below {len(label_ids)}")
        category = label if label_ids is None else label_ids[label]
        record: dict[str, Any] = {"image_id": image_id, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        if instances.scores is not None:
            record["score"] = float(instances.scores[index])
        else:
            record["area"] = (x1 - x0) * (y1 - y0) if instances.areas is None else float(instances.areas[index])
            record["iscrowd"] = 0 if instances.crowd is None else int(instances.crowd[index])
        if runs:
            record["segmentation"] = runs[index]
        if instances.keypoints is not None:
            record["keypoints"] = cast("list[float]", instances.keypoints[index].detach().cpu().double().reshape(-1).tolist())
        records.append(record)
    return records


def encoded(coded: Tensor | RLE) -> list[dict[str, Any]]:
    """Masks as COCO's compressed RLE, {"size": [H, W], "counts": text}."""
    codes = coded if isinstance(coded, RLE) else masks.encode(coded)
    return [{"size": list(codes.size), "counts": counts.decode()} for counts in codes.counts]


def decoded(coded: Tensor | RLE) -> npt.NDArray[np.bool_]:
    """Masks (N, H, W) bool."""
    return (masks.decode(coded) if isinstance(coded, RLE) else coded).cpu().numpy() > 0


def to_supervision(instances: Instances, names: Sequence[str] = ()) -> Detections:
    """supervision's Detections, with the class names in `data["class_name"]`; MissingPackageError if it is not installed."""
    try:
        from supervision import Detections
    except ImportError as error:
        raise MissingPackageError("supervision", "supervision", "conversion to supervision") from error
    labels = instances.labels.cpu().numpy().astype(np.int64)
    named = np.array([names[label] if label < len(names) else f"class {label}" for label in labels], dtype=str)
    return Detections(
        xyxy=instances.boxes.detach().cpu().numpy().astype(np.float32),
        mask=None if instances.masks is None else decoded(instances.masks),
        confidence=None if instances.scores is None else instances.scores.detach().cpu().numpy().astype(np.float32),
        class_id=labels,
        tracker_id=None if instances.tracks is None else instances.tracks.cpu().numpy(),
        data={"class_name": named},
    )
