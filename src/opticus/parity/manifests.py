"""Key manifests: which keys of which shapes a published file has. Stored folded, since layers repeat; hashed for exact lookup."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from opticus.structures import WeightsError

Shapes = dict[str, tuple[int, ...]]
# bookkeeping, no weight: batches that a norm has seen, levels that a growing network lacks; 0 where a file does not say it
COUNTER = re.compile(r"(.*[./])?(num_batches|lod)_tracked")
_RANGE = re.compile(r"(\d+)-(\d+)")
BLOCK = (2, 10)  # fewest and most different shapes of a branch that `pack` writes once: a layer or a block, not a stage


@dataclass(frozen=True, eq=False)
class Manifest:
    """One published layout: `paper/variant` in `format`, its number of keys, their hash, and the keys themselves, folded.

    `bare` is the hash without batch counters (`num_batches_tracked`), which some programmes do not save.
    """

    paper: str
    variant: str
    format: str
    size: int
    sha256: str
    bare: str
    folded: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`paper/variant`, the name that the zoo knows."""
        return f"{self.paper}/{self.variant}"

    @functools.cached_property
    def roots(self) -> frozenset[str]:
        """The first components of the keys, without unfolding the rest."""
        return frozenset(part for joined in self.folded if joined for part in _parts(joined))

    @functools.cached_property
    def keys(self) -> Shapes:
        """Key -> shape, unfolded."""
        return unfold(self.folded)


def weights_only(shapes: Mapping[str, Sequence[int]]) -> Shapes:
    """A manifest without its batch counters."""
    return {key: tuple(shape) for key, shape in shapes.items() if not COUNTER.fullmatch(key)}


