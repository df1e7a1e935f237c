"""Downloading weights: by address and digest into a cache, resumable, checked before it is used, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from opticus.structures import UsageError, WeightsError
from opticus.structures.files import sync_folder
from opticus.weights.cache import cache_folder, digest_of, file_name, pin, pinned, writable_folder

LOCAL = ("localhost", "127.0.0.1", "::1")
CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3
_HEX = re.compile(r"[0-9a-f]{8,64}")
_LOG = logging.getLogger("opticus.weights")

Tell = Callable[[str], None]


def fetch(url: str, digest: str | None = None, *, folder: Path | None = None, tell: Tell | None = None) -> Path:
    """The local file of an address, downloaded once.

    `digest` is the file's sha256 or a published prefix of at least eight digits (torchvision's file names). Without one, the
    first download tells the digest it found and pins it: a later download with another is refused. An interrupted download is
    resumed by the next call. `tell` receives sentences for the user (default: a warning). `hf://owner/repository/file` is
    fetched from the Hugging Face Hub. Only https is used, and http to this machine.

    Raises:
        WeightsError: unreachable address, truncated file, wrong digest (the file is removed), full or read-only disk.
        UsageError: an address or digest that is none.
    """
    say = tell or (lambda sentence: warnings.warn(sentence, stacklevel=3))
    if digest is not None and not _HEX.fullmatch(digest.lower()):
        raise UsageError(f"{url}: the digest {digest!r} is not a sha256 in hexadecimal, nor 8 or more digits of one")
    _check_address(url)
    if folder is None:
        if (cached := _in_cache(url, digest)) is not None:
            return cached
        folder, notice = writable_folder()
        if notice:
            say(notice)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name(url)
    expected = (digest or pinned(target, url) or "").lower()
    if (checked := _recorded(target)) is not None and checked.startswith(expected):
        return target
    with _locked(target, say):
        if target.is_file():
            found = digest_of(target)
            if found.startswith(expected):
                _record(target, found)
                return target
            target.unlink()
            say(f"{target}: the cached file has sha256 {found}, {expected} was expected; it is downloaded again")
        part = target.with_name(target.name + ".part")
        _download(_plain(url), part)
        found = digest_of(part)
        if not found.startswith(expected):
            _forget(part)
            raise WeightsError(f"{url}: wrong content: sha256 {expected} was expected, {found} was found; the file was removed")
        with _writing(target):
            part.replace(target)
            _forget(part)
            sync_folder(target.parent)
        if not expected:
            pin(target, url, found)
            say(f"{url}: no digest is published; this file has sha256 {found}, which is pinned from now on")
        _record(target, found)
    return target


def _in_cache(url: str, digest: str | None) -> Path | None:
    """The cached file if its digest is right, also in a cache that this user may only read."""
    target = cache_folder() / file_name(url)
    if not target.is_file():
        return None
    found = _recorded(target) or digest_of(target)
    return target if found.startswith((digest or pinned(target, url) or "").lower()) else None


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "hf":
        if len([p for p in (parts.netloc + parts.path).split("/") if p]) < 3:
            raise UsageError(f"{url}: expected hf://owner/repository/file")
        return
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise UsageError(f"{url}: weights are fetched by https:// or hf:// addresses, not {parts.scheme or 'a path'!r}")
    if parts.scheme == "http" and parts.hostname not in LOCAL:
        raise UsageError(f"{url}: plain http is not used except from this machine; use https")


def _plain(url: str) -> str:
    """The https address of an hf:// one."""
    if not url.startswith("hf://"):
        return url
    from huggingface_hub import hf_hub_url

    owner, repository, file = url.removeprefix("hf://").split("/", 2)
    return hf_hub_url(f"{owner}/{repository}", file)


# --- the transfer ------------------------------------------------------------------------------------------------------


