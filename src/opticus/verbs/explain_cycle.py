"""There and back again: what a picture becomes in the other domain, and what that becomes on the way back.

Zhu et al., ICCV 2017, arXiv 1703.10593, figure 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from opticus.plot.panels import Panel, panels
from opticus.structures import Picture
from opticus.verbs.explain_request import Answer, Request, Values, as_pixels, at_least, batch_of, need


def cycle(request: Request, *, limit: int = 6, index: int = 0) -> Answer:
    """A row per picture: as the network sees it, its answer, the known answer where the data has one, and the way back.

    Raises CapabilityError for a network without `cycle`, or with one generator only.
    """
    at_least("limit", limit, 1)
    network = request.model
    need(network, "cycle", "cycle", "to lead back from its own answers")
    items = request.items(limit, index)
    data = request.dataset() if request.source is None else None
    known = [data.target_of(i) for i in range(index, index + len(items))] if data is not None else []
    wanted = [target.pixels.numpy() if isinstance(target, Picture) else None for target in known] or [None] * len(items)
    told = any(one is not None for one in wanted)
    rows: list[list[Panel | None]] = []
    table: list[dict[str, Any]] = []
    for item, answer in zip(items, wanted, strict=True):
        row, figures = _loop(network, item.picture, item.id, answer)
        rows.append(row if told else [*row[:2], row[3]])
        table.append({"id": item.id, **figures})
    picture = panels(
        rows,
        cell=200,
        title=f"{request.title}: there and back",
        column_titles=["picture", "answer", *(["known answer"] if told else []), "way back"],
    )
    mean = {
        key: float(np.mean([row[key] for row in table if key in row])) for key in ("back", "moved", "answer") if key in table[0]
    }
    notes = [
        f"On average the way back ends {mean['back']:.1f} of 255 grey levels from the picture; its answers are {mean['moved']:.1f} away "
        f"from it ({len(table)} pictures)."
        if "moved" in mean
        else f"On average the way back ends {mean['back']:.1f} of 255 grey levels from the picture ({len(table)} pictures)."
    ]
    caption = "Mean absolute differences in grey levels: of the answer from the known one, and of the way back from the picture."
    return Answer(picture, caption, {"mean": mean, "pictures": table}, notes, {"Loops": table})


def _loop(network: Any, picture: Picture, name: str, wanted: Values | None) -> tuple[list[Panel | None], dict[str, Any]]:
    images = batch_of(network, [picture])
    with torch.no_grad():
        loop = network.cycle(images.pixels)
    start, back = (as_pixels(one[0], network.prepare) for one in (images.pixels, loop.back))
    answer = as_pixels(loop.answer[0], network.produces)
    figures: dict[str, Any] = {"back": difference(back, start)}
    if network.produces.channels == network.prepare.channels:
        figures["moved"] = difference(answer, start)
    shown = None
    if wanted is not None and wanted.shape[:2] == answer.shape[:2]:
        shown = np.broadcast_to(wanted, answer.shape)
        figures["answer"] = difference(answer, shown)
    off = f"{figures['answer']:.1f} off" if "answer" in figures else ""
    third = None if shown is None else Panel(enlarged(shown))
    row = [Panel(enlarged(start), name), Panel(enlarged(answer), off), third, Panel(enlarged(back), f"{figures['back']:.1f} off")]
    return row, figures


def difference(found: Values, true: Values) -> float:
    """The mean absolute difference in grey levels."""
    return float(np.abs(found.astype(np.float64) - true).mean())


def enlarged(pixels: Values) -> Values:
    """Tiny pictures enlarged by a whole factor."""
    factor = max(1, 200 // max(pixels.shape[:2]))
    return np.ascontiguousarray(pixels).repeat(factor, 0).repeat(factor, 1)
