"""The COCO numbers equal pycocotools' on random problems with crowds, empty pictures, ties, and given areas."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opticus.metrics.detect import CocoDetection
from opticus.metrics.tables import Matches, average_precision
from opticus.structures import Classes, Instances, MetricError

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def boxes_of(rng, n, width=200.0):
    centre = rng.uniform(10, width - 10, (n, 2))
    size = np.exp(rng.uniform(np.log(6), np.log(190), (n, 2)))
    return torch.from_numpy(np.concatenate([centre - size / 2, centre + size / 2], 1)).float()


def discs(boxes, size):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    planes = [
        ((x - (b[0] + b[2]) / 2) / max(b[2] - b[0], 1)) ** 2 + ((y - (b[1] + b[3]) / 2) / max(b[3] - b[1], 1)) ** 2 < 0.25
        for b in boxes.tolist()
    ]
    return torch.from_numpy(np.stack(planes) if planes else np.zeros((0, *size), bool))


def problem(seed, images=6, classes=4, masks=False, size=(200, 200)):
    """Pairs of (prediction, target): some pictures empty on one side, class `classes - 1` never true, tied scores, crowds."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        n = int(rng.integers(0, 7)) * int(rng.random() < 0.85)
        truth = boxes_of(rng, n)
        near = truth[torch.from_numpy(rng.integers(0, max(n, 1), 3 * n))] + torch.from_numpy(rng.normal(0, 3, (3 * n, 4))).float()
        far = boxes_of(rng, int(rng.integers(0, 4)))
        boxes = torch.cat([near, far])
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = torch.from_numpy(rng.integers(0, classes - 1, n))
        guess = torch.from_numpy(rng.integers(0, classes, len(boxes)))
        if n:
            right = torch.from_numpy(rng.random(len(near)) < 0.7)
            nearest = (near[:, None] - truth[None]).abs().sum(2).argmin(1)
            guess[: len(near)] = torch.where(right, labels[nearest], guess[: len(near)])
        scores = torch.from_numpy(rng.integers(0, 12, len(boxes)) / 12.0).float()  # many ties
        if rng.random() < 0.15:
            boxes, guess, scores = boxes[:0], guess[:0], scores[:0]
        crowd = torch.from_numpy(rng.random(n) < 0.15)
        areas = (truth[:, 2:] - truth[:, :2]).prod(1) * 0.6 if rng.random() < 0.5 else None
        pairs.append(
            (
                Instances(boxes, guess, size, scores, discs(boxes, size) if masks else None),
                Instances(truth, labels, size, None, discs(truth, size) if masks else None, crowd=crowd, areas=areas),
            )
        )
    return pairs


def scored(pairs, classes=4, masks=False):
    metric = CocoDetection([f"class {i}" for i in range(classes)], masks=masks)
    for index, (prediction, target) in enumerate(pairs):
        metric.update(prediction, target, str(index + 1))
    return metric


