"""MNIST's IDX files, raw or gzip: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-... (format: yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opticus.data.arrays import ArrayPictures
from opticus.data.splits import resolve
from opticus.structures import DataError

_PREFIXES = {"train": "train", "val": "val", "test": "t10k"}
_LIMIT = 1 << 33  # bytes an IDX file may unpack to


def matches(path: Path) -> bool:
    """Whether the folder holds IDX pictures."""
    return path.is_dir() and bool(_splits(path))


def read(path: Path, split: str) -> ArrayPictures:
    """The split "train", "test" (t10k) or, if it exists, "val"."""
    found = _splits(path)
    name = resolve(split, found, str(path))
    images, labels = found[name]
    pixels, kinds = read_idx(images, 3), read_idx(labels, 1).astype(np.int64)
    count = max(int(kinds.max()) + 1 if len(kinds) else 0, 10)
    names = tuple(str(i) for i in range(count))
    listed = path / "classes.txt"
    if listed.is_file():
        names = tuple(line.strip() for line in listed.read_text("utf-8").splitlines() if line.strip())
    return ArrayPictures(pixels[..., None], kinds, names, split=name, splits=tuple(sorted(found)), where=str(images))


def _splits(path: Path) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    for name, prefix in _PREFIXES.items():
        pair = [_first(path, f"{prefix}-{kind}") for kind in ("images", "labels")]
        if pair[0] is not None and pair[1] is not None:
            found[name] = (pair[0], pair[1])
    return found


def _first(path: Path, start: str) -> Path | None:
    kind = "idx3-ubyte" if start.endswith("images") else "idx1-ubyte"
    places = [path, path / "MNIST" / "raw", path / "raw"]
    names = [f"{start}{dot}{kind}{gz}" for dot in ("-", ".") for gz in ("", ".gz")]
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def read_idx(file: Path, ndim: int) -> npt.NDArray[np.uint8]:
    """The array of bytes in an IDX file with `ndim` axes; DataError naming the file when header and length disagree."""
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if packed else file.open("rb") as stream:
            head = stream.read(4 + 4 * ndim)
            if len(head) < 4 + 4 * ndim or head[:2] != b"\0\0":
                raise DataError(f"{file}: not an IDX file (it starts with {head[:4].hex() or 'nothing'})")
            if head[2] != 8 or head[3] != ndim:
                raise DataError(f"{file}: expected unsigned bytes with {ndim} axes, found type {head[2]} with {head[3]} axes")
            shape = tuple(int.from_bytes(head[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
            size = math.prod(shape)
            if size > _LIMIT:
                raise DataError(f"{file}: the header promises {size} bytes, more than {_LIMIT}")
            data = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if len(data) != size:
        raise DataError(f"{file}: the header promises {size} bytes, found {'more' if len(data) > size else len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape)
