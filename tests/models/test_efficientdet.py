"""EfficientDet (1911.09070): the wiring of its pyramid, its fusion, anchors, loss and results."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from papers import new

from opticus import zoo
from opticus.models.detection.efficientdet import ORDER, VARIANTS, Answers, Node, criterion, resized, wiring
from opticus.models.detection.efficientdet import EfficientDet as Network
from opticus.ops.boxes import encode_boxes, xyxy_to_cxcywh
from opticus.ops.iou import iou
from opticus.structures import Batch, Images, Instances, UsageError


def frame(height: int, width: int) -> Images:
    return Images(torch.zeros(1, 3, height, width), None, torch.eye(3, dtype=torch.float64)[None], ((height, width),))


@pytest.fixture(scope="module")
def tiny() -> Network:
    network = new("efficientdet/tiny").eval()
    assert isinstance(network, Network)
    return network


def silent(network: Network) -> tuple[torch.Tensor, Answers]:
    """All anchors, and answers that say nothing."""
    anchors = network.anchors((128, 128), torch.zeros(1))
    return anchors, Answers(torch.full((1, len(anchors), 10), -12.0), torch.zeros(1, len(anchors), 4))


def test_wiring_is_that_of_figure_2d() -> None:
    """P6' from P6 and P7 down to P3'; P4'' from P4, P4' and P3' up; P7'' from P7 and P6'' (inputs are 0 to 4, nodes from 5 on)."""
    down = [(3, (3, 4)), (2, (2, 5)), (1, (1, 6)), (0, (0, 7))]
    up = [(1, (1, 7, 8)), (2, (2, 6, 9)), (3, (3, 5, 10)), (4, (4, 11))]
    assert wiring(5) == down + up


def test_fast_normalised_fusion(tiny: Network) -> None:
    """O = sum of w_i I_i / (eps + sum of w_j), negative weights cut to 0 (section 3.3)."""
    node = Node(tiny.config, 0, (0, 1), [64, 64]).eval()
    assert node.weights is not None
    with torch.no_grad():
        node.weights.copy_(torch.tensor([3.0, 1.0]))
        a, b = torch.randn(1, 64, 8, 8), torch.randn(1, 64, 4, 4)
        wide = b.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(node([a, b]), node.norm(node.conv(F.silu((3 * a + wide) / (4 + 1e-4)))))
        node.weights.copy_(torch.tensor([-1.0, 2.0]))
        torch.testing.assert_close(node([a, b]), node.norm(node.conv(F.silu(2 * wide / (2 + 1e-4)))))


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (7, 5), (2, 1)])
def test_pooling_pads_as_tensorflow(size: tuple[int, int]) -> None:
    """The odd cell of padding is at the right and bottom, and padding is never the greatest value."""
    x = torch.randn(1, 2, *size) - 5
    goal = [-(-n // 2) for n in size]
    total = [max((g - 1) * 2 + 3 - n, 0) for g, n in zip(goal, size)]
    pads = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    expected = F.max_pool2d(F.pad(x, pads, value=-math.inf), 3, 2)
    assert torch.equal(resized(x, goal, "tensorflow"), expected)


def test_compound_scaling_is_table_1() -> None:
    """Input side, BiFPN width and cells, head convolutions."""
    table = {
        "d0": (512, 64, 3, 3), "d1": (640, 88, 4, 3), "d2": (768, 112, 5, 3), "d3": (896, 160, 6, 4), "d4": (1024, 224, 7, 4),
        "d5": (1280, 288, 7, 4), "d6": (1280, 384, 8, 5), "d7": (1536, 384, 8, 5),
    }  # fmt: skip
    for variant, row in table.items():
        config = VARIANTS[variant]
        assert (config.side, config.width, config.cells, config.depth) == row


def test_anchors_have_three_sizes_and_shapes() -> None:
    network = zoo.meta("efficientdet/d0")
    assert isinstance(network, Network)
    anchors = xyxy_to_cxcywh(network.anchors((512, 512), torch.zeros(1, dtype=torch.float64)))
    assert len(anchors) == 9 * sum(n * n for n in (64, 32, 16, 8, 4))
    cell = anchors[9 * (64 * 2 + 5) :][:9]
    torch.testing.assert_close(cell[:, :2], torch.tensor([[44.0, 20.0]]).double().expand(9, 2))
    expected = [(32 * 2 ** (i / 3) * x, 32 * 2 ** (i / 3) * y) for i in range(3) for x, y in ((1, 1), (1.4, 0.7), (0.7, 1.4))]
    torch.testing.assert_close(cell[:, 2:], torch.tensor(expected).double())


def test_loss_equals_the_equations(tiny: Network) -> None:
    """One object and answers of 0: focal loss and Huber's loss by hand."""
    anchors, out = silent(tiny)
    out = Answers(torch.zeros_like(out.logits), out.deltas)
    box = torch.tensor([[30.0, 20, 62, 76]])
    batch = Batch(frame(128, 128), (Instances(box, torch.tensor([2]), (128, 128)),), ("one",))
    overlap = iou(box, anchors)[0]
    positive = (overlap >= 0.5) | (overlap == overlap.max())
    count = int(positive.sum())
    assert count > 3
    terms = criterion(tiny)(out, batch)
    weighted = 0.25 * count + 0.75 * (10 * len(anchors) - count)
    assert float(terms["class"]) == pytest.approx(weighted * 0.5**1.5 * math.log(2) / count, rel=1e-5)
    far = encode_boxes(box.expand(count, 4), anchors[positive]).abs()
    huber = torch.where(far <= 0.1, far.square() / 2, 0.1 * (far - 0.05)).sum()
    assert float(terms["box"]) == pytest.approx(50 * float(huber) / 4 / count, rel=1e-5)


def test_results_decode_suppress_and_cut(tiny: Network) -> None:
    """Published heads say y before x."""
    anchors, out = silent(tiny)
    wanted = torch.tensor([[40.0, 32, 70, 90], [-20, 10, 30, 60]])
    overlaps = iou(wanted, anchors)
    first, second = overlaps[0].topk(2).indices.tolist(), int(overlaps[1].argmax())
    for place, goal in ((first[0], wanted[0]), (first[1], wanted[0] + 1), (second, wanted[1])):
        out.deltas[0, place] = encode_boxes(goal, anchors[place])[ORDER]
    out.logits[0, first[0], 3], out.logits[0, first[1], 3], out.logits[0, first[1], 7] = 2.0, 1.0, 0.5
    out.logits[0, second, 4] = -1.0
    found = tiny.results(out, frame(128, 128))[0]
    assert isinstance(found, Instances) and found.scores is not None
    assert found.labels[:3].tolist() == [3, 7, 4], "the weaker double of class 3 is gone, that of another class is not"
    torch.testing.assert_close(found.scores[:3], torch.tensor([2.0, 0.5, -1.0]).sigmoid())
    assert float(found.scores[3]) < 1e-4 and len(found) == 100
    torch.testing.assert_close(found.boxes[0], wanted[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.boxes[2], torch.tensor([0.0, 10, 30, 60]), rtol=1e-4, atol=1e-3)


def test_one_level_is_no_pyramid() -> None:
    with pytest.raises(UsageError, match="efficientdet: expected at least two levels, found 1"):
        zoo.create("efficientdet/tiny", levels=1)
