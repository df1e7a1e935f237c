"""The page of a comparison: the table, the figure of every system with its interval, and accuracy against cost."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opticus.plot.figures import dressed_figure
from opticus.plot.report import page

COSTS = {
    "parameters": "parameters",
    "flops": "operations of one picture",
    "latency": "ms a picture",
    "seconds": "seconds of training",
}


def comparison_page(found: Mapping[str, Any], shown: Sequence[str], pictures: Path | None = None) -> str:
    """A self-contained HTML page of `Comparison.to_json()`; `shown` are the figures of the table, `pictures` a PNG of results."""
    rows, figure = list(found["rows"]), str(found["figure"])
    sections = [("table", "Systems", _table(rows, shown)), ("intervals", "With their intervals", intervals(rows, figure))]
    for key, label in COSTS.items():
        points = [row for row in rows if not row["baseline"] and row.get(key)]
        if len(points) > 1:
            sections.append((key, f"{figure} against {label}", against(points, figure, key, label)))
    if pictures is not None:
        code = base64.b64encode(pictures.read_bytes()).decode("ascii")
        sections.append(("pictures", "Pictures", f'<img alt="results of the best systems" src="data:image/png;base64,{code}">'))
    protocol = "".join(f"<li>{html.escape(str(k))}: {html.escape(str(v))}</li>" for k, v in found["protocol"].items())
    sections.append(("protocol", "Protocol", f"<ul>{protocol}</ul>"))
    notes = [f"{len(rows)} systems on {found['data']}, best first; intervals are 95 % bootstrap over the test pictures"]
    return page(f"{found['data']}: {len(rows)} systems compared", notes, sections)


def _table(rows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> str:
    names = [name for name in shown if any(name in row["values"] for row in rows)]
    head = ["system", *names, "interval", "parameters", "MFLOPs", "field", "ms", "train s", "steps"]
    lines = [f"<tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr>"]
    for row in rows:
        field = "" if row["baseline"] else "all" if row["receptive_field"] is None else f"{row['receptive_field']} px"
        steps = "" if row["baseline"] else f"{row['steps']}" + ("" if row["finished"] else f" of {row['planned']}, stopped")
        cells = [row["system"], *(f"{row['values'][n]:.3f}" if n in row["values"] else "" for n in names), f"{row['low']:.3f} to {row['high']:.3f}",
                 _number(row["parameters"], "{:,}"), _number(row["flops"], "{:,.1f}", 1e-6), field, _number(row["latency"], "{:.2f}"),
                 _number(row["seconds"], "{:.0f}"), steps]  # fmt: skip
        lines.append(f"<tr>{''.join(f'<td>{html.escape(str(c))}</td>' for c in cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _number(value: Any, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor if factor != 1.0 else value)


def intervals(rows: Sequence[Mapping[str, Any]], figure: str) -> str:
    """SVG: every system's figure as a dot with its interval, best on top; baselines are hollow."""
    with dressed_figure(7.0, 0.26 * len(rows) + 0.8) as (drawing, finish, dress):
        axes = drawing.add_subplot()
        for place, row in enumerate(reversed(rows)):
            value = row["values"][figure]
            colour = "#d55e00" if row["baseline"] else "#0072b2"
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2, alpha=0.5)
            axes.plot([value], [place], "o", color=colour, markersize=5, fillstyle="none" if row["baseline"] else "full")
        axes.set_yticks(range(len(rows)), [str(row["system"]) for row in reversed(rows)])
        dress(axes, "", figure, "")
        return finish()


def against(rows: Sequence[Mapping[str, Any]], figure: str, cost: str, label: str) -> str:
    """SVG: the figure over a cost on a logarithmic axis, every system named beside its dot."""
    with dressed_figure(6.4, 3.8) as (drawing, finish, dress):
        axes = drawing.add_subplot()
        x, y = np.asarray([float(row[cost]) for row in rows]), np.asarray([row["values"][figure] for row in rows])
        axes.scatter(x, y, s=22, color="#0072b2")
        for row, left, height in zip(rows, x, label_heights(np.log(x), y), strict=True):
            name = str(row["system"])
            axes.annotate(name, (left, height), xytext=(5, 0), textcoords="offset points", fontsize=7, va="center")
        axes.set_xscale("log")
        axes.margins(x=0.25)
        dress(axes, "", label, figure)
        return finish()


def label_heights(x: npt.ArrayLike, y: npt.ArrayLike, width: float = 0.22, height: float = 0.04) -> list[float]:
    """At which y the name of each point, written to its right, covers neither another name nor another point, as near as it can be.

    `x` as it is drawn (its logarithm on a logarithmic axis); `width` and `height` of a name as shares of the extent of the points.
    """
    across, up = np.asarray(x, float), np.asarray(y, float)
    low, reach = float(up.min()), float(np.ptp(up)) or 1.0
    across, up = (across - across.min()) / (float(np.ptp(across)) or 1.0), (up - low) / reach
    found = up.copy()
    done: list[int] = []
    for index in np.argsort(-up, kind="stable").tolist():
        names = [other for other in done if abs(across[other] - across[index]) < width]
        points = np.flatnonzero((across > across[index]) & (across < across[index] + width))
        for step in range(120):
            found[index] = up[index] + (step + 1) // 2 * (1 if step % 2 else -1) * height / 4
            free = all(abs(found[other] - found[index]) >= height for other in names)
            if free and all(abs(up[point] - found[index]) >= height / 2 for point in points):
                break
        done.append(index)
    return (low + reach * found).tolist()
