"""A folder of pictures with one folder for each class: root/<class>/..., or root/<split>/<class>/...; classes may hold folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from opticus.data.decode import decode
from opticus.data.files import folders_in, has_picture, pictures_under
from opticus.data.records import Boxes, Strings, digest
from opticus.data.splits import canonical, is_split, resolve
from opticus.structures import Classes, DataError, Sample, Task


def matches(path: Path) -> bool:
    """Whether there are class folders with pictures in them."""
    return path.is_dir() and any(has_picture(folder) for folder in folders_in(path))


def read(path: Path, split: str) -> ClassFolders:
    """The split `split`; a folder without split folders has "train" only. The classes are those of all splits together."""
    places = {folder.name: folder for folder in folders_in(path) if is_split(folder.name) and _has_classes(folder)}
    if "train" not in map(canonical, places) and len(places) < len(folders_in(path)):
        places = {"train": path}
    name = resolve(split, places, str(path))
    names = sorted({folder.name for place in places.values() for folder in folders_in(place)})
    return ClassFolders(places[name], tuple(names), name, tuple(sorted(places)))


def _has_classes(folder: Path) -> bool:
    return any(has_picture(inner) for inner in folders_in(folder))


class ClassFolders:
    """Picture files labelled by the folder they are in."""

    task: Task = "classify"
    boxes: Boxes | None = None

    def __init__(self, root: Path, names: tuple[str, ...], split: str, splits: tuple[str, ...]) -> None:
        self.root = root
        self.names = names
        self.label_ids = tuple(range(len(names)))
        self.split = split
        self.splits = splits
        self.files = Strings()
        labels: list[int] = []
        sizes: list[int] = []
        for label, name in enumerate(names):
            for file, size in pictures_under(root / name) if (root / name).is_dir() else ():
                self.files.append(f"{name}/{file}")
                labels.append(label)
                sizes.append(size)
        if not labels:
            raise DataError(f"{root}: no pictures in the class folders {', '.join(names[:5])}")
        self.labels = np.asarray(labels, np.int32)
        self.hash = digest("folder", split, *names, *self.files, np.asarray(sizes, np.int64))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return Sample({"image": decode(self.file_of(index))}, self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The file's path relative to its split's folder."""
        return self.files[index]

    def target_of(self, index: int) -> Classes:
        """The picture's class."""
        return Classes(torch.tensor([int(self.labels[index])]))

    def file_of(self, index: int) -> Path:
        """The picture's file."""
        return self.root / self.files[index]
