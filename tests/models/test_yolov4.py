"""YOLOv4 (2004.10934): stretched centres, several anchors an object, losses, file layouts and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papers import new

from opticus import zoo
from opticus.matching.cells import cells_of
from opticus.models.detection import yolov4
from opticus.models.detection.yolov4 import Answers, YOLOv4, boxes_of, criterion, matched
from opticus.ops.iou import paired_ciou
from opticus.structures import Batch, CapabilityError, DataError, Images, Instances, Part, UsageError, WeightsError

SIZE = (128, 128)


def frame() -> Images:
    return Images(torch.zeros(1, 3, *SIZE), None, torch.eye(3, dtype=torch.float64)[None], (SIZE,))


def batch_of(boxes: list[list[float]], labels: list[int]) -> Batch:
    return Batch(frame(), (Instances(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), SIZE),), ("one",))


OWN: dict[str, Any] = {"backbone": None, "widths": (6, 8, 20, 40, 80, 160), "blocks": (1, 1, 1, 1, 1)}  # strides 8, 16 and 32


@pytest.fixture(scope="module")
def tiny() -> YOLOv4:
    network = new("yolov4/tiny", **OWN).eval()
    assert isinstance(network, YOLOv4)
    return network


def zeros(network: YOLOv4, value: float = 0.0) -> Answers:
    count = len(network.cells(SIZE, torch.zeros(1)).corner)
    return Answers(torch.zeros(1, count, 4), torch.full((1, count), value), torch.full((1, count, network.config.classes), value))


def test_a_stretched_sigmoid_reaches_the_borders_of_its_cell(tiny: YOLOv4) -> None:
    """Section 3.4: with factor 1.2 a centre on the border needs a finite answer; a zero is the middle of the cell."""
    cells = tiny.cells(SIZE, torch.zeros(1))
    raw = torch.zeros(1, len(cells.corner), 4)
    raw[0, 0, 0] = -math.log(11)  # sigmoid 1/12, where 1.2 s - 0.1 = 0
    boxes = boxes_of(raw, cells, tiny.config.scales)[0]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(centre[0], torch.tensor([0.0, 4.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(centre[-1], torch.tensor([112.0, 112.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], cells.prior)


SIDE = st.sampled_from([4.0, 9.0, 16.0, 30.0, 64.0])


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 32), SIDE, SIDE), max_size=4), st.sampled_from([0.2, 0.5, 0.9, 1.0]))
@settings(deadline=None)
def test_matching_equals_the_rule_written_out(drawn: list[tuple[int, int, float, float]], threshold: float) -> None:
    priors = [torch.tensor([[8.0, 8.0], [8.0, 16.0]]), torch.tensor([[32.0, 16.0], [60.0, 60.0]])]
    cells = cells_of((32, 64), (8, 16), priors, torch.zeros(1))
    boxes = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in drawn]).reshape(-1, 4)
    found = matched(boxes, cells, threshold)
    wanted = []
    for m, (x, y, w, h) in enumerate(drawn):
        overlaps = []
        for pw, ph in torch.cat(priors).tolist():
            common = min(w, pw) * min(h, ph)
            overlaps.append(common / (w * h + pw * ph - common))
        best = overlaps.index(max(overlaps))
        for n, overlap in enumerate(overlaps):
            if n == best or overlap > threshold:
                stride, start, columns, rows = ((8, 0, 8, 4), (16, 64, 4, 2))[n // 2]
                column, row = min(x // stride, columns - 1), min(y // stride, rows - 1)
                wanted.append((m, start + (row * columns + column) * 2 + n % 2))
    assert sorted(zip(found.objects.tolist(), found.places.tolist(), strict=True)) == sorted(wanted)


def test_loss_equals_the_equations(tiny: YOLOv4) -> None:
    """One object: CIoU of all its answers, and entropies of every answer that is not ignored."""
    box, label = torch.tensor([30.0, 20, 62, 76]), 2
    out = zeros(tiny)
    cells = tiny.cells(SIZE, box)
    boxes = boxes_of(out.boxes, cells, tiny.config.scales)[0]
    found = matched(box[None], cells, 0.213)
    assert len(found.places) > 3
    terms = criterion(tiny, ignore=0.3)(out, batch_of([box.tolist()], [label]))
    corner = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    common = (corner[1] - corner[0]).clamp(min=0).prod(1)
    overlap = common / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - common)
    ignored = set((overlap > 0.3).nonzero()[:, 0].tolist()) - set(found.places.tolist())
    assert ignored
    regression = float((1 - paired_ciou(boxes[found.places], box)).sum())
    assert float(terms["box"]) == pytest.approx(0.07 * regression, rel=1e-4)
    assert float(terms["object"]) == pytest.approx((len(boxes) - len(ignored)) * math.log(2), rel=1e-5)
    assert float(terms["class"]) == pytest.approx(10 * len(found.places) * math.log(2), rel=1e-5)


def test_two_objects_of_one_answer_are_both_its_classes(tiny: YOLOv4) -> None:
    out = zeros(tiny, -4.0)
    near = [30.0, 20, 62, 76]
    terms = criterion(tiny, threshold=1.0)(out, batch_of([near, near], [2, 5]))
    hit, miss = math.log1p(math.exp(4.0)), math.log1p(math.exp(-4.0))
    assert float(terms["class"]) == pytest.approx(2 * hit + 8 * miss, rel=1e-5)


def test_a_picture_without_objects_teaches_only_background(tiny: YOLOv4) -> None:
    out = zeros(tiny)
    terms = criterion(tiny)(out, batch_of([], []))
    assert float(terms["box"]) == float(terms["class"]) == 0
    assert float(terms["object"]) == pytest.approx(out.objects.numel() * math.log(2), rel=1e-5)


def test_results_multiply_suppress_and_cut(tiny: YOLOv4) -> None:
    out = zeros(tiny, -20.0)
    cells = tiny.cells(SIZE, out.boxes)
    first, second = (3 * (6 * 16 + x) + 2 for x in (6, 7))
    out.objects[0, first], out.objects[0, second] = 1.0, 2.0
    out.logits[0, first, 3], out.logits[0, second, 3], out.logits[0, second, 7] = 1.0, 1.0, -1.0
    out.boxes[0, second, 0] = -9.0
    out.objects[0, 2], out.logits[0, 2, 1] = 0.0, -2.0
    found = tiny.results(out, frame())[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert found.labels.tolist() == [3, 7, 1]
    scores = torch.tensor([2.0, 2.0, 0.0]).sigmoid() * torch.tensor([1.0, -1.0, -2.0]).sigmoid()
    torch.testing.assert_close(found.scores, scores)
    half = cells.prior[2] / 2
    torch.testing.assert_close(found.boxes[2], torch.cat([torch.zeros(2), 4 + half]))


def test_both_layouts_name_the_same_110_convolutions() -> None:
    """yolov4.cfg has 110 convolutions, three of them without norm."""
    with torch.device("meta"):
        network = zoo.create("yolov4/608")
    convs = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convs) == 110 == len(yolov4._PLACES) == len(yolov4._PORT)
    assert {name.removesuffix(".conv") for name in convs} == set(yolov4._PLACES.values())


def test_a_cfg_with_other_anchors_or_scales_is_noticed() -> None:
    config = yolov4.VARIANTS["608"]

    def cfg(anchors: tuple[float, ...], scale: float) -> str:
        return json.dumps([["yolo", {"anchors": ",".join(map(str, anchors)), "scale_x_y": str(scale)}]])

    yolov4.check_cfg(config, cfg(config.anchors, 1.2), "a.weights")
    with pytest.raises(WeightsError, match=r"a\.weights: the cfg beside it has the anchors \(1\.0, 2\.0\)"):
        yolov4.check_cfg(config, cfg((1, 2), 1.2), "a.weights")
    with pytest.raises(WeightsError, match=r"scale_x_y=2\.0, the network 1\.2"):
        yolov4.check_cfg(config, cfg(config.anchors, 2.0), "a.weights")
    assert yolov4.classes_of(255) == (80,) and yolov4.classes_of(256) == ()


def test_another_backbone_carries_the_neck() -> None:
    """Its maps from stride `finest` on give the levels; the neck is as wide as they are."""
    network = new("yolov4/tiny", backbone=Part("resnet/18", classes=0, width=16), finest=8).eval()
    assert isinstance(network, YOLOv4)
    assert network.strides == (8, 16, 32)
    out = network(torch.zeros(1, 3, 64, 96))
    assert out.objects.shape == (1, 3 * (8 * 12 + 4 * 6 + 2 * 3))


def test_what_cannot_work_is_refused(tiny: YOLOv4) -> None:
    with pytest.raises(UsageError, match="one width more than stages, found 2 and 3"):
        zoo.create("yolov4/tiny", widths=(4, 8, 16), blocks=(1, 1))
    with pytest.raises(UsageError, match="even widths, the last three each twice the one before"):
        zoo.create("yolov4/tiny", widths=(6, 8, 20, 40, 80, 90))
    with pytest.raises(UsageError, match="as many for each of 3 levels; found 4 numbers"):
        zoo.create("yolov4/tiny", anchors=(1, 2, 3, 4))
    with pytest.raises(UsageError, match="the side must be a multiple of 32, found 100"):
        zoo.create("yolov4/tiny", size=100)
    with pytest.raises(UsageError, match="the side must be a multiple of 16, found 104"):
        zoo.create("yolov4/tiny", size=104, widths=(2, 2, 4, 8), blocks=(1, 1, 1))
    with pytest.raises(CapabilityError, match=r"three maps from stride 8 on.*found strides \(4, 8, 16\)"):
        zoo.create("yolov4/tiny", finest=8)
    with pytest.raises(UsageError, match="expected 1 or more"):
        zoo.create("yolov4/tiny", scales=(1.0, 1.0, 0.5))
    with pytest.raises(DataError, match=r"one: labels must be in 0\.\.9, found \[10\]"):
        criterion(tiny)(zeros(tiny), batch_of([[0.0, 0, 9, 9]], [10]))
