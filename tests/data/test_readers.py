import gzip
import json
import shutil

import numpy as np
import pytest
import torch

from opticus.data.export import export_data
from opticus.data.open import open_data
from opticus.structures import DataError, Sample, UnknownNameError, UsageError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every format written once, twelve samples a split."""
    root = tmp_path_factory.mktemp("exported")
    for name, formats in (("scenes", ("coco", "voc", "yolo")), ("digits", ("folder", "mnist", "cifar", "cifar-python"))):
        for kind in formats:
            export_data(name, kind, root / kind, limit=12)
    return root


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_detection_formats_return_what_was_written(exported, kind, split):
    data, truth = open_data(exported / kind, split), open_data("scenes", split)
    assert len(data) == 12 and data.task == "detect" and sorted(data.splits) == ["test", "train", "val"]
    for i in range(12):
        sample, wanted = data[i], truth[i]
        assert torch.equal(sample.picture.pixels, wanted.picture.pixels)
        target, alone = sample.target, data.target_of(i)
        assert torch.equal(target.boxes, alone.boxes) and target.size == alone.size == (128, 128)
        torch.testing.assert_close(target.boxes, wanted.target.boxes, rtol=0, atol=1e-5 if kind == "yolo" else 0)
        names = [data.names[k] for k in target.labels]
        assert names == [truth.names[k] for k in wanted.target.labels]
    assert data.file_of(0).is_file()


def test_coco_masks_areas_and_ids(exported):
    data, truth = open_data(exported / "coco", "val", masks=True), open_data("scenes", "val", masks=True)
    import pycocotools.mask as oracle

    for i in range(12):
        target, wanted = data.target_of(i), truth.target_of(i)
        assert torch.equal(target.areas, wanted.areas) and not target.crowd.any()
        for counts, mask in zip(target.masks.counts, wanted.masks):
            assert np.array_equal(oracle.decode({"counts": counts, "size": [128, 128]}) != 0, mask.numpy())
    assert open_data(exported / "coco", "val").target_of(0).masks is None
    assert data.id_of(3) == "4" and data.label_ids == tuple(range(10))


def test_coco_polygons_and_sparse_category_ids(tmp_path, exported):
    import pycocotools.mask as oracle

    shutil.copy(exported / "coco" / "images" / "val" / "val000000.png", tmp_path / "ä.png")
    polygon = [10.0, 10.0, 60.0, 12.0, 40.0, 70.0]
    tree = {
        "annotations": [
            {
                "id": 9,
                "image_id": 70,
                "category_id": 90,
                "bbox": [10, 10, 50, 60],
                "segmentation": [polygon],
                "area": 5,
                "iscrowd": 0,
            },
            {"id": 8, "image_id": 70, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        ],
        "images": [{"id": 70, "file_name": "ä.png", "height": 128, "width": 128}],
        "categories": [{"id": 90, "name": "käse"}, {"id": 7, "name": "\u732b"}],
    }
    for ascii_only in (True, False):
        (tmp_path / "all.json").write_text(json.dumps(tree, ensure_ascii=ascii_only), "utf-8")
        data = open_data(tmp_path / "all.json", masks=True)
        assert data.names == ("\u732b", "käse") and data.label_ids == (7, 90)
        target = data[0].target
        assert target.labels.tolist() == [1, 0] and target.crowd.tolist() == [False, True]
        assert target.areas.tolist() == [5.0, 12.0] and target.boxes.tolist() == [[10, 10, 60, 70], [1, 2, 4, 6]]
        wanted = oracle.decode(oracle.merge(oracle.frPyObjects([polygon], 128, 128)))
        assert np.array_equal(oracle.decode({"counts": target.masks.counts[0], "size": [128, 128]}), wanted)
        assert oracle.area({"counts": target.masks.counts[1], "size": [128, 128]}) == 0


@pytest.mark.parametrize("kind", ["folder", "mnist", "cifar", "cifar-python"])
def test_classification_formats_return_what_was_written(exported, kind):
    for split in ("train", "val", "test"):
        data, truth = open_data(exported / kind, split), open_data("digits", split)
        assert len(data) == 12 and data.task == "classify"
        written = {(int(truth.target_of(i).labels), truth[i].picture.pixels[..., 0].numpy().tobytes()) for i in range(12)}
        read = set()
        for i in range(12):
            pixels = data[i].picture.pixels
            pixels = pixels[2:30, 2:30] if kind.startswith("cifar") else pixels
            assert all(torch.equal(pixels[..., 0], pixels[..., c]) for c in range(pixels.shape[2]))
            label = int(data.target_of(i).labels)
            read.add((int(data.names[label]), pixels[..., 0].numpy().tobytes()))
        assert read == written


def test_mnist_raw_and_gz_are_the_same(exported, tmp_path):
    for file in (exported / "mnist").iterdir():
        (tmp_path / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
    assert open_data(tmp_path).hash == open_data(exported / "mnist").hash


def test_a_missing_cifar_batch_is_named(tmp_path):
    folder = export_data("digits", "cifar", tmp_path / "cifar")
    (one,) = folder.rglob("data_batch_1.bin")
    for number in (2, 4, 5):
        (one.parent / f"data_batch_{number}.bin").write_bytes(one.read_bytes())
    with pytest.raises(DataError, match=r"missing: data_batch_3\.bin"):
        open_data(folder)


def test_cifar100_takes_fine_labels(tmp_path):
    rows = np.zeros((3, 2 + 3072), np.uint8)
    rows[:, 0], rows[:, 1] = [1, 2, 3], [77, 5, 99]
    rows[1, 2 : 2 + 1024] = 200
    (tmp_path / "train.bin").write_bytes(rows.tobytes())
    data = open_data(tmp_path)
    assert [int(data.target_of(i).labels) for i in range(3)] == [77, 5, 99] and len(data.names) == 100
    assert data[1].picture.pixels[..., 0].unique().tolist() == [200] and int(data[1].picture.pixels[..., 1:].max()) == 0


def test_hashes_follow_the_content(exported, tmp_path):
    for kind in ("coco", "voc", "yolo", "folder"):
        assert open_data(exported / kind).hash == open_data(exported / kind).hash != open_data(exported / kind, "val").hash
    shutil.copytree(exported / "yolo", tmp_path / "yolo")
    assert open_data(tmp_path / "yolo").hash == open_data(exported / "yolo").hash
    label = next((tmp_path / "yolo" / "labels" / "train").iterdir())
    label.write_text("3 0.5 0.5 0.25 0.25\n")
    assert open_data(tmp_path / "yolo").hash != open_data(exported / "yolo").hash


def test_yolo_layouts_and_yaml_forms(exported, tmp_path):
    source = exported / "yolo"
    for part in ("train", "valid"):
        split = "val" if part == "valid" else part
        shutil.copytree(source / "images" / split, tmp_path / part / "images")
        shutil.copytree(source / "labels" / split, tmp_path / part / "labels")
    bare = open_data(tmp_path, "val")
    assert len(bare) == 12 and bare.splits == ("train", "valid")
    forms = (
        "train: ../train/images\nval: valid/images\nnc: 10\nnames: ['a, b', \"c\", 2,3,4,5,6,7,8,9]  # inline\n",
        "train: train/images\nval: valid/images\nnames:\n" + "".join(f"  {i}: n{i}\n" for i in range(10)),
        "train: train\nval: valid\nnames:\n" + "".join(f"- n{i}\n" for i in range(10)),
    )
    for text in forms:
        (tmp_path / "data.yaml").write_text(text)
        data = open_data(tmp_path / "data.yaml", "valid")
        assert len(data.names) == 10 and data.names[0] in ("a, b", "n0") and len(data) == 12
        torch.testing.assert_close(data.target_of(0).boxes, open_data("scenes", "val").target_of(0).boxes, rtol=0, atol=1e-5)


def test_background_only_pictures_are_legal(exported, tmp_path):
    shutil.copytree(exported / "yolo", tmp_path / "y")
    for file in (tmp_path / "y" / "labels" / "train").iterdir():
        file.unlink()
    data = open_data(tmp_path / "y")
    assert len(data) == 12 and len(data[0].target) == 0 and data[0].target.boxes.shape == (0, 4)


def test_voc_convention_difficult_and_other_names(tmp_path):
    from PIL import Image

    for place in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "VOC2007" / place).mkdir(parents=True)
    root = tmp_path / "VOC2007"
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "a.jpg")
    text = (
        "<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>"
        "<object><name>{}</name><difficult>1</difficult><bndbox><xmax>40</xmax><xmin>1</xmin><ymin>1</ymin><ymax>30</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part></object></annotation>"
    )
    (root / "Annotations" / "a.xml").write_text(text.format("cat"))
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("a\n")
    (root / "ImageSets" / "Main" / "cat_trainval.txt").write_text("a -1\n")
    data = open_data(tmp_path, "trainval")
    target = data[0].target
    assert target.boxes.tolist() == [[0, 0, 40, 30]] and target.crowd.tolist() == [True]
    assert len(data.names) == 20 and data.names[int(target.labels)] == "cat"
    (root / "Annotations" / "a.xml").write_text(text.format("digit"))
    assert open_data(tmp_path, "trainval").names == ("digit",)
    with pytest.raises(DataError, match="no split 'val'; there is trainval"):
        open_data(tmp_path, "val")


def test_nested_class_folders_without_splits(exported, tmp_path):
    source = exported / "folder" / "train"
    for place in source.iterdir():
        shutil.copytree(place, tmp_path / place.name / "deep" / "er")
    data = open_data(tmp_path)
    assert len(data) == 12 and data.splits == ("train",) and data.id_of(0).count("/") == 3
    with pytest.raises(DataError, match="no split 'val'; there is train"):
        open_data(tmp_path, "val")


def test_iterables_of_samples():
    samples = [open_data("digits")[i] for i in range(5)]
    data = open_data(samples, names=[str(i) for i in range(10)])
    assert len(data) == 5 and data.task == "classify" and data.names == tuple("0123456789")
    assert data[2] is samples[2] and data.id_of(2) == samples[2].id
    assert data.hash == open_data(iter(samples), names=[str(i) for i in range(10)]).hash != open_data(samples[:4]).hash
    nameless = open_data([Sample.of(torch.zeros(4, 4, 3, dtype=torch.uint8))])
    assert nameless[0].id == nameless.id_of(0) == "000000"
    with pytest.raises(DataError, match="element 1"):
        open_data([samples[0], "x"])


def test_paths_that_are_no_data(tmp_path):
    from PIL import Image

    with pytest.raises(DataError, match="did you mean 'scenes'"):
        open_data("scene")
    with pytest.raises(DataError, match="neither an embedded data set"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"empty.*COCO.*VOC.*YOLO.*MNIST"):
        open_data(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="looked for"):
        open_data(tmp_path)
    with pytest.raises(DataError, match="give its folder"):
        open_data(tmp_path / "a.png")


def test_export_refusals(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="not empty"):
        export_data("digits", "mnist", tmp_path / "full")
    with pytest.raises(UsageError, match="detect data"):
        export_data("scenes", "mnist", tmp_path / "a")
    with pytest.raises(UsageError, match="classify data"):
        export_data("digits", "coco", tmp_path / "b")
    with pytest.raises(UnknownNameError, match="did you mean 'coco'"):
        export_data("scenes", "cocoo", tmp_path / "c")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        export_data("digits", "mnist", tmp_path / "file")
