"""Large JSON files record by record: one megabyte of text at a time, never the whole tree in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opticus.structures import DataError

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class Record(NamedTuple):
    """One element of a top-level array: the array's key, its number in it, its byte offset in the file, and its value."""

    key: str
    number: int
    offset: int
    value: Any


class _Text:
    """A window on the file. Latin-1 makes one character of each byte, so that positions are byte offsets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream = path.open("rb")
        self.text = ""
        self.base = 0  # offset of text[0] in the file
        self.at = 0  # position in text
        self.done = False
        if self.stream.read(3) != b"\xef\xbb\xbf":
            self.stream.seek(0)
        else:
            self.base = 3

    def more(self) -> None:
        data = self.stream.read(max(_CHUNK, len(self.text) - self.at))  # doubling: long values cost linear time
        if not data:
            self.done = True
        self.base += self.at
        self.text = self.text[self.at :] + data.decode("latin-1")
        self.at = 0

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or self.done:
                return self.text[self.at : self.at + 1]
            self.more()

    def expect(self, character: str, where: str) -> None:
        found = self.peek()
        if found != character:
            self.fail(f"{where}: expected {character!r}, found {found!r}" if found else f"{where}: the file ends too early")
        self.at += 1

    def value(self, where: str) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.done or len(self.text) - error.pos > 2 * _CHUNK:
                    ends = error.pos >= len(self.text) - 1
                    self.fail(f"{where}: the file ends in the middle" if ends else f"{where}: {error.msg}")
                self.more()
                continue
            except RecursionError as error:
                raise DataError(f"{self.path}: {where}: the JSON is nested too deeply") from error
            if end == len(self.text) and not self.done:
                self.more()  # a number may continue in the next chunk
                continue
            self.at = end
            return value

    def fail(self, words: str) -> None:
        raise DataError(f"{self.path}: byte {self.base + self.at}: {words}")


_DECODER = json.JSONDecoder()


def records(path: Path, keys: frozenset[str]) -> Iterator[Record]:
    """The elements of the top-level arrays named in `keys`, in the order of the file; everything else is skipped.

    Raises DataError with file, byte and record when the text is not JSON or is cut off. Strings hold Latin-1 characters for
    UTF-8 bytes: `text_of` turns those that matter back.
    """
    window = _Text(path)
    try:
        window.expect("{", "the file")
        if window.peek() == "}":
            return
        while True:
            key = window.value("a key")
            window.expect(":", f"key {key!r}")
            if key in keys:
                yield from _elements(window, key)
            else:
                window.value(f"key {key!r}")
            if window.peek() == "}":
                return
            window.expect(",", f"after key {key!r}")
    finally:
        window.stream.close()


def elements(path: Path, name: str) -> Iterator[Record]:
    """The elements of a file that is one array; `name` stands for the array in messages. Raises DataError as `records` does."""
    window = _Text(path)
    try:
        found = window.peek()
        if found != "[":
            window.fail(
                f"expected a list of records, found {found!r}" if found else "expected a list of records, the file is empty"
            )
        yield from _elements(window, name)
        if window.peek():
            window.fail(f"expected the end of the file after the list, found {window.peek()!r}")
    finally:
        window.stream.close()


def _elements(window: _Text, key: str) -> Iterator[Record]:
    window.expect("[", f"key {key!r}")
    if window.peek() == "]":
        window.at += 1
        return
    number = 0
    while True:
        window.peek()
        offset = window.base + window.at
        yield Record(key, number, offset, window.value(f"{key}[{number}]"))
        number += 1
        if window.peek() == "]":
            window.at += 1
            return
        window.expect(",", f"after {key}[{number - 1}]")


def text_of(value: Any) -> str:
    """A string read by `records` with its UTF-8 restored (strings with \\u escapes beyond Latin-1 are already right)."""
    text = str(value)
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def record_at(path: Path, offset: int) -> Any:
    """The JSON value that starts at byte `offset`."""
    with path.open("rb") as stream:
        stream.seek(offset)
        text = ""
        while True:
            data = stream.read(1 << 14 if len(text) < 1 << 16 else _CHUNK)
            text += data.decode("latin-1")
            try:
                return _DECODER.raw_decode(text)[0]
            except json.JSONDecodeError as error:
                if not data:
                    raise DataError(f"{path}: byte {offset}: no JSON value ({error.msg}); did the file change?") from error
