"""The feature pyramid against its equation, also for sides that are not multiples of each other."""

import torch
import torch.nn.functional as F

from opticus.layers.fpn import FPN, CoarserLevels


def test_maps_are_laterals_plus_the_coarser_sum_smoothed():
    pyramid, maps = FPN((8, 16, 4), 6), [torch.randn(2, c, h, w) for c, h, w in ((8, 13, 9), (16, 7, 5), (4, 4, 3))]
    found = pyramid(maps)
    sums = [inner(x) for inner, x in zip(pyramid.inner, maps)]
    for i in (1, 0):
        h, w = sums[i].shape[-2:]
        rows = (torch.arange(h) * sums[i + 1].shape[2]).div(h, rounding_mode="floor")
        columns = (torch.arange(w) * sums[i + 1].shape[3]).div(w, rounding_mode="floor")
        sums[i] = sums[i] + sums[i + 1][:, :, rows][:, :, :, columns]
    for x, outer, out in zip(sums, pyramid.outer, found):
        torch.testing.assert_close(out, F.conv2d(x, outer.weight, outer.bias, padding=1))


def test_coarser_levels_halve_twice_and_rectify_between():
    levels = CoarserLevels(4, 6)
    sixth, seventh = levels(torch.randn(1, 4, 9, 6))
    assert sixth.shape == (1, 6, 5, 3)
    torch.testing.assert_close(seventh, levels.p7(sixth.clamp(min=0)))
