"""RetinaNet (1708.02002): its anchors, its loss, its decoding and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from papers import batch_for, new

from opticus import zoo
from opticus.models.detection.retinanet import Answers, Config, RetinaNet, criterion
from opticus.ops.boxes import encode_boxes
from opticus.ops.iou import iou
from opticus.parity.fill import fill_module
from opticus.structures import Batch, CapabilityError, DataError, Images, Instances, Part, UsageError


def frame(height: int, width: int, count: int = 1) -> Images:
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    return Images(torch.zeros(count, 3, height, width), None, eye, ((height, width),) * count)


def silent(network: RetinaNet, size: tuple[int, int]) -> tuple[torch.Tensor, Answers]:
    """All anchors of a size, and answers that say nothing."""
    anchors = torch.cat(network.anchors(size, torch.zeros(1)))
    return anchors, Answers(torch.full((1, len(anchors), network.config.classes), -12.0), torch.zeros(1, len(anchors), 4))


@pytest.fixture(scope="module")
def tiny() -> RetinaNet:
    network = new("retinanet/tiny").eval()
    assert isinstance(network, RetinaNet)
    return network


def test_anchors_are_those_of_section_4() -> None:
    """Areas from 32^2 on P3 to 512^2 on P7, times 2^0, 2^(1/3), 2^(2/3), three ratios: nine a cell."""
    with torch.device("meta"):
        network = zoo.create("retinanet/r50")
    assert isinstance(network, RetinaNet)
    levels = network.anchors((800, 1344), torch.zeros(1))
    assert [len(level) for level in levels] == [9 * h * w for h, w in ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))]
    for level, side in zip(levels, (32, 64, 128, 256, 512)):
        sides = level[:9, 2:] - level[:9, :2]
        areas = sides.prod(1).sqrt().reshape(3, 3)
        expected = torch.tensor([side * 2 ** (i / 3) for i in range(3)])
        torch.testing.assert_close(areas, expected.expand(3, 3), rtol=0.05, atol=0)
        torch.testing.assert_close(
            (sides[:, 1] / sides[:, 0]).reshape(3, 3)[:, 0], torch.tensor([0.5, 1.0, 2.0]), rtol=0.06, atol=0
        )


def test_every_anchor_starts_at_the_prior(tiny: RetinaNet) -> None:
    with torch.no_grad():
        out = tiny(torch.randn(1, 3, 128, 128))
    assert out.logits.shape[1] == len(silent(tiny, (128, 128))[0]) == out.deltas.shape[1]
    assert float(out.logits.sigmoid().mean()) == pytest.approx(0.01, rel=0.3)


def test_answers_belong_to_their_anchors(tiny: RetinaNet) -> None:
    """A bright spot changes first the answers of anchors around it: order of levels, rows, columns and anchors agree."""
    network = new("retinanet/tiny").eval()
    fill_module(network)
    a, b = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    b[:, :, 88:96, 24:32] = 3.0
    with torch.no_grad():
        change = (network(a).logits - network(b).logits).abs().sum(-1)[0]
    finest = network.anchors((128, 128), a)[0]
    centre = (finest[:, :2] + finest[:, 2:]) / 2
    assert float((centre[int(change[: len(finest)].argmax())] - torch.tensor([28.0, 92.0])).abs().max()) <= 24


def test_results_decode_suppress_and_cut(tiny: RetinaNet) -> None:
    size = (128, 128)
    anchors, out = silent(tiny, size)
    wanted = torch.tensor([[40.0, 32, 70, 90], [-20, 10, 30, 60]])
    overlaps = iou(wanted, anchors)
    first, second = overlaps[0].topk(2).indices.tolist(), int(overlaps[1].argmax())
    out.deltas[0, first[0]] = encode_boxes(wanted[:1], anchors[first[:1]])[0]
    out.deltas[0, first[1]] = encode_boxes(wanted[:1] + 1, anchors[first[1:]])[0]
    out.deltas[0, second] = encode_boxes(wanted[1:], anchors[second][None])[0]
    out.logits[0, first[0], 3], out.logits[0, first[1], 3], out.logits[0, first[1], 7] = 2.0, 1.0, 0.5
    out.logits[0, second, 4] = -1.0
    found = tiny.results(out, frame(*size))[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert found.labels.tolist() == [3, 7, 4], "the weaker double of class 3 is gone, that of another class is not"
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 0.5, -1.0]).sigmoid())
    torch.testing.assert_close(found.boxes[0], wanted[0])
    torch.testing.assert_close(found.boxes[2], torch.tensor([0.0, 10, 30, 60]))


def test_answers_below_the_threshold_or_outside_are_no_results(tiny: RetinaNet) -> None:
    anchors, out = silent(tiny, (128, 128))
    out.logits[0, 100, 0] = math.log(0.049 / 0.951)
    assert len(tiny.results(out, frame(128, 128))[0]) == 0
    out.logits[0, 100, 0] = math.log(0.051 / 0.949)
    assert len(tiny.results(out, frame(128, 128))[0]) == 1
    out.deltas[0, 100, 0] = 1000
    assert len(tiny.results(out, frame(128, 128))[0]) == 0
    assert len(anchors) == out.logits.shape[1]


def test_half_precision_does_not_round_pixels(tiny: RetinaNet) -> None:
    anchors, out = silent(tiny, (128, 128))
    out.logits[0, 1000, 3] = 2.0
    for dtype in (torch.bfloat16, torch.float16):
        found = tiny.results(Answers(*(part.to(dtype) for part in out)), frame(128, 128))[0]
        assert isinstance(found, Instances)
        torch.testing.assert_close(found.boxes[0], anchors[1000].clamp(0, 128))


def test_a_picture_gives_at_most_its_share(tiny: RetinaNet) -> None:
    _, out = silent(tiny, (128, 128))
    out.logits[...] = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(0))
    assert len(tiny.results(out, frame(128, 128))[0]) == tiny.config.detections


def test_loss_equals_the_equations(tiny: RetinaNet) -> None:
    """One object and answers of 0: focal loss by hand, L1 of the coder's targets by hand."""
    anchors, out = silent(tiny, (128, 128))
    out = Answers(torch.zeros_like(out.logits), out.deltas)
    box = torch.tensor([[30.0, 20, 62, 76]])
    batch = Batch(frame(128, 128), (Instances(box, torch.tensor([2]), (128, 128)),), ("one",))
    overlap = iou(box, anchors)[0]
    positive = (overlap >= 0.5) | (overlap == overlap.max())
    background = overlap < 0.4
    assert int(positive.sum()) > 3 and bool((~positive & ~background).any())
    terms = criterion(tiny)(out, batch)
    counted = 0.25 * positive.sum() + 0.75 * (10 * background.sum() + 9 * positive.sum())
    torch.testing.assert_close(terms["class"], counted * 0.25 * math.log(2) / positive.sum())
    targets = encode_boxes(box.expand(int(positive.sum()), 4), anchors[positive])
    torch.testing.assert_close(terms["box"], targets.abs().sum() / positive.sum())
    right = Answers(out.logits, out.deltas.clone())
    right.deltas[0, positive] = targets
    assert float(criterion(tiny)(right, batch)["box"]) == pytest.approx(0, abs=1e-5)
    assert float(criterion(tiny, box="giou")(right, batch)["box"]) == pytest.approx(0, abs=1e-5)
    assert float(criterion(tiny, box="giou")(out, batch)["box"]) > 0.05


