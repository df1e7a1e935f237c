"""Accuracy, its confusion matrix, and its behaviour over processes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from opticus.metrics.classify import Accuracy
from opticus.structures import Classes, Instances, MetricError

NAMES = [f"class {i}" for i in range(8)]


def answers(n=200, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 8, n)
    probs = rng.dirichlet(np.ones(8), n)
    probs[np.arange(n), truth] += 0.25
    return truth, probs / probs.sum(1, keepdims=True)


def classes_of(probs, limit=None):
    values = torch.from_numpy(probs)
    order = values.argsort(descending=True)
    return Classes(order[:limit], values[order][:limit], values)


def metric_of(truth, probs, indices=None, limit=None):
    metric = Accuracy(NAMES, data="h", split="test")
    for i in range(len(truth)) if indices is None else indices:
        metric.update(classes_of(probs[i], limit), Classes(torch.tensor([truth[i]])), f"id{i}")
    return metric


def test_numbers_equal_sklearn():
    truth, probs = answers()
    metric = metric_of(truth, probs)
    numbers = metric.compute()
    assert numbers["top1"] == pytest.approx((probs.argmax(1) == truth).mean())
    assert numbers["top5"] == pytest.approx(top_k_accuracy_score(truth, probs, k=5))
    assert numbers["balanced"] == pytest.approx(balanced_accuracy_score(truth, probs.argmax(1)))
    np.testing.assert_array_equal(metric.confusion(), confusion_matrix(truth, probs.argmax(1), labels=range(8)))
    assert metric_of(truth, probs, limit=1).compute() == numbers  # the ranking is rebuilt from probs


def test_ranks_merge_and_padding_counts_once():
    truth, probs = answers(31)
    first, second = metric_of(truth, probs, range(0, 31, 2)), metric_of(truth, probs, [*range(1, 31, 2), 0])
    first.merge(second.state())
    assert len(first) == 31 and first.compute() == metric_of(truth, probs).compute()
    assert first.protocol == metric_of(truth, probs).protocol


def test_worst_are_the_most_confident_mistakes():
    truth, probs = answers()
    mistakes = metric_of(truth, probs).worst(5)
    scores = [one.score for one in mistakes]
    wrong = probs.max(1)[probs.argmax(1) != truth]
    assert scores == sorted(scores, reverse=True) and scores[0] == pytest.approx(wrong.max())
    assert all(one.truth != one.predicted for one in mistakes)


def test_few_classes_have_no_top5_and_absent_classes_no_accuracy():
    metric = Accuracy(["cat", "dog", "eel"])
    metric.update(Classes(torch.tensor([1, 0, 2])), Classes(torch.tensor([1])), "a")
    assert metric.compute() == {"top1": 1.0, "balanced": 1.0}
    assert [row["accuracy"] for row in metric.per_class()] == [None, 1.0, None]


def test_bad_input_is_refused_by_name():
    one = Classes(torch.tensor([0, 1]))
    metric = Accuracy(["cat", "dog"])
    with pytest.raises(MetricError, match="no sample was scored"):
        metric.compute()
    with pytest.raises(MetricError, match=r"p\.png: accuracy needs exactly one true label, found 2"):
        metric.update(one, one, "p.png")
    with pytest.raises(MetricError, match=r"p\.png: the true label must be below 2 classes, found 7"):
        metric.update(one, Classes(torch.tensor([7])), "p.png")
    with pytest.raises(MetricError, match="found Instances and Classes"):
        metric.update(Instances.empty((2, 2)), Classes(torch.tensor([0])), "p.png")
    with pytest.raises(MetricError, match="needs 5 ranked labels or probs, found 2"):
        Accuracy(NAMES).update(one, Classes(torch.tensor([0])), "p.png")
