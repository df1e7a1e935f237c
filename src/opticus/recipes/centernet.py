"""Recipes for CenterNet."""

from __future__ import annotations

from typing import NamedTuple

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize


class Run(NamedTuple):
    """A published training: epochs, batch, learning rate, the epochs after which it is divided by 10, and what came out."""

    epochs: int
    batch: int
    lr: float
    drops: tuple[int, ...]
    ap: float = 0.0


# experiments/ctdet_coco_*.sh and readme/MODEL_ZOO.md of the authors' repository
PUBLISHED = {
    "hourglass": Run(50, 24, 2.5e-4, (40,), 40.3),  # from ExtremeNet's weights
    "dla34": Run(230, 128, 5e-4, (180, 210), 37.4),
    "resdcn101": Run(140, 96, 3.75e-4, (90, 120), 34.6),
    "resdcn18": Run(140, 114, 5e-4, (90, 120), 28.1),
}


def default(model: str, data: Dataset) -> Recipe:
    """The demo's recipe for small pictures; the authors' for the others."""
    if model == "centernet/tiny":
        return tiny(model)
    run = PUBLISHED.get(model.partition("/")[2])
    published = f"; its model zoo publishes AP {run.ap:.1f} on COCO val2017 without mirroring" if run else ""
    run = run or Run(140, 32, 1.25e-4, (90, 120))
    return Recipe(
        model,
        "",
        transforms=(
            Flip(),
            Affine(scale=(0.6, 1.4), translate=(0.1, 0.1)),
            Resize((512, 512), "letterbox", fill=0),
            ColourJitter(0.4, 0.4, 0.4),
        ),
        batch=run.batch,
        epochs=run.epochs,
        optim={"all": Optim("adam", lr=run.lr, weight_decay=0.0)},
        schedules=(Schedule("step", milestones=tuple(epoch / run.epochs for epoch in run.drops)),),
        note=f"the authors' repository: {run.epochs} epochs, learning rate {run.lr:g} (batch {run.batch}), divided by 10 after "
        f"{' and '.join(str(epoch) for epoch in run.drops)}{published}; not run here",
    )


def tiny(model: str) -> Recipe:
    """2,000 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped.

    Scenes hold few photographs, so any hue may turn into any other; crops are mild because small digits are the hard ones. The
    sizes weigh three times as much as in the paper: pictures are four times smaller than COCO's, and so are errors in cells.
    """
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=0),  # as the network's own `prepare` frames pictures that are not square
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        options={"size_weight": 0.3},
        batch=16,
        steps=2000,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=1000,
        save_every=500,
        workers=1,
        note="the demo: minutes on two cores",
    )
