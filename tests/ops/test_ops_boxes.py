"""Boxes, overlaps and suppression against their twins and against known values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opticus.ops import boxes as B
from opticus.ops import iou as I
from opticus.ops import nms as N
from opticus.ops.twins import boxes as twins
from opticus.structures import DataError, UnknownNameError, UsageError

small = st.integers(-3, 6)
grid_boxes = st.lists(st.tuples(small, small, small, small), max_size=40)


def tensor(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype).reshape(-1, 4)


def proper(n, dtype=torch.float64):
    low = torch.rand(n, 2, dtype=dtype) * 50
    return torch.cat([low, low + torch.rand(n, 2, dtype=dtype) * 30 + 1], 1)


def test_formats_round_trip():
    boxes = proper(20)
    assert torch.equal(B.xywh_to_xyxy(tensor([[1, 2, 3, 4]])), tensor([[1, 2, 4, 6]]))
    assert torch.equal(B.xyxy_to_cxcywh(tensor([[1, 2, 4, 6]])), tensor([[2.5, 4, 3, 4]]))
    torch.testing.assert_close(B.xywh_to_xyxy(B.xyxy_to_xywh(boxes)), boxes)
    torch.testing.assert_close(B.cxcywh_to_xyxy(B.xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(B.denormalise(B.normalise(boxes, (40, 70)), (40, 70)), boxes)
    assert torch.equal(B.normalise(tensor([[35, 10, 70, 40]]), (40, 70)), tensor([[0.5, 0.25, 1, 1]]))


def test_area_and_clip_of_degenerate_boxes():
    boxes = tensor([[0, 0, 2, 3], [2, 2, 1, 5], [2, 2, 2, 5], [-5, -5, 3, 4], [90, 90, 99, 99]])
    assert B.area(boxes).tolist() == [6, 0, 0, 72, 81]
    clipped = B.clip(boxes, (4, 10))
    assert clipped.tolist()[3] == [0, 0, 3, 4] and clipped.tolist()[4] == [10, 4, 10, 4]
    assert B.area(clipped).tolist()[4] == 0


def test_boxes_follow_a_matrix():
    turn = torch.tensor([[0.0, -1, 10], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # a quarter turn of a frame of height 10
    assert B.map_boxes(torch.tensor([[1.0, 2, 4, 6]]), turn).tolist() == [[4, 1, 8, 4]]
    points = torch.rand(3, 5, 2)
    matrix = torch.tensor([[1.0, 0.2, 3], [0.1, 2, -1], [0.01, 0.02, 1]], dtype=torch.float64)
    there = B.map_points(points, matrix)
    torch.testing.assert_close(B.map_points(there, torch.linalg.inv(matrix)), points)


@given(st.data())
def test_coder_is_its_own_inverse_and_equals_its_twin(data):
    weights = data.draw(st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
    boxes, anchors = proper(5), proper(5)
    deltas = B.encode_boxes(boxes, anchors, weights)
    torch.testing.assert_close(B.decode_boxes(deltas, anchors, weights), boxes)
    twin = [twins.encode(b, a, weights) for b, a in zip(boxes.tolist(), anchors.tolist(), strict=True)]
    torch.testing.assert_close(deltas, tensor(twin))


def test_decoding_never_overflows():
    out = B.decode_boxes(torch.tensor([[0.0, 0, 1e4, 1e4]]), torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(out, torch.tensor([[-492.0, -492, 508, 508]]))


@given(grid_boxes, grid_boxes, st.sampled_from([1.0, 0.1, 1e30, 1e-30]))
def test_overlaps_equal_their_twins_on_degenerate_boxes(a, b, scale):
    left, right = tensor(a) * scale, tensor(b) * scale
    for ours, twin in ((I.iou, twins.iou), (I.giou, twins.giou)):
        expected = torch.tensor([[twin(x, y) for y in right.tolist()] for x in left.tolist()], dtype=torch.float64)
        torch.testing.assert_close(ours(left, right), expected.reshape(len(a), len(b)), rtol=0, atol=1e-12)


@given(grid_boxes)
def test_no_gradient_is_nan(rows):
    boxes = tensor(rows).requires_grad_()
    for function in (I.paired_iou, I.paired_giou, I.paired_diou, I.paired_ciou):
        value = function(boxes[:, None], boxes[None])
        (grad,) = torch.autograd.grad(value.sum(), boxes)
        assert bool(value.isfinite().all()) and bool(grad.isfinite().all())


def test_gradients():
    a, b = proper(6).requires_grad_(), proper(6).requires_grad_()
    for function in (I.paired_iou, I.paired_giou, I.paired_diou):
        assert torch.autograd.gradcheck(function, (a, b))
    assert torch.autograd.gradcheck(I.giou, (a, b))


def test_known_overlaps():
    a, b = tensor([[0, 0, 10, 10]]), tensor([[5, 0, 15, 10], [20, 0, 30, 10]])
    torch.testing.assert_close(I.iou(a, b), torch.tensor([[1 / 3, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(I.giou(a, b), torch.tensor([[1 / 3, -1 / 3]], dtype=torch.float64))
    torch.testing.assert_close(I.paired_diou(a, b), torch.tensor([1 / 3 - 25 / 325, -400 / 1000], dtype=torch.float64))
    assert I.crowd_iou(a, b, torch.tensor([True, True])).tolist() == [[0.5, 0]]
    thin = tensor([[0, 0, 20, 5]])
    assert I.paired_ciou(a, thin).item() < I.paired_diou(a, thin).item()
    torch.testing.assert_close(I.iou(a.half(), b.half()), torch.tensor([[1 / 3, 0.0]]))  # half precision is computed in float32


def expected(boxes, scores, labels, threshold):
    # rows of NumPy scalars: the loop then rounds as the op does
    return twins.nms([list(row) for row in boxes.numpy()], scores.tolist(), labels.tolist(), np.float64(threshold))


@given(
    grid_boxes,
    st.sampled_from([0.0, 1 / 7, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 50),
    st.randoms(use_true_random=False),
)
def test_suppression_is_greedy_on_ties_and_degenerate_boxes(rows, threshold, dtype, leaders, random):
    boxes = tensor(rows, dtype)
    scores = torch.tensor([random.randrange(3) / 2 for _ in rows])
    labels = torch.tensor([random.randrange(3) for _ in rows], dtype=torch.int64)
    for classes in (labels, torch.zeros_like(labels)):
        answer = expected(boxes, scores, classes, threshold)
        assert N.nms_per_class(boxes, scores, classes, threshold).tolist() == answer
        assert N.nms_on_device(boxes, scores, classes, threshold, leaders).tolist() == answer
    assert N.nms(boxes, scores, threshold).tolist() == expected(boxes, scores, torch.zeros_like(labels), threshold)


@pytest.mark.parametrize("scale", [1.0, 2.0**100, 2.0**-100])
@pytest.mark.parametrize("classes", [1, 7])
def test_suppression_of_many_clustered_boxes(scale, classes):
    """Enough boxes for several blocks of leaders and several stretches of the spatial order."""
    low = torch.randint(0, 60, (1500, 2)).double() + torch.randint(0, 3, (1500, 2)) * 100
    boxes = torch.cat([low, low + torch.randint(0, 30, (1500, 2))], 1)
    scores, labels = torch.randint(0, 50, (1500,)) / 50, torch.randint(0, classes, (1500,))
    order = scores.sort(descending=True, stable=True).indices
    over = (I.iou(boxes[order], boxes[order]) > 0.4) & (labels[order][:, None] == labels[order])
    alive = torch.ones(1500, dtype=torch.bool)
    for i in range(1500):
        if alive[i]:
            alive[i + 1 :] &= ~over[i, i + 1 :]
    assert torch.equal(N.nms_per_class(boxes * scale, scores, labels, 0.4), order[alive])


def test_classes_are_kept_apart_exactly():
    """Shifting class 2000 by 2000 picture widths would round these boxes of half a pixel away."""
    boxes = torch.tensor([[0.0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.0, 0, 0.5, 0.5], [16000.0, 0, 16001, 1]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([2000, 2000, 1999, 0])
    assert N.nms_per_class(boxes, scores, labels, 0.5).tolist() == [0, 1, 2, 3]
    assert N.nms_per_class(boxes, scores, labels, 0.3).tolist() == [0, 2, 3]


def test_threshold_is_compared_exactly():
    """IoU 3/10: float32(3/10) lies above 0.3, so the pair overlaps by more than the threshold as stored."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    assert float(I.iou(boxes, boxes)[0, 1]) > 0.3
    for f in (
        lambda: N.nms(boxes, torch.tensor([1.0, 0.5]), 0.3),
        lambda: N.nms_on_device(boxes, torch.tensor([1.0, 0.5]), None, 0.3),
    ):
        assert f().tolist() == [0]


