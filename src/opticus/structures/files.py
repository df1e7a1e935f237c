"""Writing files so that a kill, a full disk or a second process never leaves half a file behind."""

from __future__ import annotations

import contextlib
import errno
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
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = {errno.ENOSPC: "the disk is full", errno.EROFS: "the file system is read-only", errno.EACCES: "permission denied"}
        raise FileWriteError(f"cannot write {path}: {reason.get(error.errno or 0, error.strerror or str(error))}") from error
    finally:
        with contextlib.suppress(OSError):  # where no folder could be made there is nothing to remove either
            part.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomic(path, lambda part: _write(part, text.encode()))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write bytes atomically."""
    return write_atomic(path, lambda part: _write(part, data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; platforms that cannot open folders (Windows) need no such step."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
