import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.data.doctor import doctor
from opticus.data.export import export_data
from opticus.data.open import open_data
from opticus.structures import DataError, LabelMap, Sample


@pytest.fixture
def sick(tmp_path):
    """A COCO folder with one fault of each kind in pictures 0..7 of train and a repeat in val."""
    root = tmp_path / "sick"
    export_data("scenes", "coco", root, limit=12)
    images = root / "images" / "train"
    name = "train{:06d}.png".format
    data = (images / name(0)).read_bytes()
    (images / name(0)).write_bytes(data[: len(data) // 2])
    (images / name(1)).write_bytes(b"")
    Image.open(images / name(2)).save(images / "x.jpg")
    (images / "x.jpg").rename(images / name(2))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / name(3)).save(images / name(3), exif=exif)
    shutil.copy(images / name(4), images / name(5))
    shutil.copy(images / name(4), root / "images" / "val" / "val000000.png")
    (images / name(6)).unlink()
    Image.new("RGB", (100, 128)).save(images / name(7))
    file = root / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    tree["categories"].append({"id": 50, "name": "never"})
    first = next(a for a in tree["annotations"] if a["image_id"] == 9)
    first["bbox"] = [100, 100, 60, 5]
    file.write_text(json.dumps(tree))
    return root


def test_every_fault_is_found_and_the_quarantine_heals(sick, tmp_path):
    report = doctor(sick, splits=["train", "val"])
    found = {(f.kind, f.record) for f in report.findings if f.split == "train"}
    assert found >= {
        ("unreadable picture", "1"),
        ("unreadable picture", "2"),
        ("wrong extension", "3"),
        ("EXIF rotation", "4"),
        ("duplicate picture", "6"),
        ("unreadable picture", "7"),
        ("size mismatch", "8"),
        ("box outside", "9"),
        ("empty class", ""),
    }
    assert ("duplicate picture across splits", "1") in {(f.kind, f.record) for f in report.findings if f.split == "val"}
    assert report.errors == 5 and report.exit_code == 1
    assert [f.severity for f in report.findings] == sorted(
        (f.severity for f in report.findings), key=["error", "warning", "info"].index
    )
    table = report.table()
    assert "unreadable picture (3)" in table and "'never'" in table
    tree = json.loads(report.to_json())
    assert tree["errors"] == 5 and tree["splits"]["train"]["records"] == 12 and tree["splits"]["train"]["objects"]["never"] == 0
    listed = report.write_quarantine(tmp_path / "quarantine.csv")
    with pytest.raises(DataError, match="box outside"):
        open_data(sick)
    with pytest.warns(UserWarning, match=r"5 of 12 records of split 'train' are left out as bad \(3 x unreadable picture"):
        data = open_data(sick, quarantine=listed)
    assert len(data) == 7 and set(data.quarantined) == {"1", "2", "7", "8", "9"}
    assert all(sample.picture.size == (128, 128) for sample in data)
    assert len(open_data(sick, "val", quarantine=listed)) == 12


def test_healthy_data_has_nothing_to_report(tmp_path):
    report = doctor("digits", splits=["val"])
    assert report.findings == [] and report.exit_code == 0 and "nothing found" in report.table()
    export_data("digits", "mnist", tmp_path / "m", limit=60)
    healthy = doctor(tmp_path / "m")
    assert healthy.errors == 0 and set(healthy.splits) == {"train", "val", "test"}


def test_values_of_label_maps_are_counted():
    labels = torch.zeros(4, 4, dtype=torch.int64)
    labels[0] = 255
    labels[1, 0] = 7
    samples = [Sample.of(torch.full((4, 4, 3), i, dtype=torch.uint8), LabelMap(labels), f"s{i}") for i in range(2)]
    report = doctor(samples)
    assert report.splits["train"].mask_values == {0: 22, 7: 2, 255: 8}
    assert "255: 25.00 %" in report.table()


def test_no_data_set_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="neither an embedded"):
        doctor(tmp_path / "nothing")
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns split, record and kind"):
        open_data("digits", quarantine=tmp_path / "list.csv")


def test_only_val_is_examined_too(tmp_path):
    export_data("scenes", "yolo", tmp_path, limit=3)
    for part in ("images", "labels"):
        for split in ("train", "test"):
            shutil.rmtree(tmp_path / part / split)
    (tmp_path / "data.yaml").unlink()
    report = doctor(tmp_path)
    assert list(report.splits) == ["val"] and report.errors == 0
    assert np.sum(list(report.splits["val"].objects.values())) > 0
