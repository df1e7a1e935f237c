"""SSD (1512.02325): its maps and default boxes, its matching, its loss, its decoding and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from papers import new

from opticus import zoo
from opticus.matching.anchors import NEGATIVE
from opticus.models.detection.ssd import CODER, Answers, Config, L2Norm, criterion, match
from opticus.models.detection.ssd import SSD as Network
from opticus.ops.boxes import encode_boxes, xyxy_to_cxcywh
from opticus.ops.iou import iou
from opticus.parity.fill import fill_module
from opticus.structures import Batch, CapabilityError, Images, Instances, Part, UsageError


def frame(height: int, width: int, count: int = 1) -> Images:
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    return Images(torch.zeros(count, 3, height, width), None, eye, ((height, width),) * count)


def silent(network: Network) -> tuple[torch.Tensor, Answers]:
    """All default boxes, and answers that are sure of background everywhere."""
    side = network.config.side
    boxes = network.default_boxes((side, side), torch.zeros(1))
    logits = torch.zeros(1, len(boxes), network.config.classes + 1)
    logits[..., 0] = 12
    return boxes, Answers(logits, torch.zeros(1, len(boxes), 4))


@pytest.fixture(scope="module")
def tiny() -> Network:
    network = new("ssd/tiny").eval()
    assert isinstance(network, Network)
    return network


@pytest.mark.parametrize(
    ("variant", "sides", "count", "millions"),
    [("300", (38, 19, 10, 5, 3, 1), 8732, 35.6), ("512", (64, 32, 16, 8, 4, 2, 1), 24564, 37.5)],
)
def test_figure_2_and_table_7(variant: str, sides: tuple[int, ...], count: int, millions: float) -> None:
    """The maps that the paper draws, the boxes that it counts, and an answer for each of them."""
    network = zoo.meta(f"ssd/{variant}")
    assert isinstance(network, Network)
    side = int(variant)
    assert network.map_sizes((side, side)) == [(n, n) for n in sides]
    out = network(torch.empty(1, 3, side, side, device="meta"))
    assert out.logits.shape == (1, count, 91) and out.deltas.shape == (1, count, 4)
    assert len(network.default_boxes((side, side), torch.zeros(1))) == count
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_default_boxes_are_those_of_section_2_2() -> None:
    """Centres at the middle of cells; sides s, sqrt(s s'), s sqrt(a) by s / sqrt(a) for a = 2, 1/2, 3, 1/3."""
    network = zoo.meta("ssd/300")
    assert isinstance(network, Network)
    boxes = xyxy_to_cxcywh(network.default_boxes((300, 300), torch.zeros(1, dtype=torch.float64)))
    second = boxes[38 * 38 * 4 :][: 19 * 19 * 6].reshape(19, 19, 6, 4)
    torch.testing.assert_close(second[2, 5, :, :2], torch.tensor([[5.5 * 16, 2.5 * 16]]).double().expand(6, 2))
    s, further = 0.15 * 300, math.sqrt(0.15 * 0.33) * 300
    shapes = [(s, s), (further, further)] + [(s * math.sqrt(a), s / math.sqrt(a)) for a in (2, 1 / 2, 3, 1 / 3)]
    torch.testing.assert_close(second[2, 5, :, 2:], torch.tensor(shapes).double(), rtol=1e-6, atol=1e-6)
    assert float(boxes[:, 2:].max()) == 300, "no side is longer than the picture's"


def test_answers_belong_to_their_boxes() -> None:
    """A bright spot changes most the answers of boxes around it: maps, rows, columns and boxes of a cell are in one order."""
    network = new("ssd/tiny").eval()
    fill_module(network)
    assert isinstance(network, Network)
    a, b = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    b[:, :, 88:96, 24:32] = 3.0
    with torch.no_grad():
        change = (network(a).deltas - network(b).deltas).abs().sum(-1)[0]
    finest = xyxy_to_cxcywh(network.default_boxes((128, 128), a)[: 16 * 16 * 4])
    nearest = finest[int(change[: len(finest)].argmax()), :2]
    assert float((nearest - torch.tensor([28.0, 92.0])).abs().max()) <= 24


def test_the_first_map_is_normalised() -> None:
    norm, x = L2Norm(5), torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(norm(x).square().sum(1).sqrt(), torch.full((2, 3, 4), 20.0))
    torch.testing.assert_close(norm(x), 20 * x / x.square().sum(1, keepdim=True).sqrt())


def test_matching_gives_every_object_a_box() -> None:
    """From IoU 0.5 an object is matched; the best box of an object is always its own; of two objects with one best box the later."""
    overlaps = torch.tensor([[0.6, 0.1, 0.3, 0.0], [0.7, 0.2, 0.4, 0.0], [0.1, 0.2, 0.3, 0.0]])
    assert match(overlaps[:1]).tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE]
    assert match(overlaps[1:]).tolist() == [0, NEGATIVE, 1, NEGATIVE], "0.3 is the best that the last object has"
    assert match(overlaps).tolist() == [1, NEGATIVE, 2, NEGATIVE], "the first box is the best one of two objects"
    assert match(overlaps[:2].flip(0)).tolist() == [1, NEGATIVE, NEGATIVE, NEGATIVE], (
        "the later one has it, although it overlaps less"
    )
    assert match(overlaps, positive=0.35).tolist() == [1, NEGATIVE, 2, NEGATIVE]
    assert match(overlaps[:0]).tolist() == [NEGATIVE] * 4