def official(pairs, classes=4, kind="bbox"):
    from pycocotools import mask as rle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        x0, y0, x1, y1 = (float(v) for v in box)
        return [x0, y0, x1 - x0, y1 - y0]

    def runs(plane):
        return rle.encode(np.asfortranarray(plane.numpy().astype(np.uint8)))

    truths, found = [], []
    for image, (prediction, target) in enumerate(pairs, 1):
        for i in range(len(target)):
            box = xywh(target.boxes[i])
            row = {"id": len(truths) + 1, "image_id": image, "category_id": int(target.labels[i]) + 1, "bbox": box}
            row["iscrowd"] = int(target.crowd[i])
            if kind == "segm":
                row["segmentation"] = runs(target.masks[i])
            drawn = float(rle.area(row["segmentation"])) if kind == "segm" else box[2] * box[3]
            row["area"] = float(target.areas[i]) if target.areas is not None else drawn
            truths.append(row)
        for i in range(len(prediction)):
            row = {"image_id": image, "category_id": int(prediction.labels[i]) + 1, "score": float(prediction.scores[i])}
            found.append(
                row | ({"segmentation": runs(prediction.masks[i])} if kind == "segm" else {"bbox": xywh(prediction.boxes[i])})
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1, "height": 200, "width": 200} for i in range(len(pairs))],
            "categories": [{"id": i + 1, "name": str(i)} for i in range(classes)],
            "annotations": truths,
            "info": {},
        }
        truth.createIndex()
        results = truth.loadRes(found) if found else COCO()
        if not found:
            results.dataset = truth.dataset | {"annotations": []}
            results.createIndex()
        evaluator = COCOeval(truth, results, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_boxes_equal_pycocotools(seed, images):
    pairs = problem(seed, images)
    metric, reference = scored(pairs), official(pairs)
    assert [metric.compute()[key] for key in KEYS] == pytest.approx(reference.stats.tolist(), abs=1e-12)
    np.testing.assert_allclose(metric.evaluation()["precision"], reference.eval["precision"], atol=1e-12)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_masks_equal_pycocotools(seed):
    pairs = problem(seed, 4, masks=True)
    numbers, reference = scored(pairs, masks=True).compute(), official(pairs, kind="segm")
    assert [numbers[f"mask_{key}"] for key in KEYS] == pytest.approx(reference.stats.tolist(), abs=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_match_tables_give_the_same_ap(seed):
    metric = scored(problem(seed, 8))
    values = average_precision(metric.matches())[0]
    precision = metric.evaluation()["precision"][..., 0, -1].mean(1).T
    np.testing.assert_allclose(values, np.where(precision < 0, np.nan, precision), atol=1e-9)
    stored = Matches.from_arrays(metric.matches().to_arrays())
    np.testing.assert_array_equal(average_precision(stored)[0], values)


def test_weighted_ap_equals_repeating_the_pictures():
    pairs = problem(7, 8)
    for prediction, _ in pairs:  # without ties, whose order among copies is arbitrary
        prediction.scores = prediction.scores + torch.rand(len(prediction), generator=torch.Generator().manual_seed(0)) * 0.05
    times = np.array([0, 3, 1, 1, 2, 0, 1, 2])
    repeated = scored([pair for pair, count in zip(pairs, times, strict=True) for _ in range(count)])
    values = average_precision(scored(pairs).matches(), times[None].astype(float))[0]
    assert np.nanmean(values) == pytest.approx(repeated.compute()["AP"], abs=1e-9)
    assert np.nanmean(values[:, 0]) == pytest.approx(repeated.compute()["AP50"], abs=1e-9)


def test_course_example_of_precision_and_recall():
    """ME04: four objects, four detections, three right: 75 % / 75 %; at threshold 0.9 one is left: 100 % / 25 %."""
    truth = torch.tensor([[0.0, 0, 20, 20], [30, 0, 50, 20], [60, 0, 80, 20], [90, 0, 110, 20]])
    found = torch.cat([truth[:3], torch.tensor([[90.0, 60, 110, 80]])])
    metric = CocoDetection(["car"])
    prediction = Instances(found, torch.zeros(4, dtype=torch.int64), (120, 120), torch.tensor([0.95, 0.85, 0.7, 0.6]))
    metric.update(prediction, Instances(truth, torch.zeros(4, dtype=torch.int64), (120, 120)), "a")
    assert (metric.at(0.5)["precision"], metric.at(0.5)["recall"]) == (0.75, 0.75)
    assert (metric.at(0.9)["precision"], metric.at(0.9)["recall"]) == (1.0, 0.25)


def test_nothing_found_is_zero_and_nothing_true_is_left_out():
    target = Instances(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([1]), (50, 50))
    metric = CocoDetection(["a", "b"])
    metric.update(Instances.empty((50, 50), scored=True), target, "1")
    assert metric.compute()["AP"] == 0.0 and metric.compute()["APl"] == -1.0
    assert [row["AP"] for row in metric.per_class()] == [None, 0.0]
    assert metric.at(0.3)["precision"] == 0.0
    empty = CocoDetection(["a"])
    empty.update(Instances.empty((9, 9), scored=True), Instances.empty((9, 9)), "1")
    assert empty.compute()["AP"] == -1.0
    assert np.isnan(average_precision(empty.matches())).all()


def test_ranks_merge_to_the_single_process_result_and_padding_counts_once():
    pairs = problem(3, 9)
    parts = [CocoDetection([f"class {i}" for i in range(4)]) for _ in range(2)]
    for index in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]:  # ten draws for nine pictures
        parts[index % 2 if index else 1].update(*pairs[index], str(index + 1))
    parts[0].update(*pairs[0], "1")
    parts[0].merge(parts[1].state())
    assert len(parts[0]) == 9
    assert parts[0].compute() == scored(pairs).compute()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: Classes(torch.tensor([1])), "needs Instances"),
        (lambda p: Instances(p.boxes * float("nan"), p.labels, p.size, p.scores), "predicted box 0 must be finite"),
        (lambda p: Instances(p.boxes, p.labels + 9, p.size, p.scores), "predicted labels must be below 2 classes, found 9"),
        (lambda p: Instances(p.boxes, p.labels, p.size), "predictions need finite scores"),
    ],
)
def test_bad_predictions_are_refused_by_name(change, message):
    good = Instances(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), (9, 9), torch.tensor([0.5]))
    with pytest.raises(MetricError, match=message):
        CocoDetection(["a", "b"]).update(change(good), good, "picture 7")


def test_no_picture_is_a_named_error():
    with pytest.raises(MetricError, match="no picture was scored"):
        CocoDetection(["a"]).compute()
