"""Position-sensitive pooling: twins, what every bin looks at, gradients, borders."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opticus.ops.psroi import psroi_align, psroi_pool
from opticus.ops.roi import roi_align
from opticus.ops.twins import roi as twins
from opticus.structures import UsageError
from opticus.verbs.prove import prove

side = st.integers(1, 4)
corner = st.floats(-20, 60, allow_nan=False).map(lambda v: round(v, 2))


def test_equals_its_twin():
    proof = prove("psroi", cases=60)
    assert proof.holds and proof.cases == 120


@settings(max_examples=40, deadline=None)
@given(st.tuples(side, side), st.lists(st.tuples(corner, corner, corner, corner), max_size=4), st.sampled_from([1.0, 0.5, 1 / 16]))
def test_any_region_equals_its_twin(size, rows, scale):
    boxes = np.array(rows, np.float64).reshape(-1, 4)
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3 * size[0] * size[1], 7, 5)))
    pictures = torch.zeros(len(boxes), dtype=torch.int64)
    pool = psroi_pool(features, torch.from_numpy(boxes), pictures, size, scale=scale)
    align = psroi_align(features, torch.from_numpy(boxes), pictures, size, scale=scale)
    assert pool.shape == align.shape == (len(boxes), 3, *size)
    for i, box in enumerate(boxes):
        np.testing.assert_allclose(pool[i].numpy(), twins.psroi_pool(features[0].numpy(), box, size, scale), atol=1e-12)
        np.testing.assert_allclose(align[i].numpy(), twins.psroi_align(features[0].numpy(), box, size, scale, 2), atol=1e-12)


def test_every_bin_looks_at_its_own_map():
    """Equation 1: map number (c * k + i) * k + j, constant, is what bin (i, j) of class c gives."""
    features = torch.arange(2 * 3 * 3.0)[None, :, None, None].expand(1, -1, 12, 12)
    box, first = torch.tensor([[0.0, 0, 11, 11]]), torch.tensor([0])
    for pooled in (psroi_pool(features, box, first, (3, 3)), psroi_align(features, box, first, (3, 3))):
        torch.testing.assert_close(pooled, torch.arange(18.0).reshape(1, 2, 3, 3))


def test_a_region_of_whole_bins_is_the_mean_of_each():
    plane = torch.arange(36.0).reshape(1, 1, 6, 6)
    features = plane.expand(1, 4, 6, 6)
    pooled = psroi_pool(features, torch.tensor([[1.0, 1, 4, 4]]), torch.tensor([0]), (2, 2))
    expected = torch.nn.functional.avg_pool2d(plane[..., 1:5, 1:5], 2)
    torch.testing.assert_close(pooled, expected)


def test_alignment_equals_ordinary_alignment_on_equal_maps():
    plane = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    features = plane.repeat_interleave(6, 1)
    boxes = torch.tensor([[0.3, 1.2, 7.1, 6.6], [-3, 2, 5, 14]], dtype=torch.float64)
    pictures = torch.tensor([1, 0])
    for samples in (1, 3):
        ours = psroi_align(features, boxes, pictures, (2, 3), scale=0.7, samples=samples)
        torch.testing.assert_close(ours, roi_align(plane, boxes, pictures, (2, 3), scale=0.7, samples=samples))


def test_gradients_reach_the_features():
    features = torch.randn(2, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.3, 0.2, 5.1, 4.4], [-2, 1, 3, 9], [4, 4, 4, 4], [90, 90, 95, 99]], dtype=torch.float64)
    pictures = torch.tensor([0, 1, 1, 0])
    for function in (psroi_pool, psroi_align):
        assert torch.autograd.gradcheck(lambda f, g=function: g(f, boxes, pictures, (2, 2), scale=0.5), (features,))


def test_float32_is_as_good_as_a_mean_in_float32():
    features = torch.rand(1, 4, 200, 200) + 1000
    boxes = torch.tensor([[150.0, 150, 153, 153]])
    exact = psroi_pool(features.double(), boxes, torch.tensor([0]), (2, 2))
    torch.testing.assert_close(psroi_pool(features, boxes, torch.tensor([0]), (2, 2)).double(), exact, rtol=2e-7, atol=0)


def test_no_regions_half_precision_and_a_wrong_number_of_maps():
    features, none = torch.randn(1, 8, 4, 4), torch.zeros(0, 4)
    for function in (psroi_pool, psroi_align):
        assert function(features, none, torch.zeros(0, dtype=torch.int64), (2, 2)).shape == (0, 2, 2, 2)
        box, first = torch.tensor([[0.0, 0, 3, 3]]), torch.tensor([0])
        rough = function(features.bfloat16(), box, first, (2, 2))
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), function(features, box, first, (2, 2)), atol=0.03, rtol=0.03)
        with pytest.raises(UsageError, match="multiple of 9 maps"):
            function(features, box, first, (3, 3))
