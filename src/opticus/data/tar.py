"""Tar files as they lie: headers are walked without unpacking anything, and bytes are read in place or, from a stream, forwards.

The format is that of POSIX.1-2001 (ustar with pax headers) with GNU's long names and binary sizes. Python's `tarfile` reads the same
files but takes a damaged or cut-off one silently for a shorter one; here every such fault is named.
"""

from __future__ import annotations

import gzip
import http.client
import os
import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from opticus.structures import DataError

BLOCK = 512
OPEN = 64  # files or connections that a process keeps open
WAIT = 60.0  # seconds without a byte after which a connection counts as broken
_LONGEST = 1 << 20  # bytes of a pax header or a long name
_STEP = 1 << 20
_FILES, _FOLDER, _LINKS = (b"0", b"\0", b"7"), b"5", (b"1", b"2")


class Member(NamedTuple):
    """One entry: its name, what it is, and where its bytes lie. `kind` is "file", "folder", "link" or "special"."""

    name: str
    kind: str
    offset: int
    size: int


class Bytes(Protocol):
    """What a tar file is read from. `end` is the file's length, None as long as that is unknown."""

    end: int | None

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer only where the file ends."""
        ...


class TarFault(Exception):
    """The file cannot be walked further; the text says where and why."""


def walk(source: Bytes) -> Iterator[Member]:
    """The members in their order. Raises TarFault at a damaged header, and where the file ends before its two zero blocks."""
    position, pax, long_name, last = 0, dict[str, str](), "", ""
    while True:
        head = source.read(position, BLOCK)
        if len(head) < BLOCK:
            raise TarFault(_cut(source, position, last))
        if not any(head):
            if source.read(position + BLOCK, BLOCK) != bytes(BLOCK):
                raise TarFault(f"the end mark at byte {position} is incomplete")
            return
        size = _header_size(head, position)
        kind, start = head[156:157], position + BLOCK
        position = start + -(-size // BLOCK) * BLOCK
        if kind in b"xgLK":
            if size > _LONGEST:
                raise TarFault(f"the header at byte {start - BLOCK} says that a name is {size} bytes long")
            text = source.read(start, size)
            if kind == b"x":
                pax = _records(text, start)
            elif kind == b"L":
                long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        if "size" in pax:
            size = int(pax["size"])
            position = start + -(-size // BLOCK) * BLOCK
        last = pax.get("path") or long_name or _name(head)
        pax, long_name = {}, ""
        if kind in _FILES:
            yield Member(last, "folder" if last.endswith("/") and not size else "file", start, size)
        else:
            yield Member(last, "folder" if kind == _FOLDER else "link" if kind in _LINKS else "special", start, size)


def _cut(source: Bytes, position: int, last: str) -> str:
    end = source.end
    if end is not None and last and end < position:
        return f"the file is cut off at byte {end}, inside {last!r} or the blocks behind it"
    return f"the file ends at byte {position if end is None else end} without the two zero blocks that end a tar file"


def _header_size(head: bytes, position: int) -> int:
    stated, field = head[148:156], head[124:136]
    try:
        total = int(stated.strip(b" \0") or b"-1", 8)
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise TarFault(f"there is no tar header at byte {position}") from None
    if total != sum(head) - sum(stated) + 8 * 32 or size < 0:
        raise TarFault(f"the tar header at byte {position} is damaged (its checksum does not match)")
    return size


def _name(head: bytes) -> str:
    name = head[:100].partition(b"\0")[0]
    if head[257:263] == b"ustar\0" and (prefix := head[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _records(text: bytes, start: int) -> dict[str, str]:
    """The pax records b"<length> <key>=<value>\\n"."""
    found: dict[str, str] = {}
    while text.strip(b"\0"):
        number, _, _ = text.partition(b" ")
        length = int(number) if number.isdigit() else 0
        key, equals, value = text[len(number) + 1 : length - 1].partition(b"=")
        if not equals or length > len(text):
            raise TarFault(f"the pax header at byte {start} is damaged")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        text = text[length:]
    if "size" in found and not found["size"].isdigit():
        raise TarFault(f"the pax header at byte {start} states the size {found['size']!r}")
    return found


def is_url(where: str) -> bool:
    """Whether the shard is fetched over HTTP."""
    return where.startswith(("http://", "https://"))


def is_sequential(where: str) -> bool:
    """Whether the file can only be read forwards: one behind a URL, or a compressed one."""
    return is_url(where) or where.lower().endswith((".gz", ".tgz"))


def state_of(where: str) -> tuple[str, ...]:
    """What changes when the file does: length and time, or what the server says of them. Raises DataError if it is not there."""
    if not is_url(where):
        status = Path(where).stat()
        return str(Path(where).resolve()), str(status.st_size), str(status.st_mtime_ns)
    with connect(where, "HEAD") as answer:
        facts = answer.headers
        return where, facts.get("Content-Length", ""), facts.get("ETag", ""), facts.get("Last-Modified", "")


def connect(url: str, method: str = "GET") -> Any:
    """An open answer to `url`; DataError with the reason if there is none."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=WAIT)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise DataError(f"{url}: cannot be fetched ({reason})") from error


