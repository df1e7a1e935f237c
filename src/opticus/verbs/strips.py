"""Strips of video frames with their masks: what was said above what is true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.plot.masks import tinted
from opticus.plot.panels import Panel, panels

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
MOST = 4  # sequences


class Shown(NamedTuple):
    """Some frames of a sequence: pictures (T, H, W, 3), predicted and (if known) annotated ids (T, H, W), a palette of 768 bytes."""

    pictures: Pixels
    said: Pixels
    truth: Pixels | None
    colours: bytes


def strip(shown: Mapping[str, Shown], scores: Mapping[str, float], title: str) -> Image | None:
    """Up to four sequences from the worst to the best scored one, two rows each: predicted and, where it is known, annotated masks."""
    if not shown:
        return None
    order = sorted(shown, key=lambda name: scores.get(name, -1.0))
    picks = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(MOST, len(order))).round().astype(int))]
    rows: list[list[Panel | None]] = []
    titles: list[str] = []
    for name in picks:
        pictures, said, truth, colours = shown[name]
        table = np.frombuffer(colours, np.uint8).reshape(256, 3)
        rows.append([Panel(tinted(one, ids, table)) for one, ids in zip(pictures, said, strict=True)])
        titles.append(f"{name}\npropagated" + (f"\nJ&F {scores[name]:.3f}" if name in scores else ""))
        if truth is not None:
            clean = np.where(truth == 255, 0, truth)
            rows.append([Panel(tinted(one, ids, table)) for one, ids in zip(pictures, clean, strict=True)])
            titles.append(f"{name}\nannotated")
    return panels(rows, cell=180, title=f"{title}: masks propagated from the first frame", row_titles=titles)
