"""The report of a run: one HTML file with its pictures inside, no script, nothing fetched, readable in light and dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.plot import figures
from opticus.plot.draw import draw
from opticus.structures import Result
from opticus.structures.files import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

Row = Mapping[str, Any]
PICTURES = 2_000_000  # bytes: what all pictures of one report may take together

TEXT = 1.5  # tags are written this much larger than usual: the cards show the pictures small

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1c20;--soft:#5d6068;--line:#d9dbe0;--card:#f6f7f9;--bar:#a8d8f2}
@media(prefers-color-scheme:dark){:root{--paper:#15161a;--ink:#e9eaee;--soft:#a2a6b0;--line:#363943;--card:#1e2026;--bar:#235b80}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:24px 20px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px;padding-top:8px;border-top:1px solid var(--line)}
nav{margin:8px 0 0;font-size:14px}nav a{color:inherit;margin-right:14px}p{margin:6px 0}.soft{color:var(--soft);font-size:13.5px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th{color:var(--soft);font-weight:600}th,td{padding:5px 14px 5px 0;border-bottom:1px solid var(--line);text-align:left}
td.n,th.n{text-align:right}td.bar{min-width:120px;padding-right:6px;border-right:8px solid var(--paper);
background:linear-gradient(var(--bar),var(--bar)) no-repeat left center/var(--share) 62%}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(520px,1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;overflow:hidden}
figure .two{display:flex;gap:8px;align-items:flex-start}figure .two div{flex:1 1 0;min-width:0}
figure img{width:100%;height:auto;display:block;border-radius:4px}figure span{font-size:12px;color:var(--soft)}
figcaption{font-size:13.5px;margin-top:6px;overflow-wrap:anywhere}details{margin-top:10px}summary{cursor:pointer}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:12.5px;background:var(--card);padding:10px;border-radius:6px}
@media(max-width:600px){.grid{grid-template-columns:1fr}}
"""


@dataclass(slots=True)
class Pair:
    """A picture with what is true and what was predicted; `focus` (x0, y0, x1, y1) in its pixels is ringed in both."""

    picture: Any
    truth: Result | None
    prediction: Result | None
    caption: str = ""
    focus: tuple[float, ...] | None = None


class _Section(NamedTuple):
    anchor: str
    title: str
    body: str


def write_report(
    path: str | Path,
    *,
    title: str = "Report",
    names: Sequence[str] = (),
    summary: Sequence[Row] = (),
    curves: Mapping[str, Sequence[float]] | None = None,
    per_class: Sequence[Row] = (),
    pr: Mapping[str, Any] | None = None,
    confusion: npt.ArrayLike | None = None,
    pairs: Sequence[Pair] = (),
    mistakes: Sequence[Pair] = (),
    notes: str | Sequence[str] = (),
    args: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    threshold: float = 0.3,
    more: Sequence[tuple[str, str, str]] = (),
) -> Path:
    """Write a self-contained report to `path` and return it; whatever is not given is left out.

    `summary` and `per_class` are tables (one mapping per row), `curves` the columns of results.csv, `pr` what
    `CocoDetection.curves` returns, `confusion` (K, K) or (K+1, K+1) with the background last, `threshold` the score from which
    predictions are drawn, `more` further sections (anchor, heading, HTML that is already escaped). All other text is escaped; the
    pictures together take at most 2 MB.
    """
    sections: list[_Section] = []

    def add(anchor: str, heading: str, body: str) -> None:
        if body:
            sections.append(_Section(anchor, heading, body))

    add("summary", "Summary", table(summary))
    if curves and len(curves.get("step", ())) > 1:
        add("curves", "Training", f'<div class="wide">{figures.curves(curves)}</div>')
    add("classes", "Per class", table(per_class, bars=True))
    if pr is not None:
        both = "".join(figures.precision_recall(pr, names, key) for key in ("AP50", "AP") if key in pr)
        add("pr", "Precision and recall", f'<div class="wide">{both}</div>')
    if confusion is not None:
        counts = np.asarray(confusion)
        drawn = figures.confusion(counts, names, background=len(counts) == len(names) + 1)
        add("confusion", "Confusion matrix", f'<div class="wide">{drawn}</div>{_hint(counts, names)}')
    for section in more:
        add(*section)
    shown = _pictures([*pairs, *mistakes], names, threshold)
    add("predictions", "Predictions beside the truth", _grid(shown[: len(pairs)]))
    add("mistakes", "The worst mistakes", _grid(shown[len(pairs) :]))
    add("settings", "Settings and environment", _details("Arguments", args) + _details("Environment", env))
    lines = [notes] if isinstance(notes, str) else list(notes)
    return write_text(path, _page(title, lines, sections))


class Figure(NamedTuple):
    """A picture of a page with what it shows."""

    image: Image
    caption: str


