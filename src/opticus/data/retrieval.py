"""Retrieval data on disk: revisited Oxford and Paris, and Copydays. Both have the splits "database" and "query".

Revisited (Radenovic et al., CVPR 2018): `gnd_<name>.pkl` beside `jpg/`; the pickle holds `imlist` and `qimlist` (names without ".jpg") and
`gnd`, for each query lists `easy`, `hard` and `junk` of positions in `imlist` and the box `bbx` (x0, y0, x1, y1) that the query is cropped
to. It is read by `pickles.read_pickle`, which executes nothing. Copydays (Douze et al., CIVR 2009): `original/`, `strong/`,
`jpegqual/<quality>/` and `crops/<percent>/`; pictures in `distractors/` join the originals in the database. A
distorted picture belongs to the original of the same name, else to those whose first four characters it shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import torch

from opticus.data.decode import decode
from opticus.data.files import folders_in, has_picture, pictures_under
from opticus.data.pickles import read_pickle
from opticus.data.records import Boxes, Strings, digest
from opticus.data.splits import canonical
from opticus.structures import DataError, Picture, Relevant, Sample, Target, Task

SPLITS = ("database", "query")
ALIASES = {"train": "database", "test": "query", "gallery": "database", "queries": "query"}
PREFIX = 4  # characters by which Copydays names an original
DISTORTED = ("strong", "jpegqual", "crops")
LISTS = ("easy", "hard", "junk")


def part_of(split: str, where: str) -> str:
    """ "database" or "query", also from "train" and "test"; DataError otherwise."""
    name = ALIASES.get(canonical(split), canonical(split))
    if name not in SPLITS:
        raise DataError(f"{where}: there is no split {split!r}; there is {', '.join(SPLITS)}")
    return name


class RetrievalFiles:
    """Picture files of one side of a retrieval data set; queries have `Relevant` targets, database pictures none.

    `protocol` ("revisited" or "copydays") says how retrieval in this data is scored. `crops` are the boxes that queries are cut to.
    """

    task: Task = "embed"
    names: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(
        self,
        protocol: str,
        split: str,
        files: list[tuple[str, Path]],
        targets: list[Relevant] | None = None,
        crops: list[tuple[float, float, float, float] | None] | None = None,
    ) -> None:
        self.protocol = protocol
        self.split: str = split
        self.ids = Strings(name for name, _ in files)
        self.files = Strings(str(file) for _, file in files)
        self.targets = targets
        self.crops = crops
        lists = [part.numpy() for target in targets or [] for part in (target.easy, target.hard, target.junk)]
        sizes = np.asarray([file.stat().st_size for _, file in files], np.int64)
        groups = [target.group for target in targets or []]
        self.hash: str = digest("retrieval", protocol, split, *self.ids, *groups, repr(crops), sizes, *lists)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        picture = decode(self.file_of(index))
        box = None if self.crops is None else self.crops[index]
        if box is not None:
            picture = _cropped(picture, box, self.id_of(index))
        return Sample({"image": picture}, self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The picture's name; for Copydays with its folder."""
        return self.ids[index]

    def target_of(self, index: int) -> Target | None:
        """What a query is to find; None for database pictures."""
        return None if self.targets is None else self.targets[index]

    def file_of(self, index: int) -> Path:
        """The picture's file."""
        return Path(self.files[index])


def _cropped(picture: Picture, box: tuple[float, float, float, float], id: str) -> Picture:
    """The part inside `box` and the picture, corners rounded to whole pixels as by Pillow's crop; DataError if nothing is left."""
    height, width = picture.size
    x0, y0, x1, y1 = (round(value) for value in box)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x1 <= x0 or y1 <= y0:
        raise DataError(f"{id}: the query's box {box} holds no pixel of its picture of {width}x{height}")
    return Picture(picture.pixels[y0:y1, x0:x1].contiguous())


# --- revisited Oxford and Paris ------------------------------------------------------------------------------------------------


def matches_revisited(path: Path) -> bool:
    """Whether the folder holds a `gnd_*.pkl`."""
    return path.is_dir() and any(path.glob("gnd_*.pkl"))


