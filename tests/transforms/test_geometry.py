"""Geometric transforms against a literal per-pixel warp; boxes, masks, keypoints and maps stay together."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opticus.ops.masks import decode, encode
from opticus.structures import RLE, Classes, Instances, LabelMap, Panoptic, Picture, Sample, Several, Text, Trajectory, UsageError
from opticus.transforms.chain import apply, described
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Affine, CenterCrop, Crop, Flip, Pad, RandomCrop, RandomResizedCrop, Resize
from opticus.transforms.pixels import warp, warp_nearest
from opticus.transforms.targets import moved_instances


def scene(height=14, width=19, count=3, channels=3, seed=0):
    """A picture with `count` boxes, each with its exact rectangular mask, two keypoints inside, and everything else a target has."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (height, width, channels), dtype=np.uint8))
    boxes, masks, points = [], torch.zeros(count, height, width, dtype=torch.bool), []
    for i in range(count):
        x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
        x1, y1 = int(rng.integers(x0 + 1, width + 1)), int(rng.integers(y0 + 1, height + 1))
        boxes.append([x0, y0, x1, y1])
        masks[i, y0:y1, x0:x1] = True
        points.append([[x0 + 0.5, y0 + 0.5, 2], [x1 - 0.5, y1 - 0.5, 1]])
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = Instances(
        boxes,
        torch.arange(count),
        (height, width),
        masks=masks,
        keypoints=torch.tensor(points, dtype=torch.float32).reshape(-1, 2, 3),
        tracks=torch.arange(count) + 100,
        crowd=torch.arange(count) % 2 == 1,
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )
    return Sample.of(pixels, target, "s")


def warped_by_loops(pixels, matrix, size, fill):
    """Bilinear, one output pixel at a time; source pixels outside count as `fill`."""
    inverse = np.linalg.inv(matrix.numpy())
    source = pixels.numpy().astype(float)
    out = np.zeros((*size, source.shape[2]))
    for y in range(size[0]):
        for x in range(size[1]):
            u, v, _ = inverse @ [x + 0.5, y + 0.5, 1]
            i, j = math.floor(u - 0.5), math.floor(v - 0.5)
            for dj in (0, 1):
                for di in (0, 1):
                    weight = (1 - abs(u - 0.5 - (i + di))) * (1 - abs(v - 0.5 - (j + dj)))
                    inside = 0 <= i + di < source.shape[1] and 0 <= j + dj < source.shape[0]
                    out[y, x] += weight * (source[j + dj, i + di] if inside else fill)
    return out


def masks_by_loops(masks, matrix, size):
    inverse = np.linalg.inv(matrix.numpy())
    out = np.zeros((len(masks), *size), dtype=bool)
    for y in range(size[0]):
        for x in range(size[1]):
            u, v, _ = inverse @ [x + 0.5, y + 0.5, 1]
            i, j = math.floor(u + 1e-9), math.floor(v + 1e-9)
            if 0 <= i < masks.shape[2] and 0 <= j < masks.shape[1]:
                out[:, y, x] = masks[:, j, i].numpy()
    return out


GEOMETRIC = [
    Resize((9, 23)),
    Resize((9, 0), "shortest"),
    Resize((0, 30), "shortest", shorts=(7, 9, 11)),
    Resize((20, 20), "letterbox"),
    Crop((8, 8)),
    Crop((30, 10), fill=9),
    CenterCrop((7, 40)),
    RandomCrop(5, 12),
    RandomResizedCrop((12, 10)),
    Flip(1.0),
    Flip(1.0, "vertical"),
    Pad(1, 2, 3, 4, 8),
    Affine(25, (0.2, 0.1), (0.6, 1.5), (10, 5)),
    Affine(180, size=(25, 9), fill=7),
]


@pytest.mark.parametrize("transform", [Affine(40, (0.3, 0.2), (0.5, 2), (12, 7), fill=30), Affine(90, size=(8, 31))], ids=repr)
def test_affine_equals_a_warp_written_as_loops(transform):
    for seed in range(3):
        sample = scene(seed=seed)
        out = transform(sample, draw_for(seed, 0, 0))
        expected = warped_by_loops(sample.picture.pixels, out.matrix, out.size, transform.fill)
        assert np.abs(out.picture.pixels.numpy() - expected).max() <= 0.51
        whole = moved_instances(sample.target, out.matrix, out.size, 0)
        assert np.array_equal(whole.masks.numpy(), masks_by_loops(sample.target.masks, out.matrix, out.size)[whole.labels])


