"""Template matching, a library's face cascade and Edge Boxes as a user meets them."""

import json
import sys
import types

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import opticus
from opticus.cli.main import main
from opticus.data.open import open_data
from opticus.models.classical._correlation import correlate, search
from opticus.models.classical._edge_boxes import edge_boxes
from opticus.models.classical._viola_jones import ViolaJones
from opticus.structures import DataError, Picture, UsageError
from opticus.verbs.match import crop
from opticus.verbs.proposals import proposals


def photograph(name):
    return Picture(torch.from_numpy(getattr(skimage.data, name)().copy()))


def test_an_exact_copy_correlates_by_one_and_sits_where_it_was_cut():
    cat = photograph("chelsea")
    (found,) = opticus.match(crop(cat, (120, 90, 180, 130)), cat, scales=(1.0, 1.0))
    assert found.best == pytest.approx(1, abs=1e-5) and found.prediction.boxes[0].tolist() == [120, 90, 180, 130]
    assert float(found.prediction.scores[0]) == pytest.approx(1, abs=1e-5)
    dim = Picture((cat.pixels.float() * 0.4 + 30).round().to(torch.uint8))  # another brightness and contrast
    assert opticus.match(crop(cat, (120, 90, 180, 130)), dim, scales=(1.0, 1.0))[0].best > 0.999


@pytest.mark.parametrize(("factor", "least"), [(1.331, 0.97), (0.751, 0.97)])
def test_a_copy_of_another_size_is_found_by_the_pyramid(factor, least):
    cat = photograph("chelsea")
    patch = crop(cat, (120, 90, 180, 130))
    size = (round(451 * factor), round(300 * factor))
    other = Picture(torch.from_numpy(np.array(Image.fromarray(cat.pixels.numpy()).resize(size, Image.Resampling.BILINEAR))))
    (found,) = opticus.match(patch, other, scales=(0.6, 1.7))
    wanted = [value * factor for value in (120, 90, 180, 130)]
    assert found.best > least and np.allclose(found.prediction.boxes[0].tolist(), wanted, atol=3)
    assert opticus.match(patch, other, scales=(1.0, 1.0))[0].best < 0.9  # without the pyramid it is not


def test_it_fails_on_other_instances():
    """Of the course's claim the measure: a digit is found again where it was cut, other digits of its class are not."""
    scenes = open_data("scenes", "val")
    own, others = [], []
    for index in range(12):
        sample, following = scenes[index], [scenes[i] for i in range(12, 40)]
        box = tuple(int(v) for v in sample.target.boxes[0].round())
        patch, label = crop(sample.picture, box), int(sample.target.labels[0])
        own.append(search(sample.picture, patch, scales=(1, 1)).response.max())
        fellow = next(s for s in following if label in s.target.labels.tolist() and s.target.boxes[0].isfinite().all())
        others.append(search(fellow.picture, patch, threshold=0.3, scales=(0.5, 2), step=1.3).response.max())
    assert min(own) > 0.999 and np.mean(np.array(others) < 0.8) >= 0.9


def test_the_map_equals_the_definition():
    rng = np.random.default_rng(0)
    image, patch = rng.random((12, 15)).astype(np.float32), rng.random((4, 5)).astype(np.float32)
    expected = [[np.corrcoef(image[y : y + 4, x : x + 5].ravel(), patch.ravel())[0, 1] for x in range(11)] for y in range(9)]
    np.testing.assert_allclose(correlate(image, patch), expected, atol=1e-5)


def test_bad_templates_and_settings_are_refused():
    cat = photograph("chelsea")
    flat = Picture(torch.full((20, 20, 3), 90, dtype=torch.uint8))
    with pytest.raises(UsageError, match="one brightness"):
        opticus.match(flat, cat)
    with pytest.raises(UsageError, match=r"451x300 pixels\) is too large for the picture \(60x40\)"):
        opticus.match(cat, crop(cat, (0, 0, 60, 40)), scales=(0.5, 2.0))
    for bad in ({"step": 1.0}, {"scales": (1.0, float("inf"))}, {"threshold": float("nan")}):
        with pytest.raises(UsageError, match=r"step of at least 1\.01"):
            opticus.match(cat, cat, **bad)
    with pytest.raises(DataError, match="leaves the picture"):
        crop(cat, (0, 0, 452, 10))


def test_match_on_the_command_line(tmp_path, capsys):
    cat = skimage.data.chelsea()
    Image.fromarray(cat).save(tmp_path / "cat.png")
    words = [
        "match",
        str(tmp_path / "cat.png"),
        str(tmp_path / "cat.png"),
        "box=120,90,180,130",
        "scales=1,1",
        f"out={tmp_path / 'o'}",
    ]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["objects"][0]["box"] == [120, 90, 180, 130] and record["best"] == pytest.approx(1, abs=1e-5)
    assert Image.open(tmp_path / "o" / "cat.png.png").size[0] > 1000
    assert main(["match", str(tmp_path / "cat.png")]) == 2 and "needs TEMPLATE and SOURCE" in capsys.readouterr().err


def test_the_cascade_finds_the_astronauts_face_and_none_on_a_cat():
    found = opticus.cascade(skimage.data.astronaut(), scale=1.2)[0]
    face = torch.tensor([178.0, 74, 265, 161])  # eyes to chin
    from opticus.ops.iou import iou

    overlaps = iou(found.boxes, face[None])[:, 0]
    assert float(overlaps.max()) > 0.6 and int(overlaps.argmax()) < 2
    assert found.names == ("face",) and bool((found.scores[:-1] >= found.scores[1:]).all())
    strict = opticus.cascade(skimage.data.astronaut(), scale=1.2, smallest=60, largest=130)[0]
    assert float(iou(strict.boxes[:1], face[None])) > 0.6  # the best of what has a face's size
    assert len(opticus.cascade(skimage.data.chelsea(), scale=1.2)[0]) == 0
    assert len(opticus.cascade(np.zeros((10, 30, 3), np.uint8))[0]) == 0


