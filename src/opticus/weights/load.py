"""Strict loading: every tensor of a file is accounted for and every tensor of the network gets its value, or it is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opticus.parity.manifests import COUNTER
from opticus.structures import UsageError, WeightsError
from opticus.weights.names import SAME, Names, Renamed
from opticus.weights.positions import prefix_of, resize_positions

SHOWN = 5


class Loaded(NamedTuple):
    """What a load did: our keys left at their initial values, upstream keys left out, our keys resized to another grid."""

    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    resized: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """A state compared with a network, before anything is changed."""

    state: dict[str, Tensor]  # ours -> tensor of the right shape
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    resized: tuple[str, ...]
    unmatched: tuple[str, ...]  # upstream keys without a rule
    missing: tuple[str, ...]  # our keys without a value
    extra: tuple[str, ...]  # renamed keys that the network does not have
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # ours, shape in the file, shape in the network

    @property
    def exact(self) -> bool:
        """True if nothing is unmatched, missing, extra or misshapen."""
        return not (self.unmatched or self.missing or self.extra or self.misshapen)


def match(
    network: nn.Module,
    state: Mapping[str, Tensor],
    names: Names = SAME,
    *,
    fresh: str | None = None,
    ignore: str | None = None,
    positions: Mapping[str, int | tuple[int, ...]] | None = None,
    grid: tuple[int, int] | None = None,
) -> Match:
    """Compare a state with a network, on any device including meta, without changing either. Arguments as in `load_into`.

    A table that contradicts itself on this state (two keys for one name, an operation that does not fit a shape) matches nothing.
    """
    ours = network.state_dict(keep_vars=True)
    try:
        renamed = names.apply(state)
    except WeightsError as error:
        renamed = Renamed({}, {}, (str(error), *state), (), ())
    stays = _selected(fresh, ours, "fresh")
    values = {key: value for key, value in renamed.state.items() if key not in stays}
    resized = _resize(values, ours, positions or {}, grid)
    extra = [key for key in values if key not in ours and not COUNTER.fullmatch(key) and not (ignore and re.fullmatch(ignore, key))]
    misshapen = tuple(
        (key, tuple(value.shape), tuple(ours[key].shape))
        for key, value in values.items()
        if key in ours and value.shape != ours[key].shape
    )
    given = {id(ours[key]) for key in values if key in ours}
    missing = [
        key
        for key, tensor in ours.items()
        if key not in values and key not in stays and id(tensor) not in given and not COUNTER.fullmatch(key)
    ]
    return Match(
        state={key: value for key, value in values.items() if key in ours and value.shape == ours[key].shape},
        fresh=tuple(key for key in ours if key in stays),
        dropped=renamed.dropped,
        resized=resized,
        unmatched=renamed.unmatched,
        missing=_with_incomplete(missing, renamed),
        extra=tuple(extra),
        misshapen=misshapen,
    )


def load_into(
    network: nn.Module,
    state: Mapping[str, Tensor],
    names: Names = SAME,
    *,
    fresh: str | None = None,
    ignore: str | None = None,
    classes: int | None = None,
    file: str = "the weights",
    positions: Mapping[str, int | tuple[int, ...]] | None = None,
    grid: tuple[int, int] | None = None,
    finite: bool = False,
) -> Loaded:
    r"""Load a state into a network, strictly in both directions.

    Batch counters (`num_batches_tracked`) are neither required nor refused.
    `fresh`: regex over OUR keys that stay at their initial values (`r"head\..*"`); `ignore`: regex over our keys that the file may
    carry although the network has no place for them; `classes`: what the caller asked for, named in the message about heads;
    `positions`: our name -> number (or possible numbers) of prefix tokens of the position embeddings that may be resized to the
    network's grid, or to `grid` (rows, columns) where that is not square; `finite`: refuse NaN and infinity. Values take the network's dtypes and
    devices; a network on the meta device takes the tensors themselves. WeightsError lists every key that does not fit; nothing
    has been changed then.
    """
    found = match(network, state, names, fresh=fresh, ignore=ignore, positions=positions, grid=grid)
    if not found.exact:
        raise WeightsError(_message(found, file, classes))
    if finite:
        _check_finite(found.state, file)
    _assign(network, found.state, file)
    return Loaded(found.fresh, found.dropped, found.resized)


def _selected(pattern: str | None, ours: Mapping[str, Tensor], keyword: str) -> set[str]:
    if pattern is None:
        return set()
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{keyword}={pattern!r} is not a regular expression ({error})") from error
    chosen = {key for key in ours if compiled.fullmatch(key)}
    if not chosen:
        raise UsageError(
            f"{keyword}={pattern!r} matches none of the network's {len(ours)} keys; they look like {next(iter(ours), '')!r}"
        )
    return chosen


def _resize(
    values: dict[str, Tensor],
    ours: Mapping[str, Tensor],
    positions: Mapping[str, int | tuple[int, ...]],
    grid: tuple[int, int] | None,
) -> tuple[str, ...]:
    resized: list[str] = []
    for key, prefix in positions.items():
        if key in values and key in ours and values[key].shape != ours[key].shape:
            wanted = tuple(ours[key].shape)
            values[key] = resize_positions(values[key], wanted, prefix_of(wanted[-2], prefix), grid)
            resized.append(key)
    return tuple(resized)


def _with_incomplete(missing: list[str], renamed: Renamed) -> tuple[str, ...]:
    why = {text.split(" ", 1)[0]: text for text in renamed.incomplete}
    named = [why.pop(key, key) for key in missing]
    return (*named, *why.values())


def _assign(network: nn.Module, state: Mapping[str, Tensor], file: str) -> None:
    ours = network.state_dict(keep_vars=True)
    made: dict[int, Tensor] = {}
    homes: dict[int, list[str]] = {}
    for key, tensor in ours.items():
        homes.setdefault(id(tensor), []).append(key)
    with torch.no_grad():
        for key, value in state.items():
            target = ours[key]
            if not target.is_meta:
                target.copy_(value)
                continue
            if id(target) in made:
                continue
            fitted: Tensor = value.detach().to(target.dtype).contiguous()
            made[id(target)] = nn.Parameter(fitted, target.requires_grad) if isinstance(target, nn.Parameter) else fitted
        for identity, tensor in made.items():
            for key in homes[identity]:
                _place(network, key, tensor)
        for key, target in ours.items():
            if target.is_meta and id(target) not in made and COUNTER.fullmatch(key):
                _place(network, key, torch.zeros(target.shape, dtype=target.dtype))
    if any(not value.is_meta for value in state.values()):
        left = [key for key, tensor in _everything(network).items() if tensor.is_meta]
        if left:
            raise WeightsError(f"{file}: {len(left)} tensors of the network have no storage after loading ({_some(left)})")


def _place(network: nn.Module, key: str, tensor: Tensor) -> None:
    path, _, name = key.rpartition(".")
    setattr(network.get_submodule(path), name, tensor)


def _everything(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _check_finite(state: Mapping[str, Tensor], file: str) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not value.is_meta and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{file}: {key} holds {int((~torch.isfinite(value)).sum())} values that are not finite")


def _some(keys: list[str] | tuple[str, ...]) -> str:
    return ", ".join(keys[:SHOWN]) + (f", ... {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _message(found: Match, file: str, classes: int | None) -> str:
    shapes = tuple(f"{key} {theirs} in the file, {ours} in the network" for key, theirs, ours in found.misshapen)
    groups = {
        "unmatched (in the file, no rule knows them)": found.unmatched,
        "missing (in the network, not in the file)": found.missing,
        "extra (renamed, but not in the network)": found.extra,
        "misshapen": shapes,
    }
    lines = [f"  {len(keys)} {group}: {_some(keys)}" for group, keys in groups.items() if keys]
    total = sum(len(keys) for keys in groups.values())
    advice = _advice(found, classes)
    return "\n".join([f"{file} does not fit the network: {total} keys differ", *lines, *([f"  {advice}"] if advice else [])])


def _advice(found: Match, classes: int | None) -> str | None:
    """What to do when only a head differs: another number of classes, or no head in the file."""
    if found.unmatched or found.extra or not (found.misshapen or found.missing):
        return None
    wrong = [key for key, theirs, ours in found.misshapen if theirs[1:] == ours[1:]]
    if len(wrong) != len(found.misshapen) or len(wrong) + len(found.missing) > 40:
        return None
    heads = sorted({key.split(" ", 1)[0].rpartition(".")[0] for key in (*wrong, *found.missing)})
    if not all(heads) or len(heads) > 4:
        return None
    pattern = "|".join(re.escape(head) for head in heads)
    fresh = f'fresh=r"({pattern})\\..*"' if len(heads) > 1 else f'fresh=r"{pattern}\\..*"'
    if found.misshapen:
        _, theirs, ours = found.misshapen[0]
        asked = f" (classes={classes})" if classes is not None else ""
        return (
            f"the head has {theirs[0]} outputs in the file and {ours[0]} in the network{asked}: "
            f"pass classes={theirs[0]} to keep the file's head, or {fresh} to start a new one"
        )
    return f"to load the rest and start {', '.join(heads)} anew, pass {fresh}"
