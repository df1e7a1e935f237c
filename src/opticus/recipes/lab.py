"""Labs: a claim of the lectures, small trainings that check it, a number with its uncertainty, and whether the claim holds here.

A lab is one file in `recipes/labs/`, found by looking at the folder. It exports CLAIM and SETUP (sentences), VERSION (raise it when
`measure` or what it calls changes), SEEDS, `cells(seeds, scale)` (the settings of every training, plain dictionaries with "arm" and
"seed"), `measure(cell, folder)` (one training: JSON-ready figures), `judge(rows)` (the checks) and `draw(figure, rows)` (the picture).
Every finished training is kept, so that a lab that was stopped goes on where it was.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib
import io
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy import stats
from torch import nn
from tqdm import tqdm

from opticus.data.arrays import ArrayPictures
from opticus.data.loader import Plan, batches
from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.losses.classify import CrossEntropy
from opticus.losses.supervised import Supervised
from opticus.structures import Classes, DataError, TrainError, UnknownNameError, UsageError
from opticus.structures.files import write_bytes, write_text
from opticus.training import optim
from opticus.training.recipe import Optim, Schedule
from opticus.transforms.prepare import prepare

FOLDER = Path(__file__).parent / "labs"
Cell = dict[str, Any]
Row = dict[str, Any]  # a cell's settings and, under "found", its figures
COSINE = (Schedule("cosine", warmup=0.1, end=0.01),)
ADAM = Optim("adamw", lr=2e-3, clip=5.0)


# --- labs and their answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One number with its 95 % interval, and on which side of `bound` the claim puts it."""

    what: str
    value: float
    low: float
    high: float
    bound: float = 0.0
    above: bool = True

    @property
    def holds(self) -> bool:
        """The whole interval lies on the claimed side."""
        return self.low > self.bound if self.above else self.high < self.bound

    def __str__(self) -> str:
        side = f"{'above' if self.above else 'below'} {self.bound:g}"
        verdict = "holds" if self.holds else "does not hold"
        return f"{self.what}: {self.value:.4f} (95 % interval {self.low:.4f} to {self.high:.4f}); claimed {side}: {verdict}"


