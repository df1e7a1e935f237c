"""Folders of two domains: trainA/ and trainB/ (unpaired, CycleGAN's layout), or A/ and B/ with equal names and "pairs:" (pix2pix's).

Unpaired samples have the views "a" and "b": picture i of A beside some picture of B, another one for neighbouring i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from opticus.data.decode import decode
from opticus.data.files import pictures_under
from opticus.data.records import Boxes, Strings, digest
from opticus.data.splits import canonical, resolve
from opticus.structures import DataError, Picture, Sample, Target, Task

PREFIXES = ("pairs:", "pairs-back:")  # one picture holds both halves, side by side: A is answered by B, or B by A
SPLITS = ("train", "val", "test")


def matches(path: Path) -> bool:
    """Whether there are trainA/ and trainB/, or A/ and B/."""
    return path.is_dir() and (((path / "trainA").is_dir() and (path / "trainB").is_dir()) or _both(path))


def _both(path: Path) -> bool:
    return (path / "A").is_dir() and (path / "B").is_dir()


def read(path: Path, split: str) -> TwoDomains:
    """The split of unpaired folders trainA/, trainB/, testA/, ..., or of paired ones A/train, B/train, ..."""
    if _both(path):
        return paired_folders(path, split, back=False)
    places = {place.name[:-1]: place.name[:-1] for place in sorted(path.iterdir()) if place.is_dir() and place.name.endswith("A")}
    there = {name: name for name in places if (path / f"{name}B").is_dir()}
    return two_folders(path, resolve(split, there, str(path)), tuple(there))


def read_pairs(name: str, split: str) -> TwoDomains:
    """The data behind "pairs:PATH" or "pairs-back:PATH": A/ and B/ folders, or pictures that hold both halves side by side."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    path, back = Path(name.removeprefix(prefix)).expanduser(), prefix == "pairs-back:"
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    return paired_folders(path, split, back) if _both(path) else halves(path, split, back)


class TwoDomains:
    """Pictures of two domains in files: `files` lists the records, `show` makes the views of record i, or its pair."""

    task: Task = "translate"
    boxes: Boxes | None = None
    names: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()

    def __init__(
        self, root: Path, files: Strings, split: str, splits: tuple[str, ...], hash: str, show: Show, paired: bool
    ) -> None:
        self.root, self.files, self.split, self.splits, self.hash = root, files, split, splits, hash
        self._show, self._paired = show, paired

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        one, two = self._show(index)
        if self._paired:
            return Sample({"image": one}, two, self.id_of(index))
        views = tuple((role, Sample({"image": picture}, None, self.id_of(index))) for role, picture in (("a", one), ("b", two)))
        return Sample({"image": one}, None, self.id_of(index), views=views)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The file's path relative to its folder; of unpaired pictures with the record's number, as files come again."""
        return self.files[index] if self._paired else f"{index}:{self.files[index]}"

    def target_of(self, index: int) -> Target | None:
        """The picture's partner; None where nobody knows it."""
        return self._show(index)[1] if self._paired else None

    def file_of(self, index: int) -> Path:
        """The (input) picture's file."""
        return self.root / self.files[index]


Show = Callable[[int], tuple[Picture, Picture]]


def _listed(folder: Path) -> tuple[Strings, list[int]]:
    rows = list(pictures_under(folder)) if folder.is_dir() else []
    if not rows:
        raise DataError(f"{folder}: no pictures")
    return Strings(file for file, _ in rows), [size for _, size in rows]


def two_folders(path: Path, name: str, splits: tuple[str, ...]) -> TwoDomains:
    """Unpaired pictures: a record for every picture of the larger folder."""
    root, other = path / f"{name}A", path / f"{name}B"
    (files, one), (others, two) = _listed(root), _listed(other)
    count = max(len(files), len(others))
    hash = digest("domains", name, *files, *others, np.asarray(one + two, np.int64))

    def show(index: int) -> tuple[Picture, Picture]:
        scattered = (index * 2_654_435_761 + 97) % 2**32 % len(others)  # so that names in common do not meet
        return decode(root / files[index % len(files)]), decode(other / others[scattered])

    return TwoDomains(root, Strings(files[i % len(files)] for i in range(count)), name, splits, hash, show, paired=False)


def paired_folders(path: Path, split: str, back: bool) -> TwoDomains:
    """A picture in A/<split>/ is answered by that of the same name in B/<split>/ (without split folders everything is "train")."""
    places = {folder.name: folder.name for folder in sorted((path / "A").iterdir()) if folder.is_dir()}
    there = {name: name for name in places if canonical(name) in SPLITS and (path / "B" / name).is_dir()} or {"train": "."}
    inner = there[resolve(split, there, str(path))]
    one, two = (path / side / inner for side in ("BA" if back else "AB"))
    files, sizes = _listed(one)
    missing = next((file for file in files if not (two / file).is_file()), None)
    if missing is not None:
        raise DataError(f"{one / missing}: its partner {two / missing} does not exist")
    hash = digest("pairs", str(back), split, *files, np.asarray(sizes, np.int64))

    def show(index: int) -> tuple[Picture, Picture]:
        return decode(one / files[index]), decode(two / files[index])

    return TwoDomains(one, files, canonical(split), tuple(there), hash, show, paired=True)


def halves(path: Path, split: str, back: bool) -> TwoDomains:
    """Pictures whose left half A is answered by the right half B (`back`: the other way round), in <split>/ or all "train"."""
    there = {folder.name: folder.name for folder in sorted(path.iterdir()) if folder.is_dir()} or {"train": "."}
    root = path / there[resolve(split, there, str(path))]
    files, sizes = _listed(root)
    hash = digest("halves", str(back), split, *files, np.asarray(sizes, np.int64))

    def show(index: int) -> tuple[Picture, Picture]:
        pixels = decode(root / files[index]).pixels
        width = int(pixels.shape[1])
        if width % 2:
            raise DataError(f"{root / files[index]}: two halves side by side need an even width, found {width}")
        left, right = Picture(pixels[:, : width // 2].contiguous()), Picture(pixels[:, width // 2 :].contiguous())
        return (right, left) if back else (left, right)

    return TwoDomains(root, files, canonical(split), tuple(there), hash, show, paired=True)
