"""darknet's `.weights`: a header of 16 or 20 bytes, then float32 numbers, without any key.

Which number is what is known from the `.cfg` beside the file (the same stem), or from the layouts recorded for the papers. The
keys are those of `weights.cfg`; they also say the order of the file, so a table of keys and shapes is all that is needed.
Facts: pjreddie/darknet (public domain), src/parser.c, load_weights_upto and the functions that it calls.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from opticus.structures import WeightsError
from opticus.weights.cfg import Cfg, Shapes, cfg_shapes, read_cfg
from opticus.weights.names import Names

SUFFIX = ".weights"
FORMAT = "darknet"  # papers record the layouts of such files under formats whose names begin so
CFG = "darknet.cfg"  # metadata: the cfg that lay beside a file, as JSON
# the arrays of a layer in the order of the file: a norm's shift is the layer's bias, so it comes first
_CONVOLUTION = ("conv.bias", "bn.bias", "bn.weight", "bn.running_mean", "bn.running_var", "conv.weight")
_OTHERS = ("connected.bias", "connected.weight", "local.bias", "local.weight", "bn.weight", "bn.running_mean", "bn.running_var")


class Head(NamedTuple):
    """The header of a file: its version, pictures `seen` in training, its length in bytes, and how many numbers follow it.

    `transposed`: from before version 0.1, when kernels of [connected] layers were stored (in, out).
    """

    version: tuple[int, int, int]
    seen: int
    length: int
    numbers: int
    transposed: bool


def is_darknet(path: Path, start: bytes) -> bool:
    """Whether a file that begins with `start` is one: by its name, or by a version number that no other format begins with."""
    if path.suffix == SUFFIX:
        return True
    if len(start) < 16:
        return False
    major, minor, revision = struct.unpack("<3i", start[:12])
    return major == 0 and 1 <= minor < 10 and 0 <= revision < 100


def read_head(path: Path) -> Head:
    """The header; WeightsError if the file is shorter than one or does not end on a whole number."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(20)
    if len(start) < 16:
        raise WeightsError(f"{path}: {size} bytes are less than the header of a darknet file (16)")
    major, minor, revision = struct.unpack("<3i", start[:12])
    wide = major * 10 + minor >= 2 and major < 1000 and minor < 1000
    length = 20 if wide else 16
    if len(start) < length or (size - length) % 4:
        raise WeightsError(f"{path}: {size} bytes are not a header of {length} and whole float32 numbers: truncated or corrupt")
    seen = struct.unpack("<q" if wide else "<i", start[12:length])[0]
    return Head((major, minor, revision), seen, length, (size - length) // 4, abs(major) > 1000 or abs(minor) > 1000)


def cfg_beside(path: Path) -> Cfg | None:
    """The cfg that lies beside a file under the same stem, if there is one."""
    beside = path.with_suffix(".cfg")
    return read_cfg(beside) if beside.is_file() else None


def shapes_by(cfg: Cfg, path: Path) -> Shapes:
    """The layout that a cfg gives the file `path`; WeightsError if the file does not hold exactly as many numbers."""
    shapes = cfg_shapes(cfg)
    found, wanted = read_head(path).numbers, numbers_of(shapes)
    if found != wanted:
        raise WeightsError(f"{path}: does not fit {cfg.path.name}, which asks for {wanted} numbers; {_ends(shapes, found)}")
    return shapes


def fitting(path: Path, candidates: Iterable[Shapes]) -> list[Shapes]:
    """The layouts of `candidates` that have exactly as many numbers as the file; WeightsError if there is none."""
    head = read_head(path)
    every = list(candidates)
    if found := [shapes for shapes in every if numbers_of(shapes) == head.numbers]:
        return [in_file_order(shapes) for shapes in found]
    what = f"{path}: a darknet file (version {'.'.join(map(str, head.version))}) of {head.numbers} numbers"
    if len(every) == 1:
        shapes = in_file_order(every[0])
        what = f"{path}: the network asks for {numbers_of(shapes)} numbers; {_ends(shapes, head.numbers)}"
    raise WeightsError(f"{what}; no known layout has as many, so put its cfg beside it as {path.with_suffix('.cfg').name}")


def _ends(shapes: Shapes, numbers: int) -> str:
    """Where a file of so many numbers ends, in words."""
    left = numbers
    for key, shape in shapes.items():
        left -= math.prod(shape)
        if left < 0:
            return f"the file holds {numbers} and ends in {key}: truncated, or of another network"
    return f"the file holds {numbers}, {left} too many"


def numbers_of(shapes: Shapes) -> int:
    """Numbers of all arrays."""
    return sum(map(math.prod, shapes.values()))


def in_file_order(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """A table of keys, whose order may be lost, in the order of the file: layers by number, arrays as darknet writes them."""

    def place(key: str) -> tuple[int, int]:
        index, _, name = key.partition(".")
        order = _CONVOLUTION if f"{index}.conv.weight" in shapes else _OTHERS
        if not index.isdecimal() or name not in order:
            raise WeightsError(f"{key!r} is not a key of a darknet file, such as '3.conv.weight'")
        return int(index), order.index(name)

    return {key: tuple(shapes[key]) for key in sorted(shapes, key=place)}


def layout_of(ours: Mapping[str, Tensor], keys: Iterable[str], names: Names) -> Shapes:
    """The layout of a network of a paper with other settings: its recorded `keys`, each with the shape that the network has.

    `names` renames without changing shapes, one key to one name; keys that it does not know are left out.
    """
    shapes: Shapes = {}
    for key in keys:
        renamed = names.apply({key: torch.empty(0, device="meta")}).state
        for name in renamed:
            if name in ours:
                shapes[key] = tuple(ours[name].shape)
    return in_file_order(shapes)


def tensors_of(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """The arrays of a file, mapped into memory, not copied. WeightsError unless they are exactly the file's numbers."""
    head, wanted = read_head(path), numbers_of(shapes)
    if head.numbers != wanted:
        raise WeightsError(f"{path}: the layout asks for {wanted} numbers; {_ends(shapes, head.numbers)}")
    whole = torch.from_file(str(path), shared=False, size=head.length // 4 + head.numbers, dtype=torch.float32)
    arrays = whole[head.length // 4 :].split([math.prod(shape) for shape in shapes.values()])
    state = {key: array.view(shape) for (key, shape), array in zip(shapes.items(), arrays, strict=True)}
    if head.transposed:
        for key in [key for key in state if key.endswith(".connected.weight")]:
            state[key] = state[key].reshape(tuple(reversed(state[key].shape))).T
    return state