@dataclass(frozen=True)
class Finding:
    """What a lab found; the claim holds here if every check does."""

    name: str
    claim: str
    setup: str
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]
    seconds: float  # of the trainings themselves, however often the lab was resumed
    out: Path

    @property
    def holds(self) -> bool:
        """Whether the claim holds here."""
        return all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, without the curves of the single trainings."""
        checks = [{**asdict(check), "holds": check.holds} for check in self.checks]
        return {
            "lab": self.name, "claim": self.claim, "setup": self.setup, "holds": self.holds, "checks": checks,
            "seconds": round(self.seconds, 1), "figure": str(self.out / "figure.png"), "page": str(self.out / "lab.html"),
        }  # fmt: skip

    def text(self) -> str:
        """The claim, the checked numbers, the verdict, and where to look."""
        verdict = "The claim holds here." if self.holds else "The claim does not hold here."
        return "\n".join([f"claim: {self.claim}", *map(str, self.checks), verdict, f"look: {self.out / 'lab.html'}"])


def labs() -> dict[str, Path]:
    """Name ("batch-norm") -> file, for every lab."""
    return {file.stem.replace("_", "-"): file for file in sorted(FOLDER.glob("*.py")) if not file.stem.startswith("_")}


def lab(name: str) -> ModuleType:
    """The module of one lab; UnknownNameError with the nearest names if there is none."""
    if name not in labs():
        raise UnknownNameError("lab", name, labs())
    return importlib.import_module(f"opticus.recipes.labs.{labs()[name].stem}")


def claims() -> dict[str, str]:
    """Name -> claim, for every lab."""
    return {name: lab(name).CLAIM for name in labs()}


def run(name: str, out: Path | None = None, *, seeds: int | None = None, scale: float = 1.0, quiet: bool = False) -> Finding:
    """Run a lab into `out` (default runs/labs/NAME): lab.json, figure.png, lab.html, and one file per training under cells/.

    `seeds` is the number of repetitions (default: the lab's own, SEEDS), `scale` multiplies the number of steps. Finished trainings of the
    same settings are taken from `out`. Raises UsageError for fewer than two repetitions: there would be no uncertainty.
    """
    module = lab(name)
    count = module.SEEDS if seeds is None else seeds
    if count < 2:
        raise UsageError(f"seeds must be at least 2, found {count}: the uncertainty comes from repetitions")
    if not (0 < scale <= 100):
        raise UsageError(f"scale must be in (0, 100], found {scale}")
    out = Path("runs/labs") / name if out is None else out
    rows: list[Row] = []
    for cell in tqdm(module.cells(count, scale), desc=name, unit="training", file=sys.stderr, disable=quiet, leave=False):
        rows.append(_cell(module, cell, out / "cells"))
    checks = tuple(module.judge(rows))
    seconds = sum(row["seconds"] for row in rows)
    finding = Finding(name, module.CLAIM, module.SETUP, checks, tuple(rows), seconds, out)
    write_bytes(out / "figure.png", _png(module, rows))
    kept = [{key: value for key, value in row.items() if key != "found"} | _plain(row["found"]) for row in rows]
    write_text(out / "lab.json", json.dumps({**finding.to_json(), "trainings": kept}, indent=1))
    write_text(out / "lab.html", _page(finding, kept))
    return finding


def _cell(module: ModuleType, cell: Cell, folder: Path) -> Row:
    """One training, from its file where it is finished already."""
    text = json.dumps({**cell, "version": module.VERSION}, sort_keys=True)
    path = folder / f"{cell['arm']}-{cell['seed']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json".replace(" ", "_")
    if path.is_file():
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise TrainError(f"{path}: not the result of a training ({error}); remove it") from error
    start = time.perf_counter()
    row = {**cell, "found": module.measure(cell, folder)}
    row["seconds"] = round(time.perf_counter() - start, 2)
    write_text(path, json.dumps(row))
    return row


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if not isinstance(value, list)}


# --- numbers ---------------------------------------------------------------------------------------------------------------


class Mean(NamedTuple):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float]) -> Mean:
    """Mean and Student's 95 % interval over repetitions (at least two)."""
    array = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return Mean(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


def figures_of(rows: Sequence[Row], arm: str, key: str) -> list[float]:
    """One figure of an arm, in the order of the seeds."""
    chosen = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"])
    return [row["found"][key] for row in chosen]


def difference(rows: Sequence[Row], first: str, second: str, key: str) -> Mean:
    """The figure of arm `first` minus that of `second`, paired by seed."""
    return mean([a - b for a, b in zip(figures_of(rows, first, key), figures_of(rows, second, key), strict=True)])


def scaled(steps: int, scale: float) -> int:
    """A number of steps for a smaller or larger lab, at least 2."""
    return max(2, round(steps * scale))


# --- data and training -----------------------------------------------------------------------------------------------------


@functools.cache
def _record(name: str, split: str, index: int) -> tuple[np.ndarray, int]:
    """One picture (H, W, C) uint8 and its label; crops are drawn anew at every reading, so they are kept."""
    sample = _data(name, split)[index]
    return sample.picture.pixels.numpy(), int(cast(Classes, sample.target).labels[0])


@functools.cache
def _data(name: str, split: str) -> Source:
    return open_data(name, split)


def pictures(
    name: str, split: str, count: int, *, classes: Sequence[int] | None = None, skip: int = 0, side: int | None = None
) -> ArrayPictures:
    """The first `count` pictures (after `skip`) of an embedded set in memory, of some classes only; labels count from 0 among them.

    `side`: shrunk to (side, side) by averaging, which must divide the pictures' own side.
    """
    data = _data(name, split)
    wanted = list(range(len(data.names)) if classes is None else classes)
    known = (_record(name, split, index) for index in range(len(data)))
    chosen = list(itertools.islice((row for row in known if row[1] in wanted), skip, skip + count))
    if not chosen:
        raise DataError(f"{name}, split {split}: fewer than {skip + 1} pictures of the classes {wanted}")
    pixels = np.stack([row[0] for row in chosen])
    if side is not None:
        n, height, width, channels = pixels.shape
        blocks = pixels.reshape(n, side, height // side, side, width // side, channels)
        pixels = np.rint(blocks.mean((2, 4))).astype(np.uint8)
    labels = np.asarray([wanted.index(row[1]) for row in chosen])
    names = tuple(data.names[i] for i in wanted)
    return ArrayPictures(pixels, labels, names, split=split, splits=("train", "val", "test"), where=name)


@dataclass
class Learned:
    """The losses and accuracies of every training step, on the batch it was made from."""

    losses: list[float] = field(default_factory=list[float])
    accuracies: list[float] = field(default_factory=list[float])

    def last(self, share: float = 0.1) -> float:
        """Mean accuracy over the last share of the steps."""
        count = max(1, round(len(self.accuracies) * share))
        return sum(self.accuracies[-count:]) / count


def learn(
    network: nn.Module,
    data: ArrayPictures,
    *,
    steps: int,
    batch: int = 64,
    seed: int = 0,
    rule: Optim = ADAM,
    schedules: tuple[Schedule, ...] = COSINE,
    transforms: Sequence[Callable[..., Any]] = (),
) -> Learned:
    """Train a classifier on pictures in memory with cross-entropy; stops where the loss is no number (the rest of the curve repeats it)."""
    objective = Supervised(network.train(), CrossEntropy())
    optimiser = optim.build(objective, "all", rule)
    stream = batches(data, transforms, cast(Any, network).prepare, Plan(seed, min(batch, len(data))))
    learned = Learned()
    for step in range(steps):
        given = next(stream)
        labels = torch.cat([cast(Classes, target).labels for target in given.targets])
        optim.apply_schedules(optimiser, schedules, step / steps)
        assert given.images is not None
        logits = network(given.images.pixels)
        loss = objective.criterion(logits, given)["classify"]
        right = float((logits.detach().argmax(1) == labels).float().mean())
        learned.losses.append(float(loss.detach()))
        learned.accuracies.append(right)
        if not math.isfinite(learned.losses[-1]):
            rest = steps - step - 1
            learned.losses += [math.log(len(data.names))] * rest
            learned.losses[step] = math.log(len(data.names))
            learned.accuracies += [1 / len(data.names)] * rest
            break
        optimiser.zero_grad()
        loss.backward()
        if rule.clip is not None:
            nn.utils.clip_grad_norm_(objective.parameters_of("all"), rule.clip)
        optimiser.step()
    return learned


def pixels_of(network: nn.Module, data: ArrayPictures) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures as the network's input (N, C, H, W), and their labels (N,)."""
    samples = [data[i].picture for i in range(len(data))]
    return prepare(samples, cast(Any, network).prepare).pixels, torch.from_numpy(np.asarray(data.labels))


@torch.no_grad()
def predictions(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The predicted class of every input (N,)."""
    network.eval()
    return torch.cat([network(part).argmax(1) for part in pixels.split(250)])


def accuracy(network: nn.Module, data: ArrayPictures) -> float:
    """The share of pictures whose class is predicted."""
    pixels, labels = pixels_of(network, data)
    return float((predictions(network, pixels) == labels).float().mean())


def at_side(network: nn.Module, side: int) -> nn.Module:
    """The network, for pictures of (side, side)."""
    anything = cast(Any, network)
    anything.prepare = replace(anything.prepare, size=(side, side))
    return network


# --- pictures --------------------------------------------------------------------------------------------------------------

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def dress(axes: Any, title: str, x: str, y: str, *, legend: bool = True) -> None:
    """Titles and a light grid."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def smooth(values: Sequence[float], width: int = 15) -> np.ndarray:
    """A running mean over at most `width` steps back."""
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, float)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def bars(axes: Any, rows: Sequence[Row], arms: Sequence[str], key: str) -> None:
    """One bar per arm, the mean over seeds, with its 95 % interval and a dot per seed."""
    for place, arm in enumerate(arms):
        values = figures_of(rows, arm, key)
        middle = mean(values)
        axes.bar(place, middle.value, 0.62, color=COLOURS[place % len(COLOURS)], alpha=0.85)
        axes.vlines(place, middle.low, middle.high, color="#111", linewidth=1.5)
        axes.plot([place + 0.18] * len(values), values, ".", color="#111", markersize=4, alpha=0.6)
    axes.set_xticks(range(len(arms)), [arm.replace(" ", "\n", 1) for arm in arms])


def _png(module: ModuleType, rows: Sequence[Row]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    module.draw(figure, rows)
    stream = io.BytesIO()
    canvas.print_png(stream, metadata={"Software": None})
    return stream.getvalue()


_STYLE = """:root{color-scheme:light dark}body{margin:0 auto;max-width:1000px;padding:24px 20px 60px;font:16px/1.55 system-ui,sans-serif}
h1{font-size:25px;margin:0 0 6px}img{width:100%;height:auto;background:#fff;border-radius:6px}.verdict{font-weight:700}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}td,th{padding:4px 14px 4px 0;text-align:left;
border-bottom:1px solid #8884}.wide{overflow-x:auto}"""


def _page(finding: Finding, rows: Sequence[Row]) -> str:
    picture = base64.b64encode((finding.out / "figure.png").read_bytes()).decode()
    title = html.escape(f"Lab: {finding.name}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(key.replace('_', ' '))}</th>" for key in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell_text(row.get(key)))}</td>" for key in columns) + "</tr>" for row in rows
    )
    checks = "".join(f"<li>{html.escape(str(check))}</li>" for check in finding.checks)
    verdict = "The claim holds here." if finding.holds else "The claim does not hold here."
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body><h1>{title}</h1>'
        f'<p>{html.escape(finding.claim)}</p><p class="verdict">{verdict}</p><ul>{checks}</ul>'
        f'<img alt="{html.escape(finding.claim)}" src="data:image/png;base64,{picture}"><h2>How</h2><p>{html.escape(finding.setup)}</p>'
        f'<h2>Every training</h2><div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        f"<p>{len(rows)} trainings, {finding.seconds:.0f} s; again: opticus lab {html.escape(finding.name)}</p></body></html>\n"
    )


def _cell_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else re.sub(r"\s+", " ", str(value))
