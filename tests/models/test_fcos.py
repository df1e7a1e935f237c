"""FCOS (1904.01355): which place stands for which object, its loss, its decoding and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from papers import batch_for, new

from opticus import zoo
from opticus.models.detection.fcos import FCOS, Answers, Config, assigned, boxes_of, centreness_of, criterion, distances_of
from opticus.ops.iou import iou
from opticus.parity.fill import fill_module
from opticus.structures import Batch, CapabilityError, DataError, Images, Instances, Part, UsageError

SIZE = (128, 128)


def frame(count: int = 1) -> Images:
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    return Images(torch.zeros(count, 3, *SIZE), None, eye, (SIZE,) * count)


def joined(network: FCOS, size: tuple[int, int] = SIZE) -> Any:
    levels = network.places(size, torch.zeros(1))
    return type(levels[0])(*(torch.cat(parts) for parts in zip(*levels)))


def silent(network: FCOS) -> Answers:
    """Answers that say nothing."""
    count = len(joined(network).points)
    return Answers(torch.full((1, count, network.config.classes), -12.0), torch.zeros(1, count, 4), torch.zeros(1, count, 1))


def one(box: list[float], label: int) -> Batch:
    return Batch(frame(), (Instances(torch.tensor([box]), torch.tensor([label]), SIZE),), ("one",))


@pytest.fixture(scope="module")
def tiny() -> FCOS:
    network = new("fcos/tiny").eval()
    assert isinstance(network, FCOS)
    return network


def test_levels_share_sizes_as_in_section_3_2() -> None:
    """Places at strides 8 to 128; m2 to m7 are 0, 64, 128, 256, 512 and infinity."""
    with torch.device("meta"):
        network = zoo.create("fcos/r50")
    assert isinstance(network, FCOS)
    levels = network.places((800, 1344), torch.zeros(1))
    assert [len(level.points) for level in levels] == [100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11]
    assert [(float(level.low[0]), float(level.high[0])) for level in levels] == [
        (0, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, math.inf),
    ]
    assert [float(level.strides[0]) for level in levels] == [8, 16, 32, 64, 128]
    assert levels[1].points[85].tolist() == [16, 16]


def test_equations_1_and_3() -> None:
    box, point = torch.tensor([[10.0, 20, 50, 40]]), torch.tensor([[20.0, 25.0]])
    distances = distances_of(box, point)
    assert distances.tolist() == [[10, 5, 30, 15]]
    assert float(centreness_of(distances)) == pytest.approx(math.sqrt(1 / 3 * 1 / 3))
    assert float(centreness_of(distances_of(box, torch.tensor([[30.0, 30.0]])))) == 1
    torch.testing.assert_close(boxes_of(distances / 8, point, torch.tensor([8.0])), box)


def test_assignment_by_the_rule_written_out(tiny: FCOS) -> None:
    """Every place compared with a plain reading of the paper: inside, near the centre, in range, the smallest of several."""
    places = joined(tiny)
    boxes = torch.tensor([[16.0, 24, 56, 88], [30, 40, 52, 64], [64, 4, 124, 120], [100, 100, 101, 101]])
    found = assigned(places, boxes, 1.5)
    for n in range(len(places.points)):
        x, y, stride = *places.points[n].tolist(), float(places.strides[n])
        best, smallest = -1, math.inf
        for j, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
            if min(sides) > 0 and near and places.low[n] < max(sides) < places.high[n] and (x2 - x1) * (y2 - y1) < smallest:
                best, smallest = j, (x2 - x1) * (y2 - y1)
        assert int(found[n]) == best, (n, x, y)
    assert {0, 1, 2, -1} == set(found.tolist()), "the last one holds no place"
    assert len({float(s) for s in places.strides[found >= 0]}) > 1, "more than one level is at work"


def test_no_objects_no_positives(tiny: FCOS) -> None:
    assert bool((assigned(joined(tiny), torch.zeros(0, 4), 1.5) == -1).all())
    empty = Batch(frame(), (Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), SIZE),), ("none",))
    out = silent(tiny)
    terms = criterion(tiny)(Answers(torch.zeros_like(out.logits), *out[1:]), empty)
    assert float(terms["box"]) == float(terms["centre"]) == 0
    assert float(terms["class"]) == pytest.approx(out.logits.numel() * 0.75 * 0.25 * math.log(2), rel=1e-5)


def test_loss_equals_the_equations(tiny: FCOS) -> None:
    places, batch, out = joined(tiny), one([30.0, 20, 62, 76], 2), silent(tiny)
    box = batch.targets[0].boxes  # type: ignore[union-attr]
    positive = assigned(places, box, 1.5) >= 0
    count = int(positive.sum())
    assert count >= 4
    truth = distances_of(box, places.points[positive])
    out = Answers(torch.zeros_like(out.logits), out.distances + 2.0, out.centreness + 0.5)
    terms = criterion(tiny)(out, batch)
    elements = out.logits.numel()
    assert float(terms["class"]) == pytest.approx((0.25 * count + 0.75 * (elements - count)) * 0.25 * math.log(2) / count, rel=1e-5)
    c = centreness_of(truth)
    p = torch.tensor(0.5).sigmoid()
    torch.testing.assert_close(terms["centre"], -(c * p.log() + (1 - c) * (1 - p).log()).mean())
    right = Answers(out.logits, out.distances.clone(), out.centreness)
    right.distances[0, positive] = truth / places.strides[positive, None]
    assert float(criterion(tiny)(right, batch)["box"]) == pytest.approx(0, abs=1e-5)
    assert 0.05 < float(terms["box"]) < 2
    heavy = criterion(tiny, box_weight=3.0, centre_weight=0.5)(out, batch)
    torch.testing.assert_close(heavy["box"], 3 * terms["box"])
    torch.testing.assert_close(heavy["centre"], 0.5 * terms["centre"])


def test_results_weigh_by_centreness_suppress_and_cut(tiny: FCOS) -> None:
    places, out = joined(tiny), silent(tiny)
    wanted = torch.tensor([[40.0, 32, 70, 90], [40.5, 33, 70, 90], [-20, 10, 30, 60]])
    for index, box in zip((6 * 16 + 6, 7 * 16 + 6, 4 * 16 + 1), wanted):
        assert places.strides[index] == 8
        out.distances[0, index] = distances_of(box, places.points[index]) / 8
    out.logits[0, 6 * 16 + 6, 3], out.logits[0, 7 * 16 + 6, 3], out.logits[0, 7 * 16 + 6, 7] = 1.0, 2.0, 2.0
    out.centreness[0, 7 * 16 + 6] = -2.0  # the surer double is farther from its centre, and loses
    out.logits[0, 4 * 16 + 1, 4] = -0.5
    found = tiny.results(out, frame())[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert found.labels.tolist() == [3, 4, 7]
    logits, centres = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.0, 0.0, -2.0])
    torch.testing.assert_close(found.scores, (logits.sigmoid() * centres.sigmoid()).sqrt())
    torch.testing.assert_close(found.boxes[0], wanted[0])
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.0, 10, 30, 60]))


def test_half_precision_does_not_round_pixels(tiny: FCOS) -> None:
    out, index = silent(tiny), 9 * 16 + 13
    out.logits[0, index, 3], out.distances[0, index] = 2.0, 1.5
    point = joined(tiny).points[index]
    for dtype in (torch.bfloat16, torch.float16):
        found = tiny.results(Answers(*(part.to(dtype) for part in out)), frame())[0]
        assert isinstance(found, Instances)
        torch.testing.assert_close(found.boxes[0], torch.cat([point - 12, point + 12]))


def test_answers_below_the_threshold_are_no_results(tiny: FCOS) -> None:
    out = silent(tiny)
    out.distances.add_(1.0)
    for score, count in ((0.199, 0), (0.201, 1)):
        probability = score**2 / 0.5
        out.logits[0, 40, 1] = math.log(probability / (1 - probability))
        assert len(tiny.results(out, frame())[0]) == count  # type: ignore[arg-type]


def test_answers_belong_to_their_places() -> None:
    """A bright spot changes most the answers of places around it: levels, rows and columns are in order."""
    network = new("fcos/tiny").eval()
    assert isinstance(network, FCOS)
    fill_module(network)
    a, b = torch.zeros(1, 3, *SIZE), torch.zeros(1, 3, *SIZE)
    b[:, :, 88:96, 24:32] = 3.0
    with torch.no_grad():
        change = (network(a).logits - network(b).logits).abs().sum(-1)[0]
    finest = network.places(SIZE, a)[0].points
    assert float((finest[int(change[: len(finest)].argmax())] - torch.tensor([28.0, 92.0])).abs().max()) <= 24


def test_distances_are_never_negative(tiny: FCOS) -> None:
    with torch.no_grad():
        out = tiny(torch.randn(1, 3, *SIZE))
    assert bool((out.distances >= 0).all()) and bool((out.distances > 0).any())
    assert float(out.logits.sigmoid().mean()) == pytest.approx(0.01, rel=0.3)


def test_a_bad_label_names_its_sample(tiny: FCOS) -> None:
    with pytest.raises(DataError, match=r"one: labels must be in 0\.\.9, found \[10\]"):
        criterion(tiny)(silent(tiny), one([0.0, 0, 9, 9], 10))


SMALL: dict[str, Any] = {"classes": 3, "width": 32, "depth": 1, "side": 128, "reach": 3.0}


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
    network = zoo.build("fcos/tiny", Config(backbone=part, **SMALL)).eval()
    assert isinstance(network, FCOS)
    with torch.no_grad():
        out = network(torch.randn(2, 3, *SIZE))
    assert out.distances.shape == (2, len(joined(network).points), 4)
    assert len(network.results(out, frame(2))) == 2
    batch = batch_for(network, "detect", 2)
    assert all(bool(torch.isfinite(term)) for term in criterion(network)(out, batch).values())


def test_what_it_cannot_stand_on_is_refused() -> None:
    fine = Part("resnet/18", classes=0, layers=(1,), width=16)
    with pytest.raises(CapabilityError, match=r"fcos: expected a backbone with a map of stride 8 or coarser, found \(4,\)"):
        zoo.build("fcos/tiny", Config(backbone=fine, **SMALL))
    with pytest.raises(UsageError, match="expected a width that they divide, found 48"):
        zoo.create("fcos/tiny", width=48)


def test_a_decoded_truth_is_the_truth(tiny: FCOS) -> None:
    """The targets of every positive place, decoded, are the object it stands for."""
    places, box = joined(tiny), torch.tensor([[20.0, 30, 60, 90], [70, 8, 100, 50]])
    matches = assigned(places, box, 1.5)
    index = (matches >= 0).nonzero()[:, 0]
    distances = distances_of(box[matches[index]], places.points[index]) / places.strides[index, None]
    decoded = boxes_of(distances, places.points[index], places.strides[index])
    assert float(iou(decoded, box)[torch.arange(len(index)), matches[index]].min()) > 0.9999
