"""Faster R-CNN on one map (1506.01497; 1512.03385, appendix A): its anchors, its last stage, its results, bad settings."""

from __future__ import annotations

import pytest
import torch
from papers import batch_for, new

import opticus
from opticus import zoo
from opticus.models.detection.faster_rcnn_c4 import FasterRCNNC4, Losses
from opticus.ops.iou import iou
from opticus.structures import UsageError


def tiny() -> FasterRCNNC4:
    network = new("faster_rcnn_c4/tiny")
    assert isinstance(network, FasterRCNNC4)
    return network


def test_anchors_of_the_published_variant() -> None:
    """Fifteen around the corner of every 16-pixel cell: three ratios (height / width) of 32^2, then of 64^2, to 512^2."""
    with torch.device("meta"):
        network = zoo.create("faster_rcnn_c4/r50")
    assert isinstance(network, FasterRCNNC4)
    anchors = network.anchors((75, 90), torch.zeros(1))
    assert anchors.shape == (5 * 6 * 15, 4)
    for cell, (x, y) in ((0, (0, 0)), (1, (16, 0)), (6, (0, 16))):
        own = anchors[cell * 15 : cell * 15 + 15]
        sides = own[:, 2:] - own[:, :2]
        torch.testing.assert_close((own[:, 2:] + own[:, :2]) / 2, torch.tensor([[x, y]]).float().expand(15, -1))
        torch.testing.assert_close(sides.prod(1).sqrt(), torch.tensor([32.0, 64, 128, 256, 512]).repeat_interleave(3))
        torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]).repeat(5))


def test_every_object_of_the_demo_has_an_anchor() -> None:
    data, anchors = opticus.open_data("scenes", "val"), tiny().anchors((128, 128), torch.zeros(1))
    best = torch.cat([iou(data.target_of(i).boxes, anchors).amax(1) for i in range(60)])
    assert float((best >= 0.5).float().mean()) > 0.95


def test_regions_are_answered_by_the_last_stage() -> None:
    """One box for every class of a region, none for the background; regions do not look at each other in use."""
    network = tiny().eval()
    with torch.no_grad():
        out = network(torch.randn(2, 3, 128, 128))
        again = network.regions(out.maps[0], out.proposals[3:4], out.pictures[3:4])
    assert out.logits.shape == (len(out.proposals), 11) and out.deltas.shape == (len(out.proposals), 10, 4)
    torch.testing.assert_close(again[0][0], out.logits[3])
    torch.testing.assert_close(again[1][0], out.deltas[3])


def test_a_region_learns_the_box_of_its_own_class_only() -> None:
    network = tiny().train()
    batch = batch_for(network, "detect", 1)
    assert batch.images is not None and batch.targets[0] is not None
    out = network(batch.images.pixels)
    assert len(out.logits) == 0
    Losses(network)(out._replace(proposals=out.proposals[:0], pictures=out.pictures[:0]), batch)["box"].backward()
    grad = network.head.bbox_pred.bias.grad
    assert grad is not None
    touched = grad.unflatten(0, (-1, 4)).abs().sum(1) > 0
    assert set(touched.nonzero()[:, 0].tolist()) <= set(batch.targets[0].labels.tolist())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="blocks=0"):
        opticus.create("faster_rcnn_c4/tiny", blocks=0)
