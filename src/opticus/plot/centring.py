"""Bars of answers before and after centring and sharpening."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opticus.plot.detection import rendered

if TYPE_CHECKING:
    from PIL.Image import Image

Bars = npt.NDArray[Any]


def answer_bars(ways: Mapping[str, tuple[Bars, Bars, float, float]], temperature: float) -> Image:
    """One column per way: the answer about one picture (K,), the mean answer (K,), mean entropy and information in nats as its title."""

    def fill(figure: Any) -> None:
        grid: Any = figure.subplots(2, len(ways), sharex=True)
        for column, (name, (one, every, entropy, information)) in enumerate(ways.items()):
            rows = ((one, "#0072B2", "one picture"), (every, "#D55E00", "mean of all"))
            for axes, (values, colour, label) in zip(grid[:, column], rows):
                axes.bar(np.arange(len(values)), values, color=colour, width=0.85)
                axes.set_ylim(0, 1)
                axes.spines[["top", "right"]].set_visible(False)
                axes.grid(axis="y", alpha=0.25, linewidth=0.6)
                if column == 0:
                    axes.set_ylabel(f"probability, {label}")
            title = f"{name} (temperature {temperature:g})" if name == "sharpened" else name
            grid[0, column].set_title(f"{title}\nentropy {entropy:.2f}, information {information:.2f}", fontsize=10, loc="left")
            grid[1, column].set_xlabel("output")

    return rendered(3.1 * len(ways), 4.6, fill)
