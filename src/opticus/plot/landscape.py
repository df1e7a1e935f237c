"""Loss surfaces as pictures: filled contours and a cut through the middle, several networks on one scale."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.colours import colour

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(slots=True)
class Surface:
    """The loss of one network at (alphas[i], betas[j]): `losses` (A, B); `line` (L,) at `places` (L,), the cut along alpha."""

    name: str
    alphas: npt.NDArray[Any]
    betas: npt.NDArray[Any]
    losses: npt.NDArray[Any]
    places: npt.NDArray[Any]
    line: npt.NDArray[Any]


def landscape(surfaces: Sequence[Surface], ceiling: float | None = None) -> Image:
    """Contours beside each other on one logarithmic scale of losses, and to their right all cuts in one graph.

    Losses above `ceiling` (None: 30 times the largest loss at a centre, at least 10) share the last colour.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from PIL import Image as image_module

    finite = np.concatenate([one.losses[np.isfinite(one.losses)] for one in surfaces])
    middle = max(float(one.losses[len(one.alphas) // 2, len(one.betas) // 2]) for one in surfaces)
    low = max(float(finite.min()), 1e-3)
    high = max(min(float(finite.max()), ceiling or max(30 * middle, 10.0)), low * 1.5)
    levels = np.geomspace(low, high, 19)
    with matplotlib.rc_context({"font.size": 10, "font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(4.6 * len(surfaces) + 5.0, 4.4), dpi=110, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(surfaces) + 1, width_ratios=[1.0] * len(surfaces) + [1.1], squeeze=False)[0]
        drawn: Any = None
        for number, (one, ax) in enumerate(zip(surfaces, axes, strict=False)):
            clipped = np.clip(np.nan_to_num(one.losses, nan=high, posinf=high), low, high).T
            drawn = ax.contourf(one.alphas, one.betas, clipped, levels, norm=LogNorm(low, high), cmap="viridis", extend="neither")
            ax.contour(one.alphas, one.betas, clipped, levels[::2], colors="white", linewidths=0.6, alpha=0.7)
            ax.plot([0], [0], marker="+", color="white", markersize=11, markeredgewidth=2)
            ax.axhline(0, color="white", linestyle=(0, (3, 3)), linewidth=0.8, alpha=0.8)
            ax.set_title(one.name, fontsize=11, loc="left", color=_rgb(number), fontweight="bold")
            ax.set_xlabel("α (first direction)")
            ax.set_ylabel("β (second direction)")
            ax.set_aspect("equal")
            marks = np.linspace(float(one.alphas[0]), float(one.alphas[-1]), 5)
            ax.set_xticks(marks, labels=[f"{mark:g}" for mark in marks])
            ax.set_yticks(marks, labels=[f"{mark:g}" for mark in marks])
        ticks = [value for value in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000) if low <= value <= high]
        bar = figure.colorbar(drawn, ax=list(axes[: len(surfaces)]), shrink=0.9, label="loss")
        bar.set_ticks(ticks, labels=[f"{value:g}" for value in ticks])
        last = axes[-1]
        for number, one in enumerate(surfaces):
            shown = np.clip(np.nan_to_num(one.line, nan=high, posinf=high), low, high)
            last.plot(one.places, shown, color=_rgb(number), linewidth=2, label=one.name)
        marks = np.linspace(float(surfaces[0].places[0]), float(surfaces[0].places[-1]), 5)
        last.set_xticks(marks, labels=[f"{mark:g}" for mark in marks])
        last.set_yscale("log")
        shown_ticks = [value for value in ticks if value >= 0.8 * min(float(one.line.min()) for one in surfaces)]
        last.set_yticks(shown_ticks, labels=[f"{value:g}" for value in shown_ticks])
        last.yaxis.set_minor_formatter("")
        last.set_title("cut along α at β = 0", fontsize=11, loc="left")
        last.set_xlabel("α")
        last.set_ylabel("loss")
        last.grid(visible=True, alpha=0.3)
        last.legend(frameon=False)
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    buffer.seek(0)
    return image_module.open(buffer).convert("RGB")


def _rgb(index: int) -> tuple[float, float, float]:
    red, green, blue = colour((4, 5, 2, 6, 0, 8)[index % 6])  # dark enough for text on white
    return red / 255, green / 255, blue / 255