@pytest.mark.parametrize(
    "transform", [t for t in GEOMETRIC if isinstance(t, Crop | CenterCrop | RandomCrop | Flip | Pad)], ids=repr
)
def test_whole_pixel_transforms_equal_the_loops_exactly(transform):
    sample = scene(seed=4)
    out = transform(sample, draw_for(1, 2, 3))
    expected = warped_by_loops(sample.picture.pixels, out.matrix, out.size, getattr(transform, "fill", 0))
    assert np.array_equal(out.picture.pixels.numpy(), expected)


def test_enlarging_equals_the_loops_away_from_the_border():
    sample = scene()
    for transform in (Resize((40, 50)), RandomResizedCrop((60, 60), (0.3, 0.4))):
        out = transform(sample, draw_for(0, 0, 0))
        expected = warped_by_loops(sample.picture.pixels, out.matrix, out.size, 0)
        assert np.abs(out.picture.pixels.numpy() - expected)[6:-6, 6:-6].max() <= 1.01


@given(
    st.sampled_from(GEOMETRIC),
    st.integers(0, 10_000),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(0, 5),
    st.sampled_from([1, 3]),
)
def test_everything_moves_together(transform, seed, height, width, count, channels):
    sample = scene(height, width, count, channels, seed)
    draw = draw_for(seed, 1, 2)
    out = transform(sample, draw)
    target = out.target.check("out")
    n, (h, w) = len(target), out.size
    assert (
        out.picture.pixels.is_contiguous() and out.picture.pixels.shape[2] == channels and out.picture.pixels.dtype == torch.uint8
    )
    assert target.size == (h, w) and target.masks.shape == (n, h, w) and target.boxes.dtype == torch.float32
    assert out.original == (height, width) and out.matrix.dtype == torch.float64
    # fields stay aligned: label, track and crowd all still name the same object
    assert torch.equal(target.tracks, target.labels + 100) and torch.equal(target.crowd, target.labels % 2 == 1)
    before = sample.target[target.labels]
    for i in range(n):
        x0, y0, x1, y1 = target.boxes[i].tolist()
        assert -1e-3 <= x0 <= x1 <= w + 1e-3 and -1e-3 <= y0 <= y1 <= h + 1e-3
        rows, columns = target.masks[i].any(1).nonzero(), target.masks[i].any(0).nonzero()
        if len(rows):  # a mask pixel's centre lies in the box, as both went through one matrix
            assert x0 - 1e-3 <= columns.min() + 0.5 <= columns.max() + 0.5 <= x1 + 1e-3
            assert y0 - 1e-3 <= rows.min() + 0.5 <= rows.max() + 0.5 <= y1 + 1e-3
        for point, old in zip(target.keypoints[i], before.keypoints[i]):
            if point[2] > 0:
                goal = out.matrix @ torch.tensor([old[0], old[1], 1]).double()
                assert torch.allclose(point[:2].double(), goal[:2], atol=1e-3) and point[2] == old[2]
                assert x0 - 1e-2 <= point[0] <= x1 + 1e-2 and y0 - 1e-2 <= point[1] <= y1 + 1e-2
            else:
                assert point.tolist() == [0, 0, 0]
    scale = abs(torch.linalg.det(out.matrix).item())
    assert (target.areas <= before.areas * scale * (1 + 1e-4) + 1e-3).all()


@given(st.sampled_from(GEOMETRIC), st.sampled_from(GEOMETRIC), st.integers(0, 1000))
def test_matrices_compose(first, second, seed):
    sample = scene(seed=seed)
    one = first(sample, draw_for(seed, 0, 0))
    two = second(one, draw_for(seed, 0, 1))
    fresh = second(Sample.of(one.picture.pixels), draw_for(seed, 0, 1))
    assert torch.allclose(two.matrix, fresh.matrix @ one.matrix, atol=1e-9) and two.original == (14, 19)


@pytest.mark.parametrize("transform", GEOMETRIC, ids=repr)
def test_the_same_draw_gives_the_same_output_and_others_differ(transform):
    sample = scene(30, 40)
    a, b = (apply([transform, Flip()], sample, draw_for(7, 3, 11)) for _ in range(2))
    assert torch.equal(a.picture.pixels, b.picture.pixels) and torch.equal(a.matrix, b.matrix)
    restored = pickle.loads(pickle.dumps(transform))
    assert restored == transform and json.dumps(described([transform, Flip()]))
    matrices = {tuple(apply([transform, Flip()], sample, draw_for(7, 3, i)).matrix.flatten().tolist()) for i in range(12)}
    assert len(matrices) > 1


