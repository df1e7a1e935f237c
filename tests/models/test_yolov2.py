"""YOLOv2 (1612.08242): its reorganised map, the loss against darknet's own deltas, several input sizes, and what it refuses."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from papers import new

import opticus
from opticus import zoo
from opticus.models.detection.yolov2 import Answers, YOLOv2, criterion, reorganised
from opticus.parity.case import network_input, state_of
from opticus.parity.manifests import read
from opticus.structures import Batch, Images, Instances, UsageError, WeightsError
from opticus.weights.darknet import in_file_order, numbers_of
from opticus.weights.load import load_into


@pytest.fixture(scope="module")
def tiny() -> YOLOv2:
    network = new("yolov2/tiny").eval()
    assert isinstance(network, YOLOv2)
    return network


def test_reorganised_is_the_loop_of_darknet() -> None:
    """reorg_cpu of src/blas.c with forward=0, element by element."""
    c, h, w, stride = 8, 4, 6, 2
    x = torch.randn(c, h, w)
    out, flat = torch.zeros(c * h * w), x.flatten()
    for k in range(c):
        for j in range(h):
            for i in range(w):
                offset = k // (c // 4)
                column, row = i * stride + offset % stride, j * stride + offset // stride
                out[i + w * (j + h * k)] = flat[column + w * stride * (row + h * stride * (k % (c // 4)))]
    assert torch.equal(reorganised(x[None])[0], out.reshape(4 * c, h // 2, w // 2))


def test_a_picture_of_416_has_the_papers_answers() -> None:
    """Section 2: 13x13 cells with five priors each, and at any multiple of 32."""
    network = zoo.meta("yolov2/416-voc")
    assert isinstance(network, YOLOv2)
    with torch.device("meta"):
        assert network(torch.zeros(1, 3, 416, 416)).boxes.shape == (1, 5 * 13 * 13, 4)
        assert network(torch.zeros(1, 3, 320, 608)).logits.shape == (1, 5 * 10 * 19, 20)
        with pytest.raises(UsageError, match="multiples of 32, found 400x416"):
            network(torch.zeros(1, 3, 400, 416))


def test_gradients_are_the_deltas_of_darknet() -> None:
    """The sum of squared deltas of [region] behind its logistic functions, in double precision; five objects at three places.

    The network and first picture of the recorded case "coco"; recorded once from darknet at the commit that the record names.
    """
    case = next(case for case in read("yolov2")["tiny"] if case["name"] == "coco")
    network = zoo.build("yolov2/416", zoo.config_from_json("yolov2/416", case["config"])).double().eval()
    load_into(network, state_of(case), zoo.paper("yolov2").FORMATS["darknet"])
    assert isinstance(network, YOLOv2)
    pixels, _ = network_input(case["pictures"][:1], network.prepare)
    images = Images(pixels, None, torch.eye(3, dtype=torch.float64)[None], ((96, 64),))
    boxes = torch.tensor([[5.0, 7, 30, 40], [20, 50, 60, 90], [22, 52, 58, 88], [1, 1, 9, 8], [30, 30, 61, 95]]).double()
    target = Instances(boxes, torch.tensor([0, 2, 1, 1, 0]), (96, 64))
    with torch.no_grad():
        out = Answers(*(part.requires_grad_() for part in network(pixels)))
    sum(criterion(network)(out, Batch(images, (target,), ("a",))).values()).backward()
    cost = sum(float(part.grad.square().sum()) for part in out)
    assert cost == pytest.approx(14.67404770644331, rel=1e-9)


def test_objectness_learns_the_overlap_of_its_own_box(tiny: YOLOv2) -> None:
    """`rescore=1`: an answer whose box is right learns 1, one that is half right learns a half."""
    cells = tiny.cells((128, 128), torch.zeros(1))
    side = cells.prior[2]
    centre = torch.tensor([56.0, 56.0])  # the middle of the cell (3, 3)
    target = Instances(torch.cat([centre - side / 2, centre + side / 2])[None], torch.tensor([1]), (128, 128))
    place = (3 * 8 + 3) * 5 + 2
    images = Images(torch.zeros(1, 3, 128, 128), None, torch.eye(3, dtype=torch.float64)[None], ((128, 128),))
    for th, expected in ((0.0, 1.0), (-0.6931472, 0.5)):
        boxes = torch.zeros(1, 320, 4)
        boxes[0, place, 3] = th
        objects = torch.zeros(1, 320, requires_grad=True)
        terms = criterion(tiny)(Answers(boxes, objects, torch.zeros(1, 320, 10)), Batch(images, (target,), ("a",)))
        terms["object"].backward()
        assert objects.grad is not None
        assert float(objects.grad[0, place]) == pytest.approx(5 * (0.5 - expected) * 0.25, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"stages": (1, 2, 3)}, "odd numbers"),
        ({"anchors": (1.0, 2.0, 3.0)}, "positive widths and heights"),
        ({"passthrough": 6}, "width of 6"),
        ({"size": 100}, "multiple of 16, found 100"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        zoo.create("yolov2/tiny", **changes)


def test_files_of_both_classes_are_known_by_their_length(tmp_path: Path) -> None:
    """yolov2.weights and yolov2-voc.weights, sparse: only the header and the first shift are written."""
    path = tmp_path / "some.weights"
    for variant in ("416", "416-voc"):
        shapes = in_file_order(next(m.keys for m in opticus_manifests() if m.name == f"yolov2/{variant}"))
        with path.open("wb") as file:
            file.write(struct.pack("<4i", 0, 1, 0, 7) + struct.pack("<f", 0.5))
            file.truncate(16 + 4 * numbers_of(shapes))
        assert opticus.identify(path).name == f"yolov2/{variant}"
    cfg = "[net]\nheight=416\nwidth=416\nchannels=3\n[convolutional]\nfilters=2\nsize=1\n"
    path.with_suffix(".cfg").write_text(cfg)
    with pytest.raises(WeightsError, match=r"does not fit some\.cfg, which asks for 8 numbers"):
        opticus.load("yolov2/416-voc", path)


def opticus_manifests():
    from opticus.parity.manifests import all_manifests

    return all_manifests()
