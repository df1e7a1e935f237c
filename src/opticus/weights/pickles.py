"""A pickle walked, not run: containers, tensor shapes and NumPy's arrays are rebuilt, every class or function in it stays a name."""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from opticus.structures import WeightsError

Arrays = Literal["names", "shapes", "values"]


class Held(NamedTuple):
    """A tensor that a file holds: its shape, and its type in the file's own words.

    Of an array in a plain pickle also its bytes (`data`, where `walk` was asked for values), column by column if `columns`.
    """

    shape: tuple[int, ...]
    dtype: str = ""
    data: bytes = b""
    columns: bool = False


class Named(NamedTuple):
    """A class or function that a pickle names; `made` where the pickle asked for an object of it."""

    name: str
    made: bool = False


ARRAYS = {
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "builtins.bytes", "__builtin__.bytes"),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray._reconstruct", "numeric._frombuffer")),
}  # the names with which NumPy pickles an array; `_Machine` knows what they mean, nothing of NumPy is called
LONGEST = 4_000_000  # opcodes; a file with 10,000 tensors has about 400,000
_MARK = object()
_REBUILD = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
_WRAP = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TOO_MUCH = (RecursionError, EOFError, MemoryError, OverflowError)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Bytes(NamedTuple):
    """Bytes of an array that nobody asked for: only their number is kept."""

    length: int


class _Array:
    """An array on its way: named, but without shape and values, and the places of the memo that stand for it."""

    def __init__(self) -> None:
        self.places: list[int] = []


class _Kind(NamedTuple):
    """A NumPy type of plain numbers, as "f4", with its byte order as the first letter."""

    name: str


