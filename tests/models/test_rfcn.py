"""R-FCN (1605.06409): its votes, its hard examples, and the backbones that it takes."""

from __future__ import annotations

import pytest
import torch
from papers import batch_for, new

import opticus
from opticus import zoo
from opticus.models.detection.rfcn import RFCN, Losses
from opticus.structures import CapabilityError


def test_a_region_s_class_is_voted_by_its_parts() -> None:
    """Maps that are constant per bin: the logit of a class is the mean of its k x k numbers, the box likewise (eq. 2)."""
    network = new("rfcn/tiny").eval()
    assert isinstance(network, RFCN)
    scores, boxes = torch.arange(99.0), torch.arange(36.0)
    maps = [v[None, :, None, None].expand(1, -1, 16, 16) for v in (scores, boxes)]
    logits, deltas = network.regions(maps, torch.tensor([[16.0, 16, 90, 100]]), torch.tensor([0]))
    torch.testing.assert_close(logits[0], scores.reshape(11, 9).mean(1))
    torch.testing.assert_close(deltas[0], boxes.reshape(4, 9).mean(1))


def test_score_maps_of_the_published_variant() -> None:
    """k k (C + 1) = 49 * 21 maps of stride 16; 300 proposals (section 2)."""
    with torch.device("meta"):
        network = zoo.create("rfcn/r101")
    assert isinstance(network, RFCN)
    assert network.stride == 16 and network.cls_maps.out_channels == 1029 and network.box_maps.out_channels == 196
    assert len(network.anchors((600, 800), torch.zeros(1))) == 9 * 38 * 50


def test_only_the_hardest_regions_are_learned() -> None:
    """With room for all regions the mean is over all of them; with room for 4 it is the mean of the 4 largest losses."""
    terms = {}
    for samples in (10_000, 4):
        network = new("rfcn/tiny", samples=(64, samples)).train()
        assert isinstance(network, RFCN)
        batch = batch_for(network, "detect", 1)
        assert batch.images is not None
        with torch.no_grad():
            torch.nn.init.normal_(network.cls_maps.bias, generator=torch.Generator().manual_seed(0))
            out = network(batch.images.pixels)
            torch.manual_seed(0)
            terms[samples] = {key: float(v) for key, v in Losses(network, True)(out, batch).items()}
    whole, hard = (terms[n]["class"] + terms[n]["box"] for n in (10_000, 4))
    assert hard > 1.05 * whole


def test_random_regions_are_an_option() -> None:
    network = new("rfcn/tiny").train()
    assert isinstance(network, RFCN)
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    terms = Losses(network, False)(network(batch.images.pixels), batch)
    assert all(bool(torch.isfinite(v)) for v in terms.values()) and float(terms["class"].detach()) > 0


def test_backbones_without_a_dilated_last_stage_are_refused() -> None:
    with pytest.raises(CapabilityError, match="last two maps have one stride"):
        opticus.create("rfcn/tiny", backbone="resnet/18")
