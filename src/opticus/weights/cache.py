"""Where downloaded files live, and which digest each address is pinned to."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from opticus.structures import WeightsError
from opticus.weights.save import write_atomically

HOME = "OPTICUS_HOME"


def cache_folder() -> Path:
    """The folder of downloaded weights: $OPTICUS_HOME/weights, or the platform's cache folder; it need not exist."""
    if home := os.environ.get(HOME):
        return Path(home).expanduser() / "weights"
    if sys.platform == "darwin":
        base = "~/Library/Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "opticus" / "weights"


def writable_folder() -> tuple[Path, str | None]:
    """The cache folder, created; where that cannot be written, a folder for temporary files and a sentence that says so."""
    wanted = cache_folder()
    if _writable(wanted):
        return wanted, None
    owner = os.getuid() if hasattr(os, "getuid") else 0
    fallback = Path(tempfile.gettempdir()) / f"opticus-{owner}" / "weights"
    if not _mine(fallback.parent) or not _writable(fallback):
        raise WeightsError(f"{wanted}: the cache folder cannot be written, nor can {fallback}; set {HOME} to a folder that can")
    return fallback, f"{wanted} cannot be written, so downloads go to {fallback}; set {HOME} to choose another folder"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _mine(folder: Path) -> bool:
    """Create a private folder; another user of this machine must not be able to put files where weights are looked for."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not folder.is_symlink() and not status.st_mode & 0o022


def file_name(url: str) -> str:
    """A file name for an address: its own last part, after eight digits of the address's hash so that names cannot clash."""
    last = unquote(urlsplit(url).path).rpartition("/")[2]
    tame = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in last).lstrip(".")[-100:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{tame or 'weights'}"


def digest_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned(file: Path, url: str) -> str | None:
    """The digest that an address was pinned to by its first download, if it was."""
    record = _pin_file(file)
    if not record.is_file():
        return None
    try:
        found = json.loads(record.read_text("utf-8"))
        if found["url"] != url or len(found["sha256"]) != 64:
            raise ValueError("it belongs to another address")
        return str(found["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{record}: the digest pinned for {url} cannot be read ({error}); delete it to pin anew") from error


def pin(file: Path, url: str, sha256: str) -> None:
    """Remember the digest of a file whose publisher names none; every later download of the address must have it."""
    write_atomically(_pin_file(file), json.dumps({"sha256": sha256, "url": url}, sort_keys=True).encode())


def _pin_file(file: Path) -> Path:
    return file.with_name(file.name + ".pin.json")
