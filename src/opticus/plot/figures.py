"""Figures as SVG text (curves, precision-recall, confusion, bars) and sheets of pictures; matplotlib without any global state.

The SVG carries no background and draws its ink in `currentColor`, so that it is readable on light and dark pages alike.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.colours import INK, PAPER, colour, font
from opticus.plot.draw import to_pixels
from opticus.structures import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

Columns = Mapping[str, Sequence[float]]
_INK = "#010203"  # stands for currentColor until the SVG is written
_BLUE = (0.0, 0.447, 0.698)


def read_curves(path: str | Path) -> dict[str, list[float]]:
    """Columns of a run's `results.csv`, sorted by step; empty cells are NaN, a step written twice (a resumed run) counts as last.

    A line cut short by a crash is left out. Raises DataError if the file is absent or has no `step` column.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a results.csv, found {error}") from error
    if not rows or "step" not in rows[0]:
        raise DataError(f"{path}: expected a column 'step', found {', '.join(rows[0]) if rows else 'an empty file'}")
    names, where = rows[0], rows[0].index("step")
    lines: dict[float, list[float]] = {}
    for row in rows[1:]:
        if len(row) == len(names):
            values = [_number(cell) for cell in row]
            lines[values[where]] = values
    ordered = [lines[step] for step in sorted(lines)]
    return {name: [line[index] for line in ordered] for index, name in enumerate(names)}


def curves(columns: Columns) -> str:
    """SVG of a run: the training losses (log scale where all are positive), the validation numbers, the learning rate.

    Runs that watch for collapse also show entropy, divergence and information in nats, and the spread of the vectors.
    """
    steps = np.asarray(columns["step"], float)
    titles = ("training loss", "validation", "answers (nats)", "spread of vectors", "learning rate")
    groups: dict[str, dict[str, npt.NDArray[Any]]] = {title: {} for title in titles}
    for name, values in columns.items():
        series = np.asarray(values, float)
        if name.startswith("train/"):
            groups["training loss"][name.removeprefix("train/")] = series
        elif name.startswith("val/"):
            groups["validation"][name.removeprefix("val/")] = series
        elif name in ("watch/entropy", "watch/kl", "watch/information"):
            groups["answers (nats)"][name.removeprefix("watch/")] = series
        elif name == "watch/spread":
            groups["spread of vectors"]["spread"] = series
        elif name == "lr" or name.startswith("lr/"):
            groups["learning rate"][name] = series
    shown = {title: lines for title, lines in groups.items() if any(np.isfinite(v).any() for v in lines.values())}
    with _figure(4.4 * max(1, len(shown)), 3.1) as (figure, finish):
        for index, (title, lines) in enumerate(shown.items()):
            axes = figure.add_subplot(1, len(shown), index + 1)
            for number, (name, values) in enumerate(lines.items()):
                known = np.isfinite(values)
                marker = "o" if known.sum() <= 25 else None
                axes.plot(steps[known], values[known], color=_rgb(number), label=name, marker=marker, markersize=3, linewidth=1.5)
            if title == "training loss" and all((v[np.isfinite(v)] > 0).all() for v in lines.values()):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
            _dress(axes, title, "step", "", legend=len(lines) > 1 or title == "validation")
        return finish()


def precision_recall(curve: Mapping[str, Any], names: Sequence[str], key: str = "AP50") -> str:
    """SVG of precision over recall per class: `curve` holds `recall` (R,) and `curve[key]` (K, R), NaN where there is no truth."""
    recall, table = np.asarray(curve["recall"], float), np.asarray(curve[key], float)
    known = np.isfinite(table).all(1)
    named = int(known.sum()) <= 12
    with _figure(5.6 if named else 4.4, 3.6) as (figure, finish):
        axes = figure.add_subplot()
        for index in np.flatnonzero(known):
            label = f"{names[int(index)]}  {table[index].mean():.2f}" if named else None
            axes.plot(recall, table[index], color=_rgb(int(index)), linewidth=1.3, alpha=1.0 if named else 0.4, label=label)
        if known.any():
            mean = table[known].mean(0)
            axes.plot(recall, mean, color=_INK, linewidth=2.4, linestyle=(0, (4, 1.5)), label=f"mean  {mean.mean():.2f}")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        _dress(axes, "", "recall", f"precision ({key})", legend=bool(known.any()), outside=named)
        return finish()


