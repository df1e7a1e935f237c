"""Export to COCO records (read back by pycocotools) and to supervision."""

import json
import sys

import numpy as np
import pytest
import torch

from opticus.metrics.convert import decoded, encoded, to_coco, to_supervision
from opticus.structures import RLE, Instances, MissingPackageError, UsageError


def found():
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[0, 5:15, 2:12], masks[1, 20:, 30:] = True, True
    points = torch.tensor([[[1.0, 2, 2]], [[3, 4, 0]]])
    boxes = torch.tensor([[2.0, 5, 12, 15], [30, 20, 40, 30]])
    return Instances(boxes, torch.tensor([1, 0]), (30, 40), torch.tensor([0.9, 0.5]), masks, points)


def test_coco_records_are_json_and_equal_pycocotools_masks():
    from pycocotools import mask as rle

    records = json.loads(json.dumps(to_coco(found(), 17, (3, 90))))
    assert records[0]["bbox"] == [2, 5, 10, 10] and records[0]["category_id"] == 90 and records[0]["image_id"] == 17
    assert records[1]["score"] == 0.5 and records[0]["keypoints"] == [1, 2, 2] and "area" not in records[0]
    for record, plane in zip(records, found().masks.numpy(), strict=True):
        np.testing.assert_array_equal(rle.decode(record["segmentation"]), plane)


def test_targets_carry_area_and_crowd():
    target = found()
    target.scores, target.crowd, target.areas = None, torch.tensor([True, False]), torch.tensor([7.0, 8.0])
    records = to_coco(target, "a.png")
    assert [(r["area"], r["iscrowd"], r["category_id"]) for r in records] == [(7.0, 1, 1), (8.0, 0, 0)]
    assert to_coco(Instances.empty((3, 3)), 1) == []
    with pytest.raises(UsageError, match=r"a\.png: label 1 has no category id"):
        to_coco(target, "a.png", (5,))


def test_masks_survive_both_ways():
    coded = RLE(tuple(run["counts"].encode() for run in encoded(found().masks)), (30, 40))
    np.testing.assert_array_equal(decoded(coded), found().masks.numpy())
    assert encoded(coded) == encoded(found().masks)
    assert decoded(RLE((), (4, 5))).shape == (0, 4, 5)


def test_supervision_detections():
    detections = to_supervision(found(), ["cat"])
    assert detections.class_id.tolist() == [1, 0] and detections.data["class_name"].tolist() == ["class 1", "cat"]
    assert detections.mask.shape == (2, 30, 40) and len(to_supervision(Instances.empty((3, 3), scored=True))) == 0


def test_missing_supervision_is_a_usage_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackageError, match=r"opticus\[supervision\]"):
        to_supervision(found())
