"""A pickle walked, not run: containers and tensor shapes are rebuilt, every class or function in it stays a name."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from opticus.structures import WeightsError


class Held(NamedTuple):
    """A tensor that a file holds: its shape, and its type in the file's own words."""

    shape: tuple[int, ...]
    dtype: str = ""


class Named(NamedTuple):
    """A class or function that a pickle names; `made` where the pickle asked for an object of it."""

    name: str
    made: bool = False


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
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def walk(path: Path, file: IO[bytes], count: int) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The first `count` pickles of a stream: each value, and the sorted names of classes and functions that it refers to."""
    for _ in range(count):
        machine = _Machine()
        try:
            for done, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if done > LONGEST:
                    raise ValueError(f"more than {LONGEST} steps")
                machine.step(opcode.name, argument)
            value = machine.stack[-1]
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, EOFError) as error:
            raise WeightsError(f"{path}: the pickle inside is truncated or corrupt ({type(error).__name__}: {error})") from error
        yield value, tuple(sorted(machine.names))


class _Machine:
    """The pickle stack machine, in which calling something only notes its name."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
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
        self.stack.pop()  # attributes (of a state dict: its `_metadata`) are no weights

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
