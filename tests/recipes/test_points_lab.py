"""The lab of points in the plane: its ruler, its line and its autoencoder."""

from __future__ import annotations

import pytest
import torch

from opticus.recipes.labs import points


def test_the_curve_is_at_no_distance_from_itself() -> None:
    assert float(points.distances(points.curve(torch.linspace(0, 1, 50))).max()) < 1e-3
    assert float(points.distances(torch.tensor([[0.0, 5.0]]))) == pytest.approx(
        5 - float(points.curve(torch.linspace(0, 1, 4000))[:, 1].max()), abs=0.1
    )


def test_points_are_spread_evenly_over_the_curve() -> None:
    steps = points.curve(torch.linspace(0, 1, 200)).diff(dim=0).norm(dim=1)
    assert float(steps.max() / steps.min()) < 1.5


def test_the_line_is_the_best_one() -> None:
    known = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    found = points.line(known, torch.tensor([[0.0, 2.0], [3.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [3.0, 3.0]]))


def test_points_off_the_curve_end_nearer_to_it() -> None:
    """A fifth of the lab's steps are enough to halve the distance; two steps are not."""
    learned, hardly = (points.measure({"arm": "autoencoder", "seed": 0, "steps": steps}, None) for steps in (600, 2))
    assert learned["before"] == hardly["before"] and learned["ratio"] < 0.5 < hardly["ratio"]
    assert len(learned["in"]) == len(learned["out"]) == points.SHOWN
