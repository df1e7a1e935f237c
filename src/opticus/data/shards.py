"""Shards: tar files whose members are grouped to samples by their names, as WebDataset writes them; nothing is ever unpacked.

`0001.jpg` and `0001.cls` are one sample with the key `0001`: the name up to the first dot of its last part, members of a sample
beside each other. The picture is the member with a picture's suffix; the class is a whole number in `.cls` (or `.class`), or "label",
"cls" or "class" (a number or a name) of a `.json`; data without classes may have captions in `.txt`. Each shard is walked once; where
its samples lie is kept in flat arrays in the cache (40 bytes a sample), so that any sample is one read away. Compressed shards and
those behind a URL are read forwards only; `opticus.data.stream` orders them. `classes.txt` beside the shards, one name a line, names
the classes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from opticus.data import tar
from opticus.data.decode import decode
from opticus.data.files import folders_in
from opticus.data.findings import Finding
from opticus.data.records import Boxes, Ints, digest
from opticus.data.shard_index import ShardIndex, index_of, parts_of, picture_suffix, target_suffix
from opticus.data.splits import canonical, is_split, resolve, split_in
from opticus.structures import Classes, DataError, ImageError, Sample, Target, Task, UsageError
from opticus.structures.targets import Text

NAMES = "classes.txt"
_PACKED = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST = 1_000_000  # shards that a pattern may stand for


class Shard(NamedTuple):
    """One tar file: where it is, its name without suffix, and its split."""

    where: str
    name: str
    split: str


def matches(path: Path) -> bool:
    """Whether `path` is a shard, or a folder with shards in it or in its split folders."""
    if path.is_file():
        return _is_shard(path)
    return path.is_dir() and any(_is_shard(file) for file in itertools.islice(_files(path), 3))


def is_pattern(word: str) -> bool:
    """Whether the word speaks of shards that are not looked for in a folder: a pattern with braces, or a URL."""
    return word.startswith("pipe:") or (bool(_PACKED.search(word)) and ("{" in word or tar.is_url(word)))


def read(path: Path | str, split: str) -> Shards:
    """The split `split` of the shards in a folder, of one file, or of a pattern such as "data/train-{000000..000099}.tar".

    A shard's split is that in its name ("train-000000.tar"), else that of its folder, else "train". Raises DataError for a shard
    that is missing or holds no samples at all; its other faults are notes, which the doctor lists and `open_data` refuses.
    """
    if isinstance(path, str):
        places = expanded(path)
        folder = places[0].rpartition("/")[0]
    else:
        places = [str(path)] if path.is_file() else [str(file) for file in _files(path)]
        folder = str(path.parent if path.is_file() else path)
    shards = [_shard(where) for where in places]
    name = resolve(split, [shard.split for shard in shards], str(path))
    indices = {shard.where: index_of(shard.where) for shard in shards}
    return Shards(shards, indices, _names(folder, list(indices.values()), str(path)), name)


def expanded(pattern: str) -> list[str]:
    """All places that a pattern stands for: "{000..099}" counts with leading zeros, "{train,val}" lists; UsageError for others."""
    if pattern.startswith("pipe:"):
        raise UsageError(f"{pattern!r}: a data set's name runs no commands; give files or http(s) addresses")
    choices: list[list[str]] = []
    for i, part in enumerate(_BRACES.split(pattern)):
        count = re.fullmatch(r"(\d+)\.\.(\d+)", part) if i % 2 else None
        if count is not None:
            first, last = (int(text) for text in count.groups())
            if not first <= last < first + _MOST:
                raise UsageError(f"{pattern!r}: {{{part}}} must count upwards, over at most {_MOST} shards")
            choices.append([f"{number:0{len(count[1])}d}" for number in range(first, last + 1)])
        else:
            choices.append(part.split(",") if i % 2 else [part])
    if any("{" in words[0] for words in choices[0::2]) or any("" in words for words in choices[1::2]):
        raise UsageError(f"{pattern!r}: expected braces such as {{000000..000099}} or {{train,val}}")
    return ["".join(words) for words in itertools.product(*choices)]


def _files(path: Path) -> Iterator[Path]:
    for folder in (path, *(inner for inner in folders_in(path) if is_split(inner.name))):
        yield from sorted(file for file in folder.iterdir() if _PACKED.search(file.name) and file.name[0] != "." and file.is_file())


def _is_shard(path: Path) -> bool:
    """Whether the first members are one sample: a picture with its target beside it, or several pictures in no folder."""
    if not _PACKED.search(path.name):
        return False
    kinds: dict[str, set[str]] = {}
    reads = tar.Reads()
    try:
        for member in itertools.islice(tar.walk(reads.of(str(path))), 12):
            key, suffix = parts_of(member.name)
            if member.kind == "file" and key:
                kinds.setdefault(key, set()).add("picture" if picture_suffix(suffix) else "target" if target_suffix(suffix) else "")
    except (tar.TarFault, DataError):
        pass  # what was seen before the fault decides; the fault itself is named when the shard is read
    finally:
        reads.close()
    return any({"picture", "target"} <= found for found in kinds.values())


def _shard(where: str) -> Shard:
    file = where.rpartition("/")[2]
    name = _PACKED.sub("", file)
    folder = where.rpartition("/")[0].rpartition("/")[2]
    split = split_in(name) or (folder if is_split(folder) else "train")
    return Shard(where, name, split)


def _names(folder: str, indices: Sequence[ShardIndex], where: str) -> tuple[str, ...]:
    """The classes of all splits together: those of `classes.txt`, the names in the targets, or the numbers 0..highest."""
    highest = max((index.highest for index in indices if not index.names), default=-1)
    spoken = sorted({name for index in indices for name in index.names})
    if spoken and highest >= 0:
        raise DataError(f"{where}: classes are numbers in some shards and names ({spoken[0]!r}, ...) in others")
    listed = _listed(f"{folder}/{NAMES}" if folder else NAMES)
    if listed is None:
        return tuple(spoken) or tuple(str(i) for i in range(highest + 1))
    if highest >= len(listed) or not set(spoken) <= set(listed):
        odd = repr(next(name for name in spoken if name not in listed)) if spoken else f"class {highest}"
        raise DataError(f"{where}: a target has {odd}, but {NAMES} names {len(listed)} classes")
    return listed


def _listed(where: str) -> tuple[str, ...] | None:
    if not tar.is_url(where):
        if not Path(where).is_file():
            return None
        return tuple(Path(where).read_text("utf-8").splitlines())
    try:
        with tar.connect(where) as answer:
            return tuple(answer.read(1 << 22).decode("utf-8").splitlines())
    except DataError:
        return None


class Raw(NamedTuple):
    """A sample's bytes as they lie in the shard."""

    picture: bytes
    text: bytes = b""


