"""Pairs of pictures and pictures of two domains: embedded ones, folders, and what the prefixes make of any pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.data.collate import collate
from opticus.data.embedded.daynight import night, patch
from opticus.data.open import open_data
from opticus.structures import DataError, Picture, Prepare, Sample, UsageError
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Flip
from opticus.transforms.pairs import CropPair, FlipPair, InEach
from opticus.transforms.pixels import resize

RULE = Prepare(resize="none", mean=(0.5,) * 3, std=(0.5,) * 3)


def picture(value: int, size: tuple[int, int] = (8, 10)) -> Image.Image:
    rng = np.random.default_rng(value)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def target_of(sample: Sample) -> torch.Tensor:
    assert isinstance(sample.target, Picture)
    return sample.target.pixels


def test_sketches_are_outlines_of_their_digits() -> None:
    data = open_data("sketches", "test")
    assert len(data) == 500 and data.task == "translate"
    for i in range(20):
        lines, digit = data[i].picture.pixels[..., 0], target_of(data[i])[..., 0]
        assert set(lines.unique().tolist()) == {0, 255} and digit.shape == lines.shape == (32, 32)
        assert bool((digit[lines > 0] >= 110).all()), "lines lie on the ink"
    ids = [{open_data("sketches", split).id_of(i) for i in range(200)} for split in ("train", "val", "test")]
    assert not ids[0] & ids[1] and not ids[1] & ids[2] and not ids[0] & ids[2]


def test_daynight_is_unpaired_in_training_and_answered_in_the_test() -> None:
    train, test = open_data("daynight", "train"), open_data("daynight", "test")
    sample = train[5]
    assert [role for role, _ in sample.views] == ["a", "b"] and sample.target is None
    day, other = (view.picture.pixels for _, view in sample.views)
    assert torch.equal(day, sample.picture.pixels)
    assert float((torch.from_numpy(night(day.numpy())).float() - other.float()).abs().mean()) > 5, "not the same place"
    assert np.array_equal(target_of(test[3]).numpy(), night(patch(0, "test", 3)))
    assert float(target_of(test[3]).float().mean()) < float(test[3].picture.pixels.float().mean())
    batch = collate([train[0], train[1]], RULE)
    assert batch.roles == ("a", "b") and batch.views[1].pixels.shape == (2, 3, 32, 32)
    assert np.array_equal(patch(0, "train", 7), patch(0, "train", 7))


@pytest.mark.parametrize("kind", ["x2", "x4", "grey", "noisy"])
def test_prefixes_make_pairs_of_any_pictures(kind: str, tmp_path: Path) -> None:
    (tmp_path / "train" / "one").mkdir(parents=True)
    picture(1, (13, 18)).save(tmp_path / "train" / "one" / "p.png")
    data = open_data(f"{kind}:{tmp_path}", "train")
    sample, whole = data[0], torch.from_numpy(np.asarray(picture(1, (13, 18))).copy())
    factor = int(kind[1:]) if kind[0] == "x" else 1
    expected = whole[: 13 // factor * factor, : 18 // factor * factor]
    assert torch.equal(target_of(sample), expected) and torch.equal(target_of(data[0]), data.target_of(0).pixels)  # type: ignore[union-attr]
    if kind[0] == "x":
        assert torch.equal(sample.picture.pixels, resize(expected, (13 // factor, 18 // factor), "bicubic", True))
    elif kind == "grey":
        assert sample.picture.pixels.shape == (13, 18, 1)
    else:
        difference = sample.picture.pixels.float() - expected.float()
        assert 10 < float(difference.std()) < 30 and torch.equal(sample.picture.pixels, data[0].picture.pixels)


def test_two_folders_are_unpaired(tmp_path: Path) -> None:
    for name, count in (("trainA", 4), ("trainB", 7), ("testA", 2), ("testB", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture(i).save(tmp_path / name / f"{i}.png")
    data = open_data(tmp_path, "train")
    assert len(data) == 7 and data.split == "train" and set(data.splits) == {"train", "test"}
    assert len({data[i].id for i in range(7)}) == 7
    assert [role for role, _ in data[6].views] == ["a", "b"]
    assert len(open_data(tmp_path, "test")) == 2


def test_equal_names_and_halves_are_pairs(tmp_path: Path) -> None:
    for side in "AB":
        (tmp_path / "two" / side / "train").mkdir(parents=True)
        picture(ord(side)).save(tmp_path / "two" / side / "train" / "x.png")
    a, b = (torch.from_numpy(np.asarray(picture(ord(side))).copy()) for side in "AB")
    forth, back = open_data(tmp_path / "two", "train")[0], open_data(f"pairs-back:{tmp_path / 'two'}", "train")[0]
    assert torch.equal(forth.picture.pixels, a) and torch.equal(target_of(forth), b)
    assert torch.equal(back.picture.pixels, b) and torch.equal(target_of(back), a)
    (tmp_path / "half" / "train").mkdir(parents=True)
    Image.fromarray(torch.cat([a, b], 1).numpy()).save(tmp_path / "half" / "train" / "y.png")
    sample = open_data(f"pairs:{tmp_path / 'half'}", "train")[0]
    assert torch.equal(sample.picture.pixels, a) and torch.equal(target_of(sample), b)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_data(f"pairs:{tmp_path / 'nothing'}")
    for side, name in (("A", "x.png"), ("B", "y.png")):
        (tmp_path / "two" / side / "train").mkdir(parents=True)
        picture(1).save(tmp_path / "two" / side / "train" / name)
    with pytest.raises(DataError, match=r"its partner .*x\.png does not exist"):
        open_data(tmp_path / "two", "train")
    (tmp_path / "odd" / "train").mkdir(parents=True)
    picture(1, (4, 9)).save(tmp_path / "odd" / "train" / "x.png")
    with pytest.raises(DataError, match="an even width, found 9"):
        open_data(f"pairs:{tmp_path / 'odd'}", "train")[0]


@pytest.mark.parametrize("scale", [1, 4])
def test_crop_and_flip_move_both_pictures_alike(scale: int) -> None:
    small = torch.arange(8 * 8, dtype=torch.uint8).reshape(8, 8, 1)
    large = small.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    sample = Sample.of(small, Picture(large), "s")
    for index in range(20):
        draw = draw_for(0, 0, index)
        moved = FlipPair(0.5, 0.5, 0.5)(CropPair((4, 4))(sample, draw), draw)
        assert moved.size == (4, 4)
        assert torch.equal(target_of(moved), moved.picture.pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1))
        corner = moved.matrix.inverse() @ torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
        assert int(moved.picture.pixels[0, 0, 0]) == int(small[int(corner[1]), int(corner[0]), 0])
    with pytest.raises(UsageError, match="does not fit"):
        CropPair((9, 9))(sample, draw_for(0, 0, 0))
    with pytest.raises(UsageError, match="not a whole multiple"):
        FlipPair()(Sample.of(small, Picture(large[:-1]), "s"), draw_for(0, 0, 0))


def test_each_domain_is_transformed_by_itself() -> None:
    data, seen = open_data("daynight", "train"), set()
    for index in range(24):
        sample = InEach((Flip(0.5),))(data[0], draw_for(0, 0, index))
        seen.add(
            tuple(torch.equal(new.picture.pixels, old.picture.pixels) for (_, new), (_, old) in zip(sample.views, data[0].views))
        )
        assert torch.equal(sample.picture.pixels, sample.views[0][1].picture.pixels)
    assert len(seen) == 4
