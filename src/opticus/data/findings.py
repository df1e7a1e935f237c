"""What can be wrong with a record of a data set, and the vectorised checks that run inside training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from opticus.data.records import Source
from opticus.structures import DataError

Severity = Literal["error", "warning", "info"]
OUTSIDE = 1.0  # pixels a box may leave its picture by before it counts as outside (annotation tools round outwards)


class Finding(NamedTuple):
    """One fault: what kind, how bad, which record (the sample's id, "" for the whole set), which file, and what was found."""

    kind: str
    severity: Severity
    record: str
    file: str
    detail: str
    split: str = ""

    def sentence(self) -> str:
        """The finding as one line."""
        place = ": ".join(part for part in (self.file, self.record) if part)
        return f"{place}: {self.kind}: {self.detail}"


def check_cheap(data: Source) -> list[Finding]:
    """Everything that can be checked without opening a picture: the reader's own notes, ids, and all boxes in flat arrays."""
    found = list(_notes(data))
    found += _duplicate_ids(data)
    found += _box_findings(data)
    return [finding._replace(split=data.split) for finding in found]


def refuse(data: Source, findings: Iterable[Finding]) -> None:
    """Raise a DataError that names the first error and how many there are; warnings and notes pass."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        kinds = ", ".join(f"{n} x {kind}" for kind, n in Counter(e.kind for e in errors).most_common())
        raise DataError(f"{errors[0].sentence()} (bad in all: {kinds}; on_bad='quarantine' leaves these records out)")


def _notes(data: Source) -> Sequence[Finding]:
    return getattr(data, "notes", ())


def _duplicate_ids(data: Source) -> list[Finding]:
    marks = np.fromiter((hash(data.id_of(i)) for i in range(len(data))), np.int64, len(data))  # flat: 8 bytes a record
    order = np.argsort(marks)
    again = np.flatnonzero(np.diff(marks[order]) == 0)
    if not len(again):
        return []
    seen = Counter(data.id_of(i) for i in np.unique(order[np.concatenate([again, again + 1])]).tolist())
    return [Finding("duplicate id", "error", name, "", f"{n} records have this id") for name, n in seen.items() if n > 1]


def _box_findings(data: Source) -> list[Finding]:
    table = data.boxes
    if table is None or len(table) == 0:
        return []
    x0, y0, x1, y1 = (table.boxes[:, i] for i in range(4))
    finite = np.isfinite(table.boxes).all(1)
    with np.errstate(invalid="ignore"):
        width, height = x1 - x0, y1 - y0
        negative = finite & ((width < 0) | (height < 0))
        empty = finite & ~negative & ((width == 0) | (height == 0))
        limit, slack = _limits(data, table.image_of())
        known = (limit > 0).all(1)
        out = finite & known & ((x0 < -slack) | (y0 < -slack) | (x1 > limit[:, 1] + slack) | (y1 > limit[:, 0] + slack))
    faults = (
        ("non-finite box", ~finite, "a coordinate is NaN or infinite"),
        ("negative box", negative, "width or height is below zero"),
        ("empty box", empty, "width or height is zero"),
        ("box outside", out, "the box leaves the picture"),
        ("unknown category", table.labels < 0, "the category is not in the list of categories"),
    )
    found: list[Finding] = []
    for kind, mask, words in faults:
        found += [_of_row(data, int(row), kind, words) for row in np.flatnonzero(mask)]
    return found


def _limits(data: Source, image_of: np.ndarray) -> tuple[np.ndarray, float]:
    """(N, 2) height and width of each box's picture (0 = unknown), in the units of the boxes, and the slack."""
    if getattr(data, "relative", False):
        return np.ones((len(image_of), 2)), 1e-3
    sizes = getattr(data, "sizes", None)
    return (np.zeros((len(image_of), 2)) if sizes is None else np.asarray(sizes)[image_of]), OUTSIDE


def _of_row(data: Source, row: int, kind: str, words: str) -> Finding:
    table = data.boxes
    if table is None:
        raise DataError(f"{kind}: the data set has no boxes")
    index = int(np.searchsorted(table.starts, row, side="right")) - 1
    name = f"annotation {table.ids[row]}" if table.ids is not None else f"box {row - int(table.starts[index])}"
    corners = ", ".join(f"{value:g}" for value in table.boxes[row].tolist())
    return Finding(
        kind, "error", data.id_of(index), str(data.file_of(index) or ""), f"{name} (x0, y0, x1, y1 = {corners}): {words}"
    )
