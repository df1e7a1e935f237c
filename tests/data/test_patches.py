import pytest
import torch

from opticus.data.embedded.material import PHOTOGRAPHS, photographs
from opticus.data.embedded.patches import SIDE, colourful
from opticus.data.open import open_data
from opticus.structures import DataError, UsageError


def test_patches_are_colour_pictures_of_photographs_that_no_other_split_has():
    data = open_data("patches", "test")
    pictures = torch.stack([data[i].picture.pixels for i in range(64)])
    assert pictures.shape == (64, SIDE, SIDE, 3) and pictures.dtype == torch.uint8
    assert (pictures.float().std(-1) > 2).float().mean() > 0.5, "pictures in colour"
    assert (pictures.float().mean(-1).flatten(1).std(1) > 10).float().mean() > 0.7, "few are plain"
    used = {split: {PHOTOGRAPHS[split][i] for group in colourful(split) for i in group} for split in ("train", "val", "test")}
    assert sum(map(len, used.values())) == len(set.union(*used.values())) == 10
    assert all(photographs("train")[i].shape[2] == 3 for group in colourful("train") for i in group)
    assert (1 + len(used["train"])) // 1 == len(colourful("train")) + 2, "a stereo pair is one photograph"


def test_a_patch_is_a_pure_function_of_seed_split_and_index():
    one, again = open_data("patches"), open_data("patches", seed=1)
    assert torch.equal(one[7].picture.pixels, open_data("patches")[7].picture.pixels)
    assert not torch.equal(one[7].picture.pixels, again[7].picture.pixels)
    assert len({one.hash, again.hash, open_data("patches", "val").hash, open_data("patches", count=5).hash}) == 4
    assert one[7].target is None and one.task == "generate" and len(open_data("patches", count=5)) == 5


def test_bad_words_about_patches():
    with pytest.raises(DataError, match="splits train, val, test"):
        open_data("patches", "dev2")
    with pytest.raises(DataError, match="count must be at least 1, found 0"):
        open_data("patches", count=0)
    with pytest.raises(UsageError, match="patches"):
        open_data("patches", colours=3)
