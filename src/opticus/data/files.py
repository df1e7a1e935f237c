"""Looking into folders: picture files, in a fixed order, found without opening them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from opticus.data.decode import SUFFIXES


def pictures_under(folder: Path) -> Iterator[tuple[str, int]]:
    """(relative path with "/", bytes) of every picture file under `folder`, sorted by name within each folder."""
    stack = [("", folder)]
    while stack:
        prefix, place = stack.pop()
        with os.scandir(place) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        deeper: list[tuple[str, Path]] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                deeper.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
        stack += reversed(deeper)


def has_picture(folder: Path) -> bool:
    """Whether there is any picture file under `folder`."""
    return next(pictures_under(folder), None) is not None


def folders_in(folder: Path) -> list[Path]:
    """The visible folders directly in `folder`, sorted by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
