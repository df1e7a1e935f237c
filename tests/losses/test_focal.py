"""Focal losses against the printed equations, one element at a time."""

import math

import pytest
import torch

from opticus.losses.focal import penalty_reduced_focal, sigmoid_focal


def test_sigmoid_focal_is_equation_5():
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0, 4.0], dtype=torch.float64)
    for target in (0.0, 1.0):
        found = sigmoid_focal(logits, torch.full_like(logits, target), alpha=0.25, gamma=2.0)
        for logit, value in zip(logits.tolist(), found.tolist()):
            p = 1 / (1 + math.exp(-logit))
            pt, at = (p, 0.25) if target else (1 - p, 0.75)
            assert value == pytest.approx(-at * (1 - pt) ** 2 * math.log(pt), rel=1e-9)


def test_sigmoid_focal_without_focus_is_cross_entropy():
    logits, targets = torch.randn(3, 4), torch.rand(3, 4)
    found = sigmoid_focal(logits, targets, alpha=-1.0, gamma=0.0)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(found, wanted)


def test_penalty_reduced_focal_is_equation_1():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator) * 3
    heat = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=generator) * 0.99
    heat[0, 1, 2, 3] = heat[1, 0, 0, 0] = heat[1, 2, 3, 4] = 1.0
    found = penalty_reduced_focal(logits, heat)
    for image in range(2):
        wanted = 0.0
        for logit, y in zip(logits[image].flatten().tolist(), heat[image].flatten().tolist()):
            p = min(max(1 / (1 + math.exp(-logit)), 1e-4), 1 - 1e-4)
            wanted -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
        assert found[image].item() == pytest.approx(wanted, rel=1e-9)


def test_penalty_reduced_focal_is_finite_and_flat_beyond_the_clamp():
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0, 0.0]).view(1, 1, 1, 5).requires_grad_()
    heat = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 5)
    loss = penalty_reduced_focal(logits, heat)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logits.grad.flatten()[:4].tolist() == [0.0] * 4
    assert logits.grad.flatten()[4] < 0


def test_penalty_reduced_focal_in_half_precision_is_computed_in_float32():
    logits = torch.randn(1, 2, 3, 3)
    heat = torch.rand(1, 2, 3, 3)
    found = penalty_reduced_focal(logits.bfloat16(), heat)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, penalty_reduced_focal(logits, heat), rtol=0.05, atol=0.05)
