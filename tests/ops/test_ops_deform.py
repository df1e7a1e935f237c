"""Deformable convolution: its twin, the plain convolution it becomes without offsets, gradients, bad shapes."""

import pytest
import torch
import torch.nn.functional as F

from opticus.ops.deform import deform_conv
from opticus.structures import UsageError
from opticus.verbs.prove import prove


def test_equals_its_twin():
    assert prove("deform_conv", cases=40).holds


@pytest.mark.parametrize(("stride", "padding", "dilation", "shares"), [(1, 1, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (2, 0, 1, 4)])
def test_without_offsets_it_is_a_convolution(stride, padding, dilation, shares):
    x, weight, bias = torch.randn(2, 8, 9, 7).double(), torch.randn(12, 8 // shares, 3, 3).double(), torch.randn(12).double()
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    plain = F.conv2d(x, weight, bias, groups=shares, **settings)
    offsets = torch.zeros(2, 2 * 2 * 9, *plain.shape[2:]).double()
    torch.testing.assert_close(deform_conv(x, offsets, weight, bias, **settings), plain, rtol=1e-10, atol=1e-10)
    half = torch.full((2, 2 * 9, *plain.shape[2:]), 0.5).double()
    torch.testing.assert_close(deform_conv(x, offsets, weight, None, half, **settings), (plain - bias[:, None, None]) / 2)


def test_gradients_reach_every_input():
    shapes = ((1, 2, 4, 5), (1, 18, 4, 5), (3, 2, 3, 3), (3,), (1, 9, 4, 5))
    inputs = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda x, o, w, b, m: deform_conv(x, o * 0.3, w, b, m, padding=1), inputs)


def test_shapes_that_do_not_fit_are_refused():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    with pytest.raises(UsageError, match="offsets"):
        deform_conv(x, torch.zeros(1, 18, 5, 5), weight)
    with pytest.raises(UsageError, match="modulation"):
        deform_conv(x, torch.zeros(1, 18, 5, 5), weight, None, torch.ones(1, 8, 5, 5), padding=1)
