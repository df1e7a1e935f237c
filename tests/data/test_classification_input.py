"""What users bring to a classifier: odd folders, odd picture modes, labels and heads that do not fit: answered or converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import opticus
from opticus.data.decode import decode
from opticus.structures import Classes, DataError, WeightsError

SHORT: dict[str, Any] = {"steps": 2, "batch": 4, "evaluate_every": 0, "quiet": True, "average": None, "workers": 0, "test": False}
RAMP = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)


def tree(root: Path, content: dict[str, int]) -> Path:
    for name, count in content.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.roll(RAMP, i, 0)).save(root / name / f"bild {i} é.png")
    return root


def test_class_folders_with_spaces_letters_and_one_picture(tmp_path: Path) -> None:
    root = tree(tmp_path / "Meine Bilder", {"Käse & Brot": 3, "猫": 1, "b c": 4})
    data = opticus.open_data(root)
    assert data.names == ("Käse & Brot", "b c", "猫") and len(data) == 8
    run = opticus.train("resnet/tiny", root, out=tmp_path / "run", **SHORT)
    again = opticus.load(run.out, quiet=True)
    assert again.card.labels == data.names
    answer = again.predict(root / "猫" / "bild 0 é.png")[0]
    assert {answer.name_of(k) for k in answer.labels.tolist()} == set(data.names)


def test_an_empty_class_is_kept_and_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", {"a": 4, "empty": 0, "z": 4})
    assert opticus.open_data(root).names == ("a", "empty", "z")  # the width of the head does not depend on what is missing
    findings = opticus.doctor(root).findings
    assert any(f.kind == "empty class" and "empty" in f.sentence() for f in findings)
    with pytest.raises(DataError, match="no record of empty"):
        opticus.train("resnet/tiny", root, out=tmp_path / "r", **SHORT, options={"class_weights": "balanced"})
    (tmp_path / "nothing" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="nothing"):
        opticus.open_data(tmp_path / "nothing")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK", "F"])
def test_every_picture_mode_is_converted_or_named(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(RAMP[..., 0])
    suffix = {"CMYK": "jpg", "F": "tiff"}.get(mode, "png")
    file = tmp_path / f"picture.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(file)
    else:
        Image.fromarray(RAMP).convert("L" if mode in ("L", "LA", "F") else "RGB").convert(mode).save(file)
    model = opticus.create("resnet/tiny")
    if mode == "F":  # real numbers have no agreed range
        with pytest.raises(opticus.Error, match=r"picture\.tiff"):
            decode(file)
        return
    pixels = decode(file).pixels
    assert pixels.dtype == torch.uint8 and pixels.shape[:2] == (24, 20) and pixels.shape[2] in (1, 3)
    if mode in ("L", "LA", "I;16"):
        wanted = np.asarray(grey if mode == "I;16" else Image.fromarray(RAMP).convert("L"))
        assert np.array_equal(pixels[..., 0].numpy(), wanted)
    assert len(model.predict(file)[0]) == 10


def test_labels_and_heads_that_do_not_fit_are_named(tmp_path: Path) -> None:
    picture = torch.from_numpy(RAMP)
    outside = [opticus.Sample.of(picture, Classes(torch.tensor([k])), id=f"record {i}") for i, k in enumerate((0, -1, 1, 0))]
    with pytest.raises(DataError, match=r"record 1: label -1 is outside 0\.\.1"):
        opticus.train("resnet/tiny", outside, out=tmp_path / "a", **SHORT)
    path = opticus.save(opticus.create("resnet/tiny", classes=7), tmp_path / "seven.safetensors")
    with pytest.raises(WeightsError, match=r"fc\.weight"):
        opticus.load(path, classes=10)
    loaded = opticus.load(path, classes=10, fresh=r"fc\..*", quiet=True)
    assert loaded.get_parameter("fc.weight").shape[0] == 10
    torch.save(opticus.create("resnet/18", classes=7, width=16).state_dict(), tmp_path / "seven.pth")
    assert opticus.load("resnet/18", tmp_path / "seven.pth", width=16, quiet=True).get_parameter("fc.weight").shape[0] == 7
    with pytest.raises(WeightsError, match=r"fc\."):
        opticus.load("resnet/18", tmp_path / "seven.pth", width=16, classes=10)
