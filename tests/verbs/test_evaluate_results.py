"""Results of any program: equal to pycocotools on the same two files, every bad record refused by name."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

import opticus
from opticus.data.export import export_data
from opticus.data.open import open_data
from opticus.metrics.convert import to_coco
from opticus.structures import CapabilityError, DataError, Instances, UnknownNameError

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def rectangle(box, size):
    from pycocotools import mask

    plane = np.zeros(size, np.uint8, order="F")
    x, y, w, h = (round(v) for v in box)
    plane[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    code = mask.encode(plane)
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def made(folder, seed=0, masks=False):
    """An annotation file with sparse ids, crowds and decimals, and results beside it."""
    rng = np.random.default_rng(seed)
    images = [{"id": 1000 + 7 * i, "width": 200, "height": 160, "file_name": f"{i}.jpg"} for i in range(9)]
    categories = [{"id": i, "name": f"thing {i}"} for i in (3, 17, 90)]
    truths, found = [], []
    for image in images:
        for _ in range(int(rng.integers(0, 6))):
            x, y, w, h = np.round([*rng.uniform(0, 120, 2), *np.exp(rng.uniform(1.8, 4.6, 2))], 2).tolist()
            truth = {"id": len(truths) + 1, "image_id": image["id"], "category_id": int(rng.choice((3, 17, 90)))}
            truth |= {"bbox": [x, y, w, h], "area": round(w * h * 0.7, 3), "iscrowd": int(rng.random() < 0.15)}
            truth["segmentation"] = rectangle(truth["bbox"], (160, 200)) if masks else [[x, y, x + w, y, x + w, y + h, x, y + h]]
            truths.append(truth)
            for _ in range(3):
                box = np.round(np.maximum(np.array([x, y, w, h]) + rng.normal(0, 3, 4), [0, 0, 1, 1]), 2).tolist()
                kind = truth["category_id"] if rng.random() < 0.8 else 17
                record = {"image_id": image["id"], "category_id": kind, "bbox": box, "score": round(float(rng.random()), 2)}
                found.append(record | ({"segmentation": rectangle(box, (160, 200))} if masks else {}))
    folder.mkdir(exist_ok=True)
    tree = {"images": images, "categories": categories, "annotations": truths}
    (folder / "truth.json").write_text(json.dumps(tree))
    (folder / "found.json").write_text(json.dumps(found))
    return folder / "found.json", folder / "truth.json"


def official(found, truth, kind="bbox"):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        records = json.loads(found.read_text())
        if kind == "segm":  # by the masks alone
            for record in records:
                record.pop("bbox", None)
        evaluator = COCOeval(known, known.loadRes(records), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_boxes_equal_pycocotools_on_the_same_files(tmp_path, seed):
    found, truth = made(tmp_path, seed)
    done = opticus.evaluate_results(found, truth)
    assert [done[key] for key in KEYS] == pytest.approx(official(found, truth), abs=1e-12)
    assert done.protocol["images"] == 9 and done.protocol["metric"] == "coco"


@pytest.mark.parametrize("seed", range(3))
def test_masks_equal_pycocotools_on_the_same_files(tmp_path, seed):
    found, truth = made(tmp_path, seed, masks=True)
    done = opticus.evaluate_results(found, truth)
    assert [done[f"mask_{key}"] for key in KEYS] == pytest.approx(official(found, truth, "segm"), abs=1e-12)
    assert [done[key] for key in KEYS] == pytest.approx(official(found, truth), abs=1e-12)


def test_masks_without_boxes_get_theirs_from_the_mask(tmp_path):
    found, truth = made(tmp_path, 1, masks=True)
    records = [{k: v for k, v in record.items() if k != "bbox"} for record in json.loads(found.read_text())]
    found.write_text(json.dumps(records))
    done = opticus.evaluate_results(found, truth)
    assert [done[f"mask_{key}"] for key in KEYS] == pytest.approx(official(found, truth, "segm"), abs=1e-12)
    assert done["AP50"] > 0.2


def test_pictures_without_records_count(tmp_path):
    found, truth = made(tmp_path)
    found.write_text("[]")
    assert opticus.evaluate_results(found, truth)["AP"] == 0.0
    found.write_text(json.dumps([]))
    assert opticus.evaluate_results([], truth).protocol["images"] == 9


def test_a_files_figures_are_comparable_with_those_of_a_model(tmp_path):
    """A model's own predictions, written down and scored from the file: the same numbers under the same protocol."""
    export_data("scenes", "coco", tmp_path / "coco", limit=6)
    torch.manual_seed(0)
    model = opticus.create("centernet/tiny", classes=10)
    own = opticus.evaluate(model, tmp_path / "coco", split="val", quiet=True)
    data = open_data(tmp_path / "coco", "val")
    records = []
    for id, record in own.metric.records.items():
        parts = [torch.from_numpy(part) for part in (record.boxes, record.labels, record.scores)]
        records += to_coco(Instances(parts[0], parts[1], record.size, parts[2]), int(id), data.label_ids)
    (tmp_path / "found.json").write_text(json.dumps(records))
    again = opticus.evaluate_results(tmp_path / "found.json", tmp_path / "coco", split="val")
    assert again.values == pytest.approx(own.values, abs=1e-9)
    assert again.protocol == own.protocol