class LocalBytes:
    """A plain file, read at any place."""

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.end: int | None = os.fstat(self.handle).st_size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; no shared position, so threads and forked workers may read at once."""
        if hasattr(os, "pread"):
            return os.pread(self.handle, size, offset)
        os.lseek(self.handle, offset, os.SEEK_SET)
        return os.read(self.handle, size)

    def close(self) -> None:
        """Give the file back."""
        os.close(self.handle)


class ForwardBytes:
    """A stream: bytes before the present position cost a new start, bytes in between are read and dropped."""

    def __init__(self, where: str) -> None:
        self.where, self.end, self.position = where, None, 0
        self._stream = self._started()

    def _started(self) -> IO[bytes]:
        raw: Any = connect(self.where) if is_url(self.where) else open(self.where, "rb")  # noqa: SIM115
        self._raw = raw
        packed = self.where.lower().endswith((".gz", ".tgz"))
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if packed else raw)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises DataError if the connection breaks or packed data are damaged."""
        if offset < self.position:
            self.close()
            self._stream, self.position = self._started(), 0
        while self.position < offset:
            if not self._taken(min(offset - self.position, _STEP)):
                return b""
        parts: list[bytes] = []
        while size > 0 and (part := self._taken(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _taken(self, size: int) -> bytes:
        try:
            part = self._stream.read(size)
        except EOFError:
            part = b""  # packed data that are cut off end as plain ones do
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{self.where}: reading broke off after {self.position} bytes ({error})") from error
        self.position += len(part)
        if not part:
            if getattr(self._raw, "length", None):  # what the server announced and has not sent
                raise DataError(f"{self.where}: the connection ended {self._raw.length} bytes too early")
            self.end = self.position
        return part

    def close(self) -> None:
        """Give file and connection back."""
        self._stream.close()
        self._raw.close()


class Reads:
    """Bytes of many files, of which the last `keep` stay open; workers that are forked or spawned open their own."""

    def __init__(self, keep: int = OPEN) -> None:
        self.keep = keep
        self._open: OrderedDict[str, LocalBytes | ForwardBytes] = OrderedDict()
        self._owner, self._lock = os.getpid(), threading.Lock()

    def of(self, where: str) -> LocalBytes | ForwardBytes:
        """The file, opened if need be; DataError if it is not there."""
        if self._owner != os.getpid():  # a parent's connections must not be read by two
            self._open, self._owner, self._lock = OrderedDict(), os.getpid(), threading.Lock()
        if where not in self._open:
            try:
                self._open[where] = ForwardBytes(where) if is_sequential(where) else LocalBytes(where)
            except OSError as error:
                raise DataError(f"{where}: the shard cannot be opened ({error.strerror or error})") from error
            if len(self._open) > self.keep:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(where)
        return self._open[where]

    def exactly(self, where: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; DataError if the file has become shorter."""
        with self._lock:
            data = self.of(where).read(offset, size)
        if len(data) != size:
            raise DataError(f"{where}: {size} bytes were expected at byte {offset}, found {len(data)}; has the shard changed?")
        return data

    def close(self) -> None:
        """Give all files back."""
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {"keep": self.keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["keep"])
