"""Open Images boxes as published: `<split>-annotations-bbox.csv` with fractions of the picture, `class-descriptions-boxable.csv`, <split>/*.jpg.

Columns (storage.googleapis.com/openimages/web/download_v7.html): ImageID, LabelName (a Freebase id such as /m/0cmf2), XMin, XMax, YMin,
YMax, IsGroupOf; others are not used. A box around a group (five or more touching objects) becomes `crowd`, a region that evaluation
ignores. Labels follow the order of the class descriptions. The set is so large that people hold parts of it: the records are the
annotated pictures that are there, and a finding says how many are not.
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from opticus.data.detections import Detections, Origin, Pictures
from opticus.data.files import pictures_under
from opticus.data.findings import Finding
from opticus.data.records import Boxes, Strings
from opticus.data.splits import canonical, resolve, split_in
from opticus.structures import DataError

_BOXES = ("*annotations-bbox.csv", "*-detection-bbox.csv")  # releases; challenges
_CLASSES = ("*class-descriptions-boxable*.csv", "*class-descriptions*.csv", "*classes-description*.csv")
_PLACES = (".", "annotations", "csv", "metadata")
_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


def matches(path: Path) -> bool:
    """Whether `path` is a CSV of Open Images boxes, or a folder that holds one."""
    return bool(_tables(path))


def read(path: Path, split: str) -> Detections:
    """The split `split` ("train", "validation", "test") of the Open Images folder (or CSV) at `path`."""
    tables = _tables(path)
    name = next(iter(tables)) if path.is_file() else resolve(split, tables, str(path))
    file = tables[name]
    base = file.parent.parent if file.parent.name in _PLACES else file.parent
    codes, names, described = _descriptions([file.parent, base], file)
    root = _root(base, name, file)
    held = {Path(picture).stem: picture for picture, _ in pictures_under(root)}
    parsed = _Parsed(file, codes)
    with file.open("rb") as stream:
        state = hashlib.file_digest(stream, "sha256")
    state.update(name.encode() + described)
    for number, row in _rows(file):
        _row(parsed, number, row, held)
    if not parsed.ids:
        raise DataError(f"{root}: none of the {len(parsed.missing)} pictures that {file.name} annotates is here")
    if parsed.missing:
        words = f"{len(parsed.missing)} of {len(parsed.missing) + len(parsed.ids)} annotated pictures are not in {root}"
        parsed.notes.append(
            Finding("missing pictures", "warning", "", str(file), f"{words}, the first is {next(iter(parsed.missing))}")
        )
        warnings.warn(f"{file}: {words}", stacklevel=2)
    for stem in parsed.ids:
        state.update(f"{stem}\n".encode())
    pictures = Pictures(
        root, Strings(held[stem] for stem in parsed.ids), Strings(parsed.ids), np.zeros((len(parsed.ids), 2), np.int32)
    )
    origin = Origin(name, tuple(sorted(tables)), state.hexdigest(), parsed.notes)
    return Detections(pictures, parsed.table(), names, tuple(range(len(names))), origin, relative=True)


def _tables(path: Path) -> dict[str, Path]:
    """The table of boxes of every split."""
    if path.is_file():
        return {split_in(path.stem) or "train": path} if any(path.match(form) for form in _BOXES) else {}
    if not path.is_dir():
        return {}
    found: dict[str, Path] = {}
    for file in sorted(file for place in _PLACES for form in _BOXES for file in (path / place).glob(form)):
        name = split_in(file.stem) or "train"
        if name in found:
            raise DataError(f"{path}: both {found[name].name} and {file.name} are the split {name!r}; give the CSV file itself")
        found[name] = file
    return found


def _descriptions(folders: list[Path], file: Path) -> tuple[dict[str, int], tuple[str, ...], bytes]:
    """Label of every class code, the names, and the file's bytes. Older releases have no header line, V7 has one."""
    places = [folder / place for folder in folders for place in _PLACES]
    found = next((table for place in places for form in _CLASSES for table in sorted(place.glob(form))), None)
    if found is None:
        raise DataError(f"{file}: no class descriptions beside it (looked for {', '.join(_CLASSES)})")
    raw = found.read_bytes()
    codes: dict[str, int] = {}
    names: list[str] = []
    for number, row in enumerate(csv.reader(raw.decode("utf-8-sig", "replace").splitlines()), 1):
        if not row or row[0] == "LabelName":
            continue
        if len(row) != 2:
            raise DataError(f"{found}: line {number}: expected a class code and its name, found {len(row)} columns")
        codes[row[0]] = len(names)
        names.append(row[1])
    return codes, tuple(names), raw


def _root(base: Path, split: str, file: Path) -> Path:
    tried = [base / split, base / "images" / split]
    tried += [place for place in sorted(base.glob("*")) if place.is_dir() and canonical(place.name) == canonical(split)]
    tried += [base / "images", base]
    for place in tried:
        if place.is_dir() and next(pictures_under(place), None) is not None:
            return place
    raise DataError(
        f"{file}: no folder of pictures for the split {split!r} (looked in {', '.join(map(str, dict.fromkeys(tried)))})"
    )


@dataclass(slots=True)
class _Parsed:
    path: Path
    codes: dict[str, int]
    ids: dict[str, int] = field(default_factory=dict[str, int])  # pictures in the order that the table names them
    missing: dict[str, None] = field(default_factory=dict[str, None])
    owners: array[int] = field(default_factory=lambda: array("q"))
    corners: array[float] = field(default_factory=lambda: array("f"))
    kinds: array[int] = field(default_factory=lambda: array("h"))
    groups: array[int] = field(default_factory=lambda: array("b"))
    notes: list[Finding] = field(default_factory=list[Finding])

    def table(self) -> Boxes:
        """All boxes sorted by picture, in flat arrays."""
        owners = np.array(self.owners, np.int64)
        order = np.argsort(owners, kind="stable")
        return Boxes(
            np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(self.ids)))]),
            np.array(self.corners, np.float32).reshape(-1, 4)[order],
            np.array(self.kinds, np.int16)[order],
            np.array(self.groups, np.int8)[order] == 1,
        )


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, the wanted columns) of every row."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream)
        head = next(lines, [])
        absent = [column for column in _COLUMNS if column not in head]
        if absent:
            raise DataError(f"{file}: line 1: expected the columns {', '.join(_COLUMNS)}; missing: {', '.join(absent)}")
        columns = [(column, head.index(column)) for column in (*_COLUMNS, "IsGroupOf") if column in head]
        for row in lines:
            if row:
                yield lines.line_num, {column: row[place] if place < len(row) else "" for column, place in columns}


def _row(parsed: _Parsed, number: int, row: dict[str, str], held: dict[str, str]) -> None:
    stem = row["ImageID"]
    if stem not in held:
        parsed.missing[stem] = None
        return
    owner = parsed.ids.setdefault(stem, len(parsed.ids))
    try:
        x0, y0, x1, y1 = (float(row[column]) for column in ("XMin", "YMin", "XMax", "YMax"))
    except ValueError:
        words = f"line {number}: the box is not four numbers, found {[row[column] for column in _COLUMNS[2:]]}"
        parsed.notes.append(Finding("malformed record", "error", stem, str(parsed.path), words))
        return
    parsed.owners.append(owner)
    parsed.corners.extend((x0, y0, x1, y1))
    parsed.kinds.append(parsed.codes.get(row["LabelName"], -1))
    parsed.groups.append(row.get("IsGroupOf", "0") == "1")  # -1 means unknown