def test_no_picture_is_needed_nor_a_stated_size(tmp_path):
    found, truth = made(tmp_path)
    tree = json.loads(truth.read_text())
    tree["images"] = [{"id": image["id"]} for image in tree["images"]]
    expected = opticus.evaluate_results(found, truth).values
    truth.write_text(json.dumps(tree))
    assert opticus.evaluate_results(found, truth).values == expected


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_other_formats_serve_as_the_truth(tmp_path, kind):
    export_data("scenes", kind, tmp_path / kind, limit=4)
    data = open_data(tmp_path / kind, "test")
    records = []
    for index in range(len(data)):
        target = data.target_of(index)
        records += to_coco(Instances(target.boxes, target.labels, target.size, torch.ones(len(target))), data.id_of(index))
    for rule, name in (("coco", "AP"), ("voc07", "mAP"), ("voc10", "mAP")):
        assert opticus.evaluate_results(records, tmp_path / kind, metric=rule)[name] == pytest.approx(1.0)


def changed(**fields):
    def change(record):
        record.update(fields)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(image_id=5), "record 4: image_id 5 is unknown, expected one of the 9 pictures"),
        (changed(image_id=None), "record 4: image_id must be a whole number or a name, found None"),
        (changed(image_id=True), "record 4: image_id must be a whole number or a name, found True"),
        (changed(category_id=4), "record 4: category_id 4 is unknown, expected one of 3, 17, 90"),
        (changed(category_id="3"), "record 4: category_id '3' is unknown"),
        (changed(score=float("nan")), "record 4: score must be a finite number, found nan"),
        (changed(score="0.5"), "record 4: score must be a finite number, found '0.5'"),
        (changed(bbox=[1, 2, 3]), r"record 4: bbox must be four finite numbers x, y, width, height, found \[1, 2, 3\]"),
        (changed(bbox=[1, 2, 3, float("inf")]), "record 4: bbox must be four finite numbers"),
        (changed(bbox=[1, 2, -3, 4]), "record 4: bbox must have a width and height of at least 0"),
        (changed(bbox="large"), "record 4: bbox must be four finite numbers"),
        (changed(segmentation={"size": [160, 200], "counts": "PPPP"}), "record 4: the mask's runs cover"),
        (changed(segmentation={"size": [16, 20], "counts": "0"}), "record 4: the mask has size"),
        (changed(segmentation=[[1, 2]]), "record 4"),
        (lambda record: record.pop("score"), "record 4: has no 'score', found the keys image_id, category_id, bbox"),
        (lambda record: record.pop("bbox"), "record 4: has neither 'bbox' nor 'segmentation'"),
        (lambda record: record.pop("image_id"), "record 4: has no 'image_id'"),
    ],
)
def test_bad_records_are_refused_by_name(tmp_path, change, words):
    found, truth = made(tmp_path)
    records = json.loads(found.read_text())
    change(records[4])
    found.write_text(json.dumps(records))
    with pytest.raises(DataError, match=words) as caught:
        opticus.evaluate_results(found, truth)
    assert str(caught.value).startswith(str(found))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a list of records, the file is empty"),
        ('{"annotations": []}', "expected a list of records, found '{'"),
        ("[1, 2]", "record 0: expected a mapping, found int"),
        ('[{"image_id": 1000', r"results\[0\]: the file ends in the middle"),
        ("[] []", "expected the end of the file after the list"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, text, words):
    found, truth = made(tmp_path)
    found.write_text(text)
    with pytest.raises(DataError, match=words):
        opticus.evaluate_results(found, truth)


