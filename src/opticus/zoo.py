"""Names to files to objects: `paper/variant` is a file in models/ and a row of its VARIANTS. Nothing else knows models by name."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args, get_origin, get_type_hints

import torch
from torch import nn

from opticus import models
from opticus.structures import Autoencoder, Backbone, Part, Task, UnknownNameError, UsageError, Weights


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue: a variant with its task, paper and published weights."""

    name: str
    task: Task
    paper: str
    parameters: int | None  # published count, where a source names one
    weights: tuple[str, ...]  # names for `load`, such as "detr/r50:coco"

    def __str__(self) -> str:
        return self.name


@functools.cache
def paper_files() -> dict[str, Path]:
    """Paper name (the file's stem) -> file, found by looking at the folders on `opticus.models.__path__`."""
    files = [file for folder in models.__path__ for file in sorted(Path(folder).glob("*/*.py"))]
    return {file.stem: file for file in files if not file.stem.startswith("_") and not file.stem.endswith("_weights")}


@functools.cache
def paper(name: str) -> ModuleType:
    """The module of one paper; UnknownNameError with the nearest names if there is none."""
    files = paper_files()
    if name not in files:
        raise UnknownNameError("model", name, files)
    return importlib.import_module(f"opticus.models.{files[name].parent.name}.{name}")


def canonical(name: str) -> str:
    """The name in this library of an alias, such as torch.hub's "dino_vits16" ("dino/s16:pretrained"); other names as they are."""
    if "/" in name or name in paper_files():
        return name
    return _aliases().get(name, name)


@functools.cache
def _aliases() -> dict[str, str]:
    return {alias: f"{stem}/{key}" for stem in paper_files() for alias, key in getattr(paper(stem), "ALIASES", {}).items()}


def split(name: str) -> tuple[str, str, str | None]:
    """("detr", "r50", "coco") from "detr/r50:coco". Raises UnknownNameError for what does not exist, naming what does."""
    full, _, tag = canonical(name).partition(":")
    stem, _, variant = full.partition("/")
    if stem not in paper_files():
        known = [entry.name for entry in list_models()] if "/" in full else list(paper_files())
        raise UnknownNameError("model", full, known)
    variants: Mapping[str, Any] = paper(stem).VARIANTS
    if variant not in variants:
        if not variant:
            raise UsageError(f"{full!r} needs a variant: {', '.join(f'{stem}/{v}' for v in variants)}")
        raise UnknownNameError("model", full, [f"{stem}/{v}" for v in variants])
    return stem, variant, tag or None


def list_models(pattern: str = "*", task: str | None = None) -> list[Entry]:
    """Every variant whose name matches the shell pattern (and task, which must be a known one)."""
    if task is not None and task not in get_args(Task):
        raise UnknownNameError("task", task, get_args(Task))
    rows: list[Entry] = []
    for stem in paper_files():
        module = paper(stem)
        if task is not None and task != module.TASK:
            continue
        title = (module.__doc__ or stem).strip().splitlines()[0].rstrip(".")
        for variant in module.VARIANTS:
            name = f"{stem}/{variant}"
            if fnmatch.fnmatch(name, pattern):
                tags = tuple(f"{stem}/{key}" for key in module.WEIGHTS if key.split(":")[0] == variant)
                rows.append(Entry(name, module.TASK, title, module.PARAMETERS.get(variant), tags))
    return rows


def weights_row(name: str) -> Weights | None:
    """The published weights "paper/variant:tag"; without a tag None. Raises UnknownNameError for an unknown tag."""
    stem, variant, tag = split(name)
    if tag is None:
        return None
    rows: Mapping[str, Weights] = paper(stem).WEIGHTS
    if f"{variant}:{tag}" not in rows:
        raise UnknownNameError("weights", name, [f"{stem}/{key}" for key in rows])
    return rows[f"{variant}:{tag}"]