def test_suppression_of_nothing_and_of_bad_input():
    assert N.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    assert N.nms(torch.zeros(3, 4), torch.tensor([0.1, float("-inf"), float("inf")]), 0.5).tolist() == [2, 0, 1]
    assert N.nms(torch.tensor([[0.0, 0, 1, 1]]).half(), torch.tensor([0.5]).bfloat16(), 0.5).tolist() == [0]
    with pytest.raises(DataError, match="NaN"):
        N.nms(torch.zeros(1, 4), torch.tensor([float("nan")]), 0.5)
    with pytest.raises(DataError, match="finite"):
        N.nms(torch.full((1, 4), float("inf")), torch.ones(1), 0.5)
    with pytest.raises(UsageError, match="found 1"):
        N.nms(torch.zeros(1, 4), torch.ones(1), 1.5)


@given(
    grid_boxes,
    st.sampled_from(["linear", "gaussian"]),
    st.sampled_from([0.0, 1 / 7, 0.3, 0.5, 1.0]),
    st.sampled_from([0.0, 0.001, 0.4]),
    st.randoms(use_true_random=False),
)
def test_soft_suppression_equals_its_twin(rows, method, threshold, floor, random):
    boxes = tensor(rows)
    scores = torch.tensor([random.randrange(4) / 3 for _ in rows], dtype=torch.float64)
    labels = torch.tensor([random.randrange(3) for _ in rows], dtype=torch.int64)
    ours = N.soft_nms(boxes, scores, labels, method=method, threshold=threshold, floor=floor)
    twin = twins.soft_nms(boxes.tolist(), scores.tolist(), labels.tolist(), method, threshold, 0.5, floor, np.exp)
    assert ours.indices.tolist() == [index for index, _ in twin]
    np.testing.assert_allclose(ours.scores.numpy(), [score for _, score in twin], rtol=0, atol=1e-12)


