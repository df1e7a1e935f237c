"""The transferability curve: accuracy by the number of frozen units."""

from __future__ import annotations

import io
from collections.abc import Sequence


def transfer_figure(rows: Sequence[tuple[int | None, str, float, float]], title: str) -> bytes:
    """PNG of (frozen units or None for a network trained from scratch, name of the last frozen one, accuracy, half interval)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tuned = [row for row in rows if row[0] is not None]
    places = list(range(len(tuned)))
    axes.errorbar(places, [r[2] for r in tuned], [r[3] for r in tuned], marker="o", capsize=3, color="#0072b2", label="fine-tuned")
    for _, _, accuracy, half in (row for row in rows if row[0] is None):
        axes.axhline(accuracy, color="#d55e00", linestyle="--", label="from scratch")
        axes.axhspan(accuracy - half, accuracy + half, color="#d55e00", alpha=0.12, linewidth=0)
    axes.set_xticks(places, [f"{row[0]}\n{row[1]}" for row in tuned], fontsize=8, rotation=0 if len(tuned) < 9 else 45)
    axes.set_xlabel("units frozen, up to")
    axes.set_ylabel("top-1 on the test split")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(visible=True, alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