def config_of(name: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The variant's Config with `changes` applied; an unknown field or a wrong type is a UsageError naming it."""
    stem, variant, _ = split(name)
    config = paper(stem).VARIANTS[variant]
    return _changed(name, config, dict(changes or {}))


def config_of_changed(name: str, config: Any, changes: Mapping[str, Any]) -> Any:
    """`config` with `changes` applied, under the rules of `config_of`."""
    return _changed(name, config, dict(changes))


def _changed(name: str, config: Any, changes: dict[str, Any]) -> Any:
    hints = get_type_hints(type(config))
    for key, value in changes.items():
        if key not in hints:
            raise UnknownNameError(f"setting of {name}", key, hints)
        if Part in (hints[key], *get_args(hints[key])) and isinstance(value, str):
            value = _part(name, getattr(config, key), value)
        changes[key] = _typed(name, key, value, hints[key])
    return dataclasses.replace(config, **changes)


CARRIED = ("classes", "norm", "norm_eps")  # settings of a default part that another network in its place keeps


def _part(name: str, default: Any, value: str) -> Part:
    """A part given by name keeps what the default part says about its head and its norms, where the new network takes such a value.

    Where there is no default part, it comes without a head: only its maps are asked for.
    """
    plain = config_of(value)
    if not isinstance(default, Part):
        return Part(value, classes=0) if type(getattr(plain, "classes", None)) is int else Part(value)
    kept: dict[str, Any] = {}
    for key in CARRIED:
        if key in default.changes and type(getattr(plain, key, None)) is type(default.changes[key]):
            kept[key] = default.changes[key]
    return Part(value, **kept)


def _typed(name: str, key: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(cast(list[Any], value))
    if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise UsageError(f"{name}: {key} must be a whole number, found {value!r}")
    if hint is int and key == "classes" and value < 0:
        raise UsageError(f"{name}: classes must not be negative, found {value}")
    if hint is float and isinstance(value, int):
        return float(value)
    options = get_args(hint)
    if options and all(isinstance(option, str) for option in options) and value not in options:
        raise UnknownNameError(f"value of {name}'s {key}", str(value), options)
    return value


def create(name: str, **changes: Any) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator. `changes` override fields of its Config."""
    config = config_of(name, changes)
    try:
        return build(name, config)
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        if not changes:
            raise
        settings = ", ".join(f"{key}={value!r}" for key, value in changes.items())
        raise UsageError(f"{name} cannot be built with {settings} ({error})") from error


def build(name: str, config: Any) -> nn.Module:
    """The network of `config`, its Parts resolved into modules and passed by field name."""
    stem = split(name)[0]
    parts = {
        field.name: _resolve(name, value)
        for field in dataclasses.fields(config)
        if isinstance(value := getattr(config, field.name), Part)
    }
    module = paper(stem)
    network: nn.Module = module.NETWORK(config, **parts)
    if not hasattr(network, "prepare"):
        network.prepare = module.PREPARE
    return network


def _resolve(name: str, part: Part) -> nn.Module:
    network = create(part.name, **part.changes)
    if not isinstance(network, Backbone | Autoencoder):
        raise UsageError(
            f"{name}: {part.name} cannot be its part, it has neither features(), strides and widths nor encode and decode"
        )
    return network


def meta(name: str, config: Any = None) -> nn.Module:
    """The network on the meta device: shapes without memory."""
    with torch.device("meta"):
        return build(name, config if config is not None else config_of(name))


def config_to_json(config: Any) -> dict[str, Any]:
    """A Config as JSON-ready data; Parts become {"part": name, "changes": {...}}."""

    def encode(value: Any) -> Any:
        if isinstance(value, Part):
            return {"part": value.name, "changes": {k: encode(v) for k, v in value.changes.items()}}
        if isinstance(value, tuple):
            return [encode(v) for v in cast(tuple[Any, ...], value)]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return value

    return {field.name: encode(getattr(config, field.name)) for field in dataclasses.fields(config)}


def config_from_json(name: str, values: Mapping[str, Any]) -> Any:
    """The inverse of `config_to_json`; unknown fields are refused."""

    def decode(value: Any) -> Any:
        if isinstance(value, dict):
            row = cast(dict[str, Any], value)
            if set(row) == {"part", "changes"}:
                return Part(row["part"], **{k: decode(v) for k, v in row["changes"].items()})
            return {k: decode(v) for k, v in row.items()}
        if isinstance(value, list):
            return tuple(decode(v) for v in cast(list[Any], value))
        return value

    return config_of(name, {key: decode(value) for key, value in values.items()})