@given(st.integers(0, 1000), st.sampled_from(["horizontal", "vertical"]))
def test_flipping_twice_changes_nothing(seed, axis):
    sample = scene(seed=seed)
    flip = Flip(1.0, axis, swap=((0, 1),))
    out = apply([flip, flip], sample, draw_for(0, 0, 0))
    assert torch.equal(out.picture.pixels, sample.picture.pixels) and torch.equal(out.matrix, torch.eye(3).double())
    for name in ("boxes", "masks", "keypoints", "areas", "tracks"):
        assert torch.equal(getattr(out.target, name), getattr(sample.target, name)), name


def test_a_mirrored_left_wrist_is_a_right_wrist():
    sample = scene(10, 20, 1)
    sample.target.keypoints = torch.tensor([[[2.0, 3, 2], [15, 4, 1], [9, 9, 2]]])
    out = Flip(1.0, swap=((0, 1),))(sample, draw_for(0, 0, 0))
    assert out.target.keypoints.tolist() == [[[5, 4, 1], [18, 3, 2], [11, 9, 2]]]
    with pytest.raises(UsageError, match="cannot swap keypoints 0 and 3"):
        Flip(1.0, swap=((0, 3),))(sample, draw_for(0, 0, 0))


@pytest.mark.parametrize("transform", GEOMETRIC, ids=repr)
def test_run_length_masks_move_like_tensors(transform):
    for count in (0, 4):
        plain, coded = scene(count=count, seed=2), scene(count=count, seed=2)
        coded.target.masks = encode(coded.target.masks)
        a, b = (transform(sample, draw_for(0, 0, 9)).target.masks for sample in (plain, coded))
        assert isinstance(b, RLE) and torch.equal(a, decode(b))


def test_crops_clip_drop_and_rescale():
    sample = scene(20, 20, 4)
    sample.target.boxes = torch.tensor([[0.0, 0, 10, 10], [12, 12, 14, 14], [5, 5, 5, 5], [0, 0, 20, 6]])
    sample.target.areas = torch.tensor([60.0, 4, 0, 100])
    out = CenterCrop((10, 10))(sample, draw_for(0, 0, 0)).target  # the window is 5..15
    assert out.boxes.tolist() == [[0, 0, 5, 5], [7, 7, 9, 9], [0, 0, 0, 0]] and out.labels.tolist() == [0, 1, 2]
    assert torch.allclose(out.areas, torch.tensor([15.0, 4, 0]))
    assert len(CenterCrop((10, 10), keep=0)(sample, draw_for(0, 0, 0)).target) == 4  # 10 of 120 pixels of the last are seen
    assert CenterCrop((10, 10), keep=0.3)(sample, draw_for(0, 0, 0)).target.labels.tolist() == [1, 2]
    doubled = Resize((40, 20))(sample, draw_for(0, 0, 0)).target
    assert torch.allclose(doubled.areas, sample.target.areas * 2) and doubled.boxes[0].tolist() == [0, 0, 10, 20]


@pytest.mark.parametrize("transform", GEOMETRIC, ids=repr)
def test_pictures_without_objects_and_of_one_pixel(transform):
    empty = transform(Sample.of(torch.zeros(5, 6, 3, dtype=torch.uint8), Instances.empty((5, 6))), draw_for(0, 0, 0))
    assert len(empty.target) == 0 and empty.target.size == empty.size
    dot = transform(scene(1, 1, 1), draw_for(0, 0, 0))
    assert dot.target.size == dot.size
    bare = transform(Sample.of(torch.zeros(5, 6, 1, dtype=torch.uint8)), draw_for(0, 0, 0))
    assert bare.target is None


def test_a_box_of_one_pixel_keeps_its_pixel():
    sample = scene(9, 9, 1)
    sample.target.boxes = torch.tensor([[4.0, 4, 5, 5]])
    sample.target.masks[:] = False
    sample.target.masks[0, 4, 4] = True
    out = Flip(1.0)(CenterCrop((3, 3))(sample, draw_for(0, 0, 0)), draw_for(0, 0, 0))
    assert out.target.boxes.tolist() == [[1, 1, 2, 2]] and out.target.masks[0].nonzero().tolist() == [[1, 1]]


