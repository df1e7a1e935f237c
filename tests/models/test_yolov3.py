"""YOLOv3 (1804.02767): who answers for an object, the loss against darknet's own deltas, its files, and what it refuses."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from papers import new

import opticus
from opticus import zoo
from opticus.matching.cells import answerable, boxes_of, targets_of
from opticus.models.detection.yolov3 import Answers, YOLOv3, criterion
from opticus.parity.case import network_input, state_of
from opticus.parity.manifests import read
from opticus.structures import Batch, CapabilityError, Images, Instances, Part, UsageError, WeightsError
from opticus.weights.cfg import cfg_shapes, parse_cfg
from opticus.weights.load import load_into


def frame(height: int, width: int, pixels: torch.Tensor | None = None) -> Images:
    pixels = torch.zeros(1, 3, height, width) if pixels is None else pixels
    return Images(pixels, None, torch.eye(3, dtype=torch.float64)[None], ((height, width),))


@pytest.fixture(scope="module")
def tiny() -> YOLOv3:
    network = new("yolov3/tiny").eval()
    assert isinstance(network, YOLOv3)
    return network


def test_a_picture_of_416_has_the_papers_answers() -> None:
    """Section 2.3: three scales of 13, 26 and 52 cells with three priors each, the largest priors on the coarsest."""
    network = zoo.meta("yolov3/416")
    assert isinstance(network, YOLOv3)
    cells = network.cells((416, 416), torch.zeros(1))
    assert cells.sizes == ((13, 13), (26, 26), (52, 52)) and len(cells.corner) == 10_647
    assert cells.priors[[0, 2, 3, 8]].tolist() == [[116, 90], [373, 326], [30, 61], [33, 23]]
    with torch.device("meta"):
        out = network(torch.zeros(1, 3, 416, 416))
    assert out.boxes.shape == (1, 10_647, 4) and out.logits.shape == (1, 10_647, 80)


def test_the_prior_of_most_similar_shape_answers_in_the_cell_of_the_centre() -> None:
    network = zoo.create("yolov3/416", classes=3, width=4, widths=(32, 16, 8), blocks=(1, 1, 1, 1, 1))
    assert isinstance(network, YOLOv3)
    cells = network.cells((416, 416), torch.zeros(1))
    boxes = torch.tensor([[100.0, 200, 110, 213], [0, 0, 400, 350], [100, 200, 111, 213], [411, 411, 416, 416]])
    found = answerable(boxes, cells)
    assert len(found.places) == 3, "the third object takes the first one's place"
    assert found.every[0] == found.every[2] and set(found.objects.tolist()) == {1, 2, 3}
    for place, index in zip(found.places.tolist(), found.objects.tolist()):
        centre = (boxes[index, :2] + boxes[index, 2:]) / 2
        corner = cells.corner[place] * cells.stride[place]
        assert bool((centre >= corner).all() and (centre < corner + cells.stride[place]).all())
    assert cells.prior[found.every].tolist() == [[10, 13], [373, 326], [10, 13], [10, 13]]
    answers = targets_of(boxes[found.objects], found.places, cells)
    raw = torch.zeros(len(cells.corner), 4)
    raw[found.places] = torch.cat([answers[:, :2].clamp(1e-6, 1 - 1e-6).logit(), answers[:, 2:]], 1)
    torch.testing.assert_close(boxes_of(raw, cells)[found.places], boxes[found.objects], rtol=0, atol=1e-3)


def test_gradients_are_the_deltas_of_darknet() -> None:
    """The sums of squared deltas of the three [yolo] layers, from src/yolo_layer.c in double precision at ignore_thresh 0.5.

    The network and picture of the recorded case, five objects of three classes; recorded once from darknet at the commit that
    the parity record names.
    """
    case = next(case for case in read("yolov3")["tiny"] if case["name"] == "darknet-53")
    network = zoo.build("yolov3/416", zoo.config_from_json("yolov3/416", case["config"])).double().eval()
    load_into(network, state_of(case), zoo.paper("yolov3").FORMATS["darknet"])
    assert isinstance(network, YOLOv3)
    pixels, _ = network_input(case["pictures"][:1], network.prepare)
    boxes = torch.tensor([[5.0, 7, 30, 40], [20, 50, 60, 90], [22, 52, 58, 88], [1, 1, 9, 8], [30, 30, 61, 95]]).double()
    target = Instances(boxes, torch.tensor([0, 2, 1, 1, 0]), (96, 64))
    with torch.no_grad():
        out = Answers(*(part.requires_grad_() for part in network(pixels)))
    sum(criterion(network)(out, Batch(frame(96, 64, pixels), (target,), ("a",))).values()).backward()
    deltas = torch.cat([out.boxes.grad, out.objects.grad[..., None], out.logits.grad], -1)[0]
    costs = [float(level.square().sum()) for level in deltas.split([3 * h * w for h, w in ((3, 2), (6, 4), (12, 8))])]
    assert costs == pytest.approx(COSTS, rel=1e-9)


COSTS = [9.608575308185932, 137.8636239392265, 105.9613384593631]


def test_two_objects_of_one_place_are_both_its_classes(tiny: YOLOv3) -> None:
    cells = tiny.cells((128, 128), torch.zeros(1))
    boxes = torch.tensor([[40.0, 40, 60, 70], [41, 40, 61, 70]])
    place = int(answerable(boxes, cells).places)
    out = Answers(torch.zeros(1, 960, 4), torch.full((1, 960), -9.0), torch.full((1, 960, 10), -9.0, requires_grad=True))
    batch = Batch(frame(128, 128), (Instances(boxes, torch.tensor([3, 7]), (128, 128)),), ("a",))
    criterion(tiny)(out, batch)["class"].backward()
    assert out.logits.grad is not None
    assert (out.logits.grad[0] < -0.5).nonzero().tolist() == [[place, 3], [place, 7]]


def test_answers_that_overlap_an_object_are_not_background(tiny: YOLOv3) -> None:
    cells = tiny.cells((128, 128), torch.zeros(1))
    middle = boxes_of(torch.zeros(960, 4), cells)[500][None]
    objects = torch.zeros(1, 960, requires_grad=True)
    batch = Batch(frame(128, 128), (Instances(middle, torch.tensor([0]), (128, 128)),), ("a",))
    for ignore, silent in ((0.5, True), (1.0, False)):
        objects.grad = None
        criterion(tiny, ignore=ignore)(Answers(torch.zeros(1, 960, 4), objects, torch.zeros(1, 960, 10)), batch)[
            "object"
        ].backward()
        assert objects.grad is not None
        assert (int((objects.grad == 0).sum()) > 0) is silent
        assert float(objects.grad[0, int(answerable(middle, cells).places)]) == pytest.approx(-0.5)


def test_an_empty_picture_teaches_background_only(tiny: YOLOv3) -> None:
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (128, 128))
    out = Answers(torch.zeros(1, 960, 4), torch.zeros(1, 960), torch.zeros(1, 960, 10))
    terms = criterion(tiny)(out, Batch(frame(128, 128), (empty,), ("a",)))
    assert float(terms["box"]) == float(terms["class"]) == 0
    assert float(terms["object"]) == pytest.approx(960 * 0.6931472, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"widths": (64,)}, "a width and a depth for each"),
        ({"anchors": (1, 2, 3, 4, 5, 6)}, "found 6 numbers"),
        ({"anchors": (0,) * 12}, "positive widths"),
        ({"blocks": ()}, r"depths \(1, 0\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, tuple[float, ...]], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        zoo.create("yolov3/tiny", **changes)


def test_darknet_53_and_another_backbone_carry_the_branches() -> None:
    own = new("yolov3/tiny", backbone=None, width=4, blocks=(0, 1, 1, 1), widths=(32, 16))
    other = new("yolov3/tiny", backbone=Part("resnet/18", classes=0, width=8), widths=(32, 16))
    assert isinstance(own, YOLOv3) and isinstance(other, YOLOv3)
    assert own.strides == (16, 8) and other.strides == (32, 16)
    pixels = torch.zeros(1, 3, 64, 96)
    assert own.eval()(pixels).objects.shape == (1, 3 * (4 * 6 + 8 * 12))
    assert other.eval()(pixels).objects.shape == (1, 3 * (2 * 3 + 4 * 6))
    with pytest.raises(CapabilityError, match=r"expected a backbone with 2 maps, each half the size of the one before"):
        zoo.create("yolov3/tiny", backbone=Part("resnet/18", classes=0, layers=(1,), width=8))


# --- files -----------------------------------------------------------------------------------------------------------------

CONVOLUTION = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize={}\nstride=1\npad=1\nactivation=leaky\n"
ANCHORS = "10,14,  23,27,  37,58,  81,82,  135,169,  344,319"


def cfg(classes: int, anchors: str = ANCHORS) -> str:
    """yolov3-tiny for other classes."""
    answer = f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={3 * (5 + classes)}\nactivation=linear\n"
    yolo = f"[yolo]\nmask=0,1,2\nanchors={anchors}\nclasses={classes}\nnum=6\n"
    body = [CONVOLUTION.format(16, 3)]
    for i in range(1, 7):
        body += [f"[maxpool]\nsize=2\nstride={1 if i == 6 else 2}\n", CONVOLUTION.format(16 * 2**i, 3)]
    first = [CONVOLUTION.format(256, 1), CONVOLUTION.format(512, 3), answer, yolo]
    second = ["[route]\nlayers=-4\n", CONVOLUTION.format(128, 1), "[upsample]\nstride=2\n", "[route]\nlayers=-1, 8\n"]
    return "".join(["[net]\nwidth=416\nheight=416\nchannels=3\n", *body, *first, *second, CONVOLUTION.format(256, 3), answer, yolo])


def write(path: Path, classes: int) -> Path:
    """A file of the right length; its numbers are 0 but the first, the shift of the first channel."""
    shapes = cfg_shapes(parse_cfg(cfg(classes)))
    numbers = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
    with path.open("wb") as file:
        file.write(struct.pack("<3iq", 0, 2, 0, 1) + struct.pack("<f", 0.5))
        file.truncate(20 + 4 * numbers)
    return path


def test_a_published_file_is_known_by_its_length_and_loads_without_a_cfg(tmp_path: Path) -> None:
    path = write(tmp_path / "yolov3-tiny.weights", 80)
    assert path.stat().st_size == 35_434_956 == zoo.paper("yolov3").WEIGHTS["tiny-416:coco"].size
    found = opticus.identify(path)
    assert (found.name, found.format, found.exact, found.kind) == ("yolov3/tiny-416", "darknet-tiny", True, "darknet")
    for model in (opticus.load(path), opticus.load("yolov3/tiny-416", path, size=320)):
        assert model.card.labels is not None and model.card.labels[0] == "person"
        assert float(model.state_dict()["body.convs.0.bn.bias"][0]) == 0.5
    assert model.prepare.size == (320, 320)


def test_another_number_of_classes_comes_from_the_cfg_or_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.weights", 3)
    with pytest.raises(WeightsError, match=r"the network asks for .* numbers; the file holds .*put its cfg beside it as mine\.cfg"):
        opticus.load("yolov3/tiny-416", path)
    assert opticus.load("yolov3/tiny-416", path, classes=3).config.classes == 3
    (tmp_path / "mine.cfg").write_text(cfg(3))
    assert opticus.load("yolov3/tiny-416", path).config.classes == 3
    (tmp_path / "mine.cfg").write_text(cfg(3, ANCHORS.replace("10,14", "12,14")))
    with pytest.raises(WeightsError, match=r"mine\.weights: the cfg beside it has the anchors \(12\.0, 14\.0"):
        opticus.load("yolov3/tiny-416", path)
    anchors = (12, *zoo.paper("yolov3").VARIANTS["tiny-416"].anchors[1:])
    assert opticus.load("yolov3/tiny-416", path, anchors=anchors).config.anchors == anchors
    (tmp_path / "mine.cfg").write_text(cfg(4))
    with pytest.raises(WeightsError, match=r"does not fit mine\.cfg"):
        opticus.load("yolov3/tiny-416", path)
