"""Directions of attributes in a latent space whose attributes are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opticus.structures import UsageError
from opticus.verbs.edit import direction, edited, without


def space() -> tuple[Tensor, Tensor, Tensor]:
    """800 vectors and two attributes that share a direction: a score is the length along its normal."""
    x = torch.randn(800, 6, generator=torch.Generator().manual_seed(0))
    first = torch.nn.functional.normalize(torch.tensor([1.0, 0.5, 0, 0, 0, 0]), dim=0)
    second = torch.nn.functional.normalize(torch.tensor([0.5, 1.0, 0, 0, 0, 0]), dim=0)
    return x, first, second


def test_a_direction_is_the_normal_of_the_attributes_plane() -> None:
    x, first, second = space()
    for normal in (first, second):
        found = direction(x, x @ normal > 0.3)
        assert float(found.norm()) == pytest.approx(1.0, abs=1e-5) and float(found @ normal) > 0.99


def test_an_edit_changes_its_attribute_most_and_the_conditional_one_nothing_else() -> None:
    x, first, second = space()
    one, two = direction(x, x @ first > 0), direction(x, x @ second > 0)
    moved = edited(x, one, 2.0)
    gained = [float(((moved - x) @ normal).mean()) for normal in (first, second)]
    assert gained[0] > 1.9 and 1.0 < gained[1] < gained[0]  # they share a direction: the second follows
    assert bool(((moved @ first > 0) | (x @ first < -1.9)).all())
    alone = edited(x, without(one, two[None]), 2.0)
    gained = [float(((alone - x) @ normal).mean()) for normal in (first, second)]
    assert gained[0] > 1.0 and abs(gained[1]) < 0.2
    rest = (alone - x)[:, 2:].abs().mean()
    assert float(rest) < 0.2


def test_edit_refuses() -> None:
    x, first, _ = space()
    with pytest.raises(UsageError, match="all 800 labels are True"):
        direction(x, torch.ones(800))
    with pytest.raises(UsageError, match=r"found \(800, 6\) and \(3,\)"):
        direction(x, torch.ones(3))
    with pytest.raises(UsageError, match="lies in the span"):
        without(first, first[None])
