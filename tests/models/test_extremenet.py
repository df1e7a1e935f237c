"""ExtremeNet (1901.08043): edges gathered, points grouped, ghosts found, extreme points of masks, all against literal readings."""

from __future__ import annotations

import itertools

import pytest
import torch
from papers import new
from torch import Tensor

from opticus.models.detection.extremenet import ExtremeNet, Points, aggregated, criterion, extreme_points, grouped, without_ghosts
from opticus.structures import Batch, CapabilityError, Images, Instances, Part

SIZE = (128, 128)


def climbed(row: list[float], at: int, step: int) -> float:
    """What the paper's figure 4 adds to a place from one side: values that do not rise on the way from it."""
    total, i = 0.0, at
    while 0 <= i + step < len(row) and row[i + step] <= row[i]:
        i += step
        total += row[i]
    return total


@pytest.mark.parametrize("axis", [-1, -2])
def test_edges_gather_what_climbs(axis: int) -> None:
    heat = torch.rand(2, 5, 9, dtype=torch.float64).round(decimals=1)
    found = aggregated(heat, axis).movedim(axis, -1).flatten(0, 1)
    for row, sums in zip(heat.movedim(axis, -1).flatten(0, 1).tolist(), found.tolist(), strict=True):
        expected = [climbed(row, i, -1) + climbed(row, i, 1) for i in range(len(row))]
        assert sums == pytest.approx(expected)


def some(seed: int) -> tuple[list[Points], Tensor]:
    g = torch.Generator().manual_seed(seed)

    def points() -> Points:
        places = torch.randint(0, 8, (6, 2), generator=g)
        return Points(places, places + 0.5, torch.randint(0, 2, (6,), generator=g), torch.rand(6, generator=g))

    return [points() for _ in range(4)], torch.rand(2, 8, 8, generator=g)


def test_groups_are_those_of_algorithm_1() -> None:
    count = 0
    for seed in range(30):
        sides, centre = some(seed)
        expected: list[float] = []
        for t, left, b, r in itertools.product(range(6), repeat=4):
            index = (t, left, b, r)
            chosen = [side.places[i].tolist() for side, i in zip(sides, index, strict=True)]
            (_, top), (west, _), (_, bottom), (east, _) = chosen
            labels = {int(side.labels[i]) for side, i in zip(sides, index, strict=True)}
            scores = [float(side.scores[i]) for side, i in zip(sides, index, strict=True)]
            inside = all(west <= x <= east and top <= y <= bottom for x, y in chosen)
            if not inside or len(labels) > 1 or min(scores) < 0.1:
                continue
            middle = float(centre[labels.pop(), (top + bottom) // 2, (west + east) // 2])
            if middle >= 0.1:
                expected.append((sum(scores) + 2 * middle) / 6)
        boxes, labels, found = grouped(sides, centre, 0.1, 0.1)
        assert found.tolist() == pytest.approx(sorted(expected, reverse=True)) and len(boxes) == len(labels) == len(found)
        count += len(found)
    assert count > 20


def test_a_ghost_spans_three_of_its_class() -> None:
    small = [[float(x), 0, x + 8, 10] for x in (0, 10, 20, 30)]
    boxes = torch.tensor([[0.0, 0, 40, 10], *small])
    scores = torch.tensor([0.6, 0.5, 0.5, 0.5, 0.5])
    same = torch.zeros(5, dtype=torch.int64)
    assert without_ghosts(boxes, same, scores).tolist() == pytest.approx([0.3, 0.5, 0.5, 0.5, 0.5])  # 2.6 > 1.8
    other = torch.tensor([0, 0, 0, 1, 1])
    assert torch.equal(without_ghosts(boxes, other, scores), scores)  # 1.6 < 1.8
    assert torch.equal(without_ghosts(boxes, same, scores / 4), scores / 4), "weak boxes stay"


def test_extreme_points_of_masks_and_of_boxes() -> None:
    mask = torch.zeros(2, 20, 30, dtype=torch.bool)
    mask[0, 5, 12:15] = mask[0, 5:15, 13] = mask[0, 9, 8:21] = True  # a cross whose top is three pixels wide
    boxes = torch.tensor([[8.0, 5, 21, 15], [1, 2, 5, 8]])
    points = extreme_points(Instances(boxes, torch.tensor([0, 1]), (20, 30), masks=mask))
    assert points[0].tolist() == [[13.5, 5], [8, 9.5], [13.5, 15], [21, 9.5]]
    assert points[1].tolist() == [[3, 2], [1, 5], [3, 8], [5, 5]], "an object that nothing is seen of"
    assert torch.equal(extreme_points(Instances(boxes, torch.tensor([0, 1]), (20, 30)))[1], points[1])


@pytest.fixture(scope="module")
def tiny() -> ExtremeNet:
    network = new("extremenet/tiny").eval()
    assert isinstance(network, ExtremeNet)
    return network


def frame() -> Images:
    return Images(torch.zeros(1, 3, *SIZE), None, torch.eye(3, dtype=torch.float64)[None], (SIZE,))


def test_perfect_maps_give_the_object_back_and_no_loss_of_offsets(tiny: ExtremeNet) -> None:
    box, label = torch.tensor([[22.0, 30, 70, 101]]), torch.tensor([4])
    with torch.no_grad():
        out = tiny(torch.zeros(1, 3, *SIZE))
    for n in range(5):
        out[n].fill_(-12)
    points = extreme_points(Instances(box, label, SIZE))[0] / 4
    for n, (x, y) in enumerate(points.tolist()):
        out[n][0, 4, int(y), int(x)] = 5
        out[5 + n][0, :, int(y), int(x)] = torch.tensor([x - int(x), y - int(y)])
    out.centre[0, 4, int((30 + 101) / 8), int((22 + 70) / 8)] = 5
    found = tiny.results(out, frame())[0]
    assert isinstance(found, Instances) and found.labels[0] == 4
    torch.testing.assert_close(found.boxes[0], box[0])
    terms = criterion(tiny)(out, Batch(frame(), (Instances(box, label, SIZE),), ("one",)))
    assert float(terms["offset"]) == pytest.approx(0, abs=1e-8)


def test_a_pyramid_is_no_backbone_for_it() -> None:
    with pytest.raises(CapabilityError, match="maps have one stride and width"):
        new("extremenet/tiny", backbone=Part("resnet/18", classes=0, layers=(1, 1), width=8))
