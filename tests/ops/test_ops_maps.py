"""Masks, resampling, heat-maps and keypoints against twins, COCO's library and known values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from opticus.ops import keypoints, masks, resample
from opticus.ops.twins import maps as twins
from opticus.structures import RLE, DataError
from opticus.verbs.prove import prove


@pytest.mark.parametrize("name", ["rle", "mask_boxes", "bilinear", "warp", "heatmap", "peaks", "oks"])
def test_equals_its_twin(name):
    proof = prove(name, cases=40)
    assert proof.holds, proof


@given(st.integers(1, 12), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]), st.integers(0, 99))
def test_codes_are_those_of_the_coco_library(height, width, share, seed):
    on = np.random.default_rng(seed).random((2, height, width)) < share
    codes = masks.encode(torch.from_numpy(on))
    theirs = coco.encode(np.asfortranarray(on.transpose(1, 2, 0).astype(np.uint8)))
    assert [c["counts"] for c in theirs] == list(codes.counts)
    assert [masks.run_lengths(c).tolist() for c in codes.counts] == [twins.runs(m) for m in on]
    assert torch.equal(masks.decode(codes), torch.from_numpy(on))
    crowd = torch.tensor([False, True])
    np.testing.assert_allclose(masks.mask_iou(codes, codes, crowd).numpy(), coco.iou(theirs, theirs, [0, 1]))
    assert masks.areas(codes).tolist() == on.sum((1, 2)).tolist()
    assert torch.equal(masks.boxes_of_codes(codes), masks.boxes_of_masks(torch.from_numpy(on)))


@pytest.mark.parametrize("code", [b"", b"zzz", b"S1S1", b"54", b"\x01", b"0o", b"P" * 40])
def test_malformed_codes_are_refused(code):
    with pytest.raises(DataError, match="mask 0"):
        masks.decode(RLE((code,), (5, 7)))


def test_no_masks():
    none = masks.encode(torch.zeros(0, 3, 4))
    assert len(none) == 0 and masks.decode(none).shape == (0, 3, 4) and masks.areas(none).shape == (0,)
    some = masks.encode(torch.ones(2, 3, 4))
    assert masks.mask_iou(none, some).shape == (0, 2) and masks.boxes_of_masks(torch.zeros(0, 3, 4)).shape == (0, 4)
    assert masks.boxes_of_masks(torch.zeros(1, 3, 4)).tolist() == [[0, 0, 0, 0]]
    assert (
        masks.boxes_of_codes(masks.encode(torch.zeros(1, 3, 4))).tolist() == [[0, 0, 0, 0]] and len(masks.boxes_of_codes(none)) == 0
    )
    with pytest.raises(DataError, match="one size"):
        masks.mask_iou(some, masks.encode(torch.ones(1, 4, 3)))


def test_polygons():
    square, dent = [1, 1, 4, 1, 4, 3, 1, 3], [5, 0, 7, 0, 7, 2, 5, 2]
    on = masks.polygons_to_masks([[square], [square, dent], []], (5, 8))
    theirs = [coco.merge(coco.frPyObjects([list(map(float, p)) for p in parts], 5, 8)) for parts in ([square], [square, dent])]
    assert torch.equal(on[:2], torch.from_numpy(coco.decode(theirs)).permute(2, 0, 1).bool())
    assert on[0].sum() == 6 and on[2].sum() == 0
    with pytest.raises(DataError, match="object 0"):
        masks.polygons_to_masks([[[0, 0, 1, 1]]], (5, 8))


def test_pasted_masks_span_their_boxes():
    drawn = masks.paste(torch.ones(2, 4, 4), torch.tensor([[2.0, 1, 6, 5], [3, 3, 3, 8]]), (7, 9))
    assert torch.equal(drawn[0, 1:5, 2:6] >= 0.5, torch.ones(4, 4, dtype=torch.bool))
    assert (drawn[0] >= 0.5).sum() == 16 and drawn[1].sum() == 0
    pattern = torch.rand(1, 4, 4)
    torch.testing.assert_close(masks.paste(pattern, torch.tensor([[2.0, 1, 6, 5]]), (7, 9))[0, 1:5, 2:6], pattern[0])


def test_sampling_gradients_and_centres():
    features = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(1, 6, 2, dtype=torch.float64) * 4).requires_grad_()
    assert torch.autograd.gradcheck(resample.sample, (features, points))
    y, x = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(5) + 0.5, indexing="ij")
    centres = torch.stack([x, y], -1).reshape(1, -1, 2).double()
    torch.testing.assert_close(resample.sample(features, centres).reshape(features.shape), features)
    torch.testing.assert_close(resample.sample(features, centres + 0.3, nearest=True).reshape(features.shape), features)


def test_warp_by_the_identity_and_a_flip():
    picture = torch.rand(2, 3, 5, 6)
    flip = torch.tensor([[-1.0, 0, 6], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    moved = resample.warp(picture, torch.stack([torch.eye(3, dtype=torch.float64), flip]), (5, 6))
    torch.testing.assert_close(moved, torch.stack([picture[0], picture[1].flip(-1)]))
    assert torch.equal(resample.warp(picture[:1], flip[None], (5, 6), nearest=True), picture[:1].flip(-1))


def test_resizing():
    picture = torch.rand(1, 2, 8, 8)
    torch.testing.assert_close(
        resample.resize(picture, (4, 4), antialias=False), picture.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    )
    assert torch.equal(resample.resize(picture, (16, 16), mode="nearest")[..., ::2, ::2], picture)


def test_position_tables_as_timm_and_dino_resize_them():
    table = torch.randn(1, 1 + 16, 8)
    grid = table[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    assert resample.resize_positions(table, (4, 4), (4, 4)) is table
    for new in ((6, 7), (2, 3)):
        timm = torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True)
        ours = resample.resize_positions(table, (4, 4), new)
        torch.testing.assert_close(ours[:, 1:].reshape(1, *new, 8), timm.permute(0, 2, 3, 1))
    dino = torch.nn.functional.interpolate(grid, scale_factor=((6 + 0.1) / 4, (6 + 0.1) / 4), mode="bicubic")
    ours = resample.resize_positions(table, (4, 4), (6, 6), antialias=False, offset=0.1)
    torch.testing.assert_close(ours[:, 1:].reshape(1, 6, 6, 8), dino.permute(0, 2, 3, 1))
    assert torch.equal(ours[:, 0], table[:, 0])


def test_radii():
    """The published formula by hand for a square of side 10; the exact one keeps the promised overlap for every pair of shifts."""
    side = 10.0
    published = (-2 * 0.7 * 2 * side + math.sqrt((2 * 0.7 * 2 * side) ** 2 + 4 * 4 * 0.7 * 0.3 * side**2)) / 2
    assert keypoints.radius(torch.tensor([[side, side]], dtype=torch.float64)).item() == pytest.approx(published)
    sizes = torch.tensor([[10.0, 10], [4, 30], [50, 7]], dtype=torch.float64)
    for (h, w), r in zip(sizes.tolist(), keypoints.radius_exact(sizes).tolist(), strict=True):
        worst = 1.0
        for a in (-r, 0, r):
            for b in (-r, 0, r):
                inter = (min(w, w + b) - max(0, a)) * (min(h, h + b) - max(0, a))
                worst = min(worst, inter / (w * h + (w + b - a) * (h + b - a) - inter))
        assert worst == pytest.approx(0.7)


def test_heat_maps_take_the_maximum_and_keep_exact_peaks():
    centres, radii = torch.tensor([[3.7, 2.2], [5.0, 2.9], [0.5, 0.5], [90.0, 3]]), torch.tensor([2, 3, 0, 2])
    heat = keypoints.render(centres, radii, torch.tensor([0, 0, 1, 1]), (2, 6, 9))
    assert heat[0, 2, 3] == 1 and heat[0, 2, 5] == 1 and heat[1].sum() == 1
    scores, labels, rows, columns = keypoints.peaks(heat[None], 4)
    found = set(zip(labels[0].tolist(), rows[0].tolist(), columns[0].tolist(), strict=True))
    assert {(0, 2, 3), (0, 2, 5), (1, 0, 0)} <= found and scores[0, :3].tolist() == [1, 1, 1]
    assert (
        keypoints.render(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), (1, 2, 2)).sum()
        == 0
    )


def test_similarity_of_equal_points_is_one():
    points = torch.rand(2, 4, 3) + 1
    same = keypoints.oks(points, points, torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4), torch.ones(2), torch.full((4,), 0.1))
    assert torch.allclose(same.diagonal(), torch.ones(2))