def test_masks_in_some_records_only(tmp_path):
    found, truth = made(tmp_path, masks=True)
    records = json.loads(found.read_text())
    del records[3]["segmentation"]
    with pytest.raises(DataError, match="record 2 has a segmentation, record 3 has none"):
        opticus.evaluate_results(records, truth)


def test_bad_annotations_are_refused_and_odd_ones_scored(tmp_path):
    found, truth = made(tmp_path)
    tree = json.loads(truth.read_text())
    tree["annotations"][0]["bbox"] = [-5.0, 3, 0, 400]  # empty and outside: scored as cocoapi scores it
    truth.write_text(json.dumps(tree))
    assert [opticus.evaluate_results(found, truth)[key] for key in KEYS] == pytest.approx(official(found, truth), abs=1e-12)
    for change, words in (({"category_id": 4}, "unknown category"), ({"image_id": 4}, "unknown image"), ({"bbox": 3}, "malformed")):
        bad = {**tree, "annotations": [{**tree["annotations"][0], **change}, *tree["annotations"][1:]]}
        truth.write_text(json.dumps(bad))
        with pytest.raises(DataError, match=words):
            opticus.evaluate_results(found, truth)


def test_the_wrong_kind_of_data_or_metric_is_named(tmp_path):
    found, truth = made(tmp_path)
    with pytest.raises(CapabilityError, match="the data set is for classify"):
        opticus.evaluate_results(found, "digits")
    with pytest.raises(UnknownNameError, match="did you mean 'voc"):
        opticus.evaluate_results(found, truth, metric="voc")
    with pytest.raises(DataError, match="the results cannot be read"):
        opticus.evaluate_results(tmp_path / "nowhere.json", truth)


def test_difficult_objects_of_a_voc_folder_count_neither_way(tmp_path):
    export_data("scenes", "voc", tmp_path, limit=4)
    before = open_data(tmp_path, "test")
    index = next(i for i in range(len(before)) if len(before.target_of(i)) > 1)
    file = tmp_path / "Annotations" / f"{before.id_of(index)}.xml"
    file.write_text(file.read_text().replace("<difficult>0</difficult>", "<difficult>1</difficult>", 1))
    data = open_data(tmp_path, "test")
    assert data.hash != before.hash and data.target_of(index).crowd.tolist().count(True) == 1
    records = []
    for i in range(len(data)):
        easy = before.target_of(i)
        easy = easy[~data.target_of(i).crowd]
        records += to_coco(Instances(easy.boxes, easy.labels, easy.size, torch.ones(len(easy))), data.id_of(i))
    done = opticus.evaluate_results(records, data, metric="voc10")
    assert done["mAP"] == pytest.approx(1.0) and sum(row["truths"] for row in done.metric.per_class()) == len(records)
    assert opticus.evaluate_results(records, before, metric="voc10")["mAP"] < 1