def confusion(table: npt.ArrayLike, names: Sequence[str], *, background: bool = False) -> str:
    """SVG of a confusion matrix, rows true and columns predicted, shaded by share of the row; counts are written up to 16 classes."""
    counts = np.asarray(table, float)
    labels = [*names, "background"] if background else list(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(9.0, max(3.2, 0.42 * len(labels) + 1.2))
    with _figure(side + 0.3, side) as (figure, finish):
        axes = figure.add_subplot()
        tint = np.empty((*share.shape, 4))
        tint[..., :3], tint[..., 3] = _BLUE, np.where(counts > 0, 0.1 + 0.9 * share, 0.0)
        axes.imshow(tint, interpolation="nearest", aspect="equal")
        for i, j in np.argwhere(counts > 0) if len(labels) <= 16 else ():
            text = f"{int(counts[i, j])}"
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if share[i, j] > 0.55 else _INK)
        ticks = range(0, len(labels), max(1, math.ceil(len(labels) / 40)))
        axes.set_xticks(list(ticks), [_short(labels[t]) for t in ticks], rotation=90 if max(map(len, labels)) > 2 else 0)
        axes.set_yticks(list(ticks), [_short(labels[t]) for t in ticks])
        _dress(axes, "", "predicted", "true", grid=False)
        return finish()


def bars(rows: Sequence[Mapping[str, Any]], key: str, *, label: str = "name") -> str:
    """SVG of one horizontal bar per row, the value of `key` written at its end; rows whose value is None are left out."""
    known = [row for row in rows if row.get(key) is not None]
    with _figure(5.2, 0.6 + 0.27 * max(1, len(known))) as (figure, finish):
        axes = figure.add_subplot()
        for index, row in enumerate(known):
            axes.barh(index, float(row[key]), color=_rgb(index), height=0.7)
            axes.text(float(row[key]) + 0.01, index, f"{float(row[key]):.3f}", va="center", fontsize=8, color=_INK)
        axes.set_yticks(range(len(known)), [_short(str(row[label])) for row in known])
        axes.invert_yaxis()
        axes.set_xlim(0, max(1.0, *(float(row[key]) * 1.1 for row in known)) if known else 1.0)
        _dress(axes, "", key, "", grid=False)
        return finish()


def profile(names: Sequence[str], values: Sequence[float], spread: Sequence[float], label: str) -> str:
    """SVG of one value per named place in order (the layers of a network), with a band of +- `spread` around it."""
    with _figure(max(3.6, 0.42 * len(names) + 1.2), 2.6) as (figure, finish):
        axes = figure.add_subplot()
        places, middle, around = np.arange(len(names)), np.asarray(values, float), np.asarray(spread, float)
        axes.fill_between(places, middle - around, middle + around, color=_rgb(0), alpha=0.2, linewidth=0)
        axes.plot(places, middle, color=_rgb(0), marker="o", markersize=3.5, linewidth=1.5)
        axes.set_xticks(places, [_short(name) for name in names], rotation=35, ha="right")
        axes.set_ylim(min(-0.05, float((middle - around).min()) - 0.05), 1.05)
        _dress(axes, "", "", label)
        return finish()


