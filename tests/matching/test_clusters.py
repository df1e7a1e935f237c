"""k-means of box sides on IoU: planted sizes are found, the figure is a literal IoU, bad input is named."""

import json

import pytest
import torch

from opticus.cli.main import main
from opticus.matching.clusters import cluster_sides
from opticus.structures import DataError, UsageError
from opticus.verbs.anchors import anchors


def overlap(a: list[float], b: list[float]) -> float:
    common = min(a[0], b[0]) * min(a[1], b[1])
    return common / (a[0] * a[1] + b[0] * b[1] - common)


def test_planted_sizes_are_found():
    planted = torch.tensor([[10.0, 20.0], [60.0, 30.0], [120.0, 120.0]])
    noise = torch.rand(3, 200, 2, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.95
    sides = (planted[:, None] * noise).reshape(-1, 2)[torch.randperm(600, generator=torch.Generator().manual_seed(2))]
    found = cluster_sides(sides, 3)
    torch.testing.assert_close(found.sides, planted.double(), rtol=0.01, atol=0)
    literal = [max(overlap(s, c) for c in found.sides.tolist()) for s in sides.tolist()]
    assert float(found.overlaps.mean()) == pytest.approx(sum(literal) / len(literal))
    assert all(overlap(s, found.sides[o].tolist()) == pytest.approx(v) for s, o, v in zip(sides.tolist(), found.owners, literal))
    assert torch.equal(cluster_sides(sides, 3).sides, found.sides)


def test_more_clusters_cover_better():
    sides = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 90 + 10
    means = [float(cluster_sides(sides, k).overlaps.mean()) for k in (1, 3, 9)]
    assert means == sorted(means) and means[-1] > means[0] + 0.2


def test_bad_boxes_are_named():
    with pytest.raises(DataError, match="1 of 2 boxes"):
        cluster_sides(torch.tensor([[1.0, 2], [0, 3]]), 1)
    with pytest.raises(UsageError, match="3 clusters"):
        cluster_sides(torch.tensor([[1.0, 2], [1, 2], [4, 4]]), 3)
    with pytest.raises(UsageError):
        cluster_sides(torch.ones(3, 2), 0)


def test_the_verb_scales_boxes_to_the_networks_frame(capsys):
    plain, scaled = anchors("scenes", count=3), anchors("scenes", count=3, side=256)
    assert plain.boxes == scaled.boxes and plain.overlap == pytest.approx(scaled.overlap, abs=1e-3)
    assert [2 * v for s in plain.sides for v in s] == pytest.approx([v for s in scaled.sides for v in s], abs=0.05)
    assert main(["anchors", "scenes", "count=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sides"] == [list(s) for s in plain.sides]
    assert main(["anchors", "digits"]) != 0 and "boxes" in capsys.readouterr().err
