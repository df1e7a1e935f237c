"""Drawn results: right place, right colour, readable tags, any size, any script, any kind of result."""

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.plot.colours import PALETTE, colour, contrast, font, ink_on
from opticus.plot.draw import draw, enlargement, to_pixels
from opticus.structures import RLE, Classes, Embedding, Instances, LabelMap, Panoptic, Picture, Text, UsageError

GREY = torch.full((128, 128, 3), 128, dtype=torch.uint8)


def one(box, label=2, size=(128, 128), score=0.9, **more):
    return Instances(torch.tensor([box]).float(), torch.tensor([label]), size, torch.tensor([score]), **more)


def near(image, x, y, fill, reach=4):
    values = np.asarray(image).astype(int)[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].reshape(-1, 3)
    return bool((np.abs(values - fill).sum(1) < 12).any())


def test_every_colour_carries_readable_text_and_differs_from_its_neighbours():
    colours = [colour(i) for i in range(120)]
    assert min(contrast(ink_on(c), c) for c in colours) >= 4.5
    assert len(set(colours)) == 120
    gaps = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(PALETTE) for b in PALETTE[:i]]
    assert min(gaps) > 80


def test_box_edges_are_where_the_box_is():
    image = draw(GREY, one([20, 30, 100, 90]), ["a", "b", "c"])
    scale = enlargement(128, 128)
    assert image.size == (128 * scale, 128 * scale) and scale == 3
    for x, y in ((20, 60), (100, 60), (60, 90), (80, 30)):
        assert near(image, x * scale, y * scale, colour(2))
    assert not near(image, 60 * scale, 60 * scale, colour(2))


@pytest.mark.parametrize("box", [[-50, -50, 30, 30], [120, 120, 500, 400], [60, 60, 60, 60], [90, 80, 30, 20]])
def test_boxes_outside_empty_or_inverted_are_drawn_inside(box):
    image = draw(GREY, one(box), ["a", "b", "c"])
    assert (np.asarray(image) != 128).any()


def test_threshold_limit_and_order():
    found = Instances(
        torch.tensor([[0.0, 0, 40, 40], [60, 60, 100, 100]]), torch.tensor([0, 1]), (128, 128), torch.tensor([0.2, 0.8])
    )
    plain = np.asarray(draw(GREY, None))
    assert near(draw(GREY, found, threshold=0.5), 300, 240, colour(1))
    assert (np.asarray(draw(GREY, found, threshold=0.5))[:130, :130] == plain[:130, :130]).all()
    assert (np.asarray(draw(GREY, found, limit=0)) == plain).all()
    assert not (np.asarray(draw(GREY, found, limit=1)) == np.asarray(draw(GREY, found))).all()


def test_masks_as_tensor_and_rle_tint_the_same_pixels():
    import hotcoco

    plane = torch.zeros(1, 128, 128, dtype=torch.bool)
    plane[0, 40:80, 50:90] = True
    counts = hotcoco.mask.encode(np.asfortranarray(plane[0].numpy().astype(np.uint8)))["counts"]
    dense = np.asarray(draw(GREY, one([50, 40, 90, 80], masks=plane)))
    coded = np.asarray(draw(GREY, one([50, 40, 90, 80], masks=RLE((counts,), (128, 128)))))
    np.testing.assert_array_equal(dense, coded)
    expected = 128 * 0.55 + np.array(colour(2)) * 0.45
    np.testing.assert_allclose(dense[180, 210], expected, atol=1)
    assert (dense[300, 50] == 128).all()


def test_keypoints_crowds_and_invisible_points():
    points = torch.tensor([[[40.0, 40, 2], [100, 100, 0]]])
    image = draw(GREY, one([20, 20, 110, 110], keypoints=points, crowd=torch.tensor([True])), ["a", "b", "c"])
    assert near(image, 120, 120, colour(0)) and not near(image, 300, 300, colour(1))


@pytest.mark.parametrize("count", [0, 1, 60, 400])
def test_any_number_of_boxes(count):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(count, 4, generator=generator) * 200
    boxes[:, 2:] += boxes[:, :2]
    found = Instances(boxes, torch.arange(count) % 90, (400, 400), torch.rand(count, generator=generator))
    image = draw(torch.zeros(400, 400, 3, dtype=torch.uint8), found, [f"Straße {i} größer δύο один" for i in range(50)])
    assert image.size == (400, 400) and (np.asarray(image).any() == (count > 0))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (1, 1), (32, 300), (700, 500)])
def test_small_pictures_are_enlarged_and_large_ones_kept(height, width):
    image = draw(
        torch.zeros(height, width, 1, dtype=torch.uint8), one([0, 0, width, height], size=(height, width)), ["数字", "b", "c"]
    )
    assert image.size[1] % height == 0 and image.size[0] // width == image.size[1] // height
    assert min(image.size) >= min(384, 16 * min(height, width)) or min(height, width) >= 384


def test_panels_for_classes_label_maps_panoptic_and_text():
    ranked = Classes(torch.tensor([1, 0]), torch.tensor([0.75, 0.25]))
    panel = draw(GREY, ranked, ["no", "yes"])
    assert panel.size[0] > 384 and near(panel, 450, 40, colour(1), 40)
    halves = torch.zeros(128, 128, dtype=torch.int64)
    halves[:, 64:] = 1
    halves[:8] = 255
    tinted = np.asarray(draw(GREY, LabelMap(halves), ["left", "right"]))
    np.testing.assert_allclose(tinted[200, 300], 128 * 0.45 + np.array(colour(1)) * 0.55, atol=1)
    assert (tinted[5, 300] == 128).all()
    whole = Panoptic(halves.clamp(max=1) + 1, torch.tensor([1, 2]), torch.tensor([4, 7]), torch.tensor([True, False]))
    assert draw(GREY, whole).size[0] > 384
    assert draw(GREY, Text("a long caption that has to be wrapped into several lines below the picture")).size[1] > 384
    assert draw(GREY, Picture(GREY)).size == (384, 384)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UsageError, match="type Embedding cannot be drawn"):
        draw(GREY, Embedding(torch.zeros(3)))
    with pytest.raises(UsageError, match=r"must be \(H, W, 3\).*float32"):
        draw(GREY.float(), None)
    assert to_pixels(Image.new("L", (4, 3))).shape == (3, 4, 3)


def test_the_font_is_scalable_and_found_without_matplotlib_imported():
    import subprocess
    import sys

    code = "import sys; from opticus.plot.colours import font; font(12); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert font(40).getlength("m") > 1.8 * font(20).getlength("m")
