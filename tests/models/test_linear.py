"""The linear classifier: the bias trick, the two losses by hand, hyperplanes and templates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import opticus
from opticus import zoo
from opticus.models.classical.linear import Hinge, extended, hinge
from opticus.structures import Batch, Classes, DataError, UsageError


def four_pixels(classes: int = 3) -> Any:
    """The simplified example: a 4-pixel grey picture and three classes (cat, dog, ship), with CS231n's numbers."""
    network: Any = zoo.create("linear/softmax", channels=1, size=2, classes=classes)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[0.2, -0.5, 0.1, 2.0], [1.5, 1.3, 2.1, 0.0], [0.0, 0.25, 0.2, -0.3]]))
        network.head.bias.copy_(torch.tensor([1.1, 3.2, -1.2]))
    return network


def test_the_bias_trick_is_the_same_classifier() -> None:
    """W x + b equals [W b] [x 1], on the example and on any network."""
    network, pixels = four_pixels(), torch.tensor([[[[56.0, 231.0], [24.0, 2.0]]]])
    scores = network(pixels)
    torch.testing.assert_close(scores, torch.tensor([[-96.8, 437.9, 60.75]]))
    assert network.matrix().shape == (3, 5)
    assert network.matrix()[:, 4].tolist() == network.head.bias.tolist()
    torch.testing.assert_close(extended(network.embed(pixels)) @ network.matrix().T, scores)
    larger, rows = zoo.create("linear/svm").double(), torch.randn(7, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(extended(larger.embed(rows)) @ larger.matrix().T, larger(rows))


def test_hinge_by_hand() -> None:
    """Max-margin losses of CS231n's three pictures, margin 1: 2.9, 0 and 12.9; and max(0, -7 - 13 + 10) + max(0, 11 - 13 + 10) = 8."""
    scores = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
    torch.testing.assert_close(hinge(scores, torch.eye(3)), torch.tensor([2.9, 0.0, 12.9]))
    one = torch.tensor([[13.0, -7.0, 11.0]])
    assert hinge(one, torch.tensor([[1.0, 0, 0]]), margin=10).tolist() == [8]
    assert hinge(one, torch.tensor([[1.0, 0, 0]]), margin=10, squared=True).tolist() == [64]


@pytest.mark.parametrize("power", [1, 2])
def test_hinge_equals_torch(power: int) -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 5
    target = F.one_hot(labels, 5).double()
    expected = F.multi_margin_loss(scores, labels, p=power, margin=0.7, reduction="none") * 5
    torch.testing.assert_close(hinge(scores, target, margin=0.7, squared=power == 2), expected)
    mixed = 0.3 * target + 0.7 * target.roll(1, 0)
    both = 0.3 * hinge(scores, target) + 0.7 * hinge(scores, target.roll(1, 0))
    torch.testing.assert_close(hinge(scores, mixed), both)


def test_the_objective_is_that_of_the_config() -> None:
    assert isinstance(zoo.paper("linear").objective(zoo.create("linear/svm"), margin=2.0).criterion, Hinge)
    network = zoo.create("linear/softmax", channels=1, size=2)
    out, batch = torch.zeros(2, 10), Batch(None, (Classes(torch.tensor([1])), Classes(torch.tensor([9]))), ("a", "b"))
    assert float(zoo.paper("linear").objective(network).criterion(out, batch)["classify"]) == pytest.approx(
        torch.tensor(10.0).log()
    )
    assert float(Hinge()(out, batch)["hinge"]) == pytest.approx(9)
    with pytest.raises(DataError, match="label 9 is outside"):
        Hinge()(torch.zeros(2, 3), batch)


def test_hyperplanes_and_templates() -> None:
    network, pixels = four_pixels(), torch.randn(3, 1, 2, 2)
    away = network.distances(pixels)
    for k in range(3):  # going back by the distance along the weights ends on the plane
        normal = network.head.weight[k] / network.head.weight[k].norm()
        on_plane = pixels - (away[:, k, None] * normal).reshape(3, 1, 2, 2)
        torch.testing.assert_close(network(on_plane)[:, k], torch.zeros(3), atol=1e-5, rtol=0)
    pictures = network.templates()
    assert [picture.size for picture in pictures] == [(2, 2)] * 3
    assert pictures[0].pixels.flatten().tolist() == [140, 96, 134, 255]  # 0.2, -0.5, 0.1 and 2.0 of at most 2.0


def test_another_size_and_no_head_are_refused() -> None:
    with pytest.raises(UsageError, match=r"common shape \(3, 32, 32\), found \(3, 28, 28\)"):
        zoo.create("linear/softmax")(torch.zeros(1, 3, 28, 28))
    headless = zoo.create("linear/softmax", classes=0)
    with pytest.raises(UsageError, match="no matrix"):
        headless.matrix()


def test_a_machine_of_scikit_learn_loads(tmp_path: Any) -> None:
    """coef_ and intercept_ in an npz file: the same scores on its own rows."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    rows, labels = rng.random((60, 48)), np.arange(60) % 3
    machine = LogisticRegression().fit(rows, labels)
    np.savez(tmp_path / "m.npz", coef_=machine.coef_, intercept_=machine.intercept_)
    network = opticus.load("linear/softmax", tmp_path / "m.npz", size=4, classes=3)
    scores = network.double()(torch.from_numpy(rows).reshape(60, 3, 4, 4))
    np.testing.assert_allclose(scores.detach().numpy(), machine.decision_function(rows), atol=1e-6)


@pytest.mark.parametrize("name", ["linear/softmax", "linear/svm"])
def test_it_learns_digits(name: str, tmp_path: Any) -> None:
    """A fifth of the recipe is far above chance and the templates carry signs of both kinds."""
    run = opticus.train(name, data="digits", out=tmp_path, steps=300, evaluate_every=0, test=False, quiet=True)
    assert opticus.evaluate(run.model, "digits", limit=250, quiet=True)["top1"] > 0.85
    levels = torch.stack([picture.pixels for picture in run.model.templates()]).float()
    assert levels.shape == (10, 28, 28, 1) and bool((levels.amin((1, 2, 3)) < 100).all() and (levels.amax((1, 2, 3)) > 150).all())