def reliability(bins: Sequence[Mapping[str, float]], error: float) -> str:
    """SVG of a reliability diagram: accuracy against confidence per bin beside the diagonal, and the share of samples below."""
    with _figure(3.8, 4.2) as (figure, finish):
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        edges = [(row["low"], row["high"] - row["low"]) for row in bins]
        for (low, width), row in zip(edges, bins):
            gap = row["confidence"] - row["accuracy"]
            axes.bar(low, row["accuracy"], width, align="edge", color=_rgb(0), alpha=0.85, linewidth=0)
            axes.bar(low, gap, width, bottom=row["accuracy"], align="edge", color=_rgb(1), alpha=0.35, linewidth=0)
            below.bar(low, row["share"], width, align="edge", color=_rgb(0), alpha=0.5, linewidth=0)
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle="--", alpha=0.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        _dress(axes, f"expected calibration error {error:.3f}", "", "accuracy (pale: gap to confidence)")
        _dress(below, "", "confidence", "share")
        return finish()


def sheet(pictures: Sequence[Any], captions: Sequence[str] = (), *, columns: int = 6, cell: int = 192) -> Image:
    """A grid of pictures (anything `draw` takes), each fitted into `cell` x `cell` pixels above its caption: samples, augmentations."""
    from PIL import Image as image_module
    from PIL import ImageDraw

    letters, gap = font(max(11, cell // 15)), max(4, cell // 32)
    text = round(letters.size * 1.6) if captions else 0
    width, rows = min(columns, max(1, len(pictures))), math.ceil(len(pictures) / columns) or 1
    size = (width * (cell + gap) + gap, rows * (cell + text + gap) + gap)
    canvas = image_module.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    for index, picture in enumerate(pictures):
        image = image_module.fromarray(to_pixels(picture))
        ratio = cell / max(image.size)
        smooth = image_module.Resampling.NEAREST if ratio > 3 else image_module.Resampling.BICUBIC
        image = image.resize((max(1, round(image.size[0] * ratio)), max(1, round(image.size[1] * ratio))), smooth)
        x, y = gap + index % columns * (cell + gap), gap + index // columns * (cell + text + gap)
        canvas.paste(image, (x + (cell - image.size[0]) // 2, y + (cell - image.size[1]) // 2))
        if index < len(captions):
            pen.text((x + cell / 2, y + cell + text / 2), _fitted(captions[index], letters, cell), INK, letters, anchor="mm")
    return canvas


@contextmanager
def _figure(width: float, height: float) -> Generator[tuple[Figure, Callable[[], str]]]:
    """A figure on a canvas of its own (inches), and the function that turns it into SVG text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "opticus", "text.parse_math": False, "font.size": 9}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in a script that DejaVu lacks is measured roughly; the browser has the letters
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)

        def finish() -> str:
            buffer = io.StringIO()
            canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
            return _tidy(buffer.getvalue())

        yield figure, finish


@contextmanager
def dressed_figure(
    width: float, height: float
) -> Generator[tuple[Figure, Callable[[], str], Callable[[Axes, str, str, str], None]]]:
    """For pages of other modules: a figure of this house, the function that makes SVG of it, and the one that dresses its axes."""
    with _figure(width, height) as (figure, finish):
        yield figure, finish, _dress


def _tidy(text: str) -> str:
    """The <svg> element alone, its ink following the page's colour, its width shrinking with the page."""
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    head, rest = text.split(">", 1)
    width = head.split('width="', 1)[1].split('"', 1)[0]
    return f'{head} style="max-width:100%;width:{width};height:auto">{rest}'


def _dress(axes: Axes, title: str, x: str, y: str, *, legend: bool = False, grid: bool = True, outside: bool = False) -> None:
    axes.patch.set_alpha(0.0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(visible=True, color="#888888", alpha=0.3, linewidth=0.6)
    if legend:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {"loc": "best"}
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK, **place)


def _rgb(index: int) -> tuple[float, float, float]:
    red, green, blue = colour(index)
    return red / 255, green / 255, blue / 255


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _short(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _fitted(text: str, letters: Any, width: float) -> str:
    while len(text) > 1 and letters.getlength(text) > width:
        text = f"{text[:-2]}…" if len(text) > 2 else text[:1]
    return text
