"""Rename tables: how the keys of a published checkpoint become the keys of our network, written down rule by rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from opticus.structures import WeightsError

Op = Callable[[Tensor], Tensor]
Template = str | Callable[[re.Match[str]], str]


class Piece(NamedTuple):
    """One part of a tensor that several upstream keys make up: part `part` of `parts` (from 0), concatenated along `dim`."""

    part: int
    parts: int
    dim: int = 0


@dataclass(frozen=True)
class Rule:
    r"""Upstream keys that fully match `pattern` become `to`, a template with `\1` or `\g<name>` (or a function of the match).

    `op` acts on the tensor first; `piece` makes it one part of a concatenation; `sizes` (with a tuple of templates) splits it
    along `dim`; `drop` discards the key on purpose.
    """

    pattern: str
    to: Template | tuple[Template, ...] = r"\g<0>"
    op: Op | None = None
    piece: Piece | None = None
    drop: bool = False
    sizes: tuple[int, ...] | None = None
    dim: int = 0


class Renamed(NamedTuple):
    """A state under our keys, where each came from, and what no rule matched, was dropped, or is an incomplete concatenation."""

    state: dict[str, Tensor]
    sources: dict[str, tuple[str, ...]]
    unmatched: tuple[str, ...]
    dropped: tuple[str, ...]
    incomplete: tuple[str, ...]


class Names:
    """A rename table. The first rule whose pattern fully matches a key decides; a key that no rule matches is reported."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self._compiled = [(re.compile(rule.pattern), rule) for rule in rules]

    def __add__(self, other: Names) -> Names:
        """This table's rules, then the other's."""
        return Names(*self.rules, *other.rules)

    def find(self, key: str) -> tuple[re.Match[str], Rule] | None:
        """The deciding rule for an upstream key, with its match."""
        for pattern, rule in self._compiled:
            if found := pattern.fullmatch(key):
                return found, rule
        return None

    def apply(self, state: Mapping[str, Tensor]) -> Renamed:
        """Rename a whole state. Works on meta tensors; WeightsError if two keys claim one name or an operation does not fit."""
        out: dict[str, Tensor] = {}
        sources: dict[str, tuple[str, ...]] = {}
        pieces: dict[str, dict[int, tuple[str, Tensor, Piece]]] = {}
        unmatched: list[str] = []
        dropped: list[str] = []
        for key, tensor in state.items():
            found = self.find(key)
            if found is None:
                unmatched.append(key)
                continue
            match, rule = found
            if rule.drop:
                dropped.append(key)
                continue
            value = _operate(rule, key, tensor)
            for name, part in _targets(rule, match, value):
                if name in out or (name in pieces and rule.piece is None):
                    raise WeightsError(f"the keys {sources.get(name, ('?',))[0]!r} and {key!r} are both renamed to {name!r}")
                if rule.piece is None:
                    out[name], sources[name] = part, (key,)
                    continue
                parts = pieces.setdefault(name, {})
                if rule.piece.part in parts:
                    raise WeightsError(
                        f"the keys {parts[rule.piece.part][0]!r} and {key!r} are both part {rule.piece.part} of {name!r}"
                    )
                parts[rule.piece.part] = (key, part, rule.piece)
        incomplete = _concatenate(pieces, out, sources)
        return Renamed(out, sources, tuple(unmatched), tuple(dropped), incomplete)


def _operate(rule: Rule, key: str, tensor: Tensor) -> Tensor:
    try:
        return tensor if rule.op is None else rule.op(tensor)
    except (RuntimeError, IndexError, ValueError) as error:
        raise WeightsError(f"{key}: the rename rule {rule.pattern!r} does not fit shape {tuple(tensor.shape)} ({error})") from error


