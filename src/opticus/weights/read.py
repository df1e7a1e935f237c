"""Reading the tensors of a file: `.pth` (tensors only, never code), safetensors (also in shards), npz, pickled arrays, darknet."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from opticus.parity.manifests import all_manifests
from opticus.structures import WeightsError
from opticus.weights import darknet
from opticus.weights.header import Header, kind_of, own_metadata, read_header, read_pickle, tensors
from opticus.weights.pickles import Held

Shapes = dict[str, tuple[int, ...]]

# keys under which training scripts keep a state dict, the one to prefer first: averaged weights are the ones that were published
CONTAINERS = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "teacher", "avgG", "generator_smooth"),
    *("model", "state_dict", "model_state_dict", "model_state", "network", "net", "module", "params", "student", "target_encoder"),
)
# prefixes of wrappers around the network: all keys of a table, or the part of a table that is the network itself
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "network.",
    "backbone.",
    "encoder_q.",
    "encoder.",
    "teacher.",
    "student.",
    "opt/target/",
)
DEPTH = 4
OLDEST_TORCH = (2, 10)
SHARED = "opticus.shared"  # metadata of our own files: names that share one tensor


class Layout(NamedTuple):
    """One way to see a file as a state dict: the keys that lead to the table, a prefix taken off, the shapes, keys left out."""

    container: tuple[str, ...]
    prefix: str
    shapes: Shapes
    left: int = 0

    def __str__(self) -> str:
        where = f"the table {'.'.join(self.container)!r}" if self.container else "the file's own keys"
        prefix = f" without the prefix {self.prefix!r}" if self.prefix else ""
        return f"{where}{prefix}" + (f", {self.left} other keys left out" if self.left else "")


class File(NamedTuple):
    """Tensors as they stand in a file under one layout, the file's kind, and its text metadata."""

    state: dict[str, Tensor]
    layout: Layout
    kind: str
    metadata: Mapping[str, str]


def header(path: str | Path) -> Shapes:
    """Key -> shape of the most likely state dict in a file, without loading tensors and without executing anything."""
    return layouts(Path(path))[0].shapes


def layouts(path: str | Path, plans: Callable[[], list[Shapes]] | None = None) -> list[Layout]:
    """Every state dict that a file may be meant as, the most likely first. WeightsError if it holds no tensor at all.

    `plans` gives the layouts to try on files that carry no keys (darknet's) and have no cfg beside them; default: the recorded ones.
    """
    return layouts_of(Path(path), file_header(path), plans)


def file_header(path: str | Path) -> Header:
    """The header of one file, or the merged headers of a sharded checkpoint's index.json or of a Hugging Face folder."""
    path = resolve(path)
    if path.suffix != ".json":
        return read_header(path)
    headers = {shard: read_header(shard) for shard in _shards(path)}
    first = next(iter(headers.values()))
    merged: dict[Any, Any] = {}
    for found in headers.values():
        merged |= found.tree
    return Header(first.kind, merged, first.metadata, first.names)


def resolve(path: str | Path) -> Path:
    """The file that a path means: itself, or the weights inside a folder saved by Hugging Face libraries."""
    path = Path(path)
    if path.is_dir():
        for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
            if (path / name).is_file():
                return path / name
        raise WeightsError(f"{path}: a folder without model.safetensors or pytorch_model.bin")
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file")
    return path


def layouts_of(path: Path, found: Header, plans: Callable[[], list[Shapes]] | None = None) -> list[Layout]:
    """The layouts of a header that was read before."""
    if found.kind == "darknet" and not found.tree:
        return [Layout((), "", shapes) for shapes in darknet.fitting(path, (plans or _recorded)())]
    out: list[Layout] = []
    for container, shapes in _tables(found.tree, (), DEPTH, set()):
        out += _prefixed(container, shapes)
    if not out:
        raise WeightsError(f"{path}: holds no tensors (its keys: {', '.join(str(key) for key in list(found.tree)[:5]) or 'none'})")
    return out


def _recorded() -> list[Shapes]:
    """The layouts of darknet files that papers recorded."""
    return [manifest.keys for manifest in all_manifests() if manifest.format.startswith(darknet.FORMAT)]


