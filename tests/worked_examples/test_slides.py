"""The numbers printed on the courses' slides (CATALOG rows T18, BB01, BB27, DT02, IM22, ME04, SG06-SG08), computed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.ops.iou import iou
from opticus.ops.resample import resize

# BB01: the visible corner of the three zero-padded input channels (course 004, "Channel Mixing")
RED = [[156, 155, 156, 158, 158, 158], [153, 154, 157, 159, 159, 159], [149, 151, 155, 158, 159, 159]]
GREEN = [[167, 166, 167, 169, 169, 169], [164, 165, 168, 170, 170, 170], [160, 162, 166, 169, 170, 170]]
BLUE = [[163, 162, 163, 165, 165, 165], [160, 161, 164, 166, 166, 166], [156, 158, 162, 165, 166, 166]]
KERNELS = [
    [[-1, -1, 1], [0, 1, -1], [0, 1, 1]],
    [[1, 0, 0], [1, -1, -1], [1, 0, -1]],
    [[0, 1, 1], [0, 1, 0], [1, -1, 1]],
]


def test_channel_mixing_prints_the_slide():
    picture = torch.tensor([RED, GREEN, BLUE], dtype=torch.float32)[None]
    layer = nn.Conv2d(3, 1, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(KERNELS, dtype=torch.float32)[None])
        layer.bias.fill_(1)
        out = layer(picture)[0, 0]
        parts = F.conv2d(picture, layer.weight.permute(1, 0, 2, 3), padding=1, groups=3)[0]
    assert out[0, :4].tolist() == [-25, 466, 466, 475]
    assert out[1, :3].tolist() == [295, 787, 798]
    assert parts[:, 1, 2].tolist() == [158, -14, 653]  # one channel each at the window that gives 798


def test_l1_distance_of_two_pictures_is_456():
    test = torch.tensor([[56, 32, 10, 18], [90, 23, 128, 133], [24, 26, 178, 200], [2, 0, 255, 220]])
    train = torch.tensor([[10, 20, 24, 17], [8, 10, 89, 100], [12, 16, 178, 170], [4, 32, 233, 112]])
    apart = (test - train).abs()
    assert apart.tolist() == [[46, 12, 14, 1], [82, 13, 39, 33], [12, 10, 0, 30], [2, 32, 22, 108]]
    assert apart.sum() == 456
    assert torch.cdist(test.flatten()[None].double(), train.flatten()[None].double(), p=1).item() == 456


def test_max_pooling_remembers_where_the_maximum_was():
    picture = torch.tensor([[1, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]], dtype=torch.float32)
    pooled, places = nn.MaxPool2d(2, return_indices=True)(picture[None, None])
    assert pooled[0, 0].tolist() == [[5, 6], [7, 8]]
    back = nn.MaxUnpool2d(2)(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), places)
    assert back[0, 0].tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]]


def test_nearest_upsampling():
    small = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert resize(small, (4, 4), mode="nearest")[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_transposed_convolution_is_the_gradient_of_convolution():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    y = F.conv2d(x, weight, stride=2, padding=1)
    grad = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, grad)[0], F.conv_transpose2d(grad, weight, stride=2, padding=1))


def test_overlaps_of_a_transposed_convolution_are_summed():
    out = F.conv_transpose1d(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 10.0, 100.0]]]), stride=2)
    assert out[0, 0].tolist() == [1, 10, 100 + 2, 20, 200]


def precision_recall(boxes, scores, truth, t):
    """At confidence t: a detection is right if it overlaps a yet unmatched object by IoU >= 0.5, best score first."""
    order = [i for i in scores.argsort(descending=True).tolist() if scores[i] >= t]
    overlap, taken = iou(boxes, truth), set()
    for i in order:
        best = max((j for j in range(len(truth)) if j not in taken), key=lambda j: overlap[i, j], default=None)
        if best is not None and overlap[i, best] >= 0.5:
            taken.add(best)
    return len(taken) / len(order), len(taken) / len(truth)


def test_precision_and_recall_at_two_thresholds():
    """ME04: four objects, four detections of which three are right: 75 % / 75 %; at t = 0.9 one is left: 100 % / 25 %."""
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    found = torch.tensor([[1.0, 0, 11, 10], [20, 1, 30, 11], [80, 0, 90, 10], [41, 1, 51, 10]])
    scores = torch.tensor([0.95, 0.8, 0.7, 0.6])
    assert precision_recall(found, scores, truth, 0.5) == (0.75, 0.75)
    assert precision_recall(found, scores, truth, 0.9) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("proposal", "target"),
    [
        ([0, 0, 8, 8], (0, 0, 0, 0)),  # good
        ([-2, 0, 6, 8], (0.25, 0, 0, 0)),  # a quarter of its width too far left
    ],
)
def test_box_targets(proposal, target):
    truth, proposal = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([proposal], dtype=torch.float32)
    assert encode_boxes(truth, proposal)[0].tolist() == list(target)
    torch.testing.assert_close(decode_boxes(torch.tensor([target], dtype=torch.float32), proposal), truth)


def test_box_target_of_a_proposal_that_is_too_wide():
    """(0, 0, -0.125, 0): log-sides, so the truth is exp(-1/8) of the proposal's width; its first-order reading is 1/8 narrower."""
    proposal = torch.tensor([[0.0, 0, 16, 8]], dtype=torch.float64)
    truth = decode_boxes(torch.tensor([[0, 0, -0.125, 0]], dtype=torch.float64), proposal)
    assert (truth[0, 2] - truth[0, 0]).item() == pytest.approx(16 * 2.718281828459045**-0.125)
    assert (truth[0, 0] + truth[0, 2]).item() == pytest.approx(16)
    torch.testing.assert_close(encode_boxes(truth, proposal), torch.tensor([[0, 0, -0.125, 0]], dtype=torch.float64))


def test_softmax_vector_of_the_slide():
    """BB27: the printed probabilities are rounded and sum to 1.02; the loss of the true class is -log of its probability."""
    names = ["Dog", "Cat", "Person", "Sheep", "Cow", "Horse", "Tiger", "Lion"]
    printed = torch.tensor([0.14, 0.02, 0.8, 0.01, 0.01, 0.03, 0.0, 0.01], dtype=torch.float64)
    assert printed.sum().item() == pytest.approx(1.02)
    logits = printed.log()  # softmax undoes the log up to the sum
    probs = logits.softmax(0)
    torch.testing.assert_close(probs, printed / printed.sum())
    assert names[int(probs.argmax())] == "Person"
    for name in ("Person", "Dog"):
        true = torch.tensor(names.index(name))
        assert F.cross_entropy(logits[None], true[None]).item() == pytest.approx(-(printed[true] / printed.sum()).log().item())
    # one loss per pixel, summed: the segmentation form of the same slide
    grid = logits[None, :, None, None].expand(1, 8, 3, 4)
    total = F.cross_entropy(grid, torch.full((1, 3, 4), 2), reduction="sum")
    assert total.item() == pytest.approx(12 * F.cross_entropy(logits[None], torch.tensor([2])).item())