def test_pictures_without_objects_are_background(tiny: RetinaNet) -> None:
    _, out = silent(tiny, (128, 128))
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (128, 128))
    terms = criterion(tiny)(Answers(torch.zeros_like(out.logits), out.deltas), Batch(frame(128, 128), (empty,), ("none",)))
    assert float(terms["box"]) == 0
    assert float(terms["class"]) == pytest.approx(out.logits[0].numel() * 0.75 * 0.25 * math.log(2), rel=1e-5)


def test_a_bad_label_names_its_sample(tiny: RetinaNet) -> None:
    _, out = silent(tiny, (128, 128))
    wrong = Instances(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([10]), (128, 128))
    with pytest.raises(DataError, match=r"sample-7: labels must be in 0\.\.9, found \[10\]"):
        criterion(tiny)(out, Batch(frame(128, 128), (wrong,), ("sample-7",)))


SMALL: dict[str, Any] = {"classes": 3, "width": 32, "depth": 1, "side": 128}


@pytest.mark.parametrize(
    "part",
    [
        Part("resnet/18", classes=0, layers=(1, 1, 1, 1), width=16, dilate=(4,)),  # two maps of one stride
        Part("vit/tiny", classes=0, patch=8, size=128),
        Part("swin/tiny", classes=0),
        Part("vgg/tiny", classes=0, grid=4),
    ],
    ids=lambda part: part.name,
)
def test_any_backbone_carries_it(part: Part) -> None:
    network = zoo.build("retinanet/tiny", Config(backbone=part, **SMALL)).eval()
    images = frame(128, 128, 2)
    with torch.no_grad():
        out = network(torch.randn(2, 3, 128, 128))
    assert isinstance(network, RetinaNet)
    assert out.deltas.shape == (2, len(torch.cat(network.anchors((128, 128), out.deltas))), 4)
    assert len(network.results(out, images)) == 2
    batch = batch_for(network, "detect", 2)
    assert all(bool(torch.isfinite(term)) for term in criterion(network)(out, batch).values())


def test_what_it_cannot_stand_on_is_refused() -> None:
    fine = Part("resnet/18", classes=0, layers=(1,), width=16)
    with pytest.raises(CapabilityError, match=r"retinanet: expected a backbone with a map of stride 8 or coarser, found \(4,\)"):
        zoo.build("retinanet/tiny", Config(backbone=fine, **SMALL))
    with pytest.raises(UsageError, match="expected a width that they divide, found 48"):
        zoo.create("retinanet/tiny", width=48)
