"""Where the samples of one shard lie: found by one walk over its headers, kept in flat arrays, cached until the shard changes."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from opticus.data import tar
from opticus.data.archive import stays_inside
from opticus.data.decode import SUFFIXES
from opticus.data.records import digest
from opticus.structures import DataError
from opticus.structures.files import FileWriteError, write_bytes
from opticus.weights.cache import writable_folder

VERSION = "1"  # of the cached arrays and of what is taken for a fault
CLASS_KEYS = ("label", "cls", "class")  # of a .json target
_CLASSES = ("cls", "class")
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_SMALL = 1 << 20  # bytes that a class or a JSON target may have
_ARRAYS = ("keys", "key_ends", "place", "size", "label", "text_place", "text_size")


def parts_of(name: str) -> tuple[str, str]:
    """(key, suffix in lower case): the name up to the first dot of its last part, and the rest; two empty words if it has no dot."""
    found = _KEY.fullmatch(name)
    return (found[1], found[2].lower()) if found else ("", "")


def picture_suffix(suffix: str) -> bool:
    """Whether a member of this suffix ("jpg", "input.png") is a picture."""
    return "." + suffix.rpartition(".")[2] in SUFFIXES


def target_suffix(suffix: str) -> bool:
    """Whether a member of this suffix may hold a target."""
    return suffix in (*_CLASSES, "json", "txt")


@dataclass(slots=True)
class ShardIndex:
    """One row a sample; `place` and `text_place` are byte offsets, `label` is a number or the place of a name in `names`."""

    keys: npt.NDArray[np.uint8]  # the text of all keys
    key_ends: npt.NDArray[np.uint32]  # (n,)
    place: npt.NDArray[np.int64]  # (n,) of the picture's file, -1 without one
    size: npt.NDArray[np.uint32]  # (n,)
    label: npt.NDArray[np.int32]  # (n,), -1 without one
    text_place: npt.NDArray[np.int64]  # (n,), or (0,) in a shard without captions
    text_size: npt.NDArray[np.uint32]
    names: tuple[str, ...] = ()
    faults: tuple[tuple[str, str, str], ...] = ()  # kind, key of the sample or "", what was found

    def __len__(self) -> int:
        return len(self.place)

    def key(self, row: int) -> str:
        """The key of sample `row`."""
        start = int(self.key_ends[row - 1]) if row else 0
        return self.keys[start : int(self.key_ends[row])].tobytes().decode("utf-8", "surrogateescape")

    @property
    def highest(self) -> int:
        """The highest label, -1 if there is none."""
        return int(self.label.max()) if len(self.label) else -1

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)


def index_of(where: str, cache: Path | None = None) -> ShardIndex:
    """The index of the shard at `where`, from the cache if the shard is as it was; DataError if it is not there."""
    try:
        state = tar.state_of(where)
    except OSError as error:
        raise DataError(f"{where}: the shard cannot be opened ({error.strerror or error})") from error
    folder = cache or writable_folder()[0].parent / "shards"
    file = folder / f"{digest(VERSION, *state)[:32]}.safetensors"
    found = _cached(file)
    if found is None:
        found = _walked(where)
        try:
            meta = {"version": VERSION, "names": json.dumps(found.names), "faults": json.dumps(found.faults)}
            write_bytes(file, save({name: getattr(found, name) for name in _ARRAYS}, meta))
        except FileWriteError:
            pass  # without a cache the shard is walked again the next time
    return found


def _cached(file: Path) -> ShardIndex | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, "numpy") as stored:  # pyright: ignore[reportUnknownVariableType]
            handle: Any = stored
            meta: Mapping[str, str] = handle.metadata() or {}
            arrays = {name: handle.get_tensor(name) for name in _ARRAYS}
            faults = tuple(cast(Any, tuple(fault)) for fault in json.loads(meta["faults"]))
            return ShardIndex(**arrays, names=tuple(json.loads(meta["names"])), faults=faults)
    except (SafetensorError, OSError, KeyError, ValueError):
        return None  # a damaged cache is no fault of the data


@dataclass(slots=True)
class _Builder:
    """What the walk gathers."""

    keys: bytearray = field(default_factory=bytearray)
    key_ends: array[int] = field(default_factory=lambda: array("L"))
    place: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    label: array[int] = field(default_factory=lambda: array("q"))
    text_place: array[int] = field(default_factory=lambda: array("q"))
    text_size: array[int] = field(default_factory=lambda: array("q"))
    names: dict[str, int] = field(default_factory=dict[str, int])
    numbers: bool = False
    faults: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])

    def begin(self, key: str) -> None:
        self.keys += key.encode("utf-8", "surrogateescape")
        self.key_ends.append(len(self.keys))
        for rows, empty in ((self.place, -1), (self.size, 0), (self.label, -1), (self.text_place, -1), (self.text_size, 0)):
            rows.append(empty)

    def fault(self, kind: str, key: str, detail: str) -> None:
        self.faults.append((kind, key, detail))

    def labelled(self, key: str, value: Any) -> None:
        """Take the class of the present sample: a number from 0 on or a name."""
        if isinstance(value, str) and value and not self.numbers:
            self.label[-1] = self.names.setdefault(value, len(self.names))
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 and not self.names:
            self.label[-1], self.numbers = value, True
        else:
            others = "names" if self.names else "numbers" if self.numbers else "numbers from 0 on or names"
            self.fault("bad class", key, f"classes are {others} here, found {value!r}")

    def finished(self, end: int | None) -> ShardIndex:
        """The arrays; a picture or text that goes on behind the end of the file is none."""
        place, size = np.asarray(self.place, np.int64), np.asarray(self.size, np.int64)
        text_place, text_size = np.asarray(self.text_place, np.int64), np.asarray(self.text_size, np.int64)
        if end is not None:
            place = np.where(place + size > end, -1, place)
            text_size = np.where(text_place + text_size > end, 0, text_size)
        if not text_size.any():
            text_place, text_size = text_place[:0], text_size[:0]
        return ShardIndex(
            np.frombuffer(bytes(self.keys), np.uint8), np.asarray(self.key_ends, np.uint32), place, size.astype(np.uint32),
            np.asarray(self.label, np.int32), text_place, text_size.astype(np.uint32), tuple(self.names), tuple(self.faults),
        )  # fmt: skip


def _walked(where: str) -> ShardIndex:
    reads = tar.Reads()
    try:
        source = reads.of(where)
        built = _Builder()
        present, suffixes = "", set[str]()
        try:
            for member in tar.walk(source):
                if not _ordinary(member, built):
                    continue
                key, suffix = parts_of(member.name)
                if not key or (member.name.startswith("__") and member.name.endswith("__")):
                    continue  # files that belong to no sample, and WebDataset's own notes
                if key != present:
                    built.begin(key)
                    present, suffixes = key, set()
                if suffix in suffixes:
                    built.fault("duplicate member", key, f"{member.name!r} is there twice")
                    continue
                suffixes.add(suffix)
                _take(built, member, key, suffix, source)
        except tar.TarFault as fault:
            built.fault("damaged shard", "", str(fault))
        return built.finished(source.end)
    finally:
        reads.close()


def _ordinary(member: tar.Member, built: _Builder) -> bool:
    """Whether the member is a file that could be unpacked safely; it never is, but whoever would unpack the shard is told."""
    if not stays_inside(member.name):
        built.fault("unsafe member", "", f"{member.name!r} would be written outside the folder that the shard is unpacked to")
    elif member.kind in ("link", "special"):
        built.fault("unsafe member", "", f"{member.name!r} is a {'link' if member.kind == 'link' else 'device or special file'}")
    else:
        return member.kind == "file"
    return False


def _take(built: _Builder, member: tar.Member, key: str, suffix: str, source: tar.Bytes) -> None:
    if picture_suffix(suffix):
        if built.place[-1] < 0:  # a sample's first picture
            built.place[-1], built.size[-1] = member.offset, member.size
    elif suffix == "txt":
        built.text_place[-1], built.text_size[-1] = member.offset, member.size
    elif suffix in _CLASSES or suffix == "json":
        if member.size > _SMALL:
            built.fault("bad class", key, f"{member.name!r} has {member.size} bytes")
            return
        data = source.read(member.offset, member.size)
        if len(data) == member.size:
            _class_in(built, key, suffix, data)


def _class_in(built: _Builder, key: str, suffix: str, data: bytes) -> None:
    if suffix in _CLASSES:
        text = data.decode("utf-8", "replace").strip()
        built.labelled(key, int(text) if re.fullmatch(r"\d{1,12}", text) else _Other(text))
        return
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        built.fault("bad class", key, f"its .json cannot be read ({error})")
        return
    if isinstance(tree, dict) and built.label[-1] < 0:
        found = [cast("dict[str, Any]", tree)[word] for word in CLASS_KEYS if word in tree]
        if found:
            built.labelled(key, found[0])
    elif not isinstance(tree, dict) and built.label[-1] < 0:
        built.labelled(key, tree)


class _Other:
    """The text of a .cls that is no number, as it is shown in a fault."""

    def __init__(self, text: str) -> None:
        self.text = text[:40]

    def __repr__(self) -> str:
        return repr(self.text)
