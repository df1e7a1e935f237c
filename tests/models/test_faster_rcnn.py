"""Faster R-CNN (1506.01497) over a pyramid (1612.03144): its levels, its proposals, its two assignments and what it refuses."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from papers import batch_for, new, record

import opticus
from opticus import zoo
from opticus.models.detection.faster_rcnn import FasterRCNN, Losses, pooled
from opticus.ops.iou import iou
from opticus.ops.roi import roi_align
from opticus.parity.fill import fill_state
from opticus.parity.manifests import unfold
from opticus.structures import CapabilityError
from opticus.weights.labels import labels
from opticus.weights.load import load_into
from opticus.weights.read import read


@pytest.fixture(scope="module")
def tiny() -> FasterRCNN:
    network = new("faster_rcnn/tiny").eval()
    assert isinstance(network, FasterRCNN)
    return network


def test_regions_are_pooled_from_the_level_of_equation_1() -> None:
    """k = floor(4 + log2(sqrt(w h) / 224)), levels 2..5: literal, region by region."""
    maps = [torch.randn(2, 3, 64 // 2**i, 64 // 2**i) for i in range(4)]
    sides = [10.0, 55, 56, 111, 112, 223, 224, 447, 448, 900]
    boxes = torch.tensor([[3.0, 5, 3 + s * 2, 5 + s / 2] for s in sides])
    pictures = torch.arange(len(sides)) % 2
    found = pooled(maps, boxes, pictures, (4, 8, 16, 32))
    for i, side in enumerate(sides):
        k = min(max(math.floor(4 + math.log2(side / 224) + 1e-6), 2), 5) - 2
        alone = roi_align(maps[k], boxes[i : i + 1], pictures[i : i + 1], (7, 7), scale=1 / 2 ** (k + 2), samples=2, aligned=False)
        torch.testing.assert_close(found[i], alone[0])


def test_proposals_are_inside_limited_and_apart(tiny: FasterRCNN) -> None:
    valid = torch.ones(2, 128, 128, dtype=torch.bool)
    valid[1, 70:] = False
    with torch.no_grad():
        out = tiny(torch.randn(2, 3, 128, 128), valid)
    for i, height in enumerate((128, 70)):
        boxes = out.proposals[out.pictures == i]
        assert 0 < len(boxes) <= tiny.config.proposals[1]
        assert (boxes >= 0).all() and (boxes[:, 2] <= 128).all() and (boxes[:, 3] <= height).all()
    assert out.logits.shape == (len(out.proposals), 11) and out.deltas.shape == (len(out.proposals), 11, 4)


def test_regions_are_sampled_with_their_classes_and_the_objects_among_them() -> None:
    """Background is class 0; without proposals the objects themselves are what is learned, with boxes that are right already."""
    network = new("faster_rcnn/tiny").train()
    assert isinstance(network, FasterRCNN)
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    out = network(batch.images.pixels)
    assert len(out.logits) == 0
    with torch.no_grad():
        network.head.bbox_pred.weight.zero_()
        network.head.bbox_pred.bias.zero_()
        network.head.cls_score.weight.zero_()
        network.head.cls_score.bias.fill_(0.0)
    none = out._replace(proposals=out.proposals[:0], pictures=out.pictures[:0])
    terms = Losses(network)(none, batch)
    assert float(terms["box"]) == 0
    assert float(terms["class"]) == pytest.approx(math.log(11), rel=1e-5)


def test_anchors_of_the_published_variant() -> None:
    """Three ratios of 32^2 on P2 to 512^2 on P6 (FPN, section 4.1)."""
    with torch.device("meta"):
        network = zoo.create("faster_rcnn/r50")
    assert isinstance(network, FasterRCNN)
    levels = network.anchors((800, 1088), torch.zeros(1))
    assert [len(level) for level in levels] == [3 * h * w for h, w in ((200, 272), (100, 136), (50, 68), (25, 34), (13, 17))]
    assert [round(float((v[1, 2:] - v[1, :2]).prod().sqrt())) for v in levels] == [32, 64, 128, 256, 512]


def test_anchors_as_detectron2_lays_them_out() -> None:
    """Not rounded, at the corners of cells of exactly 4 to 64 pixels, where torchvision divides the input by the map."""
    sizes, found = (800, 1088), {}
    for variant in ("r50", "r50-d2"):
        with torch.device("meta"):
            network = zoo.create(f"faster_rcnn/{variant}")
        assert isinstance(network, FasterRCNN)
        found[variant] = network.anchors(sizes, torch.zeros(1))
    last = {variant: levels[-1].unflatten(0, (13, 17, 3)) for variant, levels in found.items()}
    centres = {variant: (level[..., :2] + level[..., 2:]) / 2 for variant, level in last.items()}
    assert centres["r50-d2"][1, 1, 0].tolist() == [64, 64] and centres["r50"][1, 1, 0].tolist() == [64, 61]
    for level, side in zip(found["r50-d2"], (32, 64, 128, 256, 512)):
        torch.testing.assert_close((level[:3, 2:] - level[:3, :2]).prod(1).sqrt(), torch.full((3,), float(side)))


def test_a_model_zoo_file_is_read_renamed_and_loaded(tmp_path: Path) -> None:
    """A pickle of arrays with the constants that older files carry; the background moves from last to first."""
    case = next(c for c in record("faster_rcnn")["tiny"] if c["name"] == "Detectron2")
    state = {key: value.numpy() for key, value in fill_state(unfold(case["state"]), torch.float32).items()}
    old = {
        "pixel_mean": np.ones((3, 1, 1), np.float32),
        "proposal_generator.anchor_generator.cell_anchors.0": np.ones((3, 4), np.float32),
    }
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state | old, "__author__": "Detectron2 Model Zoo"}, 3))
    network = zoo.build("faster_rcnn/r50-d2", zoo.config_from_json("faster_rcnn/r50-d2", case["config"]))
    loaded = load_into(network, read(path).state, zoo.paper("faster_rcnn").FORMATS["detectron2"])
    assert set(loaded.dropped) == set(old)
    scores = torch.from_numpy(state["roi_heads.box_predictor.cls_score.bias"])
    torch.testing.assert_close(network.get_parameter("head.cls_score.bias").detach(), scores[[5, 0, 1, 2, 3, 4]])


@pytest.mark.parametrize("rules", ["torchvision", "torchvision-v2", "detectron2"])
def test_every_class_has_its_box_under_all_rules(rules: str) -> None:
    """The object's own class, and no other, gets the gradient of the box loss."""
    network = new("faster_rcnn/tiny", rules=rules).train()
    assert isinstance(network, FasterRCNN)
    batch = batch_for(network, "detect", 1)
    assert batch.images is not None and batch.targets[0] is not None
    out = network(batch.images.pixels)
    Losses(network)(out._replace(proposals=out.proposals[:0], pictures=out.pictures[:0]), batch)["box"].backward()
    grad = network.head.bbox_pred.bias.grad.unflatten(0, (-1, 4)).abs().sum(1)
    idle = {"torchvision": 1, "torchvision-v2": 1, "detectron2": 0}[rules]
    assert len(grad) == 10 + idle
    assert set((grad > 0).nonzero()[:, 0].tolist()) <= {int(label) + idle for label in batch.targets[0].labels}


def test_every_object_of_the_demo_has_an_anchor(tiny: FasterRCNN) -> None:
    data, anchors = opticus.open_data("scenes", "val"), torch.cat(tiny.anchors((128, 128), torch.zeros(1)))
    best = torch.cat([iou(data.target_of(i).boxes, anchors).amax(1) for i in range(60)])
    assert float((best >= 0.5).float().mean()) > 0.95


def test_published_labels_leave_out_the_background() -> None:
    assert labels("coco90") == labels("coco91")[1:] and labels("coco90")[0] == "person"


def test_backbones_are_taken_or_refused() -> None:
    assert isinstance(opticus.create("faster_rcnn/tiny", backbone="swin/tiny"), FasterRCNN)
    with pytest.raises(CapabilityError, match="stride 64"):
        opticus.create("faster_rcnn/tiny", finest=64)
