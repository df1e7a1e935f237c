"""CornerNet (1808.01244): pairs of corners, pull and push, what it refuses."""

from __future__ import annotations

import pytest
import torch
from papers import new

from opticus.models.detection.cornernet import CornerNet, Corners, criterion, pull_and_push
from opticus.structures import Batch, CapabilityError, Images, Instances, Part, UsageError

SIZE = (128, 128)


def frame() -> Images:
    return Images(torch.zeros(1, 3, *SIZE), None, torch.eye(3, dtype=torch.float64)[None], (SIZE,))


@pytest.fixture(scope="module")
def tiny() -> CornerNet:
    network = new("cornernet/tiny").eval()
    assert isinstance(network, CornerNet)
    return network


def put(out: Corners, box: list[float], label: int, tag: float) -> None:
    for heat, tags, offsets, (x, y) in (
        (out.tl_heat, out.tl_tag, out.tl_offset, box[:2]),
        (out.br_heat, out.br_tag, out.br_offset, box[2:]),
    ):
        i, j = int(y / 4), int(x / 4)
        heat[0, label, i, j], tags[0, 0, i, j] = 5, tag
        offsets[0, :, i, j] = torch.tensor([x / 4 - j, y / 4 - i])


def silent(network: CornerNet) -> Corners:
    with torch.no_grad():
        out = network(torch.zeros(1, 3, *SIZE))
    out.tl_heat.fill_(-12), out.br_heat.fill_(-12)
    return out


def test_embeddings_tell_which_corners_belong_together(tiny: CornerNet) -> None:
    boxes = [[10.0, 20, 50, 70], [30.0, 35, 90, 110]]
    for apart, count in ((1.0, 2), (0.4, 4)):  # two boxes, or also the pairs that cross
        out = silent(tiny)
        put(out, boxes[0], 3, 0.0)
        put(out, boxes[1], 3, apart)
        found = tiny.results(out, frame())[0]
        assert isinstance(found, Instances) and found.scores is not None
        assert int((found.scores > 0.3).sum()) == count
    out = silent(tiny)
    put(out, boxes[0], 3, 0.0)
    put(out, boxes[1], 4, 0.0)
    found = tiny.results(out, frame())[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert sorted(found.labels[found.scores > 0.3].tolist()) == [3, 4], "classes are kept apart"
    order = found.labels[:2].argsort()
    torch.testing.assert_close(found.boxes[:2][order], torch.tensor(boxes))


def test_pull_and_push_by_hand() -> None:
    tl, br = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.4, 1.2, 5.0])
    pull, push = pull_and_push(tl, br, torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0]))
    assert float(pull) == pytest.approx((2 * 0.2**2 + 2 * 0.1**2) / 2 / 2)
    assert float(push) == pytest.approx((1 - 0.9) / 2)  # of one picture, whose pair is 0.9 apart, in both directions
    weighted = pull_and_push(tl, br, torch.tensor([0, 0, 1]), torch.tensor([3.0, 0.0]))
    assert float(weighted[1]) == pytest.approx(3 * (1 - 0.9) / 2)


def test_right_offsets_cost_nothing(tiny: CornerNet) -> None:
    out, box = silent(tiny), [10.0, 21, 50, 70]
    put(out, box, 2, 0.5)
    terms = criterion(tiny)(out, Batch(frame(), (Instances(torch.tensor([box]), torch.tensor([2]), SIZE),), ("one",)))
    assert float(terms["offset"]) == pytest.approx(0, abs=1e-8) and float(terms["pull"]) == float(terms["push"]) == 0
    assert float(terms["heat"]) < 0.1


def test_what_it_refuses() -> None:
    with pytest.raises(CapabilityError, match="maps have one stride and width"):
        new("cornernet/tiny", backbone=Part("resnet/18", classes=0, layers=(1, 1), width=8))
    with pytest.raises(UsageError, match="expected at least one corner"):
        new("cornernet/tiny", corners=0)
