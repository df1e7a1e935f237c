import pytest
import torch

from opticus.data.collate import collate
from opticus.data.open import open_data
from opticus.structures import DataError, ImageError, Picture, Prepare, Sample, Text
from opticus.transforms.prepare import prepare


def test_equal_sizes_have_no_mask_and_are_normalised():
    data = open_data("scenes", "val")
    samples = [data[i] for i in range(3)]
    rule = Prepare(resize="none", stride=32, order="bgr")
    batch = collate(samples, rule)
    assert batch.images.valid is None and batch.weights is None and len(batch) == 3
    raw = torch.stack([s.picture.pixels for s in samples]).permute(0, 3, 1, 2).double()[:, [2, 1, 0]] / 255
    wanted = (raw - torch.tensor(rule.mean)[:, None, None]) / torch.tensor(rule.std)[:, None, None]
    assert (batch.images.pixels - wanted).abs().max() < 1e-5 and batch.images.pixels.dtype == torch.float32
    assert torch.equal(batch.images.pixels, prepare([s.picture for s in samples], rule).pixels)
    assert batch.targets[1] is samples[1].target and batch.ids == tuple(s.id for s in samples)
    assert batch.images.sizes == ((128, 128),) * 3


def test_unequal_sizes_are_padded_right_and_bottom():
    a = Sample.of(torch.full((20, 30, 3), 9, dtype=torch.uint8), id="a")
    b = Sample.of(torch.full((40, 10, 3), 9, dtype=torch.uint8), id="b").with_picture(
        torch.full((20, 5, 3), 9, dtype=torch.uint8), None, torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    )
    b.weight = 0.25
    batch = collate([a, b], Prepare(resize="none", stride=16))
    assert batch.images.pixels.shape == (2, 3, 32, 32)
    assert batch.images.valid.sum((1, 2)).tolist() == [600, 100] and bool(batch.images.valid[1, :20, :5].all())
    assert (batch.images.pixels.abs().sum(1) > 0).equal(batch.images.valid)
    assert batch.images.sizes == ((20, 30), (40, 10)) and batch.images.to_input[1].diagonal().tolist() == [0.5, 0.5, 1]
    assert batch.weights.tolist() == [1.0, 0.25]


def test_grey_other_inputs_and_refusals():
    digits = open_data("digits", "val")
    assert collate([digits[0]], Prepare(channels=1, mean=(0.5,), std=(0.5,))).images.pixels.shape == (1, 1, 28, 28)
    assert collate([digits[0]], Prepare()).images.pixels.shape == (1, 3, 28, 28)
    words = [Sample({"question": Text(w)}, None, w) for w in "ab"]
    assert collate(words, Prepare()).inputs["question"] == (Text("a"), Text("b"))
    with pytest.raises(DataError, match="no picture"):
        collate([digits[0], words[0]], Prepare())
    with pytest.raises(DataError, match="at least one"):
        collate([], Prepare())
    with pytest.raises(ImageError):
        collate([Sample({"image": Picture(torch.zeros(4, 4, 2, dtype=torch.uint8))}, None, "two")], Prepare())