def test_label_maps_panoptic_and_several_targets_move_with_the_pixels():
    labels = torch.arange(12).reshape(3, 4)
    segments = torch.tensor([[1, 1, 2, 2]] * 3)
    panoptic = Panoptic(segments, torch.tensor([1, 2]), torch.tensor([7, 8]), torch.tensor([True, False]))
    pixels = labels[..., None].to(torch.uint8)
    target = Several({"map": LabelMap(labels), "segments": panoptic, "caption": Text("x"), "picture": Picture(pixels)})
    sample = Sample.of(pixels, target)
    out = apply([Flip(1.0), Pad(right=1)], sample, draw_for(0, 0, 0)).target.parts
    assert out["map"].labels.tolist() == [[3, 2, 1, 0, 255], [7, 6, 5, 4, 255], [11, 10, 9, 8, 255]]
    assert out["segments"].segments[0].tolist() == [2, 2, 1, 1, 0] and out["picture"].pixels[0, :, 0].tolist() == [3, 2, 1, 0, 0]
    assert out["caption"].text == "x"
    left = CenterCrop((3, 2))(Flip(1.0)(sample, draw_for(0, 0, 0)), draw_for(0, 0, 0)).target.parts["segments"]
    assert left.ids.tolist() == [1, 2]
    gone = Affine(translate=(0, 0), size=(3, 2))(Pad(right=6)(sample, draw_for(0, 0, 0)), draw_for(0, 0, 0)).target.parts[
        "segments"
    ]
    assert len(gone.ids) == 0 and len(gone.labels) == 0


def test_targets_that_cannot_move_are_refused_and_image_labels_stay():
    pixels = torch.zeros(4, 4, 3, dtype=torch.uint8)
    with pytest.raises(UsageError, match="not a Trajectory"):
        Flip(1.0)(Sample.of(pixels, Trajectory(torch.zeros(1, 2, 2))), draw_for(0, 0, 0))
    with pytest.raises(UsageError, match="only equal sizes move together"):
        Flip(1.0)(Sample.of(pixels, Picture(torch.zeros(8, 8, 3, dtype=torch.uint8)), "a"), draw_for(0, 0, 0))
    labels = Classes(torch.tensor([3]))
    assert Flip(1.0)(Sample.of(pixels, labels), draw_for(0, 0, 0)).target is labels


def test_random_resized_crop_draws_the_promised_areas_and_ratios():
    crop, shares, ratios = RandomResizedCrop(), [], []
    for i in range(500):
        top, left, h, w = crop.window((480, 640), draw_for(0, 0, i))
        assert 0 <= top <= 480 - h and 0 <= left <= 640 - w
        shares.append(h * w / (480 * 640))
        ratios.append(w / h)
    assert 0.079 < min(shares) < 0.12 and 0.9 < max(shares) <= 1 and min(ratios) > 0.74 and max(ratios) < 1.35
    assert crop.window((10, 1000), draw_for(0, 0, 0))[2:] == (10, 13)  # no attempt fits: the central part of ratio 4/3


def test_mixed_sources_follow_later_transforms():
    sample = scene()
    sample.sources = (("a", torch.eye(3).double()), ("b", torch.diag(torch.tensor([2.0, 2, 1])).double()))
    out = Affine(20, scale=(0.5, 0.5))(sample, draw_for(0, 0, 0))
    assert torch.allclose(out.sources[0][1], out.matrix) and torch.allclose(out.sources[1][1], out.matrix @ sample.sources[1][1])


def test_draws_are_independent_streams():
    first = [draw_for(s, e, i).rng.random() for s, e, i in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**63, 0, 0), (-1, 0, 0))]
    assert len(set(first)) == 6 and draw_for(0, 0, 1).rng.random() == first[1]
    with pytest.raises(UsageError, match="epoch -1"):
        draw_for(0, -1, 0)
    with pytest.raises(UsageError, match="further samples"):
        draw_for(0, 0, 0).another()
    assert draw_for(0, 0, 0, lambda rng: scene(seed=int(rng.integers(9)))).another().id == "s"


def test_nearest_warp_of_pixels_takes_whole_pixels():
    pixels = scene().picture.pixels
    matrix = torch.tensor([[0.9, -0.3, 2], [0.4, 1.1, -1], [0, 0, 1]]).double()
    out = warp(pixels, matrix, (14, 19), 5, "nearest")
    assert torch.equal(out.permute(2, 0, 1), warp_nearest(pixels.permute(2, 0, 1), matrix, (14, 19), 5))