def write_page(
    path: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    figures: Sequence[Figure] = (),
    tables: Mapping[str, Sequence[Row]] | None = None,
    details: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a self-contained page of whole pictures with their captions, tables by heading, and folded details; returns `path`."""
    shown = "".join(
        f'<figure><img style="width:auto;max-width:100%" alt="{html.escape(one.caption)}" src="{_lossless(one.image)}">'
        f"<figcaption>{html.escape(one.caption)}</figcaption></figure>"
        for one in figures
    )
    parts = [("picture", "Picture", shown)]
    parts += [(f"table-{i}", name, table(rows)) for i, (name, rows) in enumerate((tables or {}).items())]
    parts.append(("settings", "Settings", "".join(_details(name, values) for name, values in (details or {}).items())))
    return write_text(path, _page(title, notes, [_Section(*part) for part in parts if part[2]]))


def _lossless(image: Image) -> str:
    """PNG as a data address; JPEG where that would take more than half of what a report may hold."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    if buffer.tell() <= PICTURES // 2:
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return _source(image, max(image.size), 88)


def page(title: str, notes: Iterable[str], sections: Iterable[tuple[str, str, str]]) -> str:
    """A self-contained page from (anchor, heading, HTML) sections; only `title` and `notes` are escaped."""
    return _page(title, notes, [_Section(*section) for section in sections])


def _page(title: str, notes: Iterable[str], sections: Sequence[_Section]) -> str:
    head = html.escape(title)
    links = "".join(f'<a href="#{one.anchor}">{html.escape(one.title)}</a>' for one in sections)
    body = "".join(f'<section id="{one.anchor}"><h2>{html.escape(one.title)}</h2>{one.body}</section>' for one in sections)
    said = "".join(f'<p class="soft">{html.escape(line)}</p>' for line in notes if line)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{head}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{head}</h1>{said}<nav>{links}</nav>{body}</body></html>\n"
    )


def table(rows: Sequence[Row], *, bars: bool = False) -> str:
    """Columns in the order of first appearance; numbers right-aligned; with `bars`, shares in [0, 1] carry a bar behind them."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {key for key in columns if all(isinstance(row.get(key), (int, float, type(None))) for row in rows)}
    head = "".join(f"<th{_class('n' if key in numeric else '')}>{html.escape(str(key))}</th>" for key in columns)
    lines: list[str] = []
    for row in rows:
        cells = ""
        for key in columns:
            value = row.get(key)
            style, kind = "", "n" if key in numeric else ""
            if bars and isinstance(value, float) and 0 <= value <= 1:
                style, kind = f' style="--share:{100 * value:.1f}%"', "n bar"
            cells += f"<td{_class(kind)}{style}>{html.escape(_text(value))}</td>"
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _hint(counts: npt.NDArray[Any], names: Sequence[str]) -> str:
    """The most frequent confusions in words, for whom the matrix is too small to read."""
    labels = [*names, "background"] if len(counts) == len(names) + 1 else list(names)
    off = counts.astype(float) * (1 - np.eye(len(counts)))
    order = np.argsort(-off, axis=None, kind="stable")[:5]
    top = [(int(one) // len(counts), int(one) % len(counts)) for one in order if off.flat[one] > 0]
    said = "; ".join(f"{labels[i]} taken for {labels[j]}: {int(counts[i, j])}" for i, j in top)
    shade = "Rows are true classes, columns predicted ones; the shade is the share of the row. "
    return f'<p class="soft">{html.escape(shade + (f"Most frequent: {said}." if said else "No mistakes."))}</p>'


def _details(title: str, values: Mapping[str, Any] | None) -> str:
    if not values:
        return ""
    lines = "\n".join(f"{key} = {value}" for key, value in values.items())
    return f"<details open><summary>{html.escape(title)}</summary><pre>{html.escape(lines)}</pre></details>"


class _Shown(NamedTuple):
    caption: str
    truth: str
    prediction: str


def _grid(shown: Sequence[_Shown]) -> str:
    cards = ""
    for one in shown:
        name = html.escape(one.caption)
        sides = "".join(
            f'<div><img alt="{side}: {name}" src="{source}"><span>{side}</span></div>'
            for side, source in (("truth", one.truth), ("prediction", one.prediction))
            if source
        )
        cards += f'<figure><div class="two">{sides}</div><figcaption>{name}</figcaption></figure>'
    return f'<div class="grid">{cards}</div>' if cards else ""


def _pictures(pairs: Sequence[Pair], names: Sequence[str], threshold: float) -> list[_Shown]:
    """Every pair drawn and encoded; all of them smaller and coarser until they fit into the report together."""
    drawn: list[tuple[Image | None, Image | None]] = []
    for pair in pairs:
        sides = ((pair.truth, 0.0), (pair.prediction, threshold))
        images = [
            None if side is None else draw(pair.picture, side, names, threshold=t, text=TEXT, focus=pair.focus) for side, t in sides
        ]
        drawn.append((images[0], images[1]))
    for long_side, quality in ((420, 85), (384, 72), (300, 65), (220, 55), (150, 45)):
        sources = [tuple("" if image is None else _source(image, long_side, quality) for image in both) for both in drawn]
        if sum(len(source) for both in sources for source in both) <= PICTURES:
            break
    else:
        sources = []
    return [_Shown(pair.caption, both[0], both[1]) for pair, both in zip(pairs, sources, strict=False)]


def _source(image: Image, long_side: int, quality: int) -> str:
    from PIL import Image as image_module

    ratio = long_side / max(image.size)
    if ratio < 1:
        size = (max(1, round(image.size[0] * ratio)), max(1, round(image.size[1] * ratio)))
        image = image.resize(size, image_module.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
