"""Which paper, variant and published format a file is: told from its keys and shapes, executing nothing in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticus.parity.manifests import Manifest, Shapes, all_manifests, digest, weights_only
from opticus.weights.header import own_metadata
from opticus.weights.read import Layout, file_header, layouts_of, resolve

OURS = "opticus"  # the metadata key of files that opticus wrote, and the name of their format
NEAR = 0.5  # share of equal (key, shape) pairs from which a file counts as a near miss
SHOWN = 8
CANDIDATES = 60


@dataclass(frozen=True)
class Identity:
    """What a file is.

    `name` ("resnet/50") and `format` ("torchvision") of the manifest that matches, or of the nearest one if `exact` is False;
    None if nothing comes near. `differences` are sentences, `classes` is the width of the file's head where only that differs,
    `layout` says where in the file the network's keys are, `others` are further manifests that match as well.
    """

    path: Path
    name: str | None
    format: str | None
    exact: bool
    layout: Layout
    kind: str
    size: int  # bytes
    differences: tuple[str, ...] = ()
    classes: int | None = None
    others: tuple[str, ...] = ()
    meta: dict[str, Any] | None = None  # of files that opticus wrote

    def __str__(self) -> str:
        what = f"{self.path.name}: {self.size / 1e6:.1f} MB, {self.kind}, {len(self.layout.shapes)} tensors"
        if self.name is None:
            return f"{what}: matches no known manifest"
        if self.exact:
            same = f"; the same keys have {', '.join(self.others)}" if self.others else ""
            return f"{what}: {self.name} ({self.format}){same}"
        more = f"; and {len(self.differences) - SHOWN} more" if len(self.differences) > SHOWN else ""
        return f"{what}: near {self.name} ({self.format}), but {'; '.join(self.differences[:SHOWN])}{more}"


def identify_file(path: str | Path, manifests: Iterable[Manifest] | None = None) -> Identity:
    """Identify a file by its header. WeightsError if it cannot be read; an unknown file is an Identity without a name.

    `manifests` are those of all recorded papers by default. Batch counters (`num_batches_tracked`), which some savers leave out,
    do not count as a difference.
    """
    path = resolve(path)
    found = file_header(path)
    known = tuple(all_manifests() if manifests is None else manifests)
    views = layouts_of(path, found)
    size = path.stat().st_size
    if OURS in found.metadata:
        meta = own_metadata(path, found, OURS)
        return Identity(path, meta.get("model"), OURS, True, views[0], found.kind, size, classes=meta.get("classes"), meta=meta)
    table = _table(known)
    for view in sorted(views, key=lambda view: view.left):  # the whole file before a part of it, which several papers may share
        if same := table.get(digest(weights_only(view.shapes))):
            others = tuple(dict.fromkeys(f"{m.name} ({m.format})" for m in same[1:]))
            return Identity(path, same[0].name, same[0].format, True, view, found.kind, size, others=others)
    best = max(((*_nearest(view.shapes, known), view) for view in views), key=lambda row: row[0])
    share, manifest, view = best
    if manifest is None or share < NEAR:
        return Identity(path, None, None, False, views[0], found.kind, size)
    theirs, published = weights_only(view.shapes), weights_only(manifest.keys)
    return Identity(
        path=path,
        name=manifest.name,
        format=manifest.format,
        exact=False,
        layout=view,
        kind=found.kind,
        size=size,
        differences=_differences(theirs, published),
        classes=_classes(theirs, published),
    )


def _table(known: tuple[Manifest, ...]) -> dict[str, list[Manifest]]:
    """Hash without batch counters -> manifests."""
    out: dict[str, list[Manifest]] = {}
    for manifest in known:
        out.setdefault(manifest.bare, []).append(manifest)
    return out


def _nearest(shapes: Shapes, known: tuple[Manifest, ...]) -> tuple[float, Manifest | None]:
    """The manifest that shares most (key, shape) pairs with a table, as a share of the union of keys; ties: the first."""
    theirs = weights_only(shapes)
    roots = {key.replace("/", ".").partition(".")[0] for key in theirs}
    kin = [manifest for manifest in known if not roots.isdisjoint(manifest.roots)]  # the others share no key at all
    close = sorted(kin, key=lambda m: abs(m.size - len(shapes)))[:CANDIDATES]
    best: tuple[float, Manifest | None] = (0.0, None)
    for manifest in close:
        published = weights_only(manifest.keys)
        equal = sum(published.get(key) == shape for key, shape in theirs.items())
        named = sum(key in published for key in theirs)
        share = (equal + 0.5 * (named - equal)) / max(len(theirs) + len(published) - named, 1)
        if share > best[0]:
            best = (share, manifest)
    return best


def _differences(theirs: Shapes, published: Shapes) -> tuple[str, ...]:
    reshaped = [
        f"{key} is {shape} where {published[key]} is published"
        for key, shape in theirs.items()
        if key in published and published[key] != shape
    ]
    absent = [f"{key} {shape} is absent" for key, shape in published.items() if key not in theirs]
    added = [f"{key} {shape} is not in the published file" for key, shape in theirs.items() if key not in published]
    return (*reshaped, *absent, *added)


def _classes(theirs: Shapes, published: Shapes) -> int | None:
    """The width of another head: every difference is in the first (or, for kernels, last) dimension, from one width to another."""
    widths: set[tuple[int, int]] = set()
    if theirs.keys() != published.keys():
        return None
    for key, shape in theirs.items():
        wanted = published[key]
        if shape == wanted:
            continue
        changed = [(a, b) for a, b in zip(shape, wanted) if a != b]
        if len(shape) != len(wanted) or len(changed) != 1:
            return None
        widths.add(changed[0])
    return next(iter(widths))[0] if len(widths) == 1 else None
