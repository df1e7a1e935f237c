"""LVIS, Objects365, Open Images and Roboflow's exports in the layouts that they are published in."""

import json

import numpy as np
import pytest
from PIL import Image

from opticus.data.doctor import doctor
from opticus.data.open import open_data
from opticus.data.subset import Subset
from opticus.structures import DataError


def picture(path, number=0, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def write(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def lvis_tree():
    """Three pictures (two from COCO's train2017, one from val2017), four categories, as lvis_v1_val.json has them."""
    where = {139: "train2017", 285: "train2017", 632: "val2017"}
    images = [
        {
            "id": number,
            "coco_url": f"http://images.cocodataset.org/{folder}/{number:012d}.jpg",
            "height": 30,
            "width": 40,
            "license": 1,
            "neg_category_ids": {139: [5, 9], 285: [], 632: [2]}[number],
            "not_exhaustive_category_ids": {139: [2], 285: [], 632: []}[number],
        }
        for number, folder in where.items()
    ]
    boxes = ((1, 139, 2, [1, 2, 10, 12]), (2, 285, 5, [3, 3, 8, 8]), (3, 632, 9, [0, 0, 40, 30]), (4, 139, 2, [20, 5, 6, 6]))
    square = [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]]
    annotations = [
        {"id": i, "image_id": owner, "category_id": kind, "bbox": box, "area": 40.5, "segmentation": square}
        for i, owner, kind, box in boxes
    ]
    kinds = ((2, "aerosol_can", "c"), (5, "alcohol", "f"), (7, "almond", "r"), (9, "amplifier", "r"))
    categories = [
        {
            "id": i,
            "name": name,
            "synset": f"{name}.n.01",
            "synonyms": [name],
            "def": "",
            "frequency": f,
            "image_count": 9,
            "instance_count": 9,
        }
        for i, name, f in kinds
    ]
    return {"info": {}, "annotations": annotations, "images": images, "licenses": [], "categories": categories}


@pytest.fixture
def lvis(tmp_path):
    for number, folder in ((139, "train2017"), (285, "train2017"), (632, "val2017")):
        picture(tmp_path / "coco" / folder / f"{number:012d}.jpg", number)
    return tmp_path


@pytest.mark.parametrize("place", ["lvis/lvis_v1_val.json", "coco/annotations/lvis_v1_val.json", "coco/lvis_v1_val.json"])
def test_lvis_finds_pictures_by_address_and_keeps_what_is_known(lvis, place):
    file = write(lvis / place, lvis_tree())
    folder = file.parent.parent if file.parent.name == "annotations" else file.parent
    for part in ("dev", "challenge"):  # the site's lists of pictures without annotations
        write(file.parent / f"lvis_v1_image_info_test_{part}.json", {**lvis_tree(), "annotations": []})
    data = open_data(folder, "val", masks=True)
    assert (
        data.splits == ("val",)
        and data.names == ("aerosol_can", "alcohol", "almond", "amplifier")
        and data.label_ids == (2, 5, 7, 9)
    )
    assert [data.file_of(i).parent.name for i in range(3)] == ["train2017", "train2017", "val2017"]
    assert data[0].picture.size == (30, 40) and data[0].target.labels.tolist() == [0, 0] and len(data[0].target.masks.counts) == 2
    assert not data[0].target.crowd.any() and data[0].target.areas.tolist() == [40.5, 40.5]
    known = data.federation
    assert known.frequencies == ("c", "f", "r", "r")
    assert [[part.tolist() for part in known.of(name)] for name in ("139", "285", "632")] == [[[1, 3], [0]], [[], []], [[0], []]]
    assert Subset(data, [2]).federation.of("632")[0].tolist() == [0]
    report = doctor(folder, splits=["val"])
    assert report.errors == 0 and {f.kind for f in report.findings} == {"empty class"}


def test_lvis_faults_are_named(lvis):
    file, tree = lvis / "lvis" / "lvis_v1_val.json", lvis_tree()
    tree["images"][0]["neg_category_ids"] = [5, 77]
    write(file, tree)
    with pytest.raises(DataError, match=r"lvis_v1_val\.json: 139: unknown category: .* 77"):
        open_data(file)
    tree["images"][0]["neg_category_ids"] = [5, "x"]
    write(file, tree)
    with pytest.raises(DataError, match=r"139: malformed record: images\[0\]"):
        open_data(file)
    tree["images"][0]["neg_category_ids"] = [5, 2]
    write(file, tree)
    (found,) = (f for f in doctor(file, splits=["val"]).findings if f.kind == "contradicting categories")
    assert found.record == "139" and "aerosol_can" in found.detail and found.severity == "warning"
    tree["categories"][1]["frequency"] = "often"
    write(file, tree)
    with pytest.raises(DataError, match=r"categories\[1\].*often"):
        open_data(file)


def test_lvis_beside_coco_is_not_chosen_silently(lvis):
    tree = lvis_tree()
    write(lvis / "coco" / "annotations" / "lvis_v1_val.json", tree)
    for image in tree["images"]:
        image["file_name"] = image.pop("coco_url").rsplit("/", 1)[1]
    write(lvis / "coco" / "annotations" / "instances_val2017.json", tree)
    with pytest.raises(DataError, match=r"instances_val2017\.json and lvis_v1_val\.json"):
        open_data(lvis / "coco", "val")
    assert len(open_data(lvis / "coco" / "annotations" / "lvis_v1_val.json", "val")) == 3


def objects365_tree(names):
    images = [
        {"id": 900 + i, "file_name": name, "height": 30, "width": 40, "url": "", "license": 5} for i, name in enumerate(names)
    ]
    flags = {"iscrowd": 0, "isfake": 0, "isreflected": 0}
    annotations = [
        {"id": 50 + i, "image_id": 900 + i, "category_id": 365 - i, "bbox": [1.5, 2.5, 10, 12], "area": 120.0, **flags}
        for i in range(len(names))
    ]
    annotations[0]["iscrowd"] = 1
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"n{i}"} for i in range(1, 366)],
        "licenses": [],
    }


