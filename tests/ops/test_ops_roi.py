"""RoIAlign and RoIPool: twins, rules at the border, gradients, export."""

import numpy as np
import pytest
import torch
from jaxtyping import config
from torch import nn

from opticus.ops import roi
from opticus.ops.resample import sample
from opticus.ops.twins import roi as twins
from opticus.verbs.prove import prove


@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
def test_equals_its_twin(name):
    assert prove(name, cases=60).holds


def test_a_region_of_whole_pixels_is_returned_as_it_is():
    features = torch.arange(48.0).reshape(1, 1, 6, 8)
    boxes, first = torch.tensor([[2.0, 1, 6, 5]]), torch.tensor([0])
    assert torch.equal(roi.roi_align(features, boxes, first, (4, 4), samples=1)[0, 0], features[0, 0, 1:5, 2:6])
    assert roi.roi_pool(features, boxes - torch.tensor([0, 0, 1, 1]), first, (2, 2))[0, 0].tolist() == [[19, 21], [35, 37]]


def test_aligned_samples_are_those_of_the_library_wide_convention():
    features = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    box = torch.tensor([[1.3, 2.1, 7.7, 6.5]], dtype=torch.float64)
    pooled = roi.roi_align(features, box, torch.tensor([0]), (1, 1), samples=1)[0, :, 0, 0]
    centre = ((box[:, :2] + box[:, 2:]) / 2)[None]
    torch.testing.assert_close(pooled, sample(features, centre)[0, :, 0])


def test_samples_outside_are_zero_and_between_are_moved_in():
    ones = torch.ones(1, 1, 4, 4)
    for x, value in ((-1.1, 0.0), (-0.9, 1.0), (3.9, 1.0), (4.1, 0.0)):  # a box of side 1 is sampled x pixels from the first centre
        box = torch.tensor([[x, 1, x + 1, 2]])
        assert roi.roi_align(ones, box, torch.tensor([0]), (1, 1), samples=1).item() == pytest.approx(value)
    far = torch.tensor([[-9.0, -9, -7, -7], [20, 20, 30, 30]])
    for samples in (0, 2):
        assert roi.roi_align(ones, far, torch.tensor([0, 0]), (2, 2), samples=samples).abs().sum() == 0
    assert roi.roi_pool(ones, far, torch.tensor([0, 0]), (2, 2)).abs().sum() == 0


def test_first_version_widens_small_regions():
    features = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    boxes = np.array([[2.0, 2, 2, 2], [3, 3, 1, 1]])
    ours = roi.roi_align(features, torch.from_numpy(boxes), torch.tensor([0, 0]), (2, 2), aligned=False)
    twin = np.stack([twins.roi_align(features[0].numpy(), b, (2, 2), 1.0, 2, False) for b in boxes])
    np.testing.assert_allclose(ours.numpy(), twin, atol=1e-12)


def test_gradients_reach_the_features():
    features = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.3, 0.2, 5.1, 4.4], [-2, 1, 3, 9], [4, 4, 4, 4]], dtype=torch.float64)
    pictures = torch.tensor([0, 1, 1])
    for function in (
        lambda f: roi.roi_align(f, boxes, pictures, (2, 3)),
        lambda f: roi.roi_align(f, boxes, pictures, (2, 3), samples=0),
        lambda f: roi.roi_pool(f, boxes, pictures, (2, 3)),
    ):
        assert torch.autograd.gradcheck(function, (features,))


def test_maximum_of_equal_values_sends_its_gradient_to_the_first():
    features = torch.zeros(1, 1, 4, 4, requires_grad=True)
    roi.roi_pool(features, torch.tensor([[0.0, 0, 3, 3]]), torch.tensor([0]), (1, 1)).sum().backward()
    assert features.grad.flatten().tolist() == [1.0] + [0.0] * 15


def test_many_regions_are_cut_into_stretches(monkeypatch):
    features, pictures = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (40,))
    boxes = torch.rand(40, 4) * 4
    boxes[:, 2:] += 3
    whole = roi.roi_align(features, boxes, pictures, (3, 3), samples=0), roi.roi_pool(features, boxes, pictures, (3, 3))
    monkeypatch.setattr(roi, "ENTRIES", 100)
    assert torch.equal(roi.roi_align(features, boxes, pictures, (3, 3), samples=0), whole[0])
    assert torch.equal(roi.roi_pool(features, boxes, pictures, (3, 3)), whole[1])


def test_no_regions_and_half_precision():
    features, none = torch.randn(1, 3, 4, 4), torch.zeros(0, 4)
    for samples in (0, 2):
        assert roi.roi_align(features, none, torch.zeros(0, dtype=torch.int64), (2, 2), samples=samples).shape == (0, 3, 2, 2)
    assert roi.roi_pool(features, none, torch.zeros(0, dtype=torch.int64), (2, 2)).shape == (0, 3, 2, 2)
    box, first = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0])
    rough = roi.roi_align(features.bfloat16(), box, first, (2, 2))
    torch.testing.assert_close(rough.float(), roi.roi_align(features, box, first, (2, 2)), atol=0.03, rtol=0.03)


class Head(nn.Module):
    def forward(self, features, boxes, pictures, points):
        return roi.roi_align(features, boxes, pictures, (2, 2), scale=0.5), sample(features, points)


def test_export(monkeypatch):
    inputs = (torch.randn(2, 3, 8, 8), torch.rand(5, 4) * 8, torch.tensor([0, 1, 1, 0, 1]), torch.rand(2, 6, 2) * 8)
    many = torch.export.Dim("many", min=2, max=1000)
    shapes = {"features": None, "boxes": {0: many}, "pictures": {0: many}, "points": None}
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # the tests' shape checks would fix the dynamic size
    program = torch.export.export(Head(), inputs, dynamic_shapes=shapes).module()
    other = (inputs[0], torch.rand(9, 4) * 8, torch.randint(0, 2, (9,)), inputs[3])
    for ours, exported in zip(Head()(*other), program(*other), strict=True):
        torch.testing.assert_close(ours, exported)
