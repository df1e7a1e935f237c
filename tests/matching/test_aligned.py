"""Task-aligned assignment against its loop, by hand, and at its edges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opticus.matching.aligned import task_aligned
from opticus.matching.anchors import NEGATIVE
from opticus.ops.twins import aligned as twin
from opticus.structures import UsageError

LEVELS = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(st.integers(0, 4), st.integers(0, 9), st.integers(1, 11), st.sampled_from([0.5, 1.0]), st.data())
def test_assignment_equals_a_loop(objects, places, count, alpha, data):
    def table(values):
        return [[data.draw(values) for _ in range(places)] for _ in range(objects)]

    scores, overlaps, inside = table(LEVELS), table(LEVELS), table(st.booleans())
    shape = (objects, places)
    found = task_aligned(
        torch.tensor(scores, dtype=torch.float64).reshape(shape),
        torch.tensor(overlaps, dtype=torch.float64).reshape(shape),
        torch.tensor(inside, dtype=torch.bool).reshape(shape),
        count=count, alpha=alpha, beta=2.0,
    )  # fmt: skip
    owners, quality = twin.task_aligned(scores, overlaps, inside, places, count, alpha, 2.0)
    assert found.matches.tolist() == owners
    torch.testing.assert_close(found.quality, torch.tensor(quality, dtype=torch.float64))


def test_by_hand():
    """Two objects, four places: each takes its two best, the shared one goes to the larger overlap."""
    scores = torch.tensor([[0.25, 1.0, 0.25, 1.0], [1.0, 1.0, 1.0, 1.0]])
    overlaps = torch.tensor([[0.5, 0.5, 0.8, 0.9], [0.1, 0.6, 0.7, 0.2]])
    inside = torch.tensor([[True, True, True, False], [False, True, True, True]])
    found = task_aligned(scores, overlaps, inside, count=2, alpha=0.5, beta=1.0)
    # alignments: [.25, .5, .4, 0] and [0, .6, .7, .2]
    assert found.matches.tolist() == [NEGATIVE, 1, 0, NEGATIVE]
    torch.testing.assert_close(found.quality, torch.tensor([0.0, 0.6, 0.8, 0.0]))


def test_a_place_outside_or_without_overlap_teaches_nothing():
    ones, no = torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)
    assert task_aligned(ones, ones, no).matches.tolist() == [NEGATIVE] * 3
    found = task_aligned(ones, torch.zeros(1, 3), ~no)
    assert found.matches.tolist() == [NEGATIVE] * 3 and found.quality.tolist() == [0, 0, 0]


def test_tiny_alignments_still_count():
    """A bad start must not leave an object without a teacher: only the order of alignments matters."""
    found = task_aligned(torch.full((1, 2), 1e-3), torch.tensor([[1e-4, 2e-4]]), torch.ones(1, 2, dtype=torch.bool), count=1)
    assert found.matches.tolist() == [NEGATIVE, 0]
    torch.testing.assert_close(found.quality[1], torch.tensor(2e-4))


def test_no_gradient_and_no_count_below_one():
    overlaps = torch.rand(2, 5, requires_grad=True)
    assert not task_aligned(overlaps, overlaps, torch.ones(2, 5, dtype=torch.bool)).quality.requires_grad
    with pytest.raises(UsageError, match="count=0"):
        task_aligned(overlaps, overlaps, torch.ones(2, 5, dtype=torch.bool), count=0)