NAMES = ("images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908725.jpg")


@pytest.mark.parametrize("layout", ["annotations", "whole", "patches"])
def test_objects365_layouts(tmp_path, layout):
    for split in ("train", "val"):
        file = f"zhiyuan_objv2_{split}.json"
        write(tmp_path / ("annotations" if layout != "whole" else split) / file, objects365_tree(NAMES))
        for i, name in enumerate(NAMES):
            inner = name if layout == "whole" else "/".join(name.split("/")[-2:])
            picture(tmp_path / ("images/" if layout == "patches" else "") / split / inner, i + 7 * (split == "val"))
    data = open_data(tmp_path, "train")
    assert data.splits == ("train", "val") and len(data.names) == 365
    assert data.file_of(1).parent.name == "patch16" and data.file_of(1).parents[1 if layout != "whole" else 3].name == "train"
    assert data[0].target.boxes.tolist() == [[1.5, 2.5, 11.5, 14.5]] and data[0].target.labels.tolist() == [364]
    assert data[0].target.crowd.tolist() == [True] and data[1].picture.size == (30, 40)
    assert doctor(tmp_path).errors == 0
    data.file_of(1).unlink()  # three annotated pictures are in fact not in the published archives
    assert [f.record for f in doctor(tmp_path).findings if f.kind == "unreadable picture"] == ["901"]


HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
ROWS = (
    "000a,xclick,/m/0cmf2,1,0.25,0.75,0.1,0.9,0,0,0,0,0\n"
    "000b,xclick,/m/02xwb,1,0.5,0.6,0.2,0.4,0,0,1,0,0\n"
    "000a,xclick,/m/04yx4,1,0,1,0,1,-1,-1,-1,-1,-1\n"
)
CLASSES = "/m/04yx4,Man\n/m/0cmf2,Airplane\n/m/02xwb,Fruit\n"


def openimages(root, places=("", ""), head=HEAD, rows=ROWS, classes=CLASSES):
    for split in ("train", "validation"):
        prefix = "oidv6-train" if split == "train" else "validation"
        write(root / places[0] / f"{prefix}-annotations-bbox.csv", head + rows)
        for number, name in enumerate(("000b", "000a", "000z")):
            picture(root / places[1] / split / f"{name}.jpg", number + 9 * (split == "train"))
    write(root / places[0] / "class-descriptions-boxable.csv", classes)
    return root


@pytest.mark.parametrize("places", [("", ""), ("annotations", "images"), ("csv", "")])
def test_open_images_is_read_as_published(tmp_path, places):
    data = open_data(openimages(tmp_path, places), "val")
    assert data.names == ("Man", "Airplane", "Fruit") and data.splits == ("train", "validation") and data.split == "validation"
    assert [data.id_of(i) for i in range(len(data))] == ["000a", "000b"]  # 000z has no boxes in the table
    first, second = data[0].target, data.target_of(1)
    assert first.size == (30, 40) and first.labels.tolist() == [1, 0] and first.crowd.tolist() == [False, False]
    np.testing.assert_allclose(first.boxes.numpy(), [[10, 3, 30, 27], [0, 0, 40, 30]], atol=1e-5)
    assert second.crowd.tolist() == [True] and second.labels.tolist() == [2]
    assert doctor(tmp_path).errors == 0
    assert open_data(tmp_path, "val").hash == data.hash != open_data(tmp_path, "train").hash


