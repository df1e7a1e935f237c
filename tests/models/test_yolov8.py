"""YOLOv8: distributions over sides, places, losses, decoding, any backbone, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from papers import batch_for, new

from opticus import zoo
from opticus.models.detection.yolov8 import (
    Answers,
    Config,
    Places,
    YOLOv8,
    boxes_of,
    criterion,
    distances_of,
    distribution_focal,
    expected,
)
from opticus.ops.iou import paired_ciou
from opticus.structures import Batch, CapabilityError, DataError, Images, Instances, Part, UsageError

SIZE = (128, 128)


def frame(count: int = 1) -> Images:
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    return Images(torch.zeros(count, 3, *SIZE), None, eye, (SIZE,) * count)


def one(box: list[float], label: int) -> Batch:
    return Batch(frame(), (Instances(torch.tensor([box]), torch.tensor([label]), SIZE),), ("one",))


def silent(network: YOLOv8) -> Answers:
    """Answers that name no class; all boxes reach one stride and a half to each side."""
    count = len(network.places(SIZE, torch.zeros(1)).points)
    return Answers(torch.full((1, count, network.config.classes), -12.0), sides_for(torch.full((1, count, 4), 1.5)))


def sides_for(distances: torch.Tensor) -> torch.Tensor:
    """Logits whose expected value is `distances`: mass on the two bins around each."""
    low = distances.floor()
    found = torch.full((*distances.shape, 16), -30.0)
    found.scatter_(-1, low.long()[..., None], (1 - distances + low).clamp(min=1e-9).log()[..., None])
    return found.scatter_(-1, low.long()[..., None] + 1, (distances - low).clamp(min=1e-9).log()[..., None])


@pytest.fixture(scope="module")
def tiny() -> YOLOv8:
    network = new("yolov8/tiny").eval()
    assert isinstance(network, YOLOv8)
    return network


def test_expected_distance_is_gfl_equation_5() -> None:
    logits = torch.randn(3, 4, 16, dtype=torch.float64)
    by_hand = sum(i * logits.exp()[..., i] / logits.exp().sum(-1) for i in range(16))
    torch.testing.assert_close(expected(logits), by_hand)
    torch.testing.assert_close(expected(sides_for(torch.tensor([0.0, 2.25, 14.5]))), torch.tensor([0.0, 2.25, 14.5]))


def test_distribution_focal_is_gfl_equation_6() -> None:
    logits = torch.randn(1, 4, 16, dtype=torch.float64)
    wanted = torch.tensor([[0.3, 7.0, 13.75, 40.0]], dtype=torch.float64)
    total = 0.0
    for side, y in enumerate((0.3, 7.0, 13.75, 14.99)):  # what lies beyond the bins is cut
        s = logits[0, side].softmax(0)
        low = math.floor(y)
        total -= (low + 1 - y) * math.log(s[low]) + (y - low) * math.log(s[low + 1])
    assert float(distribution_focal(logits, wanted)[0]) == pytest.approx(total / 4, rel=1e-12)


def test_it_is_least_at_the_truth() -> None:
    wanted = torch.tensor([[1.25, 2.5, 3.75, 4.0]])
    right = distribution_focal(sides_for(wanted), wanted)
    assert float(right) < float(distribution_focal(sides_for(wanted + 0.2), wanted))


def test_places_are_middles_of_cells(tiny: YOLOv8) -> None:
    places = tiny.places((64, 128), torch.zeros(1))
    assert len(places.points) == 8 * 16 + 4 * 8 + 2 * 4
    assert places.points[[0, 17, 128, 128 + 32 + 5]].tolist() == [[4, 4], [12, 12], [8, 8], [48, 48]]
    assert places.strides[[0, 127, 128, 160]].tolist() == [8, 8, 16, 32]


def test_encoding_and_decoding_are_inverse(tiny: YOLOv8) -> None:
    places = tiny.places(SIZE, torch.zeros(1))
    index = torch.tensor([6 * 16 + 6, 256 + 3 * 8 + 3])
    near = Places(places.points[index], places.strides[index])
    boxes = torch.tensor([[40.0, 32, 70, 90], [20, 16, 101, 88]])
    torch.testing.assert_close(boxes_of(sides_for(distances_of(boxes, near)), near), boxes, rtol=0, atol=1e-3)


def test_loss_equals_the_equations(tiny: YOLOv8) -> None:
    """One object, all places inside it equally aligned per level: written out for the ones that the assignment takes."""
    places, box = tiny.places(SIZE, torch.zeros(1)), torch.tensor([32.0, 32, 64, 64])
    out, batch = silent(tiny), one(box.tolist(), 2)
    out.logits[..., 2] = 0.0
    terms = criterion(tiny, count=3, alpha=1.0, beta=2.0)(out, batch)
    boxes = boxes_of(out.sides, places)[0]
    overlaps = paired_ciou(boxes, box).clamp(min=0)
    inside = ((places.points > 32) & (places.points < 64)).all(1)
    t = torch.where(inside, 0.5 * overlaps**2, 0.0)
    order = sorted(range(len(t)), key=lambda n: (-float(t[n]), n))[:3]
    quality = {n: float(t[n] / t[order].max() * overlaps[order].max()) for n in order}
    total = max(sum(quality.values()), 1.0)
    entropy = 0.0
    for n in range(len(t)):
        for label in range(10):
            p, q = float(out.logits[0, n, label].sigmoid()), quality.get(n, 0.0) if label == 2 else 0.0
            entropy -= q * math.log(p) + (1 - q) * math.log1p(-p)
    assert float(terms["class"]) == pytest.approx(0.5 * entropy / total, rel=1e-4)
    regression = sum(q * (1 - float(paired_ciou(boxes[n], box))) for n, q in quality.items())
    assert float(terms["box"]) == pytest.approx(7.5 * regression / total, rel=1e-4)
    focal = 0.0
    for n, q in quality.items():
        near = Places(places.points[n : n + 1], places.strides[n : n + 1])
        focal += q * float(distribution_focal(out.sides[0, n : n + 1], distances_of(box[None], near)))
    assert float(terms["side"]) == pytest.approx(1.5 * focal / total, rel=1e-4)


def test_a_picture_without_objects_teaches_only_background(tiny: YOLOv8) -> None:
    empty = Batch(frame(), (Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), SIZE),), ("none",))
    out = silent(tiny)
    terms = criterion(tiny)(Answers(torch.zeros_like(out.logits), out.sides), empty)
    assert float(terms["box"]) == float(terms["side"]) == 0
    assert float(terms["class"]) == pytest.approx(0.5 * out.logits.numel() * math.log(2), rel=1e-5)


def test_no_gradient_enters_through_the_targets(tiny: YOLOv8) -> None:
    out = silent(tiny)
    logits = out.logits.clone().requires_grad_()
    terms = criterion(tiny)(Answers(logits, out.sides), one([30.0, 20, 62, 76], 2))
    gradients = [torch.autograd.grad(terms[key], logits, retain_graph=True)[0].abs().sum() for key in ("box", "side", "class")]
    assert [float(g) > 0 for g in gradients] == [False, False, True]


def test_results_decode_suppress_and_cut(tiny: YOLOv8) -> None:
    places, out = tiny.places(SIZE, torch.zeros(1)), silent(tiny)
    wanted = torch.tensor([[40.0, 32, 70, 90], [40.5, 33, 70, 90], [-20, 10, 30, 60]])
    spots = (6 * 16 + 6, 7 * 16 + 6, 4 * 16 + 1)
    for index, box in zip(spots, wanted):
        near = Places(places.points[index : index + 1], places.strides[index : index + 1])
        out.sides[0, index] = sides_for(distances_of(box[None], near))[0]
    out.logits[0, spots[0], 3], out.logits[0, spots[1], 3], out.logits[0, spots[1], 7] = 2.0, 1.0, 0.5
    out.logits[0, spots[2], 4] = -0.5
    found = tiny.results(out, frame())[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert found.labels.tolist() == [3, 7, 4]
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 0.5, -0.5]).sigmoid())
    torch.testing.assert_close(found.boxes[0], wanted[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(found.boxes[2], torch.tensor([0.0, 10, 30, 60]), rtol=0, atol=1e-3)


def test_widths_and_depths_follow_the_multiples() -> None:
    with torch.device("meta"):
        n, m, x = (zoo.create(f"yolov8/{v}") for v in "nmx")
    assert n.backbone.widths == (64, 128, 256) and m.backbone.widths == (192, 384, 576) and x.backbone.widths == (320, 640, 640)
    assert [len(m.backbone.stages[i][1].m) for i in range(4)] == [2, 4, 4, 2] and len(m.neck.up4.m) == 2
    assert n.head.label[0][0].conv.out_channels == 80 and n.head.box[0][0].conv.out_channels == 64
    assert x.head.label[0][0].conv.out_channels == 320 and x.head.box[0][0].conv.out_channels == 80


SMALL: dict[str, Any] = {"classes": 3, "width": 0.125, "side": 128}


@pytest.mark.parametrize(
    "part",
    [
        Part("resnet/18", classes=0, layers=(1, 1, 1, 1), width=16),
        Part("convnext/tiny", classes=0, patch=4, depths=(1, 1, 1, 1), widths=(8, 16, 24, 32)),
        Part("swin/tiny", classes=0, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8)),
    ],
    ids=lambda part: part.name,
)
def test_any_backbone_carries_the_neck(part: Part) -> None:
    network = zoo.build("yolov8/tiny", Config(backbone=part, **SMALL)).eval()
    assert isinstance(network, YOLOv8) and network.strides == (8, 16, 32)
    with torch.no_grad():
        out = network(torch.randn(2, 3, *SIZE))
    assert out.sides.shape == (2, 256 + 64 + 16, 4, 16)
    assert len(network.results(out, frame(2))) == 2
    assert all(bool(torch.isfinite(term)) for term in criterion(network)(out, batch_for(network, "detect", 2)).values())


def test_a_backbone_given_by_name_comes_without_a_head() -> None:
    with torch.device("meta"):
        network = zoo.create("yolov8/tiny", backbone="resnet/18")
    assert network.strides == (8, 16, 32)
    assert not [name for name, _ in network.named_parameters() if name.startswith("backbone.fc")]


def test_finer_levels_of_a_backbone_can_carry_it() -> None:
    part = Part("resnet/18", classes=0, layers=(1, 1, 1), width=16)
    network = zoo.build("yolov8/tiny", Config(backbone=part, finest=4, **SMALL))
    assert isinstance(network, YOLOv8) and network.strides == (4, 8, 16)


def test_what_it_cannot_stand_on_is_refused(tiny: YOLOv8) -> None:
    short = Part("resnet/18", classes=0, layers=(1, 1, 1), width=16)
    with pytest.raises(CapabilityError, match=r"maps of strides 8, 16 and 32, found \(4, 8, 16\)"):
        zoo.build("yolov8/tiny", Config(backbone=short, **SMALL))
    with pytest.raises(UsageError, match=r"a side that 32 divides, found width=0\.25, depth=0\.33, side=100"):
        zoo.create("yolov8/tiny", side=100)
    with pytest.raises(DataError, match=r"one: labels must be in 0\.\.9, found \[10\]"):
        criterion(tiny)(silent(tiny), one([0.0, 0, 9, 9], 10))