def _tables(
    tree: Mapping[Any, Any], container: tuple[str, ...], depth: int, seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Shapes]]:
    """The mappings that hold tensors, preferred names first; optimiser states come last or not at all.

    A mapping in several places counts where it is met first: a small file could otherwise hold more of them than can be walked.
    """
    if id(tree) in seen:
        return
    seen.add(id(tree))
    own = {key: held.shape for key, held in tensors(tree)}
    if own:
        yield container, own
    if not depth:
        return
    inner = [key for key, value in tree.items() if isinstance(key, str) and isinstance(value, dict)]
    known = [key for key in CONTAINERS if key in inner]
    others = [key for key in inner if key not in CONTAINERS and "optim" not in key and key != "_metadata"]
    for key in (*known, *others):
        yield from _tables(tree[key], (*container, key), depth - 1, seen)


def _prefixed(container: tuple[str, ...], shapes: Shapes) -> list[Layout]:
    """The table without the wrapper's prefixes, as it stands, and the parts of it that have a known prefix."""
    prefix = ""
    while True:
        more = next((p for p in PREFIXES[:2] if all(key.startswith(prefix + p) for key in shapes)), None)
        if more is None:
            break
        prefix += more
    out = [Layout(container, prefix, _without(shapes, prefix))]
    for further in PREFIXES:
        part = _without(shapes, prefix + further)
        if part:
            out.append(Layout(container, prefix + further, part, len(shapes) - len(part)))
    if prefix:
        out.append(Layout(container, "", shapes))
    return out


def _without(shapes: Shapes, prefix: str) -> Shapes:
    return {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix) and key != prefix}


# --- tensors -----------------------------------------------------------------------------------------------------------


def read(path: str | Path, layout: Layout | None = None) -> File:
    """The tensors of a file under `layout` (default: the most likely one), on the CPU, memory-mapped where the format allows it.

    Raises:
        WeightsError: missing, truncated, corrupt, hostile or foreign file; the message names it.
    """
    path = resolve(path)
    found = file_header(path)
    layout = layout or layouts_of(path, found)[0]
    if found.kind == "darknet":
        return File(darknet.tensors_of(path, layout.shapes), layout, found.kind, found.metadata)
    if path.suffix == ".json":
        tree: Mapping[Any, Any] = {}
        for shard in _shards(path):
            tree = {**tree, **_load(shard, found)}
    else:
        tree = _load(path, found)
    for key in layout.container:
        inner = tree.get(key)
        if not isinstance(inner, Mapping):
            raise WeightsError(f"{path}: there is no table {'.'.join(layout.container)!r} in it")
        tree = cast(Mapping[Any, Any], inner)
    state = {
        key[len(layout.prefix) :]: value
        for key, value in tree.items()
        if isinstance(key, str) and isinstance(value, Tensor) and key.startswith(layout.prefix) and key != layout.prefix
    }
    if not state:
        raise WeightsError(f"{path}: no tensor in {layout}")
    for alias, key in own_metadata(path, found, SHARED).items():
        if alias in state or not isinstance(key, str) or key not in state:
            raise WeightsError(f"{path}: says that {alias!r} is {key!r}, which does not fit its tensors")
        state[alias] = state[key]
    return File(state, layout, found.kind, found.metadata)


def _load(path: Path, found: Header) -> Mapping[Any, Any]:
    kind = kind_of(path)
    if kind == "safetensors":
        return _load_safetensors(path)
    if kind == "npz":
        return _load_npz(path)
    if kind == "pickle":
        return _load_pickle(path)
    return _load_pth(path, kind == "pth", found.names)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a valid safetensors file ({error})") from error


def _load_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"{path}: not a valid npz file ({error})") from error
    return {key: _tensor(path, key, array) for key, array in arrays.items()}


def _tensor(path: Path, key: str, array: Any) -> Tensor:
    """A NumPy array as a tensor; two bytes without a type are bfloat16."""
    import numpy as np

    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).reshape(array.shape)
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(native).reshape(array.shape)
    except TypeError as error:
        raise WeightsError(f"{path}: {key} has type {array.dtype}, which torch does not have") from error