def test_open_images_of_v7_and_of_the_challenge(tmp_path):
    write(tmp_path / "oidv7-class-descriptions-boxable.csv", "LabelName,DisplayName\n" + CLASSES)
    write(
        tmp_path / "challenge-2019-train-detection-bbox.csv",
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n000b,/m/02xwb,0,1,0,1,1\n",
    )
    picture(tmp_path / "train" / "000b.jpg")
    data = open_data(tmp_path / "challenge-2019-train-detection-bbox.csv")
    assert data.names == ("Man", "Airplane", "Fruit") and data[0].target.crowd.tolist() == [True]


def test_open_images_faults_are_named(tmp_path):
    rows = (
        ROWS
        + "000b,xclick,/m/none,1,0,1,0,1,0,0,0,0,0\n000a,xclick,/m/0cmf2,1,0.5,x,0,1,0,0,0,0,0\n000a,xclick,/m/0cmf2,1,0.5,1.5,0,1,0,0,0,0,0\n"
    )
    openimages(tmp_path, rows=rows)
    found = {(f.kind, f.record) for f in doctor(tmp_path, splits=["validation"]).findings if f.severity == "error"}
    assert found == {("unknown category", "000b"), ("malformed record", "000a"), ("box outside", "000a")}
    with pytest.raises(DataError, match=r"validation-annotations-bbox\.csv: 000a: malformed record: line 6"):
        open_data(tmp_path, "val")
    openimages(tmp_path, rows=ROWS + "000q,xclick,/m/0cmf2,1,0,1,0,1,0,0,0,0,0\n")
    with pytest.warns(UserWarning, match="1 of 3 annotated pictures are not in"):
        data = open_data(tmp_path, "val")
    assert len(data) == 2 and [f.kind for f in data.notes] == ["missing pictures"]
    openimages(tmp_path, head="ImageID,LabelName,XMin,XMax,YMin\n")
    with pytest.raises(DataError, match="missing: YMax"):
        open_data(tmp_path, "val")
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(DataError, match="no class descriptions"):
        open_data(tmp_path, "val")


YAML = """names:
- cat
- red dog
nc: 2
roboflow:
  license: CC BY 4.0
  project: pets-1
  url: https://universe.roboflow.com/roboflow-100/pets-1/dataset/2
  version: 2
  workspace: roboflow-100
test: ../test/images
train: ../train/images
val: ../valid/images
"""


def test_roboflow_100_as_yolo_and_as_coco(tmp_path):
    """Both exports of one set give the same names, pictures and boxes; the COCO one has a heading as category 0."""
    heads = [("pets", 0, "none"), ("cat", 1, "pets"), ("red dog", 2, "pets")]
    categories = [{"id": i, "name": name, "supercategory": parent} for name, i, parent in heads]
    for number, split in enumerate(("train", "valid", "test")):
        name = f"a_jpg.rf.{number:032x}.jpg"
        picture(tmp_path / "yolo" / split / "images" / name, number)
        picture(tmp_path / "coco" / split / name, number)
        write(tmp_path / "yolo" / split / "labels" / name.replace(".jpg", ".txt"), "1 0.5 0.5 0.5 0.5\n0 0.25 0.25 0.5 0.5\n")
        boxes = [
            {"id": k, "image_id": 0, "category_id": kind, "bbox": box, "area": box[2] * box[3], "segmentation": [], "iscrowd": 0}
            for k, (kind, box) in enumerate(((2, [10, 7.5, 20, 15]), (1, [0, 0, 20, 15])))
        ]
        images = [{"id": 0, "license": 1, "file_name": name, "height": 30, "width": 40, "date_captured": ""}]
        write(
            tmp_path / "coco" / split / "_annotations.coco.json", {"images": images, "annotations": boxes, "categories": categories}
        )
    write(tmp_path / "yolo" / "data.yaml", YAML)
    write(tmp_path / "yolo" / "README.roboflow.txt", "pets - v2")
    for split in ("train", "val", "test"):
        yolo, coco = open_data(tmp_path / "yolo", split), open_data(tmp_path / "coco", split)
        assert yolo.names == coco.names == ("cat", "red dog") and len(yolo) == len(coco) == 1
        assert yolo[0].target.labels.tolist() == coco[0].target.labels.tolist() == [1, 0]
        np.testing.assert_allclose(yolo[0].target.boxes.numpy(), coco[0].target.boxes.numpy(), atol=1e-5)
    for kind in ("yolo", "coco"):
        report = doctor(tmp_path / kind)
        assert report.findings == [] and len(report.splits) == 3


def test_a_category_0_that_is_used_stays_a_class(tmp_path):
    picture(tmp_path / "train" / "a.jpg")
    boxes = [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}]
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "pets"}]
    images = [{"id": 0, "file_name": "a.jpg", "height": 30, "width": 40}]
    write(tmp_path / "train" / "_annotations.coco.json", {"images": images, "annotations": boxes, "categories": categories})
    assert open_data(tmp_path).names == ("pets", "cat")
