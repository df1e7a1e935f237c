"""Writing files so that a kill, a full disk or a second process never leaves half a file behind."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from opticus.structures.errors import Error


class FileWriteError(Error):
    """A file could not be written (read-only folder, full disk); what was there before is untouched."""


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, fsync it, and rename it over `path`.

    Raises FileWriteError with one sentence if the folder cannot be written or the disk is full; the temporary file is removed.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.chmod(0o644)  # some libraries create files that only their owner may read
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise FileWriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # where no folder could be made there is nothing to remove either
            part.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically; lone surrogates become question marks."""
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: str | Path, *parts: bytes | memoryview) -> Path:
    """Write bytes atomically, part after part, without joining them in memory."""
    return write_atomic(path, lambda part: _write(part, parts))


def _write(path: Path, parts: tuple[bytes | memoryview, ...]) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; platforms that cannot open folders (Windows) need no such step."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
