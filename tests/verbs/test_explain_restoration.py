import json

import pytest
import torch

import opticus
from opticus.structures import CapabilityError, DataError, UnknownNameError, UsageError


def small(**changes):
    torch.manual_seed(0)
    return opticus.create("srgan/tiny", blocks=1, width=4, **changes).eval()


def test_systems_stand_beside_bicubic_and_the_original(tmp_path) -> None:
    done = opticus.explain("restoration", [small(), small()], data="x2:patches", limit=2, out=tmp_path)
    found = json.loads(done.json.read_text())
    assert done.png.is_file() and done.page.is_file()
    numbers = done.numbers
    assert numbers["scale"] == 2 and len(numbers["pictures"]) == 2 * 3, "two systems of one title are two columns"
    bicubic = [row["PSNR"] for row in numbers["means"] if row["system"] == "bicubic"]
    assert 20 < bicubic[0] < 60
    assert found["numbers"]["scale"] == 2 and found["kind"] == "restoration"


def test_a_picture_is_made_smaller_first(tmp_path) -> None:
    picture = torch.randint(256, (33, 40, 3), dtype=torch.uint8)
    done = opticus.explain("restoration", small(), picture, out=tmp_path, border=0)
    assert done.numbers["means"][0]["system"] == "bicubic" and done.numbers["border"] == 0


def test_bad_requests(tmp_path) -> None:
    with pytest.raises(CapabilityError, match="has no `scale`"):
        opticus.explain("restoration", "lenet/5", data="digits", out=tmp_path)
    with pytest.raises(DataError, match="a pair of pictures is needed; put x2:"):
        opticus.explain("restoration", small(), data="patches", out=tmp_path)
    with pytest.raises(UsageError, match="makes pictures 4 times larger"):
        opticus.explain("restoration", small(scale=4), data="x2:patches", out=tmp_path)
    with pytest.raises(UsageError, match="compares systems of one enlargement"):
        opticus.explain("restoration", [small(), small(scale=4)], data="x2:patches", out=tmp_path)
    with pytest.raises(UnknownNameError, match="borders"):
        opticus.explain("restoration", small(), data="x2:patches", borders=3, out=tmp_path)