def by_hand(network: Network, out: Answers, targets: list[Instances]) -> tuple[float, float]:
    """Eq. 1-3 and the mining of section 2.2, box by box."""
    boxes = network.default_boxes((128, 128), out.deltas)
    softmax, smooth, matched = 0.0, 0.0, 0
    for i, target in enumerate(targets):
        stands_for = [-1] * len(boxes)
        overlap = iou(target.boxes, boxes)
        for n in range(len(boxes)):
            best = int(overlap[:, n].argmax()) if len(target) else -1
            stands_for[n] = best if len(target) and float(overlap[best, n]) >= 0.5 else -1
        for m in range(len(target)):
            stands_for[int(overlap[m].argmax())] = m
        losses: list[float] = []
        positives = 0
        for n, m in enumerate(stands_for):
            logs = out.logits[i, n].log_softmax(0)
            if m < 0:
                losses.append(-float(logs[0]))
                continue
            positives += 1
            softmax -= float(logs[int(target.labels[m]) + 1])
            goal = encode_boxes(target.boxes[m], boxes[n], CODER)
            smooth += float(F.smooth_l1_loss(out.deltas[i, n], goal, reduction="sum"))
        softmax += sum(sorted(losses, reverse=True)[: 3 * positives])
        matched += positives
    return softmax / matched, smooth / matched


def test_loss_equals_the_equations(tiny: Network) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, _ = silent(tiny)
    out = Answers(torch.randn(2, len(boxes), 11, generator=generator), torch.randn(2, len(boxes), 4, generator=generator))
    one = Instances(torch.tensor([[30.0, 20, 62, 76], [5, 5, 12, 16], [28, 22, 60, 78]]), torch.tensor([2, 9, 0]), (128, 128))
    none = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (128, 128))
    terms = criterion(tiny, box_weight=2.0)(out, Batch(frame(128, 128, 2), (one, none), ("one", "none")))
    softmax, smooth = by_hand(tiny, out, [one, none])
    assert float(terms["class"]) == pytest.approx(softmax, rel=1e-5)
    assert float(terms["box"]) == pytest.approx(2 * smooth, rel=1e-5)


def test_a_batch_without_objects_teaches_nothing(tiny: Network) -> None:
    _, out = silent(tiny)
    logits = out.logits.clone().requires_grad_()
    none = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (128, 128))
    terms = criterion(tiny)(Answers(logits, out.deltas), Batch(frame(128, 128), (none,), ("none",)))
    assert float(terms["class"]) == 0 and float(terms["box"]) == 0
    terms["class"].backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) == 0