def _targets(rule: Rule, match: re.Match[str], value: Tensor) -> list[tuple[str, Tensor]]:
    templates = rule.to if isinstance(rule.to, tuple) else (rule.to,)
    names = [match.expand(template) if isinstance(template, str) else template(match) for template in templates]
    if len(names) == 1:
        return [(names[0], value)]
    if rule.sizes == ():
        return [(name, value) for name in names]
    length = value.shape[rule.dim]
    sizes = rule.sizes or (length // len(names),) * len(names)
    if sum(sizes) != length or len(sizes) != len(names):
        raise WeightsError(f"{match[0]}: cannot split dimension {rule.dim} of shape {tuple(value.shape)} into {len(names)} parts")
    return list(zip(names, torch.split(value, list(sizes), rule.dim)))


def _concatenate(
    pieces: dict[str, dict[int, tuple[str, Tensor, Piece]]], out: dict[str, Tensor], sources: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    incomplete: list[str] = []
    for name, parts in pieces.items():
        if name in out:
            raise WeightsError(f"the keys {parts[min(parts)][0]!r} and {sources[name][0]!r} are both renamed to {name!r}")
        count, dim = next(iter(parts.values()))[2][1:]
        if sorted(parts) != list(range(count)):
            incomplete.append(f"{name} (only {len(parts)} of {count} parts)")
            continue
        ordered = [parts[i] for i in range(count)]
        try:
            out[name] = torch.cat([tensor for _, tensor, _ in ordered], dim)
        except RuntimeError as error:
            raise WeightsError(
                f"{name}: its parts {', '.join(key for key, _, _ in ordered)} do not fit together ({error})"
            ) from error
        sources[name] = tuple(key for key, _, _ in ordered)
    return tuple(incomplete)


# --- rules -------------------------------------------------------------------------------------------------------------


def same() -> Rule:
    """Every key keeps its name."""
    return Rule(r".*")


def keep(pattern: str, op: Op | None = None) -> Rule:
    """Keys that match keep their name."""
    return Rule(pattern, op=op)


def rename(pattern: str, to: Template, op: Op | None = None) -> Rule:
    r"""Keys that match get a new name: `rename(r"encoder\.(\d+)\.(.*)", r"blocks.\1.\2")`."""
    return Rule(pattern, to, op)


def drop(pattern: str) -> Rule:
    """Keys that match are left out on purpose."""
    return Rule(pattern, drop=True)


def join(pattern: str, to: Template, index: int, count: int, dim: int = 0, op: Op | None = None) -> Rule:
    """Keys that match become part `index` of `count` of one tensor (separate query, key, value -> fused)."""
    return Rule(pattern, to, op, Piece(index, count, dim))


def split(pattern: str, to: Sequence[Template], dim: int = 0, sizes: tuple[int, ...] | None = None, op: Op | None = None) -> Rule:
    """A key that matches becomes several tensors, cut along `dim` into `sizes` (None = equal parts)."""
    return Rule(pattern, tuple(to), op, sizes=sizes, dim=dim)


def copy(pattern: str, to: Sequence[Template], op: Op | None = None) -> Rule:
    """A key that matches is used under several names (tied parameters that a file stores once)."""
    return Rule(pattern, tuple(to), op, sizes=())


# --- tensor operations ---------------------------------------------------------------------------------------------------


def chain(*ops: Op) -> Op:
    """The operations one after another."""

    def run(tensor: Tensor) -> Tensor:
        for op in ops:
            tensor = op(tensor)
        return tensor

    return run


def transpose(*order: int) -> Op:
    """Permute the dimensions; without arguments, reverse them all ((in, out) kernels -> (out, in))."""
    return lambda tensor: tensor.permute(order or tuple(reversed(range(tensor.ndim))))


def reshape(*shape: int) -> Op:
    """Reshape; one entry may be -1."""
    return lambda tensor: tensor.reshape(shape)


def flatten(start: int = 0, end: int = -1) -> Op:
    """Merge the dimensions `start`..`end`."""
    return lambda tensor: tensor.flatten(start, end)


def squeeze(dim: int) -> Op:
    """Remove dimension `dim`, which must have length 1."""

    def run(tensor: Tensor) -> Tensor:
        if tensor.shape[dim] != 1:
            raise ValueError(f"dimension {dim} has length {tensor.shape[dim]}, not 1")
        return tensor.squeeze(dim)

    return run


def unsqueeze(dim: int) -> Op:
    """Insert a dimension of length 1 at `dim`."""
    return lambda tensor: tensor.unsqueeze(dim)


def take(*index: int | slice | None) -> Op:
    """Index the tensor: `take(slice(1, None))` leaves out the first row."""
    return lambda tensor: tensor[index]


def conv_kernel() -> Op:
    """A TensorFlow/JAX convolution kernel (H, W, in, out) as (out, in, H, W)."""
    return transpose(3, 2, 0, 1)


SAME = Names(same())
