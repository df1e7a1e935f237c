"""t-SNE of networks without a head and of pictures without classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import opticus
from opticus.structures import DataError, Sample, UsageError


def test_tsne_of_an_embedding_network_on_unlabelled_pictures(tmp_path: Path) -> None:
    model = opticus.create("vit/tiny", classes=0)
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    found = opticus.explain("tsne", model, folder, out=tmp_path / "a", perplexity=3.0)
    assert len(found.numbers["points"]) == 8 and found.numbers["same_class_in_space"] is None
    assert {row["label"] for row in found.numbers["points"]} == {""} and found.png.stat().st_size > 5000
    data = [Sample.of(torch.from_numpy(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)), None, f"s{i}") for i in range(6)]
    plain = opticus.explain("tsne", model, data=data, split="train", out=tmp_path / "b", perplexity=2.0)
    assert [row["id"] for row in plain.numbers["points"]] == [f"s{i}" for i in range(6)]
    places = opticus.explain("tsne", model, data="views", split="database", out=tmp_path / "c", limit=18, perplexity=3.0)
    assert [row["label"] for row in places.numbers["points"]] == ["0"] * 6 + ["1"] * 6 + ["2"] * 6


def test_one_picture_and_a_broken_network_are_refused(tmp_path: Path) -> None:
    model = opticus.create("vit/tiny", classes=0)
    Image.new("RGB", (40, 50)).save(tmp_path / "one.png")
    with pytest.raises(UsageError, match="at least 5 pictures, found 1"):
        opticus.explain("tsne", model, tmp_path / "one.png", out=tmp_path)
    with pytest.raises(UsageError, match="tsne needs data="):
        opticus.explain("tsne", model, out=tmp_path)
    with torch.no_grad():
        model.get_parameter("cls_token").fill_(float("nan"))
    with pytest.raises(DataError, match="database000000: the network's vector of this picture holds values"):
        opticus.explain("tsne", model, data="views", split="database", out=tmp_path, limit=6, perplexity=2.0)
