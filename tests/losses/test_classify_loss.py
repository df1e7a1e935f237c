"""Cross-entropy with soft labels, smoothing, class and sample weights; the supervised objective."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opticus.losses import classify
from opticus.losses.classify import CrossEntropy, cross_entropy, distribution, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Batch, CapabilityError, Classes, DataError, Images, Instances, Objective, Progress

NOW = Progress(0, 0, 1, 1)


def hard(labels: list[int]) -> tuple[Classes, ...]:
    return tuple(Classes(torch.tensor([label])) for label in labels)


def batch_of(targets: tuple[Classes, ...], weights: torch.Tensor | None = None) -> Batch:
    n = len(targets)
    images = Images(torch.randn(n, 1, 2, 2), None, torch.eye(3).expand(n, 3, 3), ((2, 2),) * n)
    return Batch(images, targets, tuple(f"picture {i}" for i in range(n)), weights=weights)


@given(st.integers(0, 1000), st.integers(1, 7), st.integers(2, 9), st.sampled_from([0.0, 0.1, 0.5]), st.booleans())
def test_hard_labels_equal_torch(seed: int, batch: int, classes: int, smoothing: float, weighted: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, generator=g, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=g)
    weights = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1 if weighted else None
    target = distribution(hard(labels.tolist()), classes).double()
    found = cross_entropy(logits, target, smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, weights, label_smoothing=smoothing))


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.2]))
def test_soft_labels_equal_torch_and_the_mean_of_hard_ones(seed: int, smoothing: float) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, generator=g, dtype=torch.float64)
    target = torch.rand(4, 6, generator=g, dtype=torch.float64).softmax(1)
    found = cross_entropy(logits, target, smoothing=smoothing)
    torch.testing.assert_close(found, F.cross_entropy(logits, target, label_smoothing=smoothing))
    # mix-up of two labels is the same mixture of the two losses
    one, two = F.one_hot(torch.tensor([0, 1, 2, 3]), 6).double(), F.one_hot(torch.tensor([5, 4, 3, 2]), 6).double()
    mixed = cross_entropy(logits, 0.3 * one + 0.7 * two, smoothing=smoothing)
    apart = 0.3 * cross_entropy(logits, one, smoothing=smoothing) + 0.7 * cross_entropy(logits, two, smoothing=smoothing)
    torch.testing.assert_close(mixed, apart)


def test_sample_weights_scale_their_own_terms_only() -> None:
    logits, labels = torch.randn(3, 5), [4, 0, 2]
    each = F.cross_entropy(logits, torch.tensor(labels), reduction="none")
    criterion = CrossEntropy()
    found = criterion(logits, batch_of(hard(labels), torch.tensor([2.0, 0.0, 0.5])))["classify"]
    torch.testing.assert_close(found, (2 * each[0] + 0.5 * each[2]) / 3)


def test_processes_with_unlike_batches_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples on one process and one on the other, with class weights: the mean of both losses is the whole loss."""
    logits, weights = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    target = distribution(hard([0, 2, 1, 2]), 3).double()
    whole = cross_entropy(logits, target, class_weights=weights)
    totals = [(target[part] * weights).sum() for part in (slice(0, 3), slice(3, 4))]

    def mean_of_both(value: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "mean" and any(torch.equal(value, total) for total in totals)
        return (totals[0] + totals[1]) / 2

    monkeypatch.setattr(classify, "all_reduce", mean_of_both)
    parts = [cross_entropy(logits[part], target[part], class_weights=weights) for part in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


def test_numbers_by_hand() -> None:
    """Two classes, logits (0, ln 3): p = (1/4, 3/4)."""
    logits = torch.tensor([[0.0, torch.tensor(3.0).log()]])
    ln = torch.log(torch.tensor([4.0, 4 / 3]))
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([[1.0, 0.0]])), ln[0])
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([[0.25, 0.75]])), 0.25 * ln[0] + 0.75 * ln[1])
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([[0.0, 1.0]]), smoothing=0.2), 0.1 * ln[0] + 0.9 * ln[1])


def test_distribution() -> None:
    targets = (
        Classes(torch.tensor([2])),
        Classes(torch.tensor([0, 1]), torch.tensor([0.4, 0.6])),
        Classes(torch.tensor([1, 1]), torch.tensor([0.5, 0.5])),
    )
    expected = torch.tensor([[0, 0, 1.0], [0.4, 0.6, 0], [0, 1, 0]])
    torch.testing.assert_close(distribution(targets, 3), expected)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "found none"),
        (Instances.empty((4, 4)), "found Instances"),
        (Classes(torch.tensor([1, 2])), "2 labels without scores"),
        (Classes(torch.tensor([3])), "label 3 is outside 0..2"),
        (Classes(torch.tensor([-1])), "label -1 is outside 0..2"),
    ],
)
def test_bad_targets_name_the_sample(target: object, words: str) -> None:
    with pytest.raises(DataError, match=r"cat\.png") as error:
        distribution((Classes(torch.tensor([0])), target), 3, ("dog.png", "cat.png"))  # type: ignore[arg-type]
    assert words in str(error.value)


def test_class_weights_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="4 class weights were given for a network with 5 classes"):
        CrossEntropy(class_weights=[1.0, 2.0, 3.0, 4.0])(torch.randn(1, 5), batch_of(hard([0])))


def test_gradient_is_probability_minus_target() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 4, dtype=torch.float64).softmax(1)
    cross_entropy(logits, target).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - target) / 3)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4) and bool(torch.isfinite(logits.grad).all())


def test_ranked_classes() -> None:
    (first, second) = ranked(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, -5.0]]))
    assert isinstance(first, Classes) and isinstance(second, Classes)
    assert first.labels.tolist() == [1, 2, 0] and second.labels.tolist() == [0, 1, 2]  # ties keep their order
    torch.testing.assert_close(first.probs, torch.tensor([1.0, 3.0, 2.0]).softmax(0))
    assert bool((first.scores[:-1] >= first.scores[1:]).all())


def test_supervised_objective() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))

    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
            return self.inner(pixels)

    wrapped = Forward()
    objective = Supervised(wrapped, CrossEntropy())
    assert isinstance(objective, Objective) and objective.phases(7) == ("all",)
    batch = batch_of(hard([0, 2]))
    terms = objective(batch, NOW)
    torch.testing.assert_close(terms["classify"], F.cross_entropy(network(batch.images.pixels), torch.tensor([0, 2])))
    next(wrapped.parameters()).requires_grad_(False)
    assert [p.shape for p in objective.parameters_of("all")] == [torch.Size([3])]
    with pytest.raises(CapabilityError, match="Forward is trained on images"):
        objective(Batch(None, (), ("a",)), NOW)


def test_a_criterion_may_have_parameters_of_its_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, out: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
            return {"loss": self.scale * out.sum()}

    objective = Supervised(nn.Linear(2, 2), Scaled())
    assert len(list(objective.parameters_of("all"))) == 3
    assert "criterion.scale" in objective.state_dict() and "scale" not in objective.network.state_dict()
