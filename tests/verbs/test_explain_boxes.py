"""The figures of detectors against hand computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import opticus
from opticus.ops.iou import iou
from opticus.ops.nms import nms_per_class, watched
from opticus.structures import Picture
from opticus.transforms.prepare import prepare
from opticus.verbs.explain_queries import attend, is_attention, watch


def test_a_watched_suppression_is_written_down_and_an_unwatched_one_is_not() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores, labels = torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0, 0, 0])
    with watched() as calls:
        kept = nms_per_class(boxes, scores, labels, 0.5)
    nms_per_class(boxes, scores, labels, 0.5)
    assert len(calls) == 1 and kept.tolist() == calls[0].kept.tolist() == [1, 2]
    assert calls[0].threshold == 0.5 and torch.equal(calls[0].boxes, boxes)


def test_after_suppression_are_the_boxes_that_the_model_predicts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = opticus.create("retinanet/tiny")
    torch.nn.init.constant_(model.classification.answer.bias, -1.0)  # so that scores pass the network's own threshold
    done = opticus.explain("nms", model, data="scenes", threshold=0.0, out=tmp_path)
    found = model.predict(opticus.open_data("scenes", "test")[0].picture.pixels, threshold=0.0)[0]
    assert done.numbers["all before"] > done.numbers["all after"] >= len(found) > 0
    assert sum(done.numbers["kept"]) == done.numbers["after"] == done.numbers["all after"]
    kept = torch.tensor(done.numbers["boxes"])[torch.tensor(done.numbers["kept"])]
    assert all((kept - box).abs().amax(1).min() < 1e-3 for box in found.boxes)


def test_anchors_are_counted_and_taken_as_by_the_overlaps(tmp_path: Path) -> None:
    model: Any = opticus.create("retinanet/tiny")
    truth: Any = opticus.open_data("scenes", "test")[1].target
    done = opticus.explain("anchors", model, data="scenes", index=1, threshold=0.4, out=tmp_path)
    every = torch.cat(model.anchors((128, 128), torch.zeros((), dtype=torch.float64)))
    overlaps = iou(truth.boxes.double(), every)
    assert done.numbers["anchors"] == len(every) and done.numbers["taken"] == int((overlaps.amax(0) >= 0.4).sum()) > 0
    assert done.numbers["best IoU per object"] == pytest.approx(overlaps.amax(1).tolist(), rel=1e-5)
    assert all(level["at a place"] == 9 for level in done.numbers["levels"])


def test_proposals_of_the_figure_are_the_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = opticus.create("faster_rcnn/tiny").eval()
    sample = opticus.open_data("scenes", "test")[0]
    done = opticus.explain("objectness", model, data="scenes", limit=7, out=tmp_path)
    with torch.no_grad():
        out = model(prepare([sample.picture], model.prepare).pixels)
    assert torch.tensor(done.numbers["proposals"]) == pytest.approx(out.proposals[:7].numpy(), abs=1e-3)
    highest = max(level["highest"] for level in done.numbers["levels"])
    assert highest == pytest.approx(float(out.objectness.sigmoid().max()), rel=1e-5)


def test_attention_of_queries_sums_to_one_and_leaves_the_padding_out() -> None:
    torch.manual_seed(0)
    model: Any = opticus.create("detr/tiny").eval()
    images = prepare([Picture(torch.randint(0, 255, (128, 70, 3), dtype=torch.uint8))], model.prepare)
    assert images.valid is not None and not images.valid.all()
    _, found = watch(model, images)
    assert len(found) == sum(is_attention(m) for m in model.modules())
    assert all(torch.allclose(one.weights.sum(-1), torch.ones(()), atol=1e-5) for one in found)
    seen = torch.nn.functional.interpolate(images.valid[:, None].float(), size=(8, 8))[0, 0].flatten() > 0
    across = next(one for one in reversed(found) if not one.own).weights[0]  # (heads, queries, places)
    assert across.shape[-1] == len(seen) and 0 < int(seen.sum()) < len(seen)
    assert float(across[..., ~seen].abs().max()) == 0 and float(across[..., seen].min()) > 0


def test_the_recomputed_output_is_the_modules() -> None:
    torch.manual_seed(0)
    model: Any = opticus.create("detr/tiny").double().eval()
    module: Any = next(m for m in model.modules() if is_attention(m))
    width = module.out_proj.in_features
    x, y = torch.randn(2, 5, width, dtype=torch.float64), torch.randn(2, 7, width, dtype=torch.float64)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[0, ..., 5:] = False
    weights, out = attend(module, x, y, y, mask)
    assert torch.allclose(out, module(x, y, y, mask), atol=1e-12) and float(weights[0, ..., 5:].detach().abs().max()) == 0


def test_the_share_of_easy_background_is_that_of_the_formula(tmp_path: Path) -> None:
    done = opticus.explain("focal", background=500, out=tmp_path)
    for gamma in (0.0, 2.0):
        easy, hard = -(0.01**gamma) * torch.tensor(0.99).log(), -(0.9**gamma) * torch.tensor(0.1).log()
        assert done.numbers["shares"][f"γ = {gamma:g}"] == pytest.approx(float(500 * easy / (500 * easy + hard)), rel=1e-5)
