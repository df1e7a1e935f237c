"""Adversarial losses: what a discriminator and a generator are told by the discriminator's scores.

All take scores of any shape (B, ...), the higher the more real, and return one value per picture (B,): the mean over its patches.
Sources: Goodfellow 2014 (arXiv 1406.2661), Mao 2017 (least squares, 1611.04076), Arjovsky 2017 and Gulrajani 2017 (Wasserstein with
gradient penalty, 1704.00028), Lim 2017 (hinge, 1705.02894), Mescheder 2018 (R1, 1801.04406).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from opticus.structures import UnknownNameError


class Rule(NamedTuple):
    """What the discriminator loses on real and on fake pictures, and the generator on its own; scores in, (B,) out."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def per_picture(values: Tensor) -> Tensor:
    """(B,): the mean over everything but the batch."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


RULES: dict[str, Rule] = {
    # log D and log(1 - D) of logits; the generator maximises log D (section 3: the gradient does not vanish early)
    "logistic": Rule(
        lambda s: per_picture(F.softplus(-s)), lambda s: per_picture(F.softplus(s)), lambda s: per_picture(F.softplus(-s))
    ),
    # the minimax game itself: the generator minimises log(1 - D)
    "minimax": Rule(
        lambda s: per_picture(F.softplus(-s)), lambda s: per_picture(F.softplus(s)), lambda s: -per_picture(F.softplus(s))
    ),
    "least-squares": Rule(
        lambda s: per_picture((s - 1).square()), lambda s: per_picture(s.square()), lambda s: per_picture((s - 1).square())
    ),
    "hinge": Rule(lambda s: per_picture(F.relu(1 - s)), lambda s: per_picture(F.relu(1 + s)), lambda s: -per_picture(s)),
    "wasserstein": Rule(lambda s: -per_picture(s), per_picture, lambda s: -per_picture(s)),
}


def rule(name: str) -> Rule:
    """The losses of that name; UnknownNameError names those that there are."""
    if name not in RULES:
        raise UnknownNameError("adversarial loss", name, RULES)
    return RULES[name]


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """(B,): (|grad of the score| - 1)^2 at real + share (fake - real), one `share` in [0, 1] per picture (WGAN-GP, eq. 3)."""
    share = share.reshape(-1, *(1,) * (real.ndim - 1))
    mixed = (real + share * (fake - real)).detach().requires_grad_()
    return (gradient_at(score, mixed).flatten(1).norm(dim=1) - 1).square()


def r1(score: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """(B,): half the squared gradient of the score at real pictures (Mescheder 2018, eq. 9, before the factor gamma)."""
    return gradient_at(score, real.detach().requires_grad_()).flatten(1).square().sum(1) / 2


def gradient_at(score: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """The gradient of the summed scores with respect to `pixels`, itself differentiable."""
    with torch.enable_grad():
        return torch.autograd.grad(score(pixels).sum(), pixels, create_graph=True)[0]
