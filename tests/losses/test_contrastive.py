"""Losses between views against literal loops, Sinkhorn's marginals, entropies and the alarm."""

import math

import pytest
import torch
from torch.nn import functional as F

from opticus.layers.queue import Queue
from opticus.losses.collapse import entropies, sentence, spread
from opticus.losses.contrastive import cross_correlation, info_nce, nt_xent, regression, views_of
from opticus.matching.prototypes import sinkhorn
from opticus.structures import Batch, DataError, Images, UsageError


def vectors(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_nt_xent_is_the_sum_over_all_other_views():
    a, b, t = vectors(5, 7), vectors(5, 7, seed=1), 0.3
    every = [v / v.norm() for v in (*a, *b)]
    total = 0.0
    for i, v in enumerate(every):
        near = every[(i + 5) % 10]
        below = sum(math.exp(float(v @ w) / t) for j, w in enumerate(every) if j != i)
        total -= math.log(math.exp(float(v @ near) / t) / below)
    assert float(nt_xent(a, b, t)) == pytest.approx(total / 10, rel=1e-12)


def test_info_nce_is_a_softmax_with_one_right_answer():
    q, k, n, t = (
        F.normalize(vectors(4, 6), dim=1),
        F.normalize(vectors(4, 6, seed=1), dim=1),
        F.normalize(vectors(9, 6, seed=2), dim=1),
        0.2,
    )
    total = 0.0
    for i in range(4):
        near = math.exp(float(q[i] @ k[i]) / t)
        total -= math.log(near / (near + sum(math.exp(float(q[i] @ row) / t) for row in n)))
    assert float(info_nce(q, k, n, t)) == pytest.approx(total / 4, rel=1e-12)


def test_info_nce_bounds_mutual_information():
    """log(N + 1) - loss is a lower bound of the information between views (van den Oord 2018): no more than log(N + 1)."""
    unit = F.normalize(vectors(32, 64), dim=1)
    loss = float(info_nce(unit, unit, F.normalize(vectors(255, 64, seed=3), dim=1), 0.05))
    assert 0 < math.log(256) - loss <= math.log(256)


def test_regression_is_the_squared_distance_of_directions_and_stops_at_the_target():
    p, z = vectors(3, 5).requires_grad_(), vectors(3, 5, seed=1).requires_grad_()
    loss = regression(p, z)
    expected = sum(float((a / a.norm() - b / b.norm()).square().sum()) for a, b in zip(p.detach(), z.detach())) / 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert p.grad is not None and z.grad is None


def test_cross_correlation_is_zero_for_equal_decorrelated_views():
    basis = torch.linalg.qr(vectors(8, 3) - vectors(8, 3).mean(0))[0]
    a = basis - basis.mean(0)
    a = torch.linalg.qr(a)[0] * math.sqrt(8)
    assert float(cross_correlation(a, a)) == pytest.approx(0, abs=1e-20)
    b = vectors(8, 3, seed=5)
    matrix = a.T @ b / 8
    expected = sum(
        (1 - float(matrix[i, j])) ** 2 if i == j else 0.01 * float(matrix[i, j]) ** 2 for i in range(3) for j in range(3)
    )
    assert float(cross_correlation(a, b, 0.01)) == pytest.approx(expected, rel=1e-12)


def test_sinkhorn_balances_prototypes_and_keeps_rows():
    found = sinkhorn(vectors(12, 4) * 0.3, epsilon=0.1, iterations=50)
    torch.testing.assert_close(found.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(found.sum(0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_sinkhorn_is_the_published_loop():
    scores = vectors(6, 3) * 0.2
    weights = torch.exp(scores / 0.05).T
    weights = weights / weights.sum()
    for _ in range(3):
        for k in range(3):
            weights[k] = weights[k] / weights[k].sum() / 3
        for b in range(6):
            weights[:, b] = weights[:, b] / weights[:, b].sum() / 6
    torch.testing.assert_close(sinkhorn(scores), (weights * 6).T, rtol=1e-12, atol=0)


def test_sinkhorn_survives_scores_that_overflow_an_exponential():
    found = sinkhorn(torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]]))
    torch.testing.assert_close(found, torch.eye(2))
    with pytest.raises(UsageError, match="epsilon > 0"):
        sinkhorn(torch.zeros(2, 2), epsilon=0.0)


def test_entropies_tell_the_two_collapses_from_learning():
    uniform, sharp, varied = torch.full((8, 4), 0.25), torch.eye(4)[[0] * 8], torch.eye(4).repeat(2, 1)
    assert entropies(uniform).information.item() == pytest.approx(0, abs=1e-6)
    assert entropies(sharp).information.item() == pytest.approx(0, abs=1e-6)
    assert entropies(varied).information.item() == pytest.approx(math.log(4), rel=1e-5)
    for probs, word in ((uniform, "uniform"), (sharp, "one and the same")):
        found = entropies(probs)
        told = sentence({"information": found.information.item(), "entropy": found.each.item()}, 4)
        assert told is not None and word in told
    assert sentence({"information": math.log(4), "entropy": 0.0, "spread": 0.9}, 4) is None


def test_spread_is_one_for_even_directions_and_zero_for_one():
    assert spread(vectors(4000, 8).float()).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(10, 8) * torch.arange(1, 11)[:, None]).item() == pytest.approx(0, abs=1e-3)
    told = sentence({"spread": 0.01}, 8)
    assert told is not None and "nearly the same vector" in told


def test_queue_replaces_the_oldest():
    queue = Queue(5, 2)
    queue.push(torch.arange(6.0).reshape(3, 2))
    queue.push(torch.arange(10.0, 16.0).reshape(3, 2))
    assert queue.rows[:, 0].tolist() == [14.0, 2.0, 4.0, 10.0, 12.0] and int(queue.place) == 1 and int(queue.filled) == 5
    queue.push(torch.arange(40.0).reshape(20, 2))
    assert sorted(queue.rows[:, 0].tolist()) == [30.0, 32.0, 34.0, 36.0, 38.0]
    assert set(queue.state_dict()) == {"rows", "place", "filled"}
    with pytest.raises(UsageError, match="at least 1"):
        Queue(0, 2)


def test_views_of_a_batch():
    image = Images(torch.zeros(2, 3, 4, 4), None, torch.eye(3).expand(2, 3, 3), ((4, 4), (4, 4)))
    batch = Batch(None, (None, None), ("a", "b"), (image, image, image), ("global", "local", "global"))
    assert len(views_of(batch)) == 2
    batch.weights = torch.ones(2)
    with pytest.raises(UsageError, match="no meaning"):
        views_of(batch)
    with pytest.raises(DataError, match="found local"):
        views_of(Batch(None, (None,), ("a",), (image,), ("local",)))
