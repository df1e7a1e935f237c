"""DAVIS: the embedded clips written in its layout and read back, and what a folder may have wrong; maps of regions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import opticus
from opticus.cli.main import main
from opticus.data.davis import Davis, Sequences, palette, palette_of, write_ids
from opticus.data.embedded.videos import FRAMES, Videos, clip
from opticus.data.segments import Segments, VocSegments
from opticus.structures import DataError, ImageError, LabelMap, UsageError


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return opticus.export_data("videos", "davis", tmp_path_factory.mktemp("davis") / "DAVIS", limit=2)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "DAVIS"))


def test_clips_are_a_pure_function_and_keep_their_promises():
    clip.cache_clear()
    first = clip(0, "val", 3)
    clip.cache_clear()
    again = clip(0, "val", 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again)) and first.pixels.shape == (FRAMES, 128, 128, 3)
    assert not np.array_equal(first.pixels, clip(1, "val", 3).pixels)
    assert len({Videos(split).hash for split in ("train", "val", "test")} | {Videos("val", seed=1).hash}) == 4
    for split in ("val", "test"):
        for i in range(4):
            ids = clip(0, split, i).ids
            count = 3 if i % 2 else 2
            sizes = np.stack([(ids == k).sum((1, 2)) for k in range(1, count + 1)])
            assert sizes[:, 0].min() > 150 and ids.max() == count
            y, x = np.mgrid[:128, :128]
            for k in range(1, count + 1):
                middles = np.stack([(y[ids[t] == k].mean(), x[ids[t] == k].mean()) for t in range(0, FRAMES, 4)])
                assert np.linalg.norm(middles - middles[0], axis=1).max() > 5, "objects move"


def test_the_written_folder_reads_back(exported: Path):
    data, drawn = opticus.open_data(exported, "val"), opticus.open_data("videos", "val")
    assert isinstance(data, Davis) and isinstance(data, Sequences) and isinstance(drawn, Sequences)
    assert data.splits == ("test", "train", "val") and data.sequences == ("val00", "val01")
    assert data.starts.tolist() == [0, FRAMES, 2 * FRAMES] and len(data) == 2 * FRAMES and data.id_of(21) == "val01/00001"
    for i in (0, 7, 39):
        target, truth = data[i].target, drawn.target_of(i)
        assert isinstance(target, LabelMap) and isinstance(truth, LabelMap) and torch.equal(target.labels, truth.labels)
        assert (data[i].picture.pixels.int() - drawn[i].picture.pixels.int()).abs().float().mean() < 3, "JPEG"
    assert data.hash == opticus.open_data(exported, "val").hash != opticus.open_data(exported, "test").hash
    with Image.open(exported / "Annotations/480p/val00/00000.png") as image:
        assert image.mode == "P" and bytes(image.getpalette() or ())[:12] == bytes([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])


def test_the_command_line_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export-data", "videos", "davis", str(tmp_path / "d"), "limit=1"]) == 0
    assert len(list((tmp_path / "d/JPEGImages/480p").iterdir())) == 3
    assert main(["export-data", "videos", "coco", str(tmp_path / "e")]) == 2
    assert "videos is segment data, which coco does not hold" in capsys.readouterr().err
    assert main(["export-data", "scenes", "davis", str(tmp_path / "e")]) == 2


def test_a_palette_is_kept(tmp_path: Path):
    own = bytes(range(256)) * 3
    file = write_ids(np.array([[0, 1], [2, 255]], np.uint8), tmp_path / "a.png", own)
    assert palette_of(file) == own and palette_of(None) == palette() and len(palette()) == 768


def test_bad_folders_are_refused(folder: Path):
    (folder / "Annotations/480p/val00/00000.png").unlink()
    with pytest.raises(DataError, match=r"val00/00000: missing annotation: a sequence's first frame needs one"):
        opticus.open_data(folder, "val")
    write_ids(np.ones((64, 128), np.uint8), folder / "Annotations/480p/val00/00000.png")
    with pytest.raises(DataError, match=r"00000.png: expected 128x128 pixels as in the frame, found 128x64"):
        opticus.open_data(folder, "val")[0]
    Image.new("RGB", (128, 128)).save(folder / "Annotations/480p/val00/00000.png")
    with pytest.raises(ImageError, match="expected a palette or 8-bit grey picture of ids, found mode RGB"):
        opticus.open_data(folder, "val").target_of(0)
    for file in (folder / "JPEGImages/480p/val01").glob("*.jpg"):
        file.unlink()
    with pytest.raises(DataError, match=r"the sequence 'val01' of val.txt has no frame"):
        opticus.open_data(folder, "val")
    (folder / "ImageSets/2017/val.txt").write_text("../x\n")
    with pytest.raises(DataError, match=r"expected names of sequences, found '../x'"):
        opticus.open_data(folder, "val")
    (folder / "ImageSets/2017/val.txt").write_text("val00\nval00\n")
    with pytest.raises(DataError, match="'val00' is listed twice"):
        opticus.open_data(folder, "val")
    (folder / "ImageSets/2017/val.txt").write_text("val00\n")
    with pytest.raises(DataError, match="there is no split 'test-dev'"):
        opticus.open_data(folder, "test-dev")


def test_maps_of_voc_and_of_masks(tmp_path: Path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for place in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / place).mkdir(parents=True)
    Image.new("RGB", (9, 7)).save(root / "JPEGImages/a.jpg")
    ids = np.zeros((7, 9), np.uint8)
    ids[2:4, 3:6], ids[4, 3:6] = 15, 255
    write_ids(ids, root / "SegmentationClass/a.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    data = opticus.open_data(f"segment:{tmp_path}/VOCdevkit", "val")
    assert isinstance(data, VocSegments) and data.names[15] == "person"
    target = data[0].target
    assert isinstance(target, LabelMap) and np.array_equal(target.labels.numpy(), ids) and target.ignore == 255
    write_ids(ids[:5], root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match="expected 9x7 pixels as in the picture, found 9x5"):
        data[0]
    (root / "SegmentationClass/a.png").unlink()
    with pytest.raises(ImageError, match="there is no such file"):
        data[0]
    scenes = opticus.open_data("segment:scenes", "test")
    drawn = opticus.open_data("scenes", "test")
    assert isinstance(scenes, Segments)
    found = scenes.target_of(5)
    assert isinstance(found, LabelMap) and torch.equal(found.labels, drawn.semantic(5).labels)  # type: ignore[attr-defined]
    with pytest.raises((DataError, UsageError), match="masks"):
        _ = opticus.open_data("segment:digits", "test")[0]
