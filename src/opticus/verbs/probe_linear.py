"""The linear probe of self-supervised papers: one linear layer trained by SGD on frozen features, for every learning rate at once.

Caron et al. 2021 (DINO), reference facebookresearch/dino (Apache-2.0), `eval_linear.py`: 100 epochs, momentum 0.9, no weight decay, the
learning rate scaled by batch / 256 and annealed to zero by a cosine over epochs, weights drawn with deviation 0.01 and no bias.
*Differs*: features are computed once, so that the training pictures are not augmented (the reference draws random crops and flips);
the rate is chosen on the validation split and accuracy is that of the last epoch, while the reference reports the best epoch on
the split that it scores.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opticus.structures import DataError

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0)  # at a batch of 256
EPOCHS, BATCH, MOMENTUM, DEVIATION = 100, 128, 0.9, 0.01
BUDGET = 1 << 26  # weights trained at once, about 0.5 GB with their momentum and gradients


class Swept(NamedTuple):
    """Classifiers of all learning rates: `weight` (R, D, K), `bias` (R, K), and their accuracy on the validation split."""

    weight: Tensor
    bias: Tensor
    rates: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def best(self) -> int:
        """The rate with the best accuracy, the lowest of equals; DataError if every one diverged."""
        if max(self.accuracy) < 0:
            raise DataError(
                f"the linear classifier diverged at every learning rate of {list(self.rates)}: the features are too large"
            )
        return int(np.argmax(self.accuracy))


def sweep(
    train: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    val: npt.NDArray[Any],
    val_labels: npt.NDArray[np.int64],
    classes: int,
    *,
    rates: tuple[float, ...] = RATES,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    seed: int = 0,
) -> Swept:
    """Train a classifier (D, `classes`) for each of `rates` on vectors (N, D): all see the same batches, in one batched product."""
    x, y = torch.from_numpy(np.asarray(train, np.float32).copy()), torch.from_numpy(labels)
    v, truth = torch.from_numpy(np.asarray(val, np.float32).copy()), torch.from_numpy(val_labels)
    together = max(1, BUDGET // max(x.shape[1] * classes, 1))
    parts = [_trained(x, y, classes, rates[i : i + together], epochs, batch, seed) for i in range(0, len(rates), together)]
    weight, bias = torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])
    accuracy: list[float] = []
    for w, b in zip(weight, bias):
        fine = bool(torch.isfinite(w).all() and torch.isfinite(b).all())
        accuracy.append(float(((v @ w + b).argmax(1) == truth).float().mean()) if fine else -1.0)
    return Swept(weight, bias, rates, tuple(accuracy))


def _trained(
    x: Tensor, y: Tensor, classes: int, rates: tuple[float, ...], epochs: int, batch: int, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(x.shape[1], classes, generator=generator) * DEVIATION
    weight = start.expand(len(rates), -1, -1).clone()
    bias = torch.zeros(len(rates), 1, classes)
    slow_w, slow_b = torch.zeros_like(weight), torch.zeros_like(bias)
    batch = min(batch, len(x))
    scale = torch.tensor(rates, dtype=torch.float32)[:, None, None] * batch / 256
    for epoch in range(epochs):
        step = scale * (1 + math.cos(math.pi * epoch / epochs)) / 2
        order = torch.randperm(len(x), generator=generator)
        for picks in order.split(batch):
            part, truth = x[picks], y[picks]
            error = torch.baddbmm(bias, part.expand(len(rates), -1, -1), weight).softmax(-1)  # R, B, K
            error[:, torch.arange(len(picks)), truth] -= 1
            error /= len(picks)
            slow_w.mul_(MOMENTUM).baddbmm_(part.T.expand(len(rates), -1, -1), error)
            slow_b.mul_(MOMENTUM).add_(error.sum(1, keepdim=True))
            weight -= step * slow_w
            bias -= step * slow_b
    return weight, bias[:, 0]


def sgd_scores(
    train: Any, val: Any, test: npt.NDArray[Any], classes: int, *, epochs: int = EPOCHS, batch: int = BATCH
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Probabilities (N, K) of `test` under the classifier whose rate was best on `val`, and the protocol; both are `Features`."""
    found = sweep(train.vectors, train.labels, val.vectors, val.labels, classes, epochs=epochs, batch=batch)
    best = found.best
    logits = torch.from_numpy(np.asarray(test, np.float32).copy()) @ found.weight[best] + found.bias[best]
    settings = {
        "method": "linear layer by SGD",
        "epochs": epochs,
        "batch": min(batch, len(train.labels)),
        "momentum": MOMENTUM,
        "weight decay": 0.0,
        "schedule": "cosine over epochs",
        "augmentation": "none (features computed once)",
        "sweep": list(RATES),
        "selection": "validation accuracy after the last epoch",
        "rate": found.rates[best],
    }
    return logits.softmax(1).numpy(), settings
