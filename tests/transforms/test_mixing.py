"""Mosaic, mix-up and CutMix: pixels come from where the source matrices say, targets are joined."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opticus.ops.masks import decode, encode
from opticus.structures import Classes, Instances, LabelMap, Sample, UsageError
from opticus.transforms.chain import apply
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Affine, Flip, Resize
from opticus.transforms.mixing import CutMix, MixUp, Mosaic


def numbered(i, height=20, width=30, channels=3):
    """A picture of one colour with one instance in the middle; `i` is its id, colour and label."""
    pixels = torch.full((height, width, channels), 10 + 40 * (i % 6), dtype=torch.uint8)
    box = torch.tensor([[width // 4, height // 4, 3 * width // 4, 3 * height // 4]], dtype=torch.float32)
    masks = torch.zeros(1, height, width, dtype=torch.bool)
    masks[0, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    points = torch.tensor([[[width / 2, height / 2, 2]]])
    return Sample.of(pixels, Instances(box, torch.tensor([i]), (height, width), masks=masks, keypoints=points), str(i))


def drawn(seed, make):
    """A draw whose further samples are make(1), make(2), ..."""
    count = itertools.count(1)
    return draw_for(seed, 0, 0, lambda rng: make(next(count)))


@given(st.integers(0, 500), st.integers(2, 50), st.integers(2, 50))
def test_mosaic_keeps_every_sources_matrix(seed, height, width):
    parts = {i: numbered(i, 5 + 7 * i, 25 - 5 * i) for i in range(4)}
    out = Mosaic((height, width), keep=0.0, least=0)(parts[0], drawn(seed, parts.__getitem__))
    assert out.size == (height, width) and [id for id, _ in out.sources] == ["0", "1", "2", "3"]
    for label, box, mask, point in zip(out.target.labels.tolist(), out.target.boxes, out.target.masks, out.target.keypoints):
        matrix = out.sources[label][1]
        old = parts[label].target
        corners = matrix @ torch.tensor([[*old.boxes[0, :2], 1], [*old.boxes[0, 2:], 1]]).double().T
        x0, y0, x1, y1 = box.tolist()
        assert corners[0, 0] - 1e-3 <= x0 <= x1 <= corners[0, 1] + 1e-3 and corners[1, 0] - 1e-3 <= y0 <= y1 <= corners[1, 1] + 1e-3
        assert (out.picture.pixels[mask] == 10 + 40 * label).all()
        rows, columns = mask.nonzero().T
        if len(rows):
            assert (
                x0 <= columns.min() + 0.5 + 1e-3
                and columns.max() + 0.5 <= x1 + 1e-3
                and y0 <= rows.min() + 0.5 + 1e-3
                and rows.max() + 0.5 <= y1 + 1e-3
            )
        if point[0, 2] > 0:
            assert torch.allclose(
                (matrix @ torch.tensor([old.keypoints[0, 0, 0], old.keypoints[0, 0, 1], 1]).double())[:2],
                point[0, :2].double(),
                atol=1e-3,
            )


def test_mosaic_pixels_come_from_where_the_matrices_say():
    rng = np.random.default_rng(0)
    parts = {}
    for i in range(4):
        pixels = torch.from_numpy(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        parts[i] = Sample.of(pixels, Instances.empty((16, 16)), str(i))
    out = Mosaic((16, 16), fill=7)(parts[0], drawn(3, parts.__getitem__))  # nothing is scaled
    found = torch.zeros(16, 16, dtype=torch.bool)
    for i, (_, matrix) in enumerate(out.sources):
        dx, dy = int(matrix[0, 2]), int(matrix[1, 2])
        for y in range(16):
            for x in range(16):
                if 0 <= y - dy < 16 and 0 <= x - dx < 16:
                    found[y, x] |= torch.equal(out.picture.pixels[y, x], parts[i].picture.pixels[y - dy, x - dx])
    assert found.all()


def test_mosaic_of_label_maps_and_its_refusals():
    def mapped(i):
        return Sample.of(torch.full((8, 8, 3), i, dtype=torch.uint8), LabelMap(torch.full((8, 8), i)), str(i))

    out = Mosaic((10, 12))(mapped(0), drawn(1, mapped))
    assert torch.equal(
        out.target.labels[out.target.labels != 255].to(torch.uint8), out.picture.pixels[..., 0][out.target.labels != 255]
    )
    assert set(out.target.labels.unique().tolist()) >= {0, 1, 2, 3}
    with pytest.raises(UsageError, match="Classes"):
        Mosaic((8, 8))(Sample.of(torch.zeros(8, 8, 3, dtype=torch.uint8), Classes(torch.tensor([0]))), drawn(0, numbered))
    with pytest.raises(UsageError, match="at least 2 x 2"):
        Mosaic((1, 8))(numbered(0), drawn(0, numbered))
    with pytest.raises(UsageError, match="further samples"):
        Mosaic((8, 8))(numbered(0), draw_for(0, 0, 0))
    bare = numbered(2)
    bare.target.masks = None
    with pytest.raises(UsageError, match="masks"):
        Mosaic((40, 40), centre=(0.5, 0.5))(bare, drawn(0, numbered))


def test_mosaic_of_empty_one_pixel_and_grey_pictures():
    def tiny(i):
        return Sample.of(torch.full((1, 1, 1), i, dtype=torch.uint8), Instances.empty((1, 1)), str(i))

    out = Mosaic((6, 6))(Sample.of(torch.zeros(3, 3, 3, dtype=torch.uint8), Instances.empty((3, 3)), "0"), drawn(0, tiny))
    assert out.size == (6, 6) and len(out.target) == 0 and out.picture.pixels.shape[2] == 3


def test_mosaic_then_affine_composes_all_sources():
    out = apply([Mosaic((24, 24)), Affine(15, scale=(0.6, 0.9)), Flip(1.0)], numbered(0), drawn(5, numbered))
    assert len(out.sources) == 4
    for label, box in zip(out.target.labels.tolist(), out.target.boxes):
        old = numbered(label).target.boxes[0]
        corners = torch.tensor([[old[0], old[1], 1], [old[2], old[1], 1], [old[2], old[3], 1], [old[0], old[3], 1]]).double()
        goal = (out.sources[label][1] @ corners.T)[:2].T
        assert (box[:2].double() >= goal.amin(0) - 1e-3).all() and (box[2:].double() <= goal.amax(0) + 1e-3).all()


def test_mixup_blends_pixels_and_labels_in_the_same_share():
    def make(i):
        return Sample.of(torch.full((4, 5, 3), 100 * i, dtype=torch.uint8), Classes(torch.tensor([i])), str(i))

    out = MixUp(1.0)(make(2), drawn(0, make))
    soft = dict(zip(out.target.labels.tolist(), out.target.scores.tolist()))
    share = soft[2]
    assert 0 < share < 1 and soft[1] == pytest.approx(1 - share)
    assert (out.picture.pixels == round(share * 200 + (1 - share) * 100)).all() and [s for s, _ in out.sources] == ["2", "1"]
    same = MixUp(1.0)(make(1), drawn(0, make)).target
    assert same.labels.tolist() == [1] and same.scores.item() == pytest.approx(1)
    with pytest.raises(UsageError, match="Classes and Instances"):
        MixUp()(make(1), drawn(0, numbered))


def test_mixup_of_detections_joins_all_instances_and_resizes_the_other():
    out = MixUp(8.0, before=(Flip(1.0),))(numbered(0, 20, 30), drawn(0, lambda i: numbered(i, 40, 40, 1)))
    assert (
        out.target.labels.tolist() == [0, 1]
        and out.target.masks.shape == (2, 20, 30)
        and out.target.boxes[1].tolist() == [7.5, 5, 22.5, 15]
    )
    matrix = out.sources[1][1]
    assert torch.allclose(matrix, torch.tensor([[-0.75, 0, 30], [0, 0.5, 0], [0, 0, 1]]).double())
    coded = numbered(1)
    coded.target.masks = encode(coded.target.masks)
    mixed = MixUp()(numbered(0), drawn(0, lambda i: coded)).target
    assert torch.equal(decode(mixed.masks)[:1], numbered(0).target.masks) and len(mixed.masks) == 2
    empty = MixUp()(Sample.of(torch.zeros(4, 4, 3, dtype=torch.uint8), Instances.empty((4, 4))), drawn(0, numbered))
    assert empty.target.labels.tolist() == [1]


def test_cutmix_labels_follow_the_pasted_area():
    def make(i):
        return Sample.of(torch.full((20, 20, 3), i, dtype=torch.uint8), Classes(torch.tensor([i])), str(i))

    shares = []
    for seed in range(40):
        out = CutMix()(make(0), drawn(seed, make))
        soft = dict(zip(out.target.labels.tolist(), out.target.scores.tolist()))
        assert soft[1] == pytest.approx((out.picture.pixels[..., 0] == 1).float().mean().item(), abs=1e-6)
        assert math.isclose(sum(soft.values()), 1, abs_tol=1e-6)
        shares.append(soft[1])
    assert min(shares) < 0.1 and max(shares) > 0.5

    def mapped(i):
        return Sample.of(torch.full((8, 8, 3), i, dtype=torch.uint8), LabelMap(torch.full((8, 8), i)), str(i))

    out = CutMix()(mapped(0), drawn(1, mapped))
    assert torch.equal(out.target.labels, out.picture.pixels[..., 0].long())


@pytest.mark.parametrize("transform", [Mosaic((16, 16)), MixUp(), MixUp(before=(Resize((20, 30)),))], ids=repr)
def test_mixes_are_a_function_of_the_draw(transform):
    def source(rng):
        return numbered(int(rng.integers(0, 6)), int(rng.integers(5, 30)), 22)

    outs = [transform(numbered(0), draw_for(1, 2, i, source)) for i in (0, 0, 1, 2, 3)]
    assert torch.equal(outs[0].picture.pixels, outs[1].picture.pixels) and [s for s, _ in outs[0].sources] == [
        s for s, _ in outs[1].sources
    ]
    assert any(not torch.equal(outs[0].picture.pixels, out.picture.pixels) for out in outs[2:])


def test_mosaic_drops_slivers_but_keeps_whole_small_objects():
    """Of a box that a quarter's edge has cut nothing below `least` pixels stays; a small box that is whole does."""
    thin, small = [18.0, 0, 21, 40], [30.0, 30, 31, 31]
    parts = {}
    for i in range(4):
        target = Instances(torch.tensor([thin, small]), torch.tensor([0, 1]), (40, 40))
        parts[i] = Sample.of(torch.zeros(40, 40, 3, dtype=torch.uint8), target, str(i))
    cuts = set()
    for seed in range(60):
        kept = Mosaic((40, 40), keep=0.0, least=2.0)(parts[0], drawn(seed, parts.__getitem__)).target
        every = Mosaic((40, 40), keep=0.0, least=0.0)(parts[0], drawn(seed, parts.__getitem__)).target
        sides = kept.boxes[:, 2:] - kept.boxes[:, :2]
        assert bool((sides[kept.labels == 0] >= 2).all())
        whole = every.labels == 1
        cut = ((every.boxes[:, 2:] - every.boxes[:, :2]) < 1).any(1) & whole
        assert int((kept.labels == 1).sum()) == int(whole.sum()) - int(cut.sum())
        cuts.add(len(every) - len(kept))
    assert cuts != {0}, "the rule was never needed"