def _load_pickle(path: Path) -> Mapping[Any, Any]:
    """Arrays of a plain pickle, which `pickles.walk` reads without running it."""
    with path.open("rb") as file:
        tree = read_pickle(path, file, "values").tree
    return _filled(path, tree, DEPTH, {})


def _filled(path: Path, tree: Mapping[Any, Any], depth: int, done: dict[int, dict[Any, Any]]) -> dict[Any, Any]:
    """The tree with tensors for its arrays, as deep as tables are looked for, each shared table once."""
    import numpy as np

    if id(tree) in done:
        return done[id(tree)]
    out = done[id(tree)] = {}
    for key, value in tree.items():
        if isinstance(value, Held):
            array = np.frombuffer(value.data, np.dtype(value.dtype)).reshape(value.shape, order="F" if value.columns else "C")
            out[key] = _tensor(path, str(key), array.copy())
        elif isinstance(value, Mapping) and depth:
            out[key] = _filled(path, cast(Mapping[Any, Any], value), depth - 1, done)
    return out


def _load_pth(path: Path, mapped: bool, names: tuple[str, ...]) -> Mapping[Any, Any]:
    """The one place where PyTorch's own format is read: tensors and plain containers only, nothing in the file runs."""
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < OLDEST_TORCH:
        raise WeightsError(f"{path}: .pth files are read with torch >= 2.10 only (safe loading), this is {torch.__version__}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # about pickle protocols, ahead of the error that says it
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        foreign = [name for name in names if not name.startswith(("torch.", "collections.OrderedDict", "argparse.", "numpy."))]
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().split("\n")[0] or "it is corrupt"
        what = f"it refers to {', '.join(foreign[:3])}" if foreign else f"safe loading says: {reason}"
        raise WeightsError(f"{path}: holds more than tensors ({what}); refused, and nothing in it was executed") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: truncated or corrupt ({detail})") from error
    if isinstance(value, Tensor):
        value = {"tensor": value}
    if not isinstance(value, Mapping):
        raise WeightsError(f"{path}: holds a {type(value).__name__}, not a state dict")
    _check_storage(path, cast(Mapping[Any, Any], value), DEPTH)
    return cast(Mapping[Any, Any], value)


class Settings:
    """What stands for a training script's object of plain attributes: it only holds what the file says, and nothing looks at it."""


HOLDERS = ("models.utils.config.BaseConfig",)  # of facebookresearch/pytorch_GAN_zoo


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Types that training scripts leave in checkpoints beside the tensors and that only hold values."""
    import numpy as np

    scalar = cast(Callable[..., Any], type(np.float64(0)).__reduce__(np.float64(0))[0])
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [
        argparse.Namespace,
        *((Settings, name) for name in HOLDERS),
        np.dtype,
        *dtypes,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _check_storage(path: Path, tree: Mapping[Any, Any], depth: int) -> None:
    """Refuse tensors that claim more elements than the file stores for them: stride tricks make terabytes out of bytes."""
    for key, value in tree.items():
        if isinstance(value, Tensor) and value.layout == torch.strided:
            stored = value.untyped_storage().nbytes()
            if value.numel() * value.element_size() > max(stored, 64):
                raise WeightsError(f"{path}: {key} of shape {tuple(value.shape)} is stored in only {stored} bytes")
        elif isinstance(value, Mapping) and depth:
            _check_storage(path, cast(Mapping[Any, Any], value), depth - 1)


def _shards(index: Path) -> list[Path]:
    """The files that an index.json names, all beside it."""
    try:
        if index.stat().st_size > 64 << 20:
            raise WeightsError(f"{index}: larger than an index of shards can be")
        table = cast(dict[str, str], json.loads(index.read_text("utf-8"))["weight_map"])
        names = sorted(set(table.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise WeightsError(f"{index}: not an index of a sharded checkpoint ({error!r})") from error
    for name in names:
        if Path(name).name != name or name in ("", "..") or "\\" in name:
            raise WeightsError(f"{index}: names the shard {name!r}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index}: its shard {name} is missing")
    if not names:
        raise WeightsError(f"{index}: names no shard")
    return [index.parent / name for name in names]