def _words(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()


class Shards:
    """The samples of one split, each one read away; record i is sample i - starts[s] of shard s."""

    boxes: Boxes | None = None

    def __init__(self, shards: Sequence[Shard], indices: dict[str, ShardIndex], names: tuple[str, ...], split: str) -> None:
        self.shards = [shard for shard in shards if shard.split == split]
        self.indices = [indices[shard.where] for shard in self.shards]
        self.names, self.label_ids = names, tuple(range(len(names)))
        self.split, self.splits = split, tuple(sorted({shard.split for shard in shards}, key=lambda name: (canonical(name), name)))
        self.starts: Ints = np.cumsum([0, *(len(index) for index in self.indices)])
        if not len(self):
            raise DataError(f"{self.shards[0].where}: the shards of split {split!r} hold no samples")
        self.task: Task = "classify" if names else "caption" if any(len(index.text_place) for index in self.indices) else "embed"
        self.labels = self._labels()
        self.sequential = any(tar.is_sequential(shard.where) for shard in self.shards)
        self.reads = tar.Reads(2) if self.sequential else tar.Reads()
        self.hash = digest(
            "shards", split, *names, self.labels, *(part for s in range(len(self.shards)) for part in self._content(s))
        )

    def _labels(self) -> npt.NDArray[np.int32]:
        place = {name: label for label, name in enumerate(self.names)}
        parts: list[npt.NDArray[np.int32]] = []
        for index in self.indices:
            table = np.asarray([place[name] for name in index.names] + [-1], np.int32)
            parts.append(table[index.label] if index.names else index.label)
        return np.concatenate(parts)

    def _content(self, shard: int) -> tuple[Any, ...]:
        index = self.indices[shard]
        return self.shards[shard].name, index.keys, index.place, index.size

    @property
    def notes(self) -> list[Finding]:
        """What is wrong with the shards and their samples, as the doctor says it."""
        return [
            Finding(kind, "error", f"{shard.name}/{key}" if key else "", shard.where, detail)
            for shard, index in zip(self.shards, self.indices)
            for kind, key, detail in index.faults
        ] + self._lacking()

    def _lacking(self) -> list[Finding]:
        """Samples without a picture, and those without a class or caption where others have one."""
        found: list[Finding] = []
        for s, index in enumerate(self.indices):
            lacks = {"picture": index.place < 0}
            if self.task == "classify":
                lacks["class"] = index.label < 0
            elif self.task == "caption":
                lacks["caption"] = index.text_size == 0 if len(index.text_size) else np.ones(len(index), bool)
            for what, mask in lacks.items():
                for row in np.flatnonzero(mask).tolist():
                    record = self.id_of(int(self.starts[s]) + row)
                    found.append(Finding("missing member", "error", record, self.shards[s].where, f"the sample has no {what}"))
        return found

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        return self.sample_of(index, self.raw_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def at(self, index: int) -> tuple[int, int]:
        """(shard, place in its arrays) of record `index`; IndexError outside."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    @property
    def shard_of(self) -> npt.NDArray[np.int32]:
        """(records,) the shard of every record, ascending."""
        return np.repeat(np.arange(len(self.shards), dtype=np.int32), np.diff(self.starts))

    def raw_of(self, index: int, reads: tar.Reads | None = None) -> Raw:
        """The picture's file and the caption as they lie in the shard, undecoded; ImageError if the sample has no picture.

        `reads` are the open files to read with, where several readers go through the same shard forwards.
        """
        s, row = self.at(index)
        exactly = (reads or self.reads).exactly
        held, where = self.indices[s], self.shards[s].where
        place, size = int(held.place[row]), int(held.size[row])
        if place < 0:
            raise ImageError(f"{where}: sample {held.key(row)!r} has no picture")
        if self.task != "caption":
            return Raw(exactly(where, place, size))
        text_place, text_size = self._text_at(s, row)
        if 0 <= text_place < place:  # in the order of the file, which may be readable forwards only
            text = exactly(where, text_place, text_size)
            return Raw(exactly(where, place, size), text)
        picture = exactly(where, place, size)
        return Raw(picture, exactly(where, text_place, text_size) if text_size else b"")

    def sample_of(self, index: int, raw: Raw) -> Sample:
        """Record `index` from its bytes."""
        s, row = self.at(index)
        picture = decode(raw.picture, f"{self.shards[s].where}: {self.indices[s].key(row)}")
        target = Text(_words(raw.text)) if self.task == "caption" else self.target_of(index)
        return Sample({"image": picture}, target, self.id_of(index))

    def id_of(self, index: int) -> str:
        """ "<shard>/<key>"."""
        s, row = self.at(index)
        return f"{self.shards[s].name}/{self.indices[s].key(row)}"

    def target_of(self, index: int) -> Target | None:
        """The class or the caption; None in data without either. DataError for a sample that lacks its class."""
        s, row = self.at(index)
        if self.task == "classify":
            label = int(self.labels[index])
            if label < 0:
                raise DataError(f"{self.shards[s].where}: sample {self.indices[s].key(row)!r} has no class")
            return Classes(torch.tensor([label]))
        if self.task == "caption":
            place, size = self._text_at(s, row)
            return Text(_words(self.reads.exactly(self.shards[s].where, place, size) if size else b""))
        return None

    def _text_at(self, s: int, row: int) -> tuple[int, int]:
        held = self.indices[s]
        return (int(held.text_place[row]), int(held.text_size[row])) if len(held.text_size) else (-1, 0)

    def file_of(self, index: int) -> Path | None:
        """None: pictures have no files of their own."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes held by the index."""
        return self.starts.nbytes + self.labels.nbytes + sum(index.nbytes for index in self.indices)
