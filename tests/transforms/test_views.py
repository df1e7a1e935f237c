"""Several views of one picture: roles, sizes, matrices, independence of the draws."""

import pytest
import torch

from opticus.data.collate import collate
from opticus.structures import Classes, DataError, Prepare, Sample, UsageError
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Flip, RandomResizedCrop, Resize
from opticus.transforms.views import View, Views, multi_crop, two_views


def sample(key="a", size=(40, 50)):
    generator = torch.Generator().manual_seed(len(key))
    return Sample.of(torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator), Classes(torch.tensor([1])), key)


def test_multi_crop_makes_global_and_local_views():
    seen = multi_crop(32, 16, 3)(sample(), draw_for(0, 0, 0))
    assert [role for role, _ in seen.views] == ["global"] * 2 + ["local"] * 3
    assert [view.size for _, view in seen.views] == [(32, 32)] * 2 + [(16, 16)] * 3
    assert "image" not in seen.inputs and seen.target is not None and seen.id == "a"
    assert len({tuple(view.matrix.flatten().tolist()) for _, view in seen.views}) == 5, "every view is drawn on its own"


def test_views_are_made_from_the_picture_as_it_was():
    """The matrix of a view maps the original picture, not the view before it."""
    views = Views((View("global", (Resize((20, 25)),), 2), View("local", (Resize((8, 10)),))), keep=True)
    seen = views(sample(), draw_for(0, 0, 0))
    assert [view.matrix[0, 0].item() for _, view in seen.views] == [0.5, 0.5, 0.2]
    assert torch.equal(seen.views[0][1].picture.pixels, seen.views[1][1].picture.pixels)
    assert seen.picture.size == (40, 50)


def test_views_are_a_function_of_seed_epoch_and_index():
    make = two_views(16)
    one, two, other = (make(sample(), draw_for(3, epoch, 7)) for epoch in (1, 1, 2))
    pairs = zip(one.views, two.views, strict=True)
    assert all(torch.equal(a.picture.pixels, b.picture.pixels) for (_, a), (_, b) in pairs)
    assert not torch.equal(one.views[0][1].picture.pixels, other.views[0][1].picture.pixels)


def test_a_batch_has_the_views_of_all_samples_by_place():
    make = multi_crop(32, 16, 2)
    samples = [make(sample(key, size), draw_for(0, 0, i)) for i, (key, size) in enumerate([("a", (40, 50)), ("bb", (64, 30))])]
    batch = collate(samples, Prepare(resize="none", mean=(0.0,) * 3, std=(1.0,) * 3))
    assert batch.images is None and batch.roles == ("global", "global", "local", "local") and len(batch) == 2
    assert [tuple(view.pixels.shape) for view in batch.views] == [(2, 3, 32, 32)] * 2 + [(2, 3, 16, 16)] * 2
    expected = samples[1].views[2][1].picture.pixels.permute(2, 0, 1) / 255
    torch.testing.assert_close(batch.views[2].pixels[1], expected)
    assert torch.equal(batch.views[3].to_input[0], samples[0].views[3][1].matrix)
    assert batch.views[0].sizes == ((40, 50), (64, 30))
    moved = batch.to("cpu", torch.float64)
    assert moved.roles == batch.roles and moved.views[0].pixels.dtype == torch.float64


def test_unlike_views_are_refused():
    one, two = two_views(16)(sample(), draw_for(0, 0, 0)), multi_crop(16, 8, 1)(sample("bb"), draw_for(0, 0, 1))
    with pytest.raises(DataError, match="bb: the sample's views are"):
        collate([one, two], Prepare())
    with pytest.raises(UsageError, match="at least one kind of view"):
        Views(())(sample(), draw_for(0, 0, 0))


def test_local_views_can_be_left_out():
    seen = multi_crop(32, 16, 0)(sample(), draw_for(0, 0, 0))
    assert [role for role, _ in seen.views] == ["global", "global"]


@pytest.mark.parametrize("size", [(1, 1), (3, 200)])
def test_odd_pictures_have_views_too(size):
    seen = multi_crop(32, 16, 2)(sample("odd", size), draw_for(0, 0, 0))
    assert all(view.size in ((32, 32), (16, 16)) for _, view in seen.views)


def test_published_augmentation():
    """Global views differ in blur and solarisation as section A of the DINO paper says."""
    first, second, local = multi_crop().views
    assert [type(t).__name__ for t in first.transforms] == ["RandomResizedCrop", "Flip", "ColourJitter", "Grayscale", "Blur"]
    assert first.transforms[-1].p == 1.0 and second.transforms[-2].p == 0.1 and second.transforms[-1].p == 0.2
    assert local.count == 8 and local.transforms[-1].p == 0.5
    crop, flip = local.transforms[:2]
    assert isinstance(crop, RandomResizedCrop) and crop.scale == (0.05, 0.4) and crop.interpolation == "bicubic"
    assert isinstance(flip, Flip) and flip.p == 0.5
