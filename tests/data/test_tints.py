import pytest
import torch

from opticus.data.open import open_data
from opticus.ops.lab import to_lab
from opticus.structures import DataError


def test_tints_are_digits_in_three_colours_with_known_translations():
    data = open_data("tints", "test")
    assert len(data) == 600 and data.names == ("red", "green", "blue") and data.task == "classify"
    for index in range(6):
        sample = data[index]
        colour = int(sample.target.labels[0])
        assert colour == index % 3 == int(data.target_of(index).labels[0])
        pixels = sample.picture.pixels.int()
        assert pixels.shape == (32, 32, 3)
        strongest = (pixels.amax(2) - pixels.amin(2)).flatten().argmax()
        assert int(pixels.reshape(-1, 3)[strongest].argmax()) == colour
        assert torch.equal(data.answer(index, colour).pixels, sample.picture.pixels)
        other = data.answer(index, (colour + 1) % 3).pixels
        moved = sample.picture.pixels.clone()
        moved[..., [colour, (colour + 1) % 3]] = moved[..., [(colour + 1) % 3, colour]]
        assert torch.equal(other, moved), "two channels change places and nothing else"
    ground = torch.stack([data[i].picture.pixels[0, 0].float() for i in range(60)])
    assert torch.equal(ground[:, 0], ground[:, 1]) and float(ground[:, 0].std()) > 10


def test_colours_of_equal_lightness_cannot_be_told_from_grey():
    data = open_data("tints-equal", "test")
    for index in range(3):
        lab = [to_lab(data.answer(index, k).pixels.permute(2, 0, 1)[None].float() / 255)[0] for k in range(3)]
        assert max(float((lab[0][0] - one[0]).abs().max()) for one in lab) < 1.5
        assert min(float(one[1:].norm(dim=0).max()) for one in lab) > 40
    assert data.hash != open_data("tints", "test").hash


def test_bad_words_about_tints():
    with pytest.raises(DataError, match="splits train, val, test"):
        open_data("tints", "query")
    with pytest.raises(DataError, match="count must be at least 1"):
        open_data("tints", count=0)
    assert open_data("tints").hash != open_data("tints", seed=3).hash