def walk(path: Path, file: IO[bytes], count: int, *, arrays: Arrays = "names") -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The first `count` pickles of a stream: each value, and the sorted names of classes and functions that it refers to.

    `arrays` says what becomes of NumPy's: "names" like any other object, "shapes" (a large file in little memory), or "values" too.
    """
    for _ in range(count):
        machine = _Machine(arrays)
        try:
            for done, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if done > LONGEST:
                    raise ValueError(f"more than {LONGEST} steps")
                machine.step(opcode.name, argument)
            value = machine.stack[-1]
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, *_TOO_MUCH) as error:
            raise WeightsError(f"{path}: the pickle inside is truncated or corrupt ({type(error).__name__}: {error})") from error
        yield value, tuple(sorted(machine.names))


class _Machine:
    """The pickle stack machine, in which calling something only notes its name."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays: Arrays = arrays
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(_measured(argument) if self.arrays == "shapes" else argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            place = len(self.memo) if argument is None else int(argument)
            self.memo[place] = self.stack[-1]
            if isinstance(self.stack[-1], _Array):
                self.stack[-1].places.append(place)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        else:
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise ValueError(f"opcode {name} has no place in a weights file")
            method(argument)

    def _until_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _name(self, name: str) -> None:
        self.names.add(name)
        self.stack.append(Named(name))

    def _call(self, function: Any, arguments: Any) -> None:
        name = function.name if isinstance(function, Named) else "?"
        values: tuple[Any, ...] = tuple(cast(tuple[Any, ...], arguments)) if isinstance(arguments, tuple) else tuple[Any, ...]()
        if name in _REBUILD:
            self.stack.append(Held(_shape(values[2]), _dtype(values[0])))
        elif name in _WRAP and isinstance(values[0], Held):
            self.stack.append(values[0])
        elif name == "collections.OrderedDict":
            self.stack.append(dict(values[0]) if values else {})
        elif name in ARRAYS and self.arrays != "names":
            self.stack.append(_made(name, values))
        else:
            self.stack.append(Named(name, True))

    # one method per opcode, named after it

    def _proto(self, _: Any) -> None: ...
    def _frame(self, _: Any) -> None: ...
    def _stop(self, _: Any) -> None: ...

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._until_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _global(self, argument: str) -> None:
        self._name(argument.replace(" ", "."))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):  # formatting a nested value could take forever
            raise TypeError("the name of a class is not text")
        self._name(f"{module}.{name}")

    def _reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self._call(self.stack.pop(), arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        self.names.add(argument.replace(" ", "."))
        self._until_mark()
        self.stack.append(Named(argument.replace(" ", "."), True))

    def _obj(self, _: Any) -> None:
        function, *arguments = self._until_mark()
        self._call(function, tuple(arguments))

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]  # attributes (of a state dict: its `_metadata`) are no weights
        if isinstance(target, _Array):
            _, shape, kind, columns, data = state
            self.stack[-1] = _held(shape, kind, data, bool(columns))
            for place in target.places:
                self.memo[place] = self.stack[-1]
        elif isinstance(target, _Kind) and isinstance(state, tuple) and cast(tuple[Any, ...], state)[1] in (">", b">"):
            self.stack[-1] = _Kind(">" + target.name[1:])

    def _persid(self, argument: str) -> None:
        self.stack.append(("storage", argument))

    def _binpersid(self, _: Any) -> None: ...  # the storage tuple stays as it is

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _dict(self, _: Any) -> None:
        items = self._until_mark()
        self.stack.append(_pairs(items))

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._until_mark())

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            cast(dict[Any, Any], self.stack[-1]).update(_pairs(items))

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _list(self, _: Any) -> None:
        self.stack.append(self._until_mark())

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._until_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            cast(list[Any], self.stack[-1]).extend(items)

    def _empty_set(self, _: Any) -> None:
        self.stack.append(Named("builtins.set", True))

    def _additems(self, _: Any) -> None:
        self._until_mark()

    def _frozenset(self, _: Any) -> None:
        self._until_mark()
        self.stack.append(Named("builtins.frozenset", True))

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._until_mark()))

    def _tuple1(self, _: Any) -> None:
        self._last(1)

    def _tuple2(self, _: Any) -> None:
        self._last(2)

    def _tuple3(self, _: Any) -> None:
        self._last(3)

    def _last(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError("stack underflow")
        del self.stack[-count:]
        self.stack.append(items)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn; keys that cannot be keys of a mapping are left out."""
    return {key: value for key, value in zip(items[::2], items[1::2]) if isinstance(key, str | int | float | bool)}


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(n, int) and n >= 0 for n in cast(tuple[Any, ...], value)):
        raise ValueError("a tensor's shape is not a tuple of sizes")
    return cast(tuple[int, ...], value)


def _dtype(storage: Any) -> str:
    kind = cast(Any, storage)[1] if isinstance(storage, tuple) and len(cast(tuple[Any, ...], storage)) > 1 else ""
    return kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Named) else ""


def _measured(argument: Any) -> Any:
    return _Bytes(len(argument)) if isinstance(argument, bytes | bytearray) and len(argument) > 16 else argument


def _made(name: str, values: tuple[Any, ...]) -> Any:
    """What one of NumPy's names stands for, given its arguments."""
    if name.endswith("_reconstruct"):
        return _Array()
    if name.endswith("_frombuffer"):
        data, kind, shape, order = values
        return _held(shape, kind, data, order == "F")
    if name == "numpy.dtype":
        text = values[0].decode("latin-1") if isinstance(values[0], bytes) else values[0]
        if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?[buif][1248]", text):
            raise ValueError(f"an array of type {str(text)[:20]!r}, expected plain numbers")
        return _Kind(text if text[0] in "<>|=" else "<" + text)
    if name == "_codecs.encode" and isinstance(values[0], str):  # how bytes are written for Python 2
        return values[0].encode("latin-1")
    if name.endswith(".bytes") and not values:
        return b""
    raise ValueError(f"{name} used in an unknown way")


def _held(shape: Any, kind: Any, data: Any, columns: bool) -> Held:
    """An array, if its shape, type and bytes agree."""
    if not isinstance(kind, _Kind):
        raise ValueError("an array that does not hold plain numbers")
    data = data.encode("latin-1") if isinstance(data, str) else data  # strings of Python 2
    length = data.length if isinstance(data, _Bytes) else len(data)
    needed = math.prod(_shape(shape)) * int(kind.name[-1])
    if length != needed:
        raise ValueError(f"an array of shape {shape} needs {needed} bytes, it has {length}")
    return Held(shape, kind.name, b"" if isinstance(data, _Bytes) else bytes(data), columns)
