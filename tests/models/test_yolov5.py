"""YOLOv5: which anchors learn which objects, decoding, losses and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from papers import batch_for, new

from opticus import zoo
from opticus.models.detection.yolov5 import Anchors, Answers, YOLOv5, criterion, decoded, map_sizes, matched
from opticus.ops.iou import paired_ciou
from opticus.structures import Batch, DataError, Images, Instances, UsageError

SIZE = (128, 128)


def frame(count: int = 1) -> Images:
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    return Images(torch.zeros(count, 3, *SIZE), None, eye, (SIZE,) * count)


def batch_of(boxes: list[list[float]], labels: list[int]) -> Batch:
    return Batch(frame(), (Instances(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), SIZE),), ("one",))


def silent(network: YOLOv5) -> Answers:
    count = sum(len(level.strides) for level in network.anchors(SIZE, torch.zeros(1)))
    return Answers(
        torch.zeros(1, count, 4), torch.full((1, count, 1), -12.0), torch.full((1, count, network.config.classes), -12.0)
    )


@pytest.fixture(scope="module")
def tiny() -> YOLOv5:
    network = new("yolov5/tiny").eval()
    assert isinstance(network, YOLOv5)
    return network


def test_decoding_by_hand() -> None:
    """Raw zeros are the middle of a cell and the anchor itself; the reach is half a cell and four anchors."""
    anchors = Anchors(torch.tensor([[16.0, 8.0]] * 3), torch.tensor([[10.0, 20.0]] * 3), torch.full((3,), 8.0))
    raw = torch.tensor([[0.0, 0, 0, 0], [50, -50, 50, -50], [math.log(3), 0, math.log(3), 0]])
    boxes = decoded(raw, anchors)
    assert boxes[0].tolist() == [15, 2, 25, 22]
    torch.testing.assert_close(boxes[1], torch.tensor([28.0 - 20, 4, 28 + 20, 4]))
    torch.testing.assert_close(boxes[2, 2] - boxes[2, 0], torch.tensor(10 * 1.5**2))


SIDE = st.sampled_from([2.0, 7.5, 8.0, 20.0, 31.0, 40.0])


@given(st.lists(st.tuples(st.integers(0, 128), st.integers(0, 96), SIDE, SIDE), max_size=4), st.sampled_from([8, 16, 32]))
@settings(deadline=None)
def test_matching_equals_the_rule_written_out(drawn: list[tuple[int, int, float, float]], stride: int) -> None:
    sides = torch.tensor([[8.0, 8.0], [10.0, 31.0]])
    height, width = 96 // stride, 128 // stride
    boxes = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in drawn]).reshape(-1, 4)
    found = matched(boxes, sides, (height, width), stride, 4.0)
    wanted = set()
    for m, (x, y, w, h) in enumerate(drawn):
        column, row = min(x // stride, width - 1), min(y // stride, height - 1)
        beside = column - 1 if x / stride - column < 0.5 else column + 1
        above = row - 1 if y / stride - row < 0.5 else row + 1
        for a, (aw, ah) in enumerate(sides.tolist()):
            if max(w / aw, aw / w, h / ah, ah / h) < 4:
                for i, j in ((column, row), (beside, row), (column, above)):
                    if 0 <= i < width and 0 <= j < height:
                        wanted.add((m, (j * width + i) * 2 + a))
    pairs = list(zip(found.objects.tolist(), found.places.tolist(), strict=True))
    assert set(pairs) == wanted and len(pairs) == len(wanted)


def test_a_matched_anchor_can_express_its_object(tiny: YOLOv5) -> None:
    """The decoding reaches every object that the matching gives to an anchor: what it solves to is the object."""
    boxes = torch.tensor([[20.0, 30, 42, 70], [64, 8, 100, 60]])
    for stride, size, level, sides in zip((8, 16, 32), map_sizes(SIZE), tiny.anchors(SIZE, boxes), tiny.head.anchors, strict=True):
        found = matched(boxes, sides * stride, size, stride, 4.0)
        assert len(found.places) > 0
        near = Anchors(*(part[found.places] for part in level))
        wanted = boxes[found.objects]
        centre = (wanted[:, :2] + wanted[:, 2:]) / 2
        share = torch.cat([(centre - near.corners) / stride + 0.5, ((wanted[:, 2:] - wanted[:, :2]) / near.sides).sqrt()], 1) / 2
        assert bool(((share >= 0) & (share <= 1)).all())
        raw = torch.logit(share.clamp(1e-6, 1 - 1e-6))
        torch.testing.assert_close(decoded(raw, near), wanted, rtol=0, atol=1e-2)


def test_loss_equals_the_description(tiny: YOLOv5) -> None:
    """One object: means over matched anchors per level, objectness towards the reached overlap, levels weighed 4, 1 and 0.4."""
    box, label = torch.tensor([30.0, 20, 62, 76]), 2
    out = silent(tiny)
    out = Answers(out.boxes + 0.2, torch.zeros_like(out.objectness), torch.zeros_like(out.logits))
    terms = criterion(tiny)(out, batch_of([box.tolist()], [label]))
    expected = {"box": 0.0, "object": 0.0, "class": 0.0}
    start = 0
    for stride, size, level, sides, share in zip(
        (8, 16, 32), map_sizes(SIZE), tiny.anchors(SIZE, box), tiny.head.anchors, (4.0, 1.0, 0.4), strict=True
    ):
        places = matched(box[None], sides * stride, size, stride, 4.0).places
        overlap = paired_ciou(decoded(torch.full((len(places), 4), 0.2), Anchors(*(part[places] for part in level))), box)
        expected["box"] += 0.05 * float((1 - overlap).mean())
        wanted = torch.zeros(len(level.strides))
        wanted[places] = overlap.clamp(min=0)
        expected["object"] += share * float(F.binary_cross_entropy(torch.full_like(wanted, 0.5), wanted))
        expected["class"] += 0.5 * math.log(2)
        start += len(level.strides)
    assert {key: float(value) for key, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert start == out.boxes.shape[1] == 3 * (16 * 16 + 8 * 8 + 4 * 4)


def test_an_anchor_of_two_objects_is_as_present_as_the_better_one(tiny: YOLOv5) -> None:
    near, far = [30.0, 20, 62, 76], [34.0, 24, 58, 70]
    out = silent(tiny)
    out = Answers(out.boxes, torch.zeros_like(out.objectness), out.logits)
    one_way = criterion(tiny)(out, batch_of([near, far], [2, 3]))
    other_way = criterion(tiny)(out, batch_of([far, near], [3, 2]))
    for key in one_way:
        torch.testing.assert_close(one_way[key], other_way[key])


def test_a_picture_without_objects_teaches_only_absence(tiny: YOLOv5) -> None:
    out = silent(tiny)
    terms = criterion(tiny)(Answers(out.boxes, torch.zeros_like(out.objectness), out.logits), batch_of([], []))
    assert float(terms["box"]) == float(terms["class"]) == 0
    assert float(terms["object"]) == pytest.approx(5.4 * math.log(2), rel=1e-5)


def test_results_multiply_suppress_and_cut(tiny: YOLOv5) -> None:
    out = silent(tiny)
    level = tiny.anchors(SIZE, out.boxes)[0]
    first, second = (3 * (6 * 16 + x) + 2 for x in (6, 7))
    out.boxes[0, second, 0] = -math.log(3)  # half a cell to the left of the middle of its cell
    out.objectness[0, first], out.objectness[0, second] = 1.0, 2.0
    out.logits[0, first, 3], out.logits[0, second, 3], out.logits[0, second, 7] = 1.0, 1.0, -1.0
    found = tiny.results(out, frame())[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert found.labels.tolist() == [3, 7]
    torch.testing.assert_close(found.scores, torch.tensor(2.0).sigmoid() * torch.tensor([1.0, -1.0]).sigmoid())
    corner, sides = level.corners[second], level.sides[second]
    centre = corner + torch.tensor([0.0, 4.0])
    torch.testing.assert_close(found.boxes[0], torch.cat([centre - sides / 2, centre + sides / 2]))


def test_a_files_anchors_are_used(tiny: YOLOv5) -> None:
    """Anchors are part of a checkpoint: after loading others, the same raw answers mean other boxes."""
    other = new("yolov5/tiny").eval()
    state = {key: value.clone() for key, value in tiny.state_dict().items()}
    state["head.anchors"] *= 2
    other.load_state_dict(state)
    assert isinstance(other, YOLOv5)
    ours, theirs = (torch.cat([a.sides for a in n.anchors(SIZE, torch.zeros(1))]) for n in (tiny, other))
    torch.testing.assert_close(theirs, 2 * ours)


def test_maps_of_odd_inputs_are_where_they_are_said_to_be() -> None:
    network = new("yolov5/tiny").eval()
    assert isinstance(network, YOLOv5)
    with torch.no_grad():
        out = network(torch.zeros(1, 3, 97, 131))
    assert out.boxes.shape[1] == sum(len(level.strides) for level in network.anchors((97, 131), out.boxes))
    assert len(network.results(out, frame()._replace(pixels=torch.zeros(1, 3, 97, 131), sizes=((97, 131),)))) == 1


def test_what_it_cannot_stand_on_is_refused(tiny: YOLOv5) -> None:
    with pytest.raises(UsageError, match=r"a side that 32 divides, found width=0\.1875, depth=0\.33, side=100"):
        zoo.create("yolov5/tiny", side=100)
    with pytest.raises(UsageError, match="as many anchors of positive sides on each of three levels"):
        zoo.create("yolov5/tiny", anchors=(((1.0, 2.0),), ((3.0, 4.0),)))
    with pytest.raises(DataError, match=r"one: labels must be in 0\.\.9, found \[10\]"):
        criterion(tiny)(silent(tiny), batch_of([[0.0, 0, 9, 9]], [10]))


def test_it_trains_on_other_numbers_of_anchors() -> None:
    network = zoo.create("yolov5/tiny", anchors=(((16.0, 24.0),), ((25.0, 40.0),), ((45.0, 70.0),)))
    assert isinstance(network, YOLOv5)
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    terms = criterion(network)(network(batch.images.pixels), batch)
    assert all(bool(torch.isfinite(term)) and float(term.detach()) > 0 for term in terms.values())