def read_revisited(path: Path, split: str) -> RetrievalFiles:
    """The database or the cropped queries of a revisited set. Raises DataError naming the list, query or picture that is wrong."""
    part = part_of(split, str(path))
    found = sorted(path.glob("gnd_*.pkl"))
    if len(found) > 1:
        raise DataError(
            f"{path}: expected one ground truth, found {', '.join(file.name for file in found)}; give each set its folder"
        )
    file = found[0]
    content = _worded(read_pickle(file))
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a dictionary with imlist, qimlist and gnd, found a {type(content).__name__}")
    for key in ("imlist", "qimlist", "gnd"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise DataError(f"{file}: expected a list {key!r}, found {', '.join(map(str, content)) or 'an empty dictionary'}")
    images, queries, truths = content["imlist"], content["qimlist"], content["gnd"]
    if len(queries) != len(truths):
        raise DataError(f"{file}: {len(queries)} queries in qimlist but {len(truths)} entries in gnd")
    if not (path / "jpg").is_dir():
        raise DataError(f"{path}: the folder jpg/ with the pictures is missing beside {file.name}")
    there = {str(PurePosixPath(name).with_suffix("")): path / "jpg" / name for name, _ in pictures_under(path / "jpg")}
    names = images if part == "database" else queries
    missing = [str(name) for name in names if name not in there]
    if missing:
        raise DataError(
            f"{path / 'jpg'}: {len(missing)} of {len(names)} pictures of {file.name} are missing, such as {missing[0]}.jpg"
        )
    files = [(name, there[name]) for name in names]
    if part == "database":
        return RetrievalFiles("revisited", part, files)
    targets = [_truth(truth, len(images), f"{file}: query {name}") for name, truth in zip(queries, truths)]
    crops = [_box(truth, f"{file}: query {name}") for name, truth in zip(queries, truths)]
    return RetrievalFiles("revisited", part, _unlike(files), targets, crops)


def _worded(value: Any) -> Any:
    """Byte strings of Python 2 as words, at the depths at which the ground truth has any."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_worded(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {_worded(key): _worded(inner) for key, inner in cast("dict[Any, Any]", value).items()}
    return value


def _truth(truth: Any, database: int, where: str) -> Relevant:
    if not isinstance(truth, dict):
        raise DataError(f"{where}: expected a dictionary with easy, hard, junk and bbx, found a {type(truth).__name__}")
    entry = cast("dict[str, Any]", truth)
    parts: list[torch.Tensor] = []
    for key in LISTS:
        if key not in entry:
            raise DataError(f"{where}: the list {key!r} is missing (there is {', '.join(map(str, entry)) or 'nothing'})")
        try:
            values = np.asarray(entry[key]).reshape(-1)
            whole = values.astype(np.int64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the list {key!r} does not hold positions ({error})") from error
        if values.size and not (np.isfinite(values.astype(np.float64)).all() and (whole == values).all()):
            raise DataError(f"{where}: the list {key!r} must hold whole numbers")
        if whole.size and (whole.min() < 0 or whole.max() >= database):
            odd = int(whole[(whole < 0) | (whole >= database)][0])
            raise DataError(f"{where}: the list {key!r} names picture {odd} of {database}")
        if len(np.unique(whole)) != len(whole):
            raise DataError(f"{where}: the list {key!r} names a picture twice")
        parts.append(torch.from_numpy(whole))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = np.intersect1d(parts[one].numpy(), parts[other].numpy())
        if both.size:
            raise DataError(f"{where}: picture {int(both[0])} is in the lists {LISTS[one]!r} and {LISTS[other]!r}")
    return Relevant(parts[0], parts[1], parts[2])


def _box(truth: dict[str, Any], where: str) -> tuple[float, float, float, float] | None:
    box = truth.get("bbx")
    if box is None:
        return None
    try:
        values = np.asarray(box, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: bbx must be four numbers ({error})") from error
    if len(values) != 4 or not np.isfinite(values).all() or values[2] <= values[0] or values[3] <= values[1]:
        raise DataError(f"{where}: bbx must be x0, y0, x1, y1 with x1 > x0 and y1 > y0, found {values.tolist()}")
    return float(values[0]), float(values[1]), float(values[2]), float(values[3])


def _unlike(files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """A picture that is cut to two queries gets two names."""
    seen: dict[str, int] = {}
    out: list[tuple[str, Path]] = []
    for name, file in files:
        seen[name] = seen.get(name, 0) + 1
        out.append((name if seen[name] == 1 else f"{name}#{seen[name]}", file))
    return out


# --- Copydays --------------------------------------------------------------------------------------------------------------------


def matches_copydays(path: Path) -> bool:
    """Whether there are originals beside distorted pictures."""
    if not (path / "original").is_dir() or not has_picture(path / "original"):
        return False
    return any((path / name).is_dir() and has_picture(path / name) for name in DISTORTED)


def read_copydays(path: Path, split: str) -> RetrievalFiles:
    """The originals (and distractors), or the distorted pictures. Raises DataError for one that belongs to no original."""
    part = part_of(split, str(path))
    originals = _listed(path, "original")
    if part == "database":
        return RetrievalFiles(
            "copydays", part, originals + (_listed(path, "distractors") if (path / "distractors").is_dir() else [])
        )
    stems = {Path(name).stem: place for place, (name, _) in enumerate(originals)}
    prefixes: dict[str, list[int]] = {}
    for stem, place in stems.items():
        prefixes.setdefault(stem[:PREFIX], []).append(place)
    files: list[tuple[str, Path]] = []
    targets: list[Relevant] = []
    none = torch.zeros(0, dtype=torch.int64)
    for block in _blocks(path):
        for name, file in _listed(path, block):
            stem = Path(name).stem
            places = [stems[stem]] if stem in stems else prefixes.get(stem[:PREFIX], [])
            if not places:
                raise DataError(f"{file}: no picture of original/ has this name or begins with {stem[:PREFIX]!r}")
            files.append((name, file))
            targets.append(Relevant(torch.tensor(places), none, none, block))
    return RetrievalFiles("copydays", part, files, targets)


def _blocks(path: Path) -> list[str]:
    blocks = ["strong"] if (path / "strong").is_dir() and has_picture(path / "strong") else []
    for kind in DISTORTED[1:]:
        inner = folders_in(path / kind) if (path / kind).is_dir() else []
        blocks += [f"{kind}/{folder.name}" for folder in inner if has_picture(folder)]
    return blocks


def _listed(path: Path, block: str) -> list[tuple[str, Path]]:
    return [(f"{block}/{name}", path / block / name) for name, _ in pictures_under(path / block)]
