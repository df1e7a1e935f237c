"""Selective search: planted objects, equations by hand, odd pictures, and the verb that scores proposals."""

import json

import numpy as np
import pytest
import torch

from opticus.cli.main import main
from opticus.matching.selective_search import Regions, merged, selective_search, start_regions
from opticus.structures import CapabilityError, Picture, UnknownNameError
from opticus.verbs.proposals import proposals


def planted() -> Picture:
    pixels = torch.full((60, 80, 3), 40, dtype=torch.uint8)
    pixels[10:30, 15:35] = torch.tensor([200, 30, 30], dtype=torch.uint8)
    pixels[35:55, 50:70] = torch.tensor([30, 60, 220], dtype=torch.uint8)
    return Picture(pixels)


def test_planted_objects_and_the_whole_picture_are_proposed():
    boxes = selective_search(planted())
    for wanted in ([15, 10, 35, 30], [50, 35, 70, 55], [0, 0, 80, 60]):
        assert (boxes == wanted).all(1).any(), wanted
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert np.array_equal(boxes, selective_search(planted())) and len(selective_search(planted(), limit=2)) == 2


def test_start_regions_have_unit_histograms_and_touching_pairs():
    regions, pairs = start_regions(planted().pixels.numpy() / 255.0, 50.0, 20)
    assert regions.size.sum() == 60 * 80 and set(pairs.ravel().tolist()) == set(range(len(regions.size)))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert np.allclose(regions.colour.sum(1), 1) and np.allclose(regions.texture.sum(1), 1)


def test_the_most_similar_pair_merges_first():
    colour = np.array([[1.0, 0], [0.9, 0.1], [0, 1]])
    box = np.array([[0.0, 0, 2, 2], [2, 0, 4, 2], [4, 0, 6, 2]])
    regions = Regions(np.array([4.0, 4, 4]), box, colour, np.ones((3, 1)))
    boxes = merged(regions, np.array([[0, 1], [1, 2]]), 12, 1.0, 1.0)
    assert boxes.tolist() == [*box.tolist(), [0, 0, 4, 2], [0, 0, 6, 2]]
    # without colour both pairs are alike, and with the last two of one colour they go first
    regions.colour[1] = [0.1, 0.9]
    assert merged(regions, np.array([[0, 1], [1, 2]]), 12, 1.0, 1.0)[3].tolist() == [2, 0, 6, 2]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 1), (40, 3, 1)])
def test_odd_pictures_have_boxes_inside(shape):
    boxes = selective_search(Picture(torch.randint(0, 255, shape, dtype=torch.uint8)))
    assert len(boxes) and (boxes >= 0).all() and (boxes[:, 2] <= shape[1]).all() and (boxes[:, 3] <= shape[0]).all()


def test_it_finds_more_with_fewer_boxes_than_windows(capsys):
    ours, windows = (
        proposals("scenes", method=m, pictures=6, limit=200, quiet=True) for m in ("selective-search", "sliding-windows")
    )
    assert ours.recall[200] > windows.recall[200] + 0.3 and ours.mabo > windows.mabo
    assert list(ours.recall) == [10, 100, 200] and sorted(ours.recall.values()) == list(ours.recall.values())
    assert main(["proposals", "scenes", "pictures=2", "limit=50", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 2
    with pytest.raises(CapabilityError, match="classify"):
        proposals("digits", quiet=True)
    with pytest.raises(UnknownNameError):
        proposals("scenes", method="edges")
