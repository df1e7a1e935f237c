"""YOLO (1506.02640): what a cell answers, the loss against darknet's own deltas, its local layer, and what it refuses."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from papers import new

import opticus
from opticus import zoo
from opticus.models.detection.yolov1 import Answers, Local, YOLOv1, criterion
from opticus.parity.case import network_input, state_of
from opticus.parity.manifests import all_manifests, read
from opticus.structures import Batch, Images, Instances, UsageError, WeightsError
from opticus.weights.darknet import in_file_order, numbers_of
from opticus.weights.load import load_into


def frame(size: int, pixels: torch.Tensor | None = None) -> Images:
    pixels = torch.zeros(1, 3, size, size) if pixels is None else pixels
    return Images(pixels, None, torch.eye(3, dtype=torch.float64)[None], ((size, size),))


@pytest.fixture(scope="module")
def tiny() -> YOLOv1:
    network = new("yolov1/tiny").eval()
    assert isinstance(network, YOLOv1)
    return network


@pytest.mark.parametrize(("variant", "numbers"), [("448", 1715), ("448-paper", 1470), ("tiny-448", 1470)])
def test_a_picture_has_the_answers_of_figure_2(variant: str, numbers: int) -> None:
    """S x S x (5 B + C): 7x7x30 in the paper."""
    network = zoo.meta(f"yolov1/{variant}")
    assert isinstance(network, YOLOv1)
    with torch.device("meta"):
        out = network(torch.zeros(1, 3, 448, 448))
    assert sum(part.numel() for part in out) == numbers and out.classes.shape == (1, 49, 20)
    convolutions = sum(1 for layer in network.body if any(True for _ in layer.parameters()))
    assert convolutions == (8 if variant == "tiny-448" else 24)


def test_a_local_layer_is_a_convolution_where_all_places_agree() -> None:
    layer = Local(3, 5, 4)
    kernel = torch.randn(5, 3, 3, 3)
    with torch.no_grad():
        layer.weight.copy_(kernel.flatten(1).expand_as(layer.weight))
        layer.bias.copy_(torch.arange(5.0).repeat_interleave(16))
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, kernel, torch.arange(5.0), padding=1))
        layer.weight[5] = 0  # the place of row 1, column 1
        changed = (layer(x) - torch.nn.functional.conv2d(x, kernel, torch.arange(5.0), padding=1)).abs().amax((0, 1)) > 1e-4
    assert changed.nonzero().tolist() == [[1, 1]]


def test_gradients_are_the_deltas_of_darknet() -> None:
    """The sum of squared deltas of [detection] in double precision: five objects in four cells of nine.

    The network and first picture of the recorded case "local"; recorded once from darknet at the commit that the record names.
    """
    case = next(case for case in read("yolov1")["tiny"] if case["name"] == "local")
    network = zoo.build("yolov1/448", zoo.config_from_json("yolov1/448", case["config"])).double().eval()
    load_into(network, state_of(case), zoo.paper("yolov1").FORMATS["darknet"])
    assert isinstance(network, YOLOv1)
    pixels, _ = network_input(case["pictures"][:1], network.prepare)
    boxes = [[5.0, 7, 70, 90], [80, 50, 160, 190], [82, 52, 158, 188], [1, 130, 19, 158], [130, 30, 161, 95]]
    target = Instances(torch.tensor(boxes).double(), torch.tensor([0, 2, 1, 1, 0]), (192, 192))
    with torch.no_grad():
        out = Answers(*(part.clone().requires_grad_() for part in network(pixels)))
    sum(criterion(network)(out, Batch(frame(192, pixels), (target,), ("a",))).values()).backward()
    assert sum(float(part.grad.square().sum()) for part in out) == pytest.approx(137.68524539052368, rel=1e-9)


def test_equation_3_by_hand(tiny: YOLOv1) -> None:
    """One object whose first box is exactly right and whose second is silent: only what is left of the sum."""
    target = Instances(torch.tensor([[40.0, 40, 56, 72]]), torch.tensor([4]), (128, 128))  # centre 48, 56: cell (3, 3) at (0, 0.5)
    out = Answers(torch.zeros(1, 64, 10), torch.full((1, 64, 2), 0.2), torch.zeros(1, 64, 2, 4))
    out.boxes[0, 27, 0] = torch.tensor([0.0, 0.5, 0.125**0.5, 0.25**0.5])
    out.objects[0, 27, 0] = 0.9
    out.classes[0, 27, 4] = 0.5
    terms = criterion(tiny)(out, Batch(frame(128), (target,), ("a",)))
    assert float(terms["box"]) == pytest.approx(0, abs=1e-9)
    assert float(terms["object"]) == pytest.approx((0.1**2 + 0.5 * 127 * 0.2**2) / 2, rel=1e-5)
    assert float(terms["class"]) == pytest.approx(0.25 / 2)
    result = tiny.results(out, frame(128))[0]
    assert result.labels[0] == 4 and result.scores is not None and float(result.scores[0]) == pytest.approx(0.45)
    torch.testing.assert_close(result.boxes[0], target.boxes[0])
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (128, 128))
    terms = criterion(tiny)(out, Batch(frame(128), (empty,), ("a",)))
    assert float(terms["box"]) == float(terms["class"]) == 0
    assert float(terms["object"]) == pytest.approx((127 * 0.04 + 0.81) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"size": 160}, "leaves 10x10 cells of 160 pixels, expected a grid of 8"),
        ({"boxes": 0}, "boxes=0"),
        ({"local": 8, "hidden": 8}, "one of local and hidden"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, int], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        zoo.create("yolov1/tiny", **changes)


def test_another_size_of_input_is_refused(tiny: YOLOv1) -> None:
    with pytest.raises(UsageError, match="for 128x128, found 96x128"):
        tiny(torch.zeros(1, 3, 96, 128))


def test_files_are_known_by_their_length_and_checked_with_their_cfg(tmp_path: Path) -> None:
    path = tmp_path / "yolov1-tiny.weights"
    shapes = in_file_order(next(m.keys for m in all_manifests() if m.name == "yolov1/tiny-448"))
    with path.open("wb") as file:
        file.write(struct.pack("<4i", 0, 1, 0, 7) + struct.pack("<f", 0.5))
        file.truncate(16 + 4 * numbers_of(shapes))
    assert opticus.identify(path).name == "yolov1/tiny-448"
    model = opticus.load("yolov1/tiny-448", path)
    assert float(model.state_dict()["body.0.bn.bias"][0]) == 0.5
    units = "".join(
        f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\n"
        if filters
        else "[maxpool]\nsize=2\nstride=2\n"
        for filters, size, stride in model.config.body
    )
    text = f"[net]\nheight=448\nwidth=448\nchannels=3\n{units}[connected]\noutput=1470\n[detection]\nclasses=20\nside=7\nnum={{}}\nsqrt=1\n"
    path.with_suffix(".cfg").write_text(text.format(2) + "softmax=0\n")
    assert opticus.load("yolov1/tiny-448", path).config == model.config
    path.with_suffix(".cfg").write_text(text.format(3) + "softmax=0\n")
    with pytest.raises(WeightsError, match=r"side, num, classes, sqrt, softmax = \('7', '3'"):
        opticus.load("yolov1/tiny-448", path)


@pytest.mark.parametrize("variant", ["tiny", "tiny-448"])
def test_answers_start_near_zero(variant: str) -> None:
    """A cell's classes are 0 or 1; noise of that size from inputs that are no concern of the cell would hide them for long."""
    network = new(f"yolov1/{variant}").train()
    assert isinstance(network, YOLOv1)
    pixels = torch.rand(2, 3, *network.prepare.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(network(pixels).classes.std()) < 0.1
