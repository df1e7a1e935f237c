"""Editing pictures in a latent space: a direction that a linear separator finds between two kinds of latent vectors.

After InterFaceGAN (Shen, Gu, Tang and Zhou, CVPR 2020, arXiv 1907.10786), sections 3.1 and 3.2: the unit normal n of the hyperplane that
tells an attribute's two sides apart; z + a n changes the attribute; n1 - (n1 . n2) n2 changes the first but not the second.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from opticus.metrics.separability import plane
from opticus.structures import UsageError


def direction(vectors: Tensor, labels: Tensor) -> Tensor:
    """The unit normal (D,) of the plane between latent vectors (N, D) whose label (N,) is True and those whose label is False.

    UsageError if the shapes do not fit or all labels are alike.
    """
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise UsageError(f"edit: vectors (N, D) and labels (N,) are needed, found {tuple(vectors.shape)} and {tuple(labels.shape)}")
    given = labels.bool()
    if bool(given.all()) or not bool(given.any()):
        raise UsageError(f"edit: all {len(labels)} labels are {bool(given[0])}: there are no two sides to tell apart")
    normal, _ = plane(vectors.detach().double().cpu().numpy(), given.cpu().numpy())
    return torch.from_numpy(normal / np.linalg.norm(normal)).to(vectors)


def without(normal: Tensor, others: Tensor) -> Tensor:
    """The part of a direction (D,) at right angles to all `others` (K, D), of length 1: the edit that leaves those attributes alone.

    UsageError if nothing is left of it.
    """
    basis, _ = torch.linalg.qr(others.double().T)
    left = normal.double() - basis @ (basis.T @ normal.double())
    if float(left.norm()) < 1e-6 * float(normal.norm()):
        raise UsageError("edit: the direction lies in the span of those that it is to leave alone")
    return (left / left.norm()).to(normal)


def edited(vectors: Tensor, normal: Tensor, strength: float) -> Tensor:
    """Latent vectors (N, D) moved by `strength` along a direction (D,)."""
    return vectors + strength * normal