def _opener() -> urllib.request.OpenerDirector:
    """An opener that follows redirects only to addresses that would have been allowed in the first place."""
    handler = urllib.request.HTTPRedirectHandler()
    follow = handler.redirect_request

    def checked(req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        _check_address(newurl)
        return follow(req, fp, code, msg, headers, newurl)

    setattr(handler, "redirect_request", checked)  # noqa: B010 - replacing a method, which a plain assignment is not typed for
    return urllib.request.build_opener(handler)


def _download(url: str, part: Path) -> None:
    """Append to `part` until it is complete; a broken connection is taken up again where it broke, a few times."""
    for attempt in range(ATTEMPTS):
        last = attempt == ATTEMPTS - 1
        try:
            _transfer(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and part.is_file():  # nothing follows what is there
                if error.headers.get("Content-Range") == f"bytes */{part.stat().st_size}":
                    return
                _forget(part)
            elif (error.code < 500 and error.code != 429) or last:
                raise WeightsError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (http.client.HTTPException, OSError, _Truncated) as error:
            if last:
                raise WeightsError(_broken(url, error, part.stat().st_size if part.is_file() else 0)) from error
        time.sleep(0.2 * 4**attempt)
    raise WeightsError(f"{url}: could not be fetched in {ATTEMPTS} attempts")


class _Truncated(Exception):
    """The connection ended before the announced length."""


def _transfer(url: str, part: Path) -> None:
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "opticus", "Accept-Encoding": "identity"})
    version = _version(part)
    if start and version:  # without the server's mark of a version, two versions could be joined
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", version)
    with _opener().open(request, timeout=TIMEOUT) as response:
        if response.status != 206 or not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file again
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with _writing(part):
            if not start:
                mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                _version_file(part).write_text("" if mark.startswith("W/") else mark, "utf-8")
            file = part.open("r+b" if start else "wb")
        with file:
            file.seek(start)
            got = start + _pour(response, file, part, url, start, total)
            with _writing(part):
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
    if total is not None and got != total:
        raise _Truncated(f"{got} of {total} bytes arrived")


@contextlib.contextmanager
def _writing(part: Path) -> Generator[None]:
    """Failures of the disk, told apart from those of the network."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"{part.parent}: the disk is full; what was downloaded is kept and continued once there is room"
            ) from error
        raise WeightsError(f"{part}: cannot be written ({error.strerror or error})") from error


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _version(part: Path) -> str:
    """The server's mark (ETag or date) of the version that `part` is the beginning of."""
    with contextlib.suppress(OSError):
        return _version_file(part).read_text("utf-8").strip()
    return ""


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _pour(response: IO[bytes], file: IO[bytes], part: Path, url: str, start: int, total: int | None) -> int:
    """Copy a response into a file with a progress bar on stderr (only where that is a terminal); bytes copied."""
    from tqdm import tqdm

    count = 0
    bar = tqdm(
        desc=url.rpartition("/")[2][:40],
        initial=start,
        total=total,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=None,
        leave=False,
    )
    with bar:
        while chunk := response.read(CHUNK):
            with _writing(part):
                file.write(chunk)
            count += len(chunk)
            bar.update(len(chunk))
    return count


def _broken(url: str, error: Exception, kept: int) -> str:
    reason = getattr(error, "reason", None) or error
    note = f"; the {kept} bytes that arrived are kept, and the next attempt continues there" if kept else ""
    if isinstance(error, _Truncated):
        return f"{url}: truncated: {reason}{note}"
    return f"{url}: could not be fetched ({reason}){note}"


# --- one download at a time, one check per file ------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(target: Path, say: Tell) -> Generator[None]:
    """Only one process downloads a file; the others wait. The lock goes with its process."""
    path = target.with_name(target.name + ".lock")
    try:
        file = path.open("a+b")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error})") from error
    with file:
        if sys.platform == "win32":
            yield
            return
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("%s is being downloaded by another process; waiting", target.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: the digest still decides
            say(f"{path.parent}: this file system has no locks; do not download the same file twice at once")
        yield


def _stamp_file(target: Path) -> Path:
    return target.with_name(target.name + ".checked")


def _stamp(target: Path) -> str:
    status = target.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _recorded(target: Path) -> str | None:
    """The sha256 of a file found by an earlier check, if its size and time are still the same.

    Hashing 350 MB at every start would take longer than loading them.
    """
    with contextlib.suppress(OSError, ValueError):
        stamp, sha256 = _stamp_file(target).read_text("utf-8").rsplit(" ", 1)
        return sha256 if stamp == _stamp(target) else None
    return None


def _record(target: Path, sha256: str) -> None:
    with contextlib.suppress(OSError):
        _stamp_file(target).write_text(f"{_stamp(target)} {sha256}", "utf-8")
