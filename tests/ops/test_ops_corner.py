"""Corner pooling: its twin, the paper's figure, gradients, and what holds for any map."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opticus.ops import corner
from opticus.verbs.prove import prove

POOLS = {"top": corner.top_pool, "bottom": corner.bottom_pool, "left": corner.left_pool, "right": corner.right_pool}


def test_equals_its_twin():
    assert prove("corner_pool", cases=40).holds


def test_a_wrong_direction_is_found(monkeypatch):
    monkeypatch.setattr(corner, "top_pool", corner.bottom_pool)
    assert not prove("corner_pool", cases=10).holds


def test_directions():
    row = torch.tensor([[2.0, 1, 3, 0, 2]])
    assert corner.left_pool(row).tolist() == [[3, 3, 3, 2, 2]]
    assert corner.right_pool(row).tolist() == [[2, 2, 3, 3, 3]]
    assert corner.top_pool(row.T).T.tolist() == [[3, 3, 3, 2, 2]]
    assert corner.bottom_pool(row.T).T.tolist() == [[2, 2, 3, 3, 3]]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 999), st.sampled_from(sorted(POOLS)))
def test_it_never_falls_and_pooling_twice_is_pooling_once(height, width, seed, name):
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    pool, axis = POOLS[name], -2 if name in ("top", "bottom") else -1
    out = pool(x)
    assert bool((out >= x).all()) and torch.equal(pool(out), out)
    assert torch.equal(out.amax(axis), x.amax(axis))
    mirrored = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}[name]
    assert torch.equal(POOLS[mirrored](x.flip(axis)).flip(axis), out)


@pytest.mark.parametrize("name", sorted(POOLS))
def test_gradients(name):
    x = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(POOLS[name], (x,))
