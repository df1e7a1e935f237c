import io
import json
import pickle
import shutil
import stat
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.data import archive
from opticus.data.export import export_data
from opticus.data.findings import check_cheap
from opticus.data.open import open_data
from opticus.data.pickles import read_pickle
from opticus.structures import DataError, ImageError, Instances, Sample


@pytest.fixture
def coco(tmp_path):
    """A COCO file of four pictures and a function that changes its tree."""
    for i in range(4):
        Image.new("RGB", (40, 30), (i * 60, 0, 0)).save(tmp_path / f"{i}.png")
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in range(4)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0} for i in range(4)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }

    def write(change):
        copy = json.loads(json.dumps(tree))
        change(copy)
        (tmp_path / "train.json").write_text(json.dumps(copy))
        return tmp_path / "train.json"

    return write


def _box(*values):
    def change(tree):
        tree["annotations"][2]["bbox"] = list(values)

    return change


FAULTS = {
    "non-finite box": _box(float("nan"), 2, 3, 4),
    "negative box": _box(10, 10, -3, 4),
    "empty box": _box(10, 10, 3, 0),
    "box outside": _box(30, 10, 20, 5),
    "unknown category": lambda tree: tree["annotations"][2].update(category_id=77),
    "malformed record": lambda tree: tree["annotations"][2].update(bbox=[1, 2, 3]),
    "duplicate id": lambda tree: tree["images"].append(dict(tree["images"][2])),
    "unsafe path": lambda tree: tree["images"][2].update(file_name="../../2.png"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_bad_annotations_are_refused_or_quarantined(coco, kind):
    path = coco(FAULTS[kind])
    with pytest.raises(DataError, match=kind) as caught:
        open_data(path)
    assert "2" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=kind):
        data = open_data(path, on_bad="quarantine")
    assert [data.id_of(i) for i in range(len(data))] == ["0", "1", "3"] and set(data.quarantined) == {"2"}
    assert [kind] == [finding.kind for finding in check_cheap(open_data(path, on_bad="keep"))]
    assert data[2].target.boxes.tolist() == [[1, 2, 11, 14]]


def test_annotation_of_an_unknown_image(coco):
    path = coco(lambda tree: tree["annotations"][2].update(image_id=55))
    with pytest.raises(DataError, match="unknown image: annotation 3 belongs to image 55"):
        open_data(path)
    assert len(open_data(path, on_bad="keep").target_of(2)) == 0


def test_a_wrong_stated_size_is_an_error_of_the_record(coco):
    data = open_data(coco(lambda tree: tree["images"][1].update(height=40, width=41)))
    with pytest.raises(DataError, match=r"1\.png: the annotations say 41x40 pixels, the picture has 40x30"):
        data[1]


def test_broken_json_names_file_and_place(coco):
    path = coco(lambda tree: None)
    text = path.read_text()
    cases = {
        text[: text.index("annotations") + 150]: r"annotations\[1\]: the file ends in the middle",
        text[:-1]: "the file ends too early",
        text.replace('"bbox": [1, 2, 10, 12]', '"bbox": [1, 2, x, 12]', 1): r"annotations\[0\]",
        text.replace('"images": [', '"images": 3, "other": ['): "images",
    }
    for broken, words in cases.items():
        path.write_text(broken)
        with pytest.raises(DataError, match=words) as caught:
            open_data(path)
        assert "train.json" in str(caught.value)


def test_yolo_lines_that_are_wrong(tmp_path):
    export_data("scenes", "yolo", tmp_path, limit=4)
    labels = sorted((tmp_path / "labels" / "train").iterdir())
    cases = {
        "3 0.5 0.5 0.2": "expected a class",
        "3 0.5 0.5 0.2 x": "not a number",
        "3.5 0.5 0.5 0.2 0.2": "whole number",
        "-1 0.5 0.5 0.2 0.2": "whole number",
        "55 0.5 0.5 0.2 0.2": "unknown category",
        "5 0.5 0.5 nan 0.2": "non-finite",
        "5 0.5 0.5 0 0.2": "empty box",
        "5 0.9 0.5 0.3 0.2": "box outside",
    }
    for line, words in cases.items():
        labels[1].write_text(line + "\n")
        with pytest.raises(DataError, match=words) as caught:
            open_data(tmp_path)
        assert "train000001" in str(caught.value)
        with pytest.warns(UserWarning, match="left out as bad"):
            assert len(open_data(tmp_path, on_bad="quarantine")) == 3
    labels[1].write_text("4 0.1 0.1 0.5 0.2 0.3 0.6\n")
    assert torch.allclose(open_data(tmp_path).target_of(1).boxes, torch.tensor([[0.1, 0.1, 0.5, 0.6]]) * 128)


def test_xml_bombs_are_refused(tmp_path):
    export_data("scenes", "voc", tmp_path, limit=3)
    file = tmp_path / "Annotations" / "train000001.xml"
    good = file.read_text()
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    bombs = {
        f'<!DOCTYPE a [<!ENTITY l0 "ha">{entities}]><annotation>&l9;</annotation>': "declares a document type",
        '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]><annotation>&f;</annotation>': "declares a document type",
        "<a>" * 100000 + "</a>" * 100000: "nested deeper",
        good[:100]: "not well-formed",
        "": "not well-formed",
        good.replace("<xmin>", "<xmin>a", 1): "no bndbox of four numbers",
        good.replace("<xmin>", "<xmin>nan</xmin><o>", 1).replace("</xmin><ymin>", "</o><ymin>", 1): "non-finite box",
    }
    for text, words in bombs.items():
        file.write_text(text)
        with pytest.raises(DataError, match=words) as caught:
            open_data(tmp_path)
        assert "train000001" in str(caught.value)
    file.write_bytes(('<?xml version="1.0" encoding="utf-16"?>' + next(iter(bombs))).encode("utf-16"))
    with pytest.raises(DataError, match="declares a document type"):
        open_data(tmp_path)
    with pytest.warns(UserWarning, match="unreadable annotation"):
        assert len(open_data(tmp_path, on_bad="quarantine")) == 2


class _Call:
    def __init__(self, function, *words):
        self.words = (function, words)

    def __reduce__(self):
        return self.words


def test_pickles_in_cifar_batches_execute_nothing(tmp_path):
    import os

    export_data("digits", "cifar-python", tmp_path, limit=3)
    victim = tmp_path / "data_batch_1"
    mark = tmp_path / "owned"
    deep = ()
    for _ in range(200):
        deep = (deep, deep)
    bombs = {
        "posix.system": pickle.dumps(_Call(os.system, f"touch {mark}")),
        "eval": pickle.dumps({b"data": _Call(eval, "1"), b"labels": []}, protocol=2),
        "getattr": pickle.dumps(_Call(getattr, "a", "upper")),
        "numpy": pickle.dumps({b"data": np.array([object()]), b"labels": []}),
        "memory": b"\x80\x02}r\xff\xff\xff\x7f.",
        "state": pickle.dumps({b"data": np.zeros(3), b"labels": []}, protocol=2).replace(b"f8", b"O8"),
        "keys": b"\x80\x02}" + pickle.dumps(deep, protocol=2)[2:-1] + b"K\x01s.",  # hashing it takes 2^200 steps
        "not a readable": b"\x80\x02}q",
    }
    for words, data in bombs.items():
        victim.write_bytes(data)
        with pytest.raises(DataError, match="data_batch_1") as caught:
            open_data(tmp_path)
        assert len(str(caught.value)) < 400, words
    assert not mark.exists()
    plain = {b"data": np.arange(12, dtype=">i2").reshape(3, 4).T, b"x": [1, 2], "y": "z", b"f": np.eye(2)}
    for protocol in (0, 2, 4, 5):
        victim.write_bytes(pickle.dumps(plain, protocol=protocol))
        if protocol == 5:  # newer NumPy pickles arrays through another function from protocol 5 on
            continue
        got = read_pickle(victim)
        assert np.array_equal(got[b"data"], plain[b"data"]) and np.array_equal(got[b"f"], np.eye(2)) and got[b"x"] == [1, 2]


def test_wrong_lengths_of_idx_and_cifar(tmp_path):
    export_data("digits", "mnist", tmp_path / "m", limit=3)
    import gzip

    file = tmp_path / "m" / "train-images-idx3-ubyte.gz"
    good = gzip.decompress(file.read_bytes())
    whole = file.read_bytes()
    for data, words in (
        (gzip.compress(good[:-1]), "promises 2352 bytes, found 2351"),
        (gzip.compress(good + b"x"), "found more"),
        (gzip.compress(b"\0\0\x0d\x03" + good[4:]), "type 13"),
        (gzip.compress(b"abcd" + good[4:]), "not an IDX"),
        (gzip.compress(good[:4] + b"\xff" * 12), "the header promises"),
        (whole[: len(whole) // 2], "cannot be read"),
        (b"", "not an IDX"),
    ):
        file.write_bytes(data)
        with pytest.raises(DataError, match=words):
            open_data(tmp_path / "m")
    export_data("digits", "cifar", tmp_path / "c", limit=3)
    batch = tmp_path / "c" / "data_batch_1.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_1\.bin: expected a multiple of 3073"):
        open_data(tmp_path / "c")
    rows = np.zeros((2, 3073), np.uint8)
    rows[1, 0] = 99
    batch.write_bytes(rows.tobytes())
    with pytest.raises(DataError, match="unknown category: 99"):
        open_data(tmp_path / "c")


def test_a_missing_or_broken_picture_is_named_when_it_is_read(tmp_path):
    export_data("digits", "folder", tmp_path, limit=5)
    data = open_data(tmp_path)
    data.file_of(1).write_bytes(b"")
    with pytest.raises(ImageError, match="empty") as caught:
        data[1]
    assert data.id_of(1) in str(caught.value)


def test_bad_samples_in_an_iterable():
    pixels = torch.zeros(10, 10, 3, dtype=torch.uint8)
    good = Sample.of(pixels, Instances(torch.tensor([[1.0, 1, 5, 5]]), torch.tensor([0]), (10, 10)), "a")
    bad = Sample.of(pixels, Instances(torch.tensor([[1.0, 1, 1, 5]]), torch.tensor([0]), (10, 10)), "b")
    with pytest.raises(DataError, match="b: empty box"):
        open_data([good, bad])
    with pytest.raises(DataError, match="duplicate id"):
        open_data([good, good])


def _zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in entries.items():
            out.writestr(name, data)


def test_archives_are_unpacked_once_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path / "home"))
    export_data("scenes", "yolo", tmp_path / "y" / "set", limit=3)
    for kind in ("zip", "gztar"):
        path = shutil.make_archive(str(tmp_path / f"data-{kind}"), kind, tmp_path / "y")
        data = open_data(path, "val")
        assert len(data) == 3 and len(data[0].target) > 0
        place = data.file_of(0)
        before = place.stat().st_mtime_ns
        assert open_data(path, "val").file_of(0).stat().st_mtime_ns == before
        assert (tmp_path / "home") in place.parents