def manifest_entry(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The JSON form of a manifest: count, hash (also without batch counters where there are any), folded keys."""
    entry = {"count": len(shapes), "sha256": digest(shapes), "keys": fold(shapes)}
    bare = digest(weights_only(shapes))
    return entry if bare == entry["sha256"] else {**entry, "bare": bare}


def digest(shapes: Mapping[str, Sequence[int]]) -> str:
    """sha256 of the sorted lines "key HxW..." joined by newlines; a scalar's shape is empty."""
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fold(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A manifest as a tree over key components in which equal siblings share one branch: {"layers": {"0-5": {...}}}.

    Shapes become strings ("64x3x7x7"). The separator is "." or "/", whichever the keys use; it is stored under "".
    """
    separator = "/" if any("/" in key for key in shapes) else "."
    tree: dict[str, Any] = {}
    for key, shape in sorted(shapes.items()):
        node = tree
        *parents, leaf = key.split(separator)
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise WeightsError(f"manifest key {key!r}: {part!r} is both a tensor and a group")
        if leaf in node:
            raise WeightsError(f"manifest key {key!r} is both a tensor and a group")
        if any(not part or "|" in part or _RANGE.fullmatch(part) for part in (*parents, leaf)):
            raise WeightsError(f"manifest key {key!r} cannot be folded: empty component, '|' or a range in it")
        node[leaf] = "x".join(map(str, shape))
    return {"": separator, **_merge(tree)}


def _merge(tree: dict[str, Any]) -> dict[str, Any]:
    groups: dict[str, tuple[Any, list[str]]] = {}
    for part in sorted(tree, key=lambda p: (not p.isdigit(), int(p) if p.isdigit() else 0, p)):
        branch = _merge(tree[part]) if isinstance(tree[part], dict) else tree[part]
        groups.setdefault(json.dumps(branch), (branch, []))[1].append(part)
    return {_join(parts): branch for branch, parts in groups.values()}


def _join(parts: list[str]) -> str:
    runs: list[list[int]] = []
    words: list[str] = []
    for part in parts:
        if not part.isdigit() or str(int(part)) != part:
            words.append(part)
        elif runs and runs[-1][1] == int(part) - 1:
            runs[-1][1] = int(part)
        else:
            runs.append([int(part), int(part)])
    return "|".join([str(a) if a == b else f"{a}-{b}" for a, b in runs] + words)


def unfold(folded: Mapping[str, Any]) -> Shapes:
    """The inverse of `fold`."""
    separator = folded[""]
    return {separator.join(path): shape for path, shape in _walk(folded)}


def _walk(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    for joined, branch in tree.items():
        if not joined:
            continue
        below = list(_walk(branch)) if isinstance(branch, Mapping) else [((), _shape(branch))]
        for part in _parts(joined):
            for path, shape in below:
                yield (part, *path), shape


def _parts(joined: str) -> Iterator[str]:
    for word in joined.split("|"):
        if found := _RANGE.fullmatch(word):
            yield from map(str, range(int(found[1]), int(found[2]) + 1))
        else:
            yield word


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("x")) if text else ()


# --- families of networks whose blocks differ in their widths only ------------------------------------------------------


def pack(record: Mapping[str, Any]) -> dict[str, Any]:
    """A parity record in which a block of layers that recurs with other shapes is written once, under "blocks".

    In its places stands "@2 64x3x3x3 64": block 2 with these shapes for its numbers 0 and 1. A manifest that equals an earlier one,
    the nth of the record, is {"": n}. `unpack` is the inverse.
    """
    trees = list(_trees(record))
    counts: Counter[str] = Counter()
    for i, tree in enumerate(trees):
        if trees.index(tree) == i:
            _count(tree, counts)
    often = {text for text, count in counts.items() if count > 1}
    blocks: dict[str, int] = {}
    packed: list[dict[str, Any]] = []
    for i, tree in enumerate(trees):
        first = trees.index(tree)
        packed.append({"": first} if first < i else {key: _abbreviate(below, often, blocks) for key, below in tree.items()})
    return {**_with_trees(record, iter(packed)), "blocks": [json.loads(text) for text in blocks]}


def unpack(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with every block in its places; a record that was not packed as it is."""
    if "blocks" not in record:
        return dict(record)
    trees: list[dict[str, Any]] = []
    for tree in _trees(record):
        same = isinstance(tree[""], int)
        trees.append(trees[tree[""]] if same else {key: _expand(below, record["blocks"]) for key, below in tree.items()})
    return {key: value for key, value in _with_trees(record, iter(trees)).items() if key != "blocks"}


def _trees(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The folded manifests of a record: of its cases, then of its published formats."""
    yield from (case["state"] for case in record["tiny"] if case["state"])
    yield from (entry["keys"] for variants in record["manifests"].values() for entry in variants.values())


def _with_trees(record: Mapping[str, Any], trees: Iterator[dict[str, Any]]) -> dict[str, Any]:
    tiny = [{**case, "state": next(trees)} if case["state"] else case for case in record["tiny"]]
    manifests = {
        form: {variant: {**entry, "keys": next(trees)} for variant, entry in variants.items()}
        for form, variants in record["manifests"].items()
    }
    return {**record, "tiny": tiny, "manifests": manifests}


def _block(tree: dict[str, Any]) -> tuple[str, list[str]]:
    """A branch as JSON with numbers for its shapes (scalars stay), and those shapes in order."""
    numbers: dict[str, int] = {}

    def bare(branch: Any) -> Any:
        if isinstance(branch, dict):
            return {key: bare(below) for key, below in sorted(branch.items())}
        return numbers.setdefault(branch, len(numbers)) if branch else branch

    return json.dumps(bare(tree), separators=(",", ":")), list(numbers)


def _is_block(shapes: list[str]) -> bool:
    return BLOCK[0] <= len(shapes) <= BLOCK[1]


def _count(tree: dict[str, Any], counts: Counter[str]) -> None:
    text, shapes = _block(tree)
    counts.update([text] if _is_block(shapes) else [])
    for branch in tree.values():
        if isinstance(branch, dict):
            _count(branch, counts)


def _abbreviate(branch: Any, often: set[str], blocks: dict[str, int]) -> Any:
    if not isinstance(branch, dict):
        return branch
    text, shapes = _block(branch)
    if text in often and _is_block(shapes):
        return f"@{blocks.setdefault(text, len(blocks))} {' '.join(shapes)}"
    return {key: _abbreviate(below, often, blocks) for key, below in branch.items()}


def _expand(branch: Any, blocks: Sequence[Any]) -> Any:
    if isinstance(branch, dict):
        return {key: _expand(below, blocks) for key, below in branch.items()}
    if not branch.startswith("@"):
        return branch
    index, *shapes = branch[1:].split(" ")

    def dressed(block: Any) -> Any:
        if isinstance(block, dict):
            return {key: dressed(below) for key, below in block.items()}
        return shapes[block] if isinstance(block, int) else block

    return dressed(blocks[int(index)])


# --- the recorded files ----------------------------------------------------------------------------------------------


def papers() -> tuple[str, ...]:
    """The papers that have a recorded parity file, sorted."""
    folder = resources.files("opticus.parity")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def read(paper: str) -> dict[str, Any]:
    """The parity record of a paper; WeightsError if there is none or it is not readable."""
    try:
        return unpack(json.loads(resources.files("opticus.parity").joinpath(f"{paper}.json").read_text("utf-8")))
    except FileNotFoundError:
        raise WeightsError(f"{paper}: there is no parity record src/opticus/parity/{paper}.json") from None
    except ValueError as error:
        raise WeightsError(f"{paper}: the parity record is not valid JSON ({error})") from error


def manifests_of(record: Mapping[str, Any]) -> Iterator[Manifest]:
    """The manifests inside one parity record."""
    for form, variants in record["manifests"].items():
        for variant, entry in variants.items():
            bare = entry.get("bare") or _bare(entry)
            yield Manifest(record["paper"], variant, form, entry["count"], entry["sha256"], bare, entry["keys"])


def _bare(entry: Mapping[str, Any]) -> str:
    """The hash without batch counters of an entry that records none of its own."""
    return digest(weights_only(unfold(entry["keys"]))) if "num_batches_tracked" in json.dumps(entry["keys"]) else entry["sha256"]


@functools.cache
def all_manifests() -> tuple[Manifest, ...]:
    """Every manifest of every recorded paper; those that extend another come last, since they may share its layouts."""
    records = sorted(map(read, papers()), key=lambda record: "extends" in record)
    return tuple(manifest for record in records for manifest in manifests_of(record))