def test_results_decode_suppress_and_cut(tiny: Network) -> None:
    boxes, out = silent(tiny)
    wanted = torch.tensor([[40.0, 32, 70, 90], [-20, 10, 30, 60]])
    overlaps = iou(wanted, boxes)
    first, second = overlaps[0].topk(2).indices.tolist(), int(overlaps[1].argmax())
    out.deltas[0, first[0]] = encode_boxes(wanted[0], boxes[first[0]], CODER)
    out.deltas[0, first[1]] = encode_boxes(wanted[0] + 1, boxes[first[1]], CODER)
    out.deltas[0, second] = encode_boxes(wanted[1], boxes[second], CODER)
    out.logits[0, [*first, second]] = -20.0
    out.logits[0, first[0], 4], out.logits[0, first[1], 4], out.logits[0, first[1], 8] = 6.0, 2.0, 1.0
    out.logits[0, second, 0], out.logits[0, second, 5] = 0.0, 0.0
    found = tiny.results(out, frame(128, 128))[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert found.labels.tolist() == [3, 4, 7], "the weaker double of class 3 is gone, that of another class is not"
    torch.testing.assert_close(found.scores, torch.tensor([1.0, 0.5, math.exp(1) / (math.exp(1) + math.exp(2))]))
    torch.testing.assert_close(found.boxes[0], wanted[0])
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.0, 10, 30, 60]))


def test_a_score_must_exceed_a_hundredth(tiny: Network) -> None:
    for score, count in ((0.0099, 0), (0.0101, 1)):
        _, out = silent(tiny)
        out.logits[0, 500] = -30.0
        out.logits[0, 500, 0], out.logits[0, 500, 1] = math.log(1 - score), math.log(score)
        assert len(tiny.results(out, frame(128, 128))[0]) == count


def test_a_picture_gives_at_most_its_share(tiny: Network) -> None:
    _, out = silent(tiny)
    out.logits[...] = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(0))
    assert len(tiny.results(out, frame(128, 128))[0]) == tiny.config.detections


SMALL: dict[str, Any] = {
    "classes": 3, "width": 16, "dilation": 1, "extras": ((3, 2, 1),), "scales": (0.1, 0.3, 0.5, 0.8), "ratios": ((2.0,),) * 3,
    "steps": (8, 16, 32), "side": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    "part", [Part("vgg/16", classes=0, hidden=0, width=4), Part("swin/tiny", classes=0)], ids=lambda part: part.name
)
def test_other_backbones_carry_it(part: Part) -> None:
    finest = 4 if part.name.startswith("swin") else 8
    steps = (finest, 2 * finest, 4 * finest)
    network = zoo.build("ssd/tiny", Config(backbone=part, finest=finest, **{**SMALL, "steps": steps})).eval()
    assert isinstance(network, Network)
    with torch.no_grad():
        out = network(torch.randn(2, 3, 128, 128))
    assert out.deltas.shape == (2, len(network.default_boxes((128, 128), out.deltas)), 4)
    assert len(network.results(out, frame(128, 128, 2))) == 2


def test_what_it_cannot_stand_on_is_refused() -> None:
    fine = Part("resnet/18", classes=0, layers=(1, 1), width=16)
    with pytest.raises(CapabilityError, match=r"ssd: expected a backbone with maps of two strides from 8 on, found \(4, 8\)"):
        zoo.build("ssd/tiny", Config(backbone=fine, **SMALL))
    with pytest.raises(UsageError, match=r"1 extras make 3 maps, expected 4 scales, 3 ratios and 3 steps, found \(2, 3, 3\)"):
        zoo.create("ssd/tiny", scales=(0.1, 0.2))
    with pytest.raises(UsageError, match="expected a width divisible by 8, found 20"):
        zoo.create("ssd/tiny", width=20)
    network = zoo.meta("ssd/300")
    with pytest.raises(UsageError, match="expected inputs of about 300 pixels a side, found 128x128"):
        network.default_boxes((128, 128), torch.zeros(1))