def test_windows_are_put_together():
    detector = ViolaJones(support=2)
    windows = torch.tensor([[0.0, 0, 20, 20], [4, 0, 24, 20], [2, 0, 22, 20], [60, 60, 90, 90], [61, 60, 91, 90], [30, 30, 40, 40]])
    found = detector._together(windows, (100, 100))
    assert found.boxes.tolist() == [[2, 0, 22, 20], [60.5, 60, 90.5, 90]] and found.scores.tolist() == pytest.approx([3 / 5, 2 / 4])


HAAR = """<?xml version="1.0"?><opencv_storage><cascade type_id="opencv-cascade-classifier"><stageType>BOOST</stageType>
<featureType>HAAR</featureType><height>24</height><width>24</width></cascade></opencv_storage>"""


def test_cascades_of_haar_features_need_opencv(tmp_path, monkeypatch):
    file = tmp_path / "haarcascade_eye.xml"
    file.write_text(HAAR)
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace())
    with pytest.raises(UsageError, match=r"haarcascade_eye\.xml: a cascade of HAAR features needs OpenCV's CascadeClassifier"):
        opticus.cascade(skimage.data.astronaut(), file)

    class Classifier:
        def __init__(self, path):
            self.path = path

        def empty(self):
            return self.path != str(file)

        def detectMultiScale(self, pixels, scaleFactor, minNeighbors, minSize, maxSize):
            assert (
                pixels.dtype == np.uint8
                and pixels.shape == (64, 64)
                and minNeighbors == 0
                and minSize == (24, 24)
                and maxSize == (64, 64)
            )
            return [[10, 20, 30, 30], [11, 20, 30, 30], [10, 21, 30, 30]]

    own = types.SimpleNamespace(CascadeClassifier=Classifier)
    for cv2 in (own, types.SimpleNamespace(xobjdetect=own)):  # version 4, and the contrib package of version 5
        monkeypatch.setitem(sys.modules, "cv2", cv2)
        (found,) = opticus.cascade(np.zeros((64, 64, 3), np.uint8), file)
        np.testing.assert_allclose(found.boxes.numpy(), [[31 / 3, 61 / 3, 121 / 3, 151 / 3]], rtol=1e-5)
        assert found.names == ("haarcascade_eye",)


@pytest.mark.parametrize(
    ("text", "words"), [("<a/>", "not a cascade"), ("nonsense", "cannot be read"), (HAAR.replace(">24<", ">x<"), "no whole")]
)
def test_files_that_are_no_cascade(tmp_path, text, words):
    (tmp_path / "c.xml").write_text(text)
    with pytest.raises(DataError, match=rf"c\.xml: .*{words}"):
        opticus.cascade(skimage.data.astronaut(), tmp_path / "c.xml")


def test_cascade_on_the_command_line(tmp_path, capsys):
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "a.png")
    assert main(["cascade", str(tmp_path / "a.png"), "scale=1.2", "smallest=60", "largest=130", f"out={tmp_path / 'o'}"]) == 0
    assert "a.png: face 0." in capsys.readouterr().out and (tmp_path / "o" / "a.png.png").is_file()
    assert main(["cascade", str(tmp_path / "a.png"), "scale=1"]) == 2


def test_edge_boxes_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace())
    with pytest.raises(
        UsageError, match=r"opencv-contrib-python-headless.*file=model\.yml\.gz.*the installed OpenCV has no contrib modules"
    ):
        proposals("scenes", method="edge-boxes", pictures=1, quiet=True)

    class Detector:
        def detectEdges(self, colours):
            assert colours.dtype == np.float32 and colours.shape == (40, 50, 3) and 0 <= colours.min() <= colours.max() <= 1
            return colours[..., 0]

        def computeOrientation(self, edges):
            return edges * 0

        def edgesNms(self, edges, orientation):
            return edges - orientation

    class Finder:
        def setMaxBoxes(self, limit):
            self.limit = limit

        def getBoundingBoxes(self, edges, orientation):
            assert edges.shape == orientation.shape
            return np.array([[1, 2, 10, 20], [5, 5, 4, 4]])[: self.limit], np.array([[0.9], [0.5]])

    contrib = types.SimpleNamespace(createStructuredEdgeDetection=lambda path: Detector(), createEdgeBoxes=Finder)
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(ximgproc=contrib))
    picture = Picture(torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"file=model\.yml\.gz.*found no file="):
        edge_boxes(picture)
    with pytest.raises(DataError, match=r"gone\.yml\.gz: no such edge model"):
        edge_boxes(picture, file=tmp_path / "gone.yml.gz")
    (tmp_path / "model.yml.gz").write_bytes(b"x")
    assert edge_boxes(picture, file=tmp_path / "model.yml.gz").tolist() == [[1, 2, 11, 22], [5, 5, 9, 9]]
    assert len(edge_boxes(picture, file=tmp_path / "model.yml.gz", limit=1)) == 1
    with pytest.raises(UsageError, match="file= is the edge model"):
        proposals("scenes", method="sliding-windows", file="x", pictures=1, quiet=True)
