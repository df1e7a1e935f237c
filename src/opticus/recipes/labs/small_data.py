"""Little data: a pretrained network frozen or fine-tuned, against training from scratch (Yosinski et al. 2014; Kornblith et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from opticus import zoo
from opticus.data.arrays import ArrayPictures
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
    pixels_of,
    scaled,
)
from opticus.verbs.models import create, load, save

CLAIM = (
    "With few pictures a network trained before on other classes beats one trained from scratch, fine-tuned and frozen alike; with more, "
    "fine-tuning beats freezing."
)
SETUP = (
    "A small ResNet (8 layers, 16 channels) is trained on 500 handwritten digits (14x14) of the classes 0 to 4, then used for the classes "
    "5 to 9 with 10, 50 and 250 pictures: frozen (logistic regression on its standardised features), fine-tuned, or replaced by fresh "
    "weights. Test pictures: those of the classes 5 to 9 among the 500 of the test split. Every seed has its own pretraining and its own "
    "pictures (those of 250 overlap)."
)
VERSION = 2
SEEDS = 4
SOURCE_STEPS, STEPS, SIDE = 250, 120, 14
SIZES = (10, 50, 250)
WAYS = ("frozen", "fine-tuned", "from scratch")


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
    return at_side(zoo.create("resnet/20", layers=(1, 1, 1), width=16, channels=1, classes=5), SIDE)


def pretrained(cell: Cell, folder: Path) -> Any:
    """The network trained on the classes 0 to 4; trained once per seed and kept as a file."""
    path = folder / f"source-{cell['seed']}-{cell['source_steps']}-{VERSION}.safetensors"
    if not path.is_file():
        torch.manual_seed(1000 + cell["seed"])
        network = at_side(create("resnet/20", layers=(1, 1, 1), width=16, channels=1, classes=5), SIDE)
        learn(network, pictures("digits", "train", 500, classes=range(5), side=SIDE), steps=cell["source_steps"], seed=cell["seed"])
        save(network, path)
    return at_side(load(path, quiet=True), SIDE)


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Test accuracy on the classes 5 to 9."""
    classes = range(5, 10)
    data = pictures("digits", "train", cell["size"], classes=classes, skip=cell["seed"] % 6 * 50, side=SIDE)
    test = pictures("digits", "test", 500, classes=classes, side=SIDE)
    network = fresh() if cell["way"] == "from scratch" else pretrained(cell, folder)
    if cell["way"] == "frozen":
        return {"test": probed(network, data, test)}
    torch.manual_seed(cell["seed"])
    network.fc = nn.Linear(network.widths[-1], 5)
    learn(network, data, steps=cell["steps"], batch=32, seed=cell["seed"])
    return {"test": accuracy(network, test)}


@torch.no_grad()
def probed(network: Any, data: ArrayPictures, test: ArrayPictures) -> float:
    """Test accuracy of logistic regression, trained until it converges, on the features of a network that stays as it is."""
    network.eval()
    (learned, labels), (other, truth) = (
        (network.embed(pixels).numpy(), known.numpy()) for pixels, known in (pixels_of(network, data), pixels_of(network, test))
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(learned, labels)
    return float(classifier.score(other, truth))


def judge(rows: Sequence[Row]) -> list[Check]:
    """Both pretrained ways against scratch where pictures are few, and fine-tuning against freezing where there are more."""
    few, some, many = SIZES

    def check(size: int, first: str, second: str) -> Check:
        words = f"{size} pictures: test accuracy, {first} minus {second}"
        return Check(words, *difference(rows, f"{first} {size}", f"{second} {size}", "test"))

    return [
        check(few, "fine-tuned", "from scratch"),
        check(some, "fine-tuned", "from scratch"),
        check(few, "frozen", "from scratch"),
        check(many, "fine-tuned", "frozen"),
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
