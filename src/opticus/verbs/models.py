"""create, load, identify, save: from a name or a file to a model that answers the verbs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from opticus import zoo
from opticus.parity.manifests import all_manifests
from opticus.structures import Prepare, Result, Task, UsageError, Weights, WeightsError
from opticus.weights import darknet
from opticus.weights.fetch import fetch
from opticus.weights.identify import Identity, identify_file
from opticus.weights.labels import labels
from opticus.weights.load import Loaded, Match, load_into, match
from opticus.weights.names import SAME, Names
from opticus.weights.read import Layout, layouts, read
from opticus.weights.save import read_meta
from opticus.weights.save import save as save_file

SHIPPED = "package:"  # urls of weights that travel inside the wheel


@dataclass
class Card:
    """What travels with a model besides its tensors.

    `labels` names the network's raw outputs; in published tables entries that are no class ("N/A", "background") do not reach
    results, while of a data set's `own` labels every one is a class. `label_ids` are the data set's own ids of those outputs.
    """

    name: str
    task: Task
    labels: tuple[str, ...] | None = None
    label_ids: tuple[int, ...] | None = None
    license: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])
    multi_label: bool = False  # every class is decided on its own, by a sigmoid
    own: bool = False  # the labels are those of a data set it was trained on

    def kept(self) -> list[int] | None:
        """Raw outputs that are classes, in order; None without names."""
        return None if self.labels is None else [i for i, name in enumerate(self.labels) if self.own or name not in NO_CLASS]


NO_CLASS = ("N/A", "background", "__background__")

if TYPE_CHECKING:

    class Model(nn.Module):
        """A network with its card and the verbs bound to it."""

        config: Any
        prepare: Prepare
        card: Card
        predict: Callable[..., Any]
        save: Callable[..., Path]
        optimize: Callable[..., Model]
        results: Callable[..., list[Result]]

else:
    Model = nn.Module


def bind(network: nn.Module, card: Card) -> Model:
    """Give a network its card and the verbs `predict`, `save` and `optimize`."""
    from opticus.verbs import optimize, predict  # they need this module; binding is the one place where the circle closes

    model = cast(Any, network)
    model.card = card
    model.predict = functools.partial(predict.predict, network)
    model.save = functools.partial(save, network)
    model.optimize = functools.partial(optimize.optimize, network)
    return cast("Model", network)


def create(name: str, **changes: Any) -> Model:
    """A model with fresh weights, seeded by `torch.manual_seed`. `changes` override its Config (`classes=10`, `backbone="vit/s16"`).

    Raises UnknownNameError for unknown names and settings, with the nearest known ones.
    """
    if ":" in name:
        raise UsageError(f"{name!r} names published weights: use load({name!r}); create takes {name.split(':')[0]!r}")
    network = zoo.create(name, **changes)
    return bind(network, Card(name, zoo.paper(zoo.split(name)[0]).TASK, provenance={"source": "random"}))


def load(
    name: str | Path,
    file: str | Path | None = None,
    *,
    classes: int | None = None,
    fresh: str | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Model:
    r"""A model with weights.

    `load("detr/r50:coco")` fetches published weights; `load("detr/r50", file)` reads a local file in any published format known for
    that paper; `load("runs/detect/train")` and `load("model.safetensors")` read what opticus wrote. `fresh` is a regex over the
    network's keys that stay at their initial values (`fresh=r"fc\..*"`, with `classes=` for a new head); `changes` override the
    Config (`size=384` resizes position embeddings).

    Raises UnknownNameError, WeightsError (naming what is unmatched, missing, extra and misshapen) or UsageError.
    """
    if classes is not None:
        changes["classes"] = classes
    if file is not None:
        return _load_file(str(name), Path(file), None, fresh, changes, quiet)
    name = zoo.canonical(str(name))
    path = Path(name)
    if path.is_dir():
        path = _weights_of_run(path)
    if path.suffix in (".pth", ".pt", ".bin", ".npz", ".safetensors", ".ckpt", ".pkl") or path.is_file():
        return _load_unnamed(path, fresh, changes, quiet)
    if str(name).startswith(("runs/", "./", "/", "../", "~")) and "/" in str(name) and not path.exists():
        raise WeightsError(f"{name}: no such run folder or weights file")
    row = zoo.weights_row(str(name))
    if row is None:
        rows = [entry for entry in zoo.list_models(str(name)) if entry.weights]
        known = f"; published weights: {', '.join(rows[0].weights)}" if rows else "; no weights are published for it, use create"
        raise UsageError(f"load({str(name)!r}) needs a file or a tag such as {name}:tag{known}")
    where = _shipped(row.url) if row.url.startswith(SHIPPED) else fetch(row.url, row.digest)
    model = _load_file(str(name).partition(":")[0], where, row, fresh, changes, quiet)
    if not quiet and row.license:
        print(f"opticus: weights {name}, licence {row.license} ({row.source})", file=sys.stderr)  # noqa: T201 - asked for once per load
    return model


def _load_unnamed(path: Path, fresh: str | None, changes: dict[str, Any], quiet: bool) -> Model:
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    meta = _own(path)
    if meta is not None:
        return _load_saved(path, meta, fresh, changes, quiet)
    found = identify(path)
    if found.name is None:
        raise WeightsError(f"{path}: {found}")
    return _load_file(found.name, path, None, fresh, changes, quiet)


def _shipped(url: str) -> Path:
    return Path(str(files("opticus.weights") / "shipped" / url.removeprefix(SHIPPED)))


def _weights_of_run(folder: Path) -> Path:
    for name in ("best", "last"):
        path = folder / "weights" / f"{name}.safetensors"
        if path.is_file():
            return path
    raise WeightsError(f"{folder}: not a run folder, it has no weights/best.safetensors or weights/last.safetensors")


def _own(path: Path) -> dict[str, Any] | None:
    """The metadata of a file that opticus wrote, None for any other file (whose faults its reader names)."""
    try:
        return read_meta(path) if path.suffix == ".safetensors" else None
    except WeightsError:
        return None


def _load_saved(path: Path, meta: dict[str, Any], fresh: str | None, changes: dict[str, Any], quiet: bool) -> Model:
    try:
        name, config = meta["model"], zoo.config_from_json(meta["model"], meta["config"])
        prepare, names, ids = Prepare.from_json(meta["prepare"]), meta.get("labels"), meta.get("label_ids")
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: its opticus metadata is incomplete ({error})") from error
    config = zoo.config_of_changed(name, config, changes)
    network, module = zoo.build(name, config), zoo.paper(zoo.split(name)[0])
    loaded = load_into(
        network, read(path).state, SAME, fresh=fresh, classes=changes.get("classes"), file=str(path),
        positions=getattr(module, "POSITIONS", None),
    )  # fmt: skip
    cast(Any, network).prepare = _resized(prepare, changes)
    new_head = fresh is not None and "classes" in changes
    card = Card(
        name, module.TASK,
        labels=tuple(names) if names and not new_head else None, label_ids=tuple(ids) if ids and not new_head else None,
        license=meta.get("license"), provenance={**meta.get("provenance", {}), "file": path.name},
        own=bool(meta.get("own_labels")) and not new_head, multi_label=bool(meta.get("multi_label")) and not new_head,
    )  # fmt: skip
    return _told(bind(network.eval(), card), loaded, quiet)


def _told(model: Model, loaded: Loaded, quiet: bool) -> Model:
    """The model, after saying which tensors the file did not fill because the caller asked for that."""
    if loaded.fresh:
        model.card.provenance["fresh"] = list(loaded.fresh)
        if not quiet:
            more = f" and {len(loaded.fresh) - 8} more" if len(loaded.fresh) > 8 else ""
            print(f"opticus: {model.card.name}: not loaded, fresh: {', '.join(loaded.fresh[:8])}{more}", file=sys.stderr)  # noqa: T201 - rule 7
    return model


@dataclass(frozen=True)
class _Fit:
    """One way to see a file as the weights of a network: a published format, a layout of the file, a Config."""

    format: str
    layout: Layout
    config: Any
    match: Match

    @property
    def faults(self) -> int:
        found = self.match
        return len(found.unmatched) + len(found.missing) + len(found.extra) + len(found.misshapen)


def _load_file(name: str, path: Path, row: Weights | None, fresh: str | None, changes: dict[str, Any], quiet: bool) -> Model:
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file")
    if (path / "weights").is_dir():
        path = _weights_of_run(path)
    meta = _own(path)
    part = path.with_name("backbone.safetensors")  # a run of a method without labels keeps its backbone on its own
    if meta is not None and meta.get("model") != name and part.is_file() and (_own(part) or {}).get("model") == name:
        path, meta = part, _own(part)
    if meta is not None:
        if meta.get("model") != name:
            raise WeightsError(f"{path}: holds {meta.get('model')}, not {name}")
        return _load_saved(path, meta, fresh, changes, quiet)
    stem, _, tag = zoo.split(name)
    if tag is not None:
        raise UsageError(f"load({name!r}, file): a tag names published weights to fetch; with a file use {name.split(':')[0]!r}")
    module = zoo.paper(stem)
    if row is not None and row.classes is not None:
        changes = {"classes": row.classes, **changes}
    fit = _best_fit(name, zoo.config_of(name, changes), path, row, fresh, asked="classes" in changes)
    network, content = zoo.build(name, fit.config), read(path, fit.layout)
    if darknet.CFG in content.metadata and hasattr(module, "check_cfg"):
        module.check_cfg(fit.config, content.metadata[darknet.CFG], str(path))
    loaded = load_into(
        network, content.state, module.FORMATS[fit.format], fresh=fresh, classes=changes.get("classes"), file=str(path),
        positions=getattr(module, "POSITIONS", None), ignore=getattr(module, "IGNORE", None),
    )  # fmt: skip
    published = row if row is not None else _first_row(module, name, fit.format)
    if published is not None:
        cast(Any, network).prepare = _resized(published.prepare, changes)
    same_head = (
        published is not None
        and published.labels is not None
        and fit.config == zoo.config_of(name, _with(published.classes, changes))
    )
    names = (
        labels(published.labels) if published is not None and published.labels is not None and same_head and fresh is None else None
    )
    card = Card(
        name, module.TASK, labels=names, label_ids=None if names is None else tuple(range(len(names))),
        license=None if row is None else row.license,
        provenance={"file": path.name, "format": fit.format, "layout": str(fit.layout), "url": None if row is None else row.url},
    )  # fmt: skip
    return _told(bind(network.eval(), card), loaded, quiet)


def _with(classes: int | None, changes: dict[str, Any]) -> dict[str, Any]:
    return changes if classes is None else {**changes, "classes": classes}


def _best_fit(name: str, config: Any, path: Path, row: Weights | None, fresh: str | None, asked: bool) -> _Fit:
    """The format, layout and, unless `asked` for a number of classes, the head that fit the file best."""
    module, formats = zoo.paper(zoo.split(name)[0]), cast(Mapping[str, Names], zoo.paper(zoo.split(name)[0]).FORMATS)
    chosen = formats if row is None else {row.format: formats[row.format]}
    if not chosen:
        raise WeightsError(f"{name}: no published format is known; only files written by opticus can be loaded")
    views = layouts(path, lambda: _plans(name, config, chosen))
    fits = [_fit(module, name, config, key, chosen[key], view, fresh) for view in views for key in chosen]
    best = min(fits, key=lambda fit: fit.faults)
    if best.faults == 0 or asked or fresh is not None or not best.match.misshapen or not hasattr(config, "classes"):
        return best
    rows = best.match.misshapen[0][1][0] if best.match.misshapen[0][1] else 0
    widths: tuple[int, ...] = module.classes_of(rows) if hasattr(module, "classes_of") else (rows, rows - 1)
    others = [replace(config, classes=count) for count in widths if count > 0]
    fits = [_fit(module, name, other, best.format, formats[best.format], best.layout, None) for other in others]
    return min([best, *fits], key=lambda fit: fit.faults)


def _plans(name: str, config: Any, formats: Mapping[str, Names]) -> list[dict[str, tuple[int, ...]]]:
    """The layout of a network's darknet file, from the keys recorded for its variant and the network's own shapes."""
    ours = zoo.meta(name, config).state_dict()
    recorded = [m for m in all_manifests() if m.name == name and m.format in formats and m.format.startswith(darknet.FORMAT)]
    return [darknet.layout_of(ours, m.keys, formats[m.format]) for m in recorded]


def _fit(module: Any, name: str, config: Any, key: str, table: Names, layout: Layout, fresh: str | None) -> _Fit:
    tensors = {k: torch.empty(shape, device="meta") for k, shape in layout.shapes.items()}
    positions, ignore = getattr(module, "POSITIONS", None), getattr(module, "IGNORE", None)
    found = match(zoo.meta(name, config), tensors, table, fresh=fresh, positions=positions, ignore=ignore)
    return _Fit(key, layout, config, found)


def _first_row(module: Any, name: str, chosen: str) -> Weights | None:
    variant = name.partition("/")[2]
    rows = [row for key, row in module.WEIGHTS.items() if key.split(":")[0] == variant and row.format == chosen]
    return rows[0] if rows else None


def _resized(prepare: Prepare, changes: Mapping[str, Any]) -> Prepare:
    """Another input size asked for by `size=` also changes how pictures are prepared."""
    if "size" not in changes or not isinstance(changes["size"], int):
        return prepare
    side = changes["size"]
    if prepare.crop is not None:
        short = round(prepare.size[0] * side / prepare.crop[0])
        return replace(prepare, size=(short, prepare.size[1]), crop=(side, side))
    return replace(prepare, size=(side, side)) if prepare.resize in ("fixed", "letterbox") else prepare


def identify(file: str | Path) -> Identity:
    """Which paper, variant and format a weights file holds, from its keys and shapes alone; nothing in it is executed.

    Raises WeightsError if the file cannot be read or nothing known is near.
    """
    return identify_file(Path(file))


def save(model: nn.Module, path: str | Path, **extra: Any) -> Path:
    """Write safetensors whose header holds, as JSON, labels, prepare, config, version, provenance and licence."""
    return save_file(model, Path(path), meta={**meta_of(model), **extra})


def meta_of(model: nn.Module) -> dict[str, Any]:
    """What travels in a weights file beside the tensors."""
    network = cast(Any, model)
    card: Card = network.card
    return {
        "model": card.name,
        "task": card.task,
        "config": zoo.config_to_json(network.config),
        "prepare": network.prepare.to_json(),
        "labels": None if card.labels is None else list(card.labels),
        "label_ids": None if card.label_ids is None else list(card.label_ids),
        "own_labels": card.own,
        "multi_label": card.multi_label,
        "license": card.license,
        "provenance": card.provenance,
        "opticus": version("opticus"),
    }


__all__ = ["Card", "Identity", "Model", "bind", "create", "identify", "load", "meta_of", "save"]
