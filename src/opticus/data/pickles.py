"""A reader of pickles that can build numbers, strings, bytes, tuples, lists, dictionaries and NumPy arrays, and nothing else.

Pickle is a program for a small stack machine. This is that machine without the instructions that import, call or change
anything: the only names it knows are those with which NumPy writes an array, and they stand for code in this file. Keys of
dictionaries must be words or whole numbers, because hashing nested shared tuples can take for ever.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from opticus.structures import DataError

_LIMIT = 1 << 30  # bytes of a file; CIFAR's largest is 155 MB
_DEEPEST = 64  # lists in lists; the data sets that are read have three
_ARRAY, _KIND, _RECONSTRUCT, _ENCODE, _SCALAR = "array", "dtype", "reconstruct", "encode", "scalar"
_NAMES = {
    "numpy ndarray": _ARRAY,
    "numpy dtype": _KIND,
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy.core.multiarray scalar": _SCALAR,
    "numpy._core.multiarray scalar": _SCALAR,
    "_codecs encode": _ENCODE,
}
_PLAIN = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE"}
    | {"BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
)
_OLD_STRINGS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}


class _Name:
    """A known name on the stack."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Kind:
    """A dtype of plain numbers."""

    def __init__(self, name: Any) -> None:
        text = name.decode("latin-1") if isinstance(name, bytes) else str(name)
        if not re.fullmatch(r"[<>|=]?[buif][1248]", text):
            raise DataError(f"an array of type {text[:20]!r}, expected plain numbers")
        self.dtype: np.dtype[Any] = np.dtype(text)

    def build(self, state: Any) -> None:
        """Take the byte order from a dtype's state."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """An array on its way: empty until its state arrives."""

    def __init__(self) -> None:
        self.value: npt.NDArray[Any] = np.zeros(0, np.uint8)

    def build(self, state: Any) -> None:
        """Make the array from (version, shape, dtype, column order, bytes)."""
        _, shape, kind, columns, data = state
        if not isinstance(kind, _Kind) or not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise DataError("an array that is not made of plain numbers")
        self.value = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if columns else "C")


_MARK = _Name("mark")


def read_pickle(file: Path) -> Any:
    """The object in a pickle file of plain data. Raises DataError, having executed nothing, for any other pickle."""
    size = file.stat().st_size
    if size > _LIMIT:
        raise DataError(f"{file}: {size} bytes, more than a batch of pictures can have")
    try:
        return _Machine().run(file.read_bytes())
    except DataError as error:
        raise DataError(f"{file}: the pickle is not plain data: {error}; refused") from None
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, MemoryError) as error:
        raise DataError(f"{file}: not a readable pickle ({type(error).__name__}: {str(error)[:100]})") from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for code, word, _ in pickletools.genops(data):
            if code.name == "STOP":
                return _finished(self.stack.pop())
            self.step(code.name, word)
        raise DataError("it has no end")

    def step(self, name: str, word: Any) -> None:
        if name in _PLAIN:
            self.stack.append(word)
        elif name in _OLD_STRINGS:
            self.stack.append(word.encode("latin-1"))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[word] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[word])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name not in ("PROTO", "FRAME"):
            self.collect(name, word)

    def collect(self, name: str, word: Any) -> None:
        """The instructions that take several things from the stack."""
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self.since_mark()
            self.stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs(items, {}))
        elif name in ("APPEND", "APPENDS"):
            items = [self.stack.pop()] if name == "APPEND" else self.since_mark()
            _of(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.stack.pop(-2), self.stack.pop()] if name == "SETITEM" else self.since_mark()
            _pairs(items, _of(self.stack[-1], dict))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            wanted = word if name == "GLOBAL" else " ".join([str(self.stack.pop(-2)), str(self.stack.pop())])
            if wanted not in _NAMES:
                raise DataError(f"it asks for {str(wanted)[:60].replace(' ', '.')}")
            self.stack.append(_Name(_NAMES[wanted]))
        elif name == "REDUCE":
            words = self.stack.pop()
            self.stack.append(_made(self.stack.pop(), _of(words, tuple)))
        elif name == "BUILD":
            state = self.stack.pop()
            if not isinstance(self.stack[-1], (_Array, _Kind)):
                raise DataError("it changes an object that is not an array")
            self.stack[-1].build(state)
        else:
            raise DataError(f"it uses the instruction {name}")

    def since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise DataError("a group without a beginning")


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise DataError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _pairs(items: list[Any], into: dict[Any, Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, bytes, int)):
            raise DataError("a dictionary whose keys are not words or numbers")
        into[key] = value
    return into


def _made(name: Any, words: tuple[Any, ...]) -> Any:
    """What one of the known names makes of its arguments."""
    kind = _of(name, _Name).kind
    if kind == _RECONSTRUCT:
        return _Array()
    if kind == _KIND:
        return _Kind(words[0])
    if kind == _ENCODE and isinstance(words[0], str):
        return words[0].encode("latin-1")
    if kind == _SCALAR and len(words) == 2 and isinstance(words[0], _Kind) and isinstance(words[1], bytes):
        return np.frombuffer(words[1], words[0].dtype, 1)[0].item()
    raise DataError(f"it calls {kind} in an unknown way")


def _finished(value: Any, seen: dict[int, Any] | None = None, depth: int = 0) -> Any:
    """Arrays in place of what they were built in, inside lists, tuples and dictionaries too; each object is visited once."""
    seen = {} if seen is None else seen
    if isinstance(value, _Array):
        return value.value
    if not isinstance(value, (list, dict, tuple)):
        return value
    if depth > _DEEPEST:
        raise DataError(f"its lists are nested more than {_DEEPEST} deep")
    held: Any = value
    if id(held) in seen:
        return seen[id(held)][1]
    if isinstance(held, tuple):
        made = tuple(_finished(inner, seen, depth + 1) for inner in cast(tuple[Any, ...], held))
        seen[id(held)] = (held, made)  # the tuple is kept too, so that its number stays its own
        return made
    seen[id(held)] = (held, held)
    for place, inner in held.items() if isinstance(held, dict) else enumerate(held):
        held[place] = _finished(inner, seen, depth + 1)
    return held
