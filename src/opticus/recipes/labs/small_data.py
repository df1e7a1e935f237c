"""Little data: a pretrained network frozen or fine-tuned, against training from scratch (Yosinski et al. 2014; Kornblith et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.recipes.lab import (
    COLOURS,
    Cell,
    Check,
    Row,
    accuracy,
    at_side,
    difference,
    dress,
    figures_of,
    learn,
    mean,
    pictures,
    scaled,
)
from opticus.training.recipe import Optim
from opticus.verbs.models import create, load, save

CLAIM = "With few pictures a network trained before on other classes beats one trained from scratch; with more, fine-tuning beats freezing it."
SETUP = (
    "A small ResNet (8 layers, 16 channels) is trained on 1,200 coloured digits (crops, 16x16) of the classes 0 to 4, then used for the classes 5 "
    "to 9 with 10, 50 and 250 pictures: frozen (a linear classifier on its features), fine-tuned, or replaced by fresh weights. Test pictures: "
    "those of the classes 5 to 9 among the 500 of the test split. Every seed has its own pretraining and its own pictures."
)
VERSION = 1
SEEDS = 4
SOURCE_STEPS, STEPS, SIDE = 350, 120, 16
SIZES = (10, 50, 250)
WAYS = ("frozen", "fine-tuned", "from scratch")


class Probe(nn.Module):
    """A linear classifier on the features of a network that stays as it is."""

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.prepare = encoder.prepare
        self.head = nn.Linear(encoder.widths[-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:
        self.encoder.eval()
        with torch.no_grad():
            vectors = self.encoder.embed(pixels)
        return self.head(vectors)


def cells(seeds: int, scale: float) -> list[Cell]:
    """Every way with every number of pictures once per seed."""
    settings = {"steps": scaled(STEPS, scale), "source_steps": scaled(SOURCE_STEPS, scale)}
    return [
        {"arm": f"{way} {size}", "seed": seed, "way": way, "size": size, **settings}
        for seed in range(seeds)
        for size in SIZES
        for way in WAYS
    ]


def fresh() -> Any:
    """The network before any training."""
    return at_side(zoo.create("resnet/20", layers=(1, 1, 1), width=16, classes=5), SIDE)


def pretrained(cell: Cell, folder: Path) -> Any:
    """The network trained on the classes 0 to 4; trained once per seed and kept as a file."""
    path = folder / f"source-{cell['seed']}-{cell['source_steps']}-{VERSION}.safetensors"
    if not path.is_file():
        torch.manual_seed(1000 + cell["seed"])
        network = at_side(create("resnet/20", layers=(1, 1, 1), width=16, classes=5), SIDE)
        learn(network, pictures("crops", "train", 1200, classes=range(5), side=SIDE), steps=cell["source_steps"], seed=cell["seed"])
        save(network, path)
    return at_side(load(path, quiet=True), SIDE)


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Test accuracy on the classes 5 to 9."""
    classes = range(5, 10)
    data = pictures("crops", "train", cell["size"], classes=classes, skip=cell["seed"] % 7 * SIZES[-1], side=SIDE)
    network = fresh() if cell["way"] == "from scratch" else pretrained(cell, folder)
    torch.manual_seed(cell["seed"])
    if cell["way"] == "frozen":
        network, rate = Probe(network, 5), 1e-2
    else:
        network.fc, rate = nn.Linear(network.widths[-1], 5), 2e-3
    learn(network, data, steps=cell["steps"], batch=32, seed=cell["seed"], rule=Optim("adamw", lr=rate, clip=5.0))
    return {"test": accuracy(network, pictures("crops", "test", 500, classes=classes, side=SIDE))}


def judge(rows: Sequence[Row]) -> list[Check]:
    """Both pretrained ways against scratch where pictures are few, and fine-tuning against freezing where there are more."""
    few, some, many = SIZES
    return [
        Check(
            f"{few} pictures: test accuracy, frozen minus from scratch",
            *difference(rows, f"frozen {few}", f"from scratch {few}", "test"),
        ),
        Check(
            f"{some} pictures: fine-tuned minus from scratch",
            *difference(rows, f"fine-tuned {some}", f"from scratch {some}", "test"),
        ),
        Check(f"{many} pictures: fine-tuned minus frozen", *difference(rows, f"fine-tuned {many}", f"frozen {many}", "test")),
    ]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Test accuracy over the number of pictures."""
    axes = figure.subplots()
    for place, way in enumerate(WAYS):
        middle = [mean(figures_of(rows, f"{way} {size}", "test")) for size in SIZES]
        axes.plot(SIZES, [m.value for m in middle], "o-", color=COLOURS[place], linewidth=2, label=way)
        axes.fill_between(SIZES, [m.low for m in middle], [m.high for m in middle], color=COLOURS[place], alpha=0.13, linewidth=0)
    axes.axhline(0.2, color="#777", linewidth=1, linestyle=":")
    axes.text(SIZES[-1], 0.205, "chance", color="#555", fontsize=9, ha="right")
    axes.set_xscale("log")
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.set_ylim(0.1, 1.0)
    dress(axes, "classes 5 to 9 after training on 0 to 4", "training pictures", "test accuracy")
