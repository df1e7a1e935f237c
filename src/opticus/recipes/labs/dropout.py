"""Dropout (Srivastava et al. 2014): the gap between training and test with and without, on few pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opticus.recipes.lab import Cell, Check, Row, accuracy, bars, difference, dress, learn, pictures, scaled
from opticus.structures import Prepare
from opticus.training.recipe import Optim

CLAIM = "Dropout narrows the gap between the accuracy on the training pictures and on others."
SETUP = (
    "The fully connected network of the dropout paper's MNIST experiments, smaller (784-512-512-10, ReLU; 20 % of the inputs and 50 % of the "
    "hidden units dropped), on 60 handwritten digits, other ones for every seed; 500 test pictures."
)
VERSION = 1
SEEDS = 16
STEPS, TRAIN = 300, 60
ARMS = ("without dropout", "with dropout")


class Perceptron(nn.Module):
    """Two hidden layers of 512 units."""

    def __init__(self, *, inputs: float, hidden: float) -> None:
        super().__init__()
        self.prepare = Prepare(channels=1, size=(28, 28), mean=(0.0,), std=(1.0,))
        first = (nn.Flatten(), nn.Dropout(inputs), nn.Linear(784, 512), nn.ReLU(), nn.Dropout(hidden))
        self.layers = nn.Sequential(*first, nn.Linear(512, 512), nn.ReLU(), nn.Dropout(hidden), nn.Linear(512, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def cells(seeds: int, scale: float) -> list[Cell]:
    """Both arms once per seed."""
    return [{"arm": arm, "seed": seed, "steps": scaled(STEPS, scale), "train": TRAIN} for seed in range(seeds) for arm in ARMS]


def measure(cell: Cell, folder: Any) -> dict[str, Any]:
    """Accuracy on the training and the test pictures, without dropping anything, and their gap."""
    torch.manual_seed(cell["seed"])
    network = Perceptron(inputs=0.2, hidden=0.5) if cell["arm"] == ARMS[1] else Perceptron(inputs=0.0, hidden=0.0)
    data = pictures("digits", "train", cell["train"], skip=cell["seed"] % 18 * cell["train"])
    learn(network, data, steps=cell["steps"], batch=50, seed=cell["seed"], rule=Optim("adamw", lr=1e-3, weight_decay=0.0))
    train, test = accuracy(network, data), accuracy(network, pictures("digits", "test", 500))
    return {"train": train, "test": test, "gap": train - test}


def judge(rows: Sequence[Row]) -> list[Check]:
    """By how much the gap narrows."""
    return [Check("gap between training and test accuracy, without dropout minus with", *difference(rows, ARMS[0], ARMS[1], "gap"))]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """The gap, and the accuracies that it is made of."""
    left, middle, right = figure.subplots(1, 3)
    for axes, key, title in ((left, "train", "training accuracy"), (middle, "test", "test accuracy"), (right, "gap", "gap")):
        bars(axes, rows, ARMS, key)
        dress(axes, title, "", "", legend=False)
    left.set_ylim(0, 1.02)
    middle.set_ylim(0, 1.02)
