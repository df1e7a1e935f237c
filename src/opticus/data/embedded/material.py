"""The real material that ships inside the scikit-learn and scikit-image wheels: handwritten digits and colour photographs."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from opticus.data.decode import decode
from opticus.structures import DataError

SPLITS = ("train", "val", "test")
MATERIAL = 1  # raise when the assignment of digits to splits changes; the list of photographs enters the hash by itself
# shares of the 1,797 digits; no writer information is published, so samples (not writers) are kept apart
_DIGITS = {"train": 1097, "val": 200, "test": 500}
# file -> package; the two pictures of the stereo pair are one photograph and stay in one split
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        "sklearn/datasets/images/china.jpg",
        "skimage/data/astronaut.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/motorcycle_right.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/retina.jpg",
        "skimage/data/brick.png",
        "skimage/data/camera.png",
        "skimage/data/cell.png",
        "skimage/data/coins.png",
        "skimage/data/grass.png",
        "skimage/data/gravel.png",
        "skimage/data/moon.png",
    ),
    "val": ("skimage/data/rocket.jpg", "skimage/data/coffee.png"),
    "test": ("sklearn/datasets/images/flower.jpg", "skimage/data/chelsea.png"),
}


def shipped(path: str) -> Path:
    """The file `path` ("package/inner/file") inside an installed package, without importing the package."""
    package, _, inner = path.partition("/")
    spec = importlib.util.find_spec(package)
    for root in spec.submodule_search_locations if spec and spec.submodule_search_locations else ():
        file = Path(root) / inner
        if file.is_file():
            return file
    raise DataError(f"{path}: the installed package {package!r} does not contain this file, which embedded data is built from")


@functools.cache
def all_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The 1,797 digits (1797, 8, 8) with values 0..16 and their labels (1797,), in scikit-learn's order."""
    file = shipped("sklearn/datasets/data/digits.csv.gz")
    with gzip.open(file, "rb") as stream:
        table = np.array([line.split(b",") for line in stream.read().split()], dtype=np.float64).astype(np.int64)
    if table.shape != (1797, 65):
        raise DataError(f"{file}: expected 1797 rows of 65 numbers, found {table.shape}")
    return table[:, :64].astype(np.uint8).reshape(-1, 8, 8), table[:, 64]


@functools.cache
def digit_indices(split: str) -> npt.NDArray[np.int64]:
    """The rows of `all_digits` that belong to `split`; the three splits are disjoint and cover all.

    The order is that of a 64-bit mix of the row number, which no library version can change.
    """
    count = len(all_digits()[1])
    keys = [_mix(i + MATERIAL * 1_000_003) for i in range(count)]
    order = np.asarray(sorted(range(count), key=keys.__getitem__), np.int64)
    start = 0
    for name, size in _DIGITS.items():
        if name == split:
            return order[start : start + size]
        start += size
    raise DataError(f"embedded data has the splits {', '.join(_DIGITS)}, found {split!r}")


def _mix(value: int) -> int:
    """SplitMix64's finaliser."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


@functools.cache
def photographs(split: str) -> tuple[npt.NDArray[np.uint8], ...]:
    """The photographs of `split`, (H, W, 3) uint8 each."""
    return tuple(decode(shipped(path)).pixels.numpy() for path in PHOTOGRAPHS[split])


@functools.cache
def pyramids(split: str, least: int) -> tuple[tuple[npt.NDArray[np.uint8], ...], ...]:
    """Each photograph at scales 1, 2^-1/2, 1/2, ... while its shorter side stays at least `least` pixels."""
    out: list[tuple[npt.NDArray[np.uint8], ...]] = []
    for photo in photographs(split):
        height, width = photo.shape[:2]
        image, levels, scale = Image.fromarray(photo), [photo], 2**-0.5
        while min(height, width) * scale >= least:
            size = (round(width * scale), round(height * scale))
            levels.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
            scale *= 2**-0.5
        out.append(tuple(levels))
    return tuple(out)


@functools.cache
def glyph(row: int, size: int) -> Image.Image:
    """Digit `row` as an (size, size) 8-bit gray picture, bicubic from 8x8, with a margin of an eighth on each side."""
    small = np.zeros((10, 10), np.float32)
    small[1:9, 1:9] = all_digits()[0][row] * (255.0 / 16.0)
    large = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.rint(np.asarray(large)), 0, 255).astype(np.uint8))
