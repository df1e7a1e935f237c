"""Pictures -> network inputs: equal to Pillow's and the published size rules, exact matrices, padding and conversions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opticus.structures import ImageError, Picture, Prepare, UsageError
from opticus.transforms.pixels import channelled, resize
from opticus.transforms.prepare import prepare, resized_size, rounded_size, scaled_size, shortest_size

RAW = Prepare(resize="none", scale=1, mean=(0,), std=(1,))


def random_picture(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), channels), dtype=np.uint8)
    fine = np.kron(coarse, np.ones((5, 5, 1)))[:height, :width]
    out = np.resize(fine, (height, width, channels)) + rng.integers(-20, 21, (height, width, channels))
    return torch.from_numpy(out.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((97, 131), (32, 40)),
        ((30, 41), (224, 200)),
        ((65, 63), (60, 203)),
        ((63, 65), (203, 60)),
        ((1, 1), (5, 7)),
        ((9, 300), (1, 1)),
    ],
)
def test_resize_equals_pillow(mode, old, new):
    pixels = random_picture(*old)
    pillow = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}[mode]
    theirs = np.asarray(Image.fromarray(pixels.numpy()).resize(new[::-1], pillow)).astype(int)
    ours = resize(pixels, new, mode)
    assert ours.shape == (*new, 3) and ours.dtype == torch.uint8 and ours.is_contiguous()
    error = np.abs(ours.numpy().astype(int) - theirs)
    assert error.max() <= {"nearest": 0, "bilinear": 1, "bicubic": 2}[mode]
    assert error.mean() < 0.02 and (error > 1).mean() < 1e-4


def test_nearest_takes_the_later_pixel_where_a_centre_falls_on_an_edge():
    pixels = torch.arange(4, dtype=torch.uint8).reshape(1, 4, 1)
    assert resize(pixels, (1, 2), "nearest").flatten().tolist() == [1, 3]


def test_antialiased_resize_equals_a_triangle_filter_written_as_loops():
    pixels = random_picture(11, 13)
    height, width = 4, 6

    def weights(old, new, i):
        scale = old / new
        centre, reach = (i + 0.5) * scale, max(scale, 1)
        w = [max(0.0, 1 - abs(j + 0.5 - centre) / reach) for j in range(old)]
        return [v / sum(w) for v in w]

    expected = np.zeros((height, width, 3))
    for y in range(height):
        wy = weights(11, height, y)
        for x in range(width):
            wx = weights(13, width, x)
            for j in range(11):
                for i in range(13):
                    expected[y, x] += wy[j] * wx[i] * pixels[j, i].numpy()
    assert np.abs(resize(pixels, (height, width)).numpy() - expected).max() <= 1


def test_without_antialiasing_only_the_four_nearest_pixels_count():
    pixels = torch.zeros(8, 8, 1, dtype=torch.uint8)
    pixels[3:5, 3:5] = 200
    assert resize(pixels, (1, 1), antialias=False).item() == 200
    assert resize(pixels, (1, 1), antialias=True).item() < 50


def test_imagenet_rule_equals_pillow_with_resize_and_centre_crop():
    pixels = random_picture(301, 402)
    images = prepare([Picture(pixels)], Prepare(resize="shortest", size=(256, 0), crop=(224, 224)))
    small = Image.fromarray(pixels.numpy()).resize((int(256 * 402 / 301), 256), Image.Resampling.BILINEAR)
    left, top = round((small.width - 224) / 2), 16
    crop = np.asarray(small.crop((left, top, left + 224, top + 224))) / 255
    expected = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert images.valid is None and images.pixels.shape == (1, 3, 224, 224)
    assert np.abs(images.pixels[0].permute(1, 2, 0).numpy() - expected).max() < 1.01 / 255 / 0.224
    assert torch.allclose(images.to_input[0], torch.tensor([[341 / 402, 0, -left], [0, 256 / 301, -top], [0, 0, 1]]).double())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),  # COCO val 39769 and DETR's documented 800 x 1066
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((333, 999), (444, 1332)),  # round(1333 / 3) = 444, floored back to 1332
        ((500, 500), (800, 800)),
        ((1, 5000), (1, 5000)),
    ],
)
def test_detr_sizes(size, expected):
    assert shortest_size(size, 800, 1333) == expected


@given(st.integers(2, 3000), st.integers(2, 3000))
@settings(max_examples=200, deadline=None)
def test_scaled_sizes_are_those_of_torchs_interpolation(height, width):
    """torchvision gives interpolate a factor and lets it recompute the size; this is that call."""
    factor = min(80 / min(height, width), 133 / max(height, width))
    if min(height, width) * factor < 1:
        return
    row = torch.nn.functional.interpolate(torch.zeros(1, 1, height, 1), scale_factor=(factor, 1.0), recompute_scale_factor=True)
    column = torch.nn.functional.interpolate(torch.zeros(1, 1, 1, width), scale_factor=(1.0, factor), recompute_scale_factor=True)
    assert scaled_size((height, width), 80, 133) == (row.shape[2], column.shape[3])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((333, 1000), (444, 1333)),
        ((500, 500), (800, 800)),
    ],
)
def test_rounded_sizes_are_detectron2s(size, expected):
    """Recorded from ResizeShortestEdge.get_output_shape of Detectron2 (commit 02b5c4e) with 800 and 1333."""
    assert rounded_size(size, 800, 1333) == expected


def test_scaled_sizes_may_end_a_pixel_short_and_need_no_limit():
    assert scaled_size((500, 1000), 800, 0) == (800, 1600) and scaled_size((500, 1000), 800, 1333) == (666, 1333)
    assert scaled_size((97, 1000), 800, 0)[0] == 799


@given(
    st.integers(1, 900),
    st.integers(1, 900),
    st.sampled_from(["fixed", "shortest", "letterbox"]),
    st.integers(1, 90),
    st.integers(1, 90),
)
@settings(max_examples=200, deadline=None)
def test_sizes_are_positive_and_letterbox_fits(height, width, rule, h, w):
    out = resized_size((height, width), Prepare(resize=rule, size=(h, w if rule != "shortest" else 0)))
    assert min(out) >= 1
    if rule == "shortest":
        assert min(out) == h
    if rule == "letterbox":
        assert out[0] <= h and out[1] <= w and (out[0] == h or out[1] == w)


def test_to_input_is_exact_for_every_rule():
    for rule in (
        Prepare(resize="shortest", size=(33, 70), mean=(0,), std=(1,)),
        Prepare(resize="letterbox", size=(40, 61), mean=(0,), std=(1,)),
        Prepare(resize="fixed", size=(17, 23), crop=(11, 30), mean=(0,), std=(1,)),
    ):
        pixels = torch.zeros(50, 77, 3, dtype=torch.uint8)
        images = prepare([Picture(pixels)], rule)
        inner = resized_size((50, 77), rule)
        matrix = images.to_input[0]
        assert matrix.dtype == torch.float64
        assert matrix.diagonal().tolist() == [inner[1] / 77, inner[0] / 50, 1]
        # the corners of the picture land on the corners of the valid window
        corner = matrix @ torch.tensor([77.0, 50.0, 1.0]).double()
        valid = images.valid[0] if images.valid is not None else torch.ones(images.pixels.shape[-2:], dtype=torch.bool)
        rows, columns = valid.any(1).nonzero(), valid.any(0).nonzero()
        assert min(corner[1].item(), valid.shape[0]) == pytest.approx(rows.max().item() + 1)
        assert min(corner[0].item(), valid.shape[1]) == pytest.approx(columns.max().item() + 1)
        assert max(matrix[1, 2].item(), 0) == rows.min().item() and max(matrix[0, 2].item(), 0) == columns.min().item()


def test_padding_is_zero_and_valid_marks_the_pictures():
    a, b = random_picture(20, 31), random_picture(25, 18)
    images = prepare([Picture(a), Picture(b)], Prepare(resize="none", stride=16))
    assert images.pixels.shape == (2, 3, 32, 32) and images.valid is not None
    assert images.valid[0].sum() == 20 * 31 and images.valid[1, :25, :18].all() and images.valid[1].sum() == 25 * 18
    assert not images.pixels.masked_select(~images.valid[:, None].expand(-1, 3, -1, -1)).any()
    assert images.sizes == ((20, 31), (25, 18))
    alone = prepare([Picture(a)], Prepare(resize="none"))
    assert alone.valid is None and torch.equal(alone.pixels[0], images.pixels[0, :, :20, :31])


def test_letterbox_bars_have_the_fill_level_and_are_not_valid():
    images = prepare(
        [Picture(torch.full((10, 40, 3), 9, dtype=torch.uint8))],
        Prepare(3, "letterbox", (32, 32), scale=1, mean=(0,), std=(1,), fill=114),
    )
    assert images.valid is not None and images.valid[0].sum() == 8 * 32 and images.valid[0, 12:20].all()
    assert (images.pixels[0, :, :12] == 114).all() and (images.pixels[0, :, 12:20] == 9).all()


def test_grey_and_colour_are_converted_both_ways_and_nothing_else():
    grey = torch.tensor([[[7], [200]]], dtype=torch.uint8)
    assert torch.equal(prepare([Picture(grey)], RAW).pixels[0], grey.permute(2, 0, 1).expand(3, 1, 2).float())
    colours = random_picture(40, 40)
    theirs = np.asarray(Image.fromarray(colours.numpy()).convert("L"))
    assert np.array_equal(channelled(colours, 1)[..., 0].numpy(), theirs)
    one = prepare([Picture(colours)], Prepare(channels=1, resize="none", scale=1, mean=(0,), std=(1,)))
    assert one.pixels.shape == (1, 1, 40, 40)
    with pytest.raises(ImageError, match="picture 1: the network takes 3 channels and the picture has 4"):
        prepare([Picture(colours), Picture(torch.zeros(2, 2, 4, dtype=torch.uint8))], RAW)


def test_bgr_and_raw_scale():
    pixels = torch.tensor([[[1, 2, 3]]], dtype=torch.uint8)
    out = prepare([Picture(pixels)], Prepare(resize="none", scale=1, mean=(10, 20, 30), std=(1, 1, 2), order="bgr"))
    assert torch.allclose(out.pixels.flatten(), torch.tensor([3.0 - 10, 2 - 20, (1 - 30) / 2]))


@pytest.mark.parametrize(
    "rule",
    [
        Prepare(),
        Prepare(resize="shortest", size=(800, 1333)),
        Prepare(resize="letterbox", size=(8, 8)),
        Prepare(interpolation="bicubic"),
    ],
)
def test_a_picture_of_one_pixel_works(rule):
    out = prepare([Picture(torch.full((1, 1, 3), 50, dtype=torch.uint8))], rule)
    assert torch.isfinite(out.pixels).all()


def test_unusable_pictures_are_refused_by_number():
    with pytest.raises(ImageError, match="picture 1: the picture is empty"):
        prepare([Picture(random_picture(3, 3)), Picture(torch.zeros(0, 5, 3, dtype=torch.uint8))], RAW)
    with pytest.raises(ImageError, match="float32"):
        prepare([Picture(torch.zeros(4, 5, 3))], RAW)
    with pytest.raises(ImageError, match="found none"):
        prepare([], RAW)
    with pytest.raises(UsageError, match="1 channels but 3 means"):
        prepare([Picture(random_picture(3, 3))], Prepare(channels=1))
