"""CIFAR-10 and CIFAR-100, binary and Python versions (format: cs.toronto.edu/~kriz/cifar.html).

The Python batches are pickles; they are read by `pickles.read_pickle`, which executes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.data.arrays import ArrayPictures
from opticus.data.pickles import read_pickle
from opticus.data.splits import resolve
from opticus.structures import DataError

_PIXELS = 3 * 32 * 32
NAMES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Layout(NamedTuple):
    root: Path
    files: dict[str, list[Path]]
    classes: int
    binary: bool


def matches(path: Path) -> bool:
    """Whether the folder holds CIFAR batches (itself, or in the folder that the archive unpacks to)."""
    return path.is_dir() and _layout(path) is not None


def read(path: Path, split: str) -> ArrayPictures:
    """The split "train" or "test" (for CIFAR-100 with its hundred fine labels)."""
    found = _layout(path)
    if found is None:
        raise DataError(f"{path}: no CIFAR batches (data_batch_1, data_batch_1.bin, train or train.bin)")
    name = resolve(split, found.files, str(path))
    reader = read_binary if found.binary else read_python
    parts = [reader(file, found.classes) for file in found.files[name]]
    pixels = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    names = _names(found)
    return ArrayPictures(pixels, labels, names, split=name, splits=tuple(sorted(found.files)), where=str(found.files[name][0]))


def _layout(path: Path) -> _Layout | None:
    inner = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")
    for root in (path, *(path / name for name in inner)):
        for suffix in (".bin", ""):
            ten = sorted(
                file
                for file in root.glob(f"data_batch_*{suffix}")
                if re.fullmatch(rf"data_batch_\d+{re.escape(suffix)}", file.name)
            )
            if ten:
                _complete(ten, suffix)
                files = {"train": ten, "val": [root / f"val_batch{suffix}"], "test": [root / f"test_batch{suffix}"]}
                return _Layout(root, _existing(files), 10, suffix == ".bin")
            if (root / f"train{suffix}").is_file() and (suffix or (root / "meta").is_file()):
                files = {"train": [root / f"train{suffix}"], "val": [root / f"val{suffix}"], "test": [root / f"test{suffix}"]}
                return _Layout(root, _existing(files), 100, suffix == ".bin")
    return None


def _complete(found: list[Path], suffix: str) -> None:
    """Training batches count from 1 without a gap, and there are five of them (one in what opticus exports)."""
    numbers = sorted(int(re.findall(r"\d+", file.name)[0]) for file in found)
    wanted = 1 if numbers == [1] else max(5, numbers[-1])
    missing = sorted(set(range(1, wanted + 1)) - set(numbers))
    if missing:
        names = ", ".join(f"data_batch_{number}{suffix}" for number in missing)
        raise DataError(f"{found[0].parent}: CIFAR-10 training batches are missing: {names}")


def _existing(files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    return {name: paths for name, paths in files.items() if all(path.is_file() for path in paths)}


def read_binary(file: Path, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(N, 32, 32, 3) pixels and labels of one binary batch: per record the label (coarse and fine for 100 classes) and planes."""
    width = _PIXELS + (2 if classes == 100 else 1)
    data = np.fromfile(file, np.uint8)
    if not len(data) or len(data) % width:
        raise DataError(f"{file}: expected a multiple of {width} bytes, found {len(data)}")
    table = data.reshape(-1, width)
    return _pictures(table[:, -_PIXELS:]), table[:, width - _PIXELS - 1].astype(np.int64)


def read_python(file: Path, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(N, 32, 32, 3) pixels and labels of one pickled batch."""
    batch = read_pickle(file)
    key = b"fine_labels" if classes == 100 else b"labels"
    values = {(k.encode() if isinstance(k, str) else k): v for k, v in batch.items()} if isinstance(batch, dict) else {}
    data, labels = values.get(b"data"), values.get(key)
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        raise DataError(f"{file}: expected a dictionary with 'data' and {key.decode()!r}, found {sorted(map(str, values))}")
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise DataError(f"{file}: expected data of shape (N, {_PIXELS}) in bytes, found {data.shape} of {data.dtype}")
    if not all(isinstance(label, int) for label in labels):
        raise DataError(f"{file}: expected whole numbers as labels")
    return _pictures(data), np.asarray(labels, np.int64)


def _pictures(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _names(found: _Layout) -> tuple[str, ...]:
    meta = "fine_label_names.txt" if found.classes == 100 else "batches.meta.txt"
    if found.binary and (found.root / meta).is_file():
        words = [line.strip() for line in (found.root / meta).read_text("utf-8").splitlines() if line.strip()]
        return tuple(words)
    file = found.root / ("meta" if found.classes == 100 else "batches.meta")
    if not found.binary and file.is_file():
        table = read_pickle(file)
        key = "fine_label_names" if found.classes == 100 else "label_names"
        words = table.get(key, table.get(key.encode())) if isinstance(table, dict) else None
        if not isinstance(words, list):
            raise DataError(f"{file}: expected a list {key!r}")
        return tuple(word.decode() if isinstance(word, bytes) else str(word) for word in words)
    return NAMES10 if found.classes == 10 else tuple(str(i) for i in range(100))
