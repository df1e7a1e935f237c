"""Tags: which classes a picture shows, several or none. From a detection set's boxes ("tags:scenes"), or from a table of files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from opticus.data.decode import decode
from opticus.data.records import Boxes, Source, Strings, digest
from opticus.data.splits import canonical, resolve
from opticus.structures import Classes, DataError, Instances, Sample, Task

PREFIX = "tags:"
TABLE = "labels.csv"
COLUMNS = ("file", "labels")


class Tags:
    """A detection set as multi-label classification: a picture's labels are the classes of its objects, crowd regions left out."""

    task: Task = "classify"
    multi = True
    boxes: Boxes | None = None

    def __init__(self, base: Source) -> None:
        if base.task != "detect":
            raise DataError(f"tags: are made of boxes, but the data set is for {base.task}")
        self.base = base
        self.names: tuple[str, ...] = base.names
        self.label_ids: tuple[int, ...] = base.label_ids
        self.split: str = base.split
        self.splits: tuple[str, ...] = base.splits
        self.hash: str = digest("tags", base.hash)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Sample:
        sample = self.base[index]
        return Sample(sample.inputs, tags_of(sample.target, sample.id), sample.id)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The id in the detection set."""
        return self.base.id_of(index)

    def target_of(self, index: int) -> Classes:
        """The classes of record `index`."""
        return tags_of(self.base.target_of(index), self.id_of(index))

    def file_of(self, index: int) -> Path | None:
        """The picture's file, where there is one."""
        return self.base.file_of(index)


def tags_of(target: object, id: str) -> Classes:
    """The different classes of a picture's objects, ascending."""
    if not isinstance(target, Instances):
        raise DataError(f"{id}: tags are made of boxes, found {type(target).__name__}")
    labels = target.labels if target.crowd is None else target.labels[~target.crowd]
    return Classes(labels.unique())


class TagTable:
    """Pictures listed in labels.csv: columns `file` (relative to the table), `labels` (separated by ";") and, if wanted, `split`.

    The classes are all names in the table, sorted; the set is multi-label unless every picture has exactly one label.
    """

    task: Task = "classify"
    boxes: Boxes | None = None

    def __init__(self, path: Path, split: str) -> None:
        rows = _rows(path)
        known = {canonical(row[2]) for row in rows}
        self.splits: tuple[str, ...] = tuple(sorted(known, key=("train", "val", "test").index))
        self.split: str = resolve(split, {name: name for name in self.splits}, str(path))
        self.root = path.parent
        self.names: tuple[str, ...] = tuple(sorted({name for _, labels, _ in rows for name in labels}))
        if not self.names:
            raise DataError(f"{path}: no picture has a label")
        self.label_ids: tuple[int, ...] = tuple(range(len(self.names)))
        self.multi = any(len(labels) != 1 for _, labels, _ in rows)
        where = {name: i for i, name in enumerate(self.names)}
        mine = [row for row in rows if canonical(row[2]) == canonical(self.split)]
        self.files = Strings(file for file, _, _ in mine)
        self.starts = np.cumsum([0, *(len(labels) for _, labels, _ in mine)])
        self.labels = np.asarray([where[name] for _, labels, _ in mine for name in sorted(labels)], np.int32)
        self.hash: str = digest("tag table", self.split, *self.names, *self.files, self.starts, self.labels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return Sample({"image": decode(self.file_of(index))}, self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The file's path as the table has it."""
        return self.files[index]

    def target_of(self, index: int) -> Classes:
        """The picture's labels."""
        return Classes(torch.from_numpy(self.labels[self.starts[index] : self.starts[index + 1]].astype(np.int64)))

    def file_of(self, index: int) -> Path:
        """The picture's file."""
        return self.root / self.files[index]


def matches(path: Path) -> bool:
    """Whether there is a labels.csv with the columns of a tag table."""
    file = path / TABLE if path.is_dir() else path
    if file.name != TABLE or not file.is_file():
        return False
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return set(COLUMNS) <= set(next(csv.reader(stream), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def read(path: Path, split: str) -> TagTable:
    """One split of a tag table; a table without a column `split` is all "train"."""
    return TagTable(path / TABLE if path.is_dir() else path, split)


def _rows(path: Path) -> Sequence[tuple[str, set[str], str]]:
    """(file, labels, split) of every line; DataError naming the line that is wrong."""
    found: list[tuple[str, set[str], str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for number, row in enumerate(csv.DictReader(stream), 2):
                file, labels = row.get("file"), row.get("labels")
                if not file or labels is None:
                    raise DataError(f"{path}, line {number}: expected a file and its labels, found {row}")
                if Path(file).is_absolute() or ".." in Path(file).parts:
                    raise DataError(f"{path}, line {number}: {file!r} leaves the folder of the table")
                split = row.get("split") or "train"
                if canonical(split) not in ("train", "val", "test"):
                    raise DataError(f"{path}, line {number}: expected the split train, val or test, found {split!r}")
                found.append((file, {name.strip() for name in labels.split(";") if name.strip()}, split))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    if not found:
        raise DataError(f"{path}: lists no picture")
    return found
