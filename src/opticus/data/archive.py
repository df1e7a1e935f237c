"""Data in .zip and .tar archives: unpacked once into the cache, after every entry's name, kind and size was checked."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from opticus.data.records import digest
from opticus.structures import DataError
from opticus.weights.cache import writable_folder

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LIMIT = 1 << 40  # bytes that an archive may unpack to
RATIO = 200  # unpacked bytes for each packed one; pictures do not shrink, annotations at most some 20 times
_FREE = 64 << 20  # bytes below which the ratio does not matter
_COPY = 1 << 20


def is_archive(path: Path) -> bool:
    """Whether the name says that the file is an archive."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(path: Path, cache: Path | None = None) -> Path:
    """The folder with the contents of the archive `path`; it is reused as long as the archive does not change.

    Raises DataError, leaving nothing behind, if an entry has an absolute path, "..", or is a link or device, if the archive unpacks to
    more than `LIMIT` bytes or `RATIO` times its size, or if it is damaged.
    """
    state = path.stat()
    key = digest(str(path.resolve()), str(state.st_size), str(state.st_mtime_ns))[:16]
    target = (cache or writable_folder()[0].parent) / "unpacked" / f"{path.name.split('.')[0]}-{key}"
    if not target.is_dir():
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            part.mkdir(parents=True)
            _extract(path, part, min(LIMIT, max(_FREE, RATIO * state.st_size)))
            os.replace(part, target)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, RuntimeError) as error:
            if not target.is_dir():  # another process may have been faster
                raise DataError(f"{path}: the archive cannot be unpacked into {target.parent} ({error})") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    inner = [entry for entry in target.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else target


def _extract(path: Path, folder: Path, limit: int) -> None:
    left = limit
    for name, size, stream in _zip_entries(path) if path.name.lower().endswith(".zip") else _tar_entries(path):
        target = folder / _checked(path, name)
        if size > left:
            raise DataError(
                f"{path}: unpacks to more than {limit} bytes, {limit // max(path.stat().st_size, 1)} times its size; refused"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with stream, target.open("xb") as out:
            while data := stream.read(_COPY):
                left -= len(data)  # counted, because the sizes that an archive states can lie
                if left < 0:
                    raise DataError(f"{path}: entry {name!r} unpacks to more than the {limit} bytes that are allowed; refused")
                out.write(data)


def _checked(path: Path, name: str) -> str:
    """The entry's name if it stays inside the folder."""
    if not stays_inside(name):
        raise DataError(f"{path}: entry {name!r} would be written outside the folder; refused")
    return name


def stays_inside(name: str) -> bool:
    """Whether an entry of this name would be written inside the folder it is unpacked to."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts
    return not outside and "\0" not in name


def _zip_entries(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _checked(path, info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{path}: entry {info.filename!r} is a link or device; refused")
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, archive.open(info)


def _tar_entries(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(path) as archive:
        for info in archive:
            _checked(path, info.name)
            if info.isdir():
                continue
            stream = archive.extractfile(info) if info.isreg() else None
            if stream is None:
                raise DataError(f"{path}: entry {info.name!r} is a link or device; refused")
            yield info.name, info.size, stream