def test_soft_suppression_by_hand():
    """IoU of the second with the first 1/3, of the third with the first 0, with the second 1/3."""
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]]), torch.tensor([0.9, 0.8, 0.7])
    linear = N.soft_nms(boxes, scores)
    assert linear.indices.tolist() == [0, 2, 1]  # re-picked by the lowered score
    torch.testing.assert_close(linear.scores, torch.tensor([0.9, 0.7, 0.8 * (2 / 3) ** 2]))
    smooth = N.soft_nms(boxes, scores, method="gaussian", sigma=0.5)
    torch.testing.assert_close(smooth.scores, torch.tensor([0.9, 0.7, 0.8 * np.exp(-2 / 9) ** 2], dtype=torch.float32))
    assert N.soft_nms(boxes, scores, floor=0.4).indices.tolist() == [0, 2]
    apart = N.soft_nms(boxes, scores, torch.tensor([0, 1, 0]))
    assert apart.indices.tolist() == [0, 1, 2] and torch.equal(apart.scores, scores)


def test_soft_suppression_of_nothing_and_of_bad_settings():
    nothing = N.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert nothing.indices.tolist() == [] and nothing.scores.tolist() == []
    half = N.soft_nms(torch.tensor([[0.0, 0, 1, 1]]).half(), torch.tensor([0.5]).half())
    assert half.scores.dtype == torch.float16
    with pytest.raises(UsageError, match="sigma"):
        N.soft_nms(torch.zeros(1, 4), torch.ones(1), sigma=0.0)
    with pytest.raises(UnknownNameError, match="did you mean 'gaussian'"):
        N.soft_nms(torch.zeros(1, 4), torch.ones(1), method="gausian")