def test_hostile_archives_are_refused(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("OPTICUS_HOME", str(home))
    for name in ("../evil.txt", "/abs.txt", "a/../../evil.txt", "C:\\evil.txt", "..\\evil.txt"):
        path = tmp_path / "slip.zip"
        _zip(path, {"ok.txt": "ok", name: "evil"})
        with pytest.raises(DataError, match="outside the folder"):
            open_data(path)
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as out:
        out.writestr(info, "/etc")
    with pytest.raises(DataError, match="link or device"):
        open_data(tmp_path / "link.zip")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        with tarfile.open(tmp_path / "link.tar", "w") as out:
            entry = tarfile.TarInfo("x")
            entry.type, entry.linkname = kind, "/etc/passwd"
            out.addfile(entry)
        with pytest.raises(DataError, match="link or device"):
            open_data(tmp_path / "link.tar")
    with tarfile.open(tmp_path / "slip.tar.gz", "w:gz") as out:
        entry = tarfile.TarInfo("../evil.txt")
        entry.size = 4
        out.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises(DataError, match="outside the folder"):
        open_data(tmp_path / "slip.tar.gz")
    monkeypatch.setattr(archive, "_FREE", 1 << 20)
    _zip(tmp_path / "bomb.zip", {"zeros": bytes(32 << 20)})
    with pytest.raises(DataError, match="unpacks to more than"):
        open_data(tmp_path / "bomb.zip")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(DataError, match=r"broken\.zip: the archive cannot be unpacked"):
        open_data(tmp_path / "broken.zip")
    assert not list(tmp_path.rglob("evil*")) and not list((home / "unpacked").iterdir())
