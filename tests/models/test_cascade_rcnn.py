"""Cascade R-CNN (1712.00726): stages that move each other's regions, their overlaps and losses, their averaged answers, bad settings."""

from __future__ import annotations

import math

import pytest
import torch
from papers import batch_for, new

import opticus
from opticus import zoo
from opticus.matching.objects import Truth
from opticus.matching.proposals import matched
from opticus.models.detection.cascade_rcnn import CODERS, CascadeRCNN, Losses, refined
from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.structures import Images, Instances, UsageError
from opticus.weights.names import Names


def tiny() -> CascadeRCNN:
    network = new("cascade_rcnn/tiny")
    assert isinstance(network, CascadeRCNN)
    return network


def test_each_stage_looks_at_the_boxes_of_the_one_before() -> None:
    """Eqs. 5-6, written out: boxes cut to the picture between stages, and only the last ones' boxes under the mean of the scores."""
    network = tiny().eval()
    pixels, valid = torch.randn(2, 3, 128, 128), torch.ones(2, 128, 128, dtype=torch.bool)
    valid[1, 70:] = False
    with torch.no_grad():
        out = network(pixels, valid)
        regions, frames = out.proposals, torch.tensor([[128.0, 128.0], [128.0, 70.0]])[out.pictures]
        for k in range(3):
            logits, deltas = network.stage(k, out.maps, regions, out.pictures)
            boxes = decode_boxes(deltas, regions, CODERS[k])
            torch.testing.assert_close(out.logits[k], logits)
            torch.testing.assert_close(out.boxes[k], boxes)
            regions = torch.stack([boxes[:, i].clamp(min=0).minimum(frames[:, i % 2]) for i in range(4)], 1)
    images = Images(pixels, valid, torch.eye(3, dtype=torch.float64).expand(2, 3, 3), ((128, 128), (70, 128)))
    probs = torch.stack([logits.softmax(-1) for logits in out.logits]).mean(0)[:, 1:]
    for i, row in enumerate(network.results(out, images)):
        assert isinstance(row, Instances) and row.scores is not None
        own = probs[out.pictures == i]
        assert len(row.scores) and all(float((own - score).abs().min()) < 1e-6 for score in row.scores)


def test_a_stage_with_perfect_deltas_gives_the_objects() -> None:
    objects, regions = torch.tensor([[10.0, 20, 50, 80], [5, 5, 30, 25]]), torch.tensor([[14.0, 16, 44, 90], [1, 8, 33, 20]])
    frames = torch.tensor([[0.0, 0, 100, 70]]).expand(2, -1)
    for k, coder in enumerate(CODERS):
        found = refined(encode_boxes(objects, regions, coder), regions, k, frames)
        torch.testing.assert_close(found, objects.minimum(torch.tensor([100.0, 70, 100, 70])))


def test_later_stages_ask_for_more_overlap() -> None:
    """A box of IoU 0.65 with its object is an object at 0.5 and 0.6, background at 0.7."""
    truth = [
        Truth(torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([3]), torch.zeros(0, 4)),
        Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
    ]
    boxes, pictures = torch.tensor([[0.0, 0, 65, 100], [0, 0, 65, 100]]), torch.tensor([0, 1])
    assert [matched(boxes, pictures, truth, overlap).labels.tolist() for overlap in (0.5, 0.6, 0.7)] == [[4, 0], [4, 0], [0, 0]]


def test_losses_of_every_stage() -> None:
    """Zeroed heads: each stage's class loss is log(classes + 1), whatever its regions; the last stage's boxes are learned too."""
    network = tiny().train()
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    for head in network.heads:
        for layer in (head.cls_score, head.bbox_pred):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    terms = Losses(network)(network(batch.images.pixels), batch)
    names = {f"{name}{k}" for name in ("class", "box") for k in (1, 2, 3)}
    assert set(terms) == {"objectness", "proposal"} | names
    assert all(float(terms[f"class{k}"].detach()) == pytest.approx(math.log(11), rel=1e-5) for k in (1, 2, 3))


def test_the_pyramid_learns_a_third_of_each_stage() -> None:
    network = tiny().train()
    maps = [torch.randn(1, 64, 32 // 2**i, 32 // 2**i, requires_grad=True) for i in range(len(network.strides))]
    boxes, pictures = torch.tensor([[8.0, 8, 60, 70]]), torch.zeros(1, dtype=torch.int64)
    grads: list[torch.Tensor] = []
    for heads in (network.heads, network.heads[:1]):
        network.heads = heads
        logits, _ = network.stage(0, maps, boxes, pictures)
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(logits.sum(), maps, allow_unused=True) if g is not None]))
    assert float(grads[1].abs().max()) > 0
    torch.testing.assert_close(grads[0], grads[1] / 3)


def test_the_background_of_published_files_moves_to_the_front() -> None:
    names: Names = zoo.paper("cascade_rcnn").FORMATS["detectron2"]
    state = {"roi_heads.box_predictor.2.cls_score.bias": torch.arange(4.0), "roi_heads.mask_head.mask_fcn1.weight": torch.ones(1)}
    found = names.apply(state)
    assert found.state["heads.2.cls_score.bias"].tolist() == [3, 0, 1, 2] and found.dropped == (
        "roi_heads.mask_head.mask_fcn1.weight",
    )


@pytest.mark.parametrize("overlaps", [(), (0.5, 0.6, 0.7, 0.8), (0.5, 1.5)])
def test_bad_settings_are_refused(overlaps: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="overlaps of 1 to 3 stages"):
        opticus.create("cascade_rcnn/tiny", overlaps=overlaps)
