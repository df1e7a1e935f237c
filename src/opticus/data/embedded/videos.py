"""`videos`: short clips in which real digits and cut-outs of photographs move over a moving photograph, with exact masks (DESIGN 8).

One clip is a pure function of (seed, VERSION, split, index): 20 frames of 128x128 pixels; a window glides over a photograph; two or
three objects, a digit in one colour or a round piece of another photograph, move on straight lines (2 to 4.5 px a frame, thrown back at
the borders), turn and breathe; later objects lie on top. All are whole in the first frame. A pixel belongs to the object that covers
at least half of it. Splits share no digit sample and no photograph. Ids of objects are 1, 2, ... within a clip, 0 is background.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from opticus.data.davis import NAMES
from opticus.data.embedded.material import MATERIAL, PHOTOGRAPHS, SPLITS, digit_indices, glyph, pyramids
from opticus.data.records import Boxes, digest
from opticus.structures import DataError, LabelMap, Sample, Task

VERSION = 1
SIZE = 128
FRAMES = 20
COUNTS = {"train": 24, "val": 8, "test": 8}  # clips
SPEED = (2.0, 4.5)  # px a frame
ACROSS = (34.0, 52.0)  # px, an object's longer side
_MARGIN = 40  # px that the background's window may glide
_PIECE = 96  # px of an object's own picture
_NUMBERS = 16
# stroke intensity -> opacity, as in scenes: soft edges of the pen, solid strokes
_OPACITY = [round(255 * min(max((v / 255 - 0.25) / 0.3, 0.0), 1.0)) for v in range(256)]
Pixels = npt.NDArray[np.uint8]


class Drawn(NamedTuple):
    """One clip: `pixels` (T, 128, 128, 3) and `ids` (T, 128, 128), 0 background."""

    pixels: Pixels
    ids: Pixels


class _Mover(NamedTuple):
    """An object: its picture with opacity, and its place as a function of time."""

    piece: Image.Image
    start: tuple[float, float]
    velocity: tuple[float, float]
    across: float
    angle: float
    spin: float
    phase: float


class Videos:
    """Frames with a map of object ids each; `sequences` and `starts` say which frames make a clip."""

    task: Task = "segment"
    names: tuple[str, ...] = NAMES
    label_ids: tuple[int, ...] = tuple(range(len(NAMES)))
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "train", *, count: int | None = None, seed: int = 0) -> None:
        if split not in COUNTS:
            raise DataError(f"videos has the splits {', '.join(COUNTS)}, found {split!r}")
        self.split = split
        self.seed = seed
        self.count = COUNTS[split] if count is None else count
        self.sequences: tuple[str, ...] = tuple(f"{split}{i:02d}" for i in range(self.count))
        self.starts = np.arange(self.count + 1) * FRAMES
        self.hash = digest(f"videos {VERSION} {MATERIAL} {seed} {split} {self.count} {PHOTOGRAPHS[split]}")

    def __len__(self) -> int:
        return self.count * FRAMES

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        drawn = clip(self.seed, self.split, index // FRAMES)
        return Sample.of(torch.from_numpy(drawn.pixels[index % FRAMES].copy()), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The clip's name and the frame's number: "val03/00012"."""
        return f"{self.sequences[index // FRAMES]}/{index % FRAMES:05d}"

    def file_of(self, index: int) -> Path | None:
        """None: clips are drawn, not read."""
        return None

    def target_of(self, index: int) -> LabelMap:
        """Object ids of frame `index`."""
        ids = clip(self.seed, self.split, index // FRAMES).ids[index % FRAMES]
        return LabelMap(torch.from_numpy(ids.astype(np.int64)))


@functools.lru_cache(maxsize=4)
def clip(seed: int, split: str, index: int) -> Drawn:
    """Draw clip `index` of `split`: the same arguments always give the same clip."""
    movers = 3 if index % 2 else 2
    key = ((seed & 0xFFFFFFFF) << 32) | (101 << 16) | (VERSION << 8) | SPLITS.index(split)
    raw = np.random.Philox(key=key, counter=[0, 0, index, 0]).random_raw(_NUMBERS * 4)
    u = ((raw >> np.uint64(11)) * 2.0**-53).reshape(4, _NUMBERS)
    which, level = _level(split, float(u[0, 0]), float(u[0, 1]))
    room = np.array([level.shape[0], level.shape[1]]) - SIZE
    glide = np.minimum(room, _MARGIN)
    begin = u[0, 2:4] * (room - glide) + np.where(u[0, 4:6] < 0.5, 0, glide)
    end = begin + np.where(u[0, 4:6] < 0.5, glide, -glide) * u[0, 6:8]
    cells = [(32.0, 32.0), (96.0, 96.0), (32.0, 96.0), (96.0, 32.0)]
    turn = int(u[0, 8] * 4)
    objects = [_mover(split, which, u[k + 1], cells[(turn + k) % 4], digit=(k + index) % 2 == 0) for k in range(movers)]
    pixels, ids = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8), np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    for t in range(FRAMES):
        top, left = np.rint(begin + (end - begin) * t / (FRAMES - 1)).astype(int)
        canvas = Image.fromarray(level[top : top + SIZE, left : left + SIZE])
        for k, mover in enumerate(objects):
            layer = _placed(mover, t)
            canvas.paste(layer.convert("RGB"), (0, 0), layer.getchannel("A"))
            ids[t][np.asarray(layer.getchannel("A")) >= 128] = k + 1
        pixels[t] = np.asarray(canvas)
    return Drawn(pixels, ids)


def _level(split: str, a: float, b: float) -> tuple[int, Pixels]:
    """A photograph of the split at one of the scales that leave the window room to glide."""
    photos = pyramids(split, SIZE + _MARGIN)
    which = int(a * len(photos))
    return which, photos[which][int(b * len(photos[which]))]


def _mover(split: str, background: int, u: npt.NDArray[np.float64], cell: tuple[float, float], *, digit: bool) -> _Mover:
    piece = _digit(split, u) if digit else _cutout(split, background, u)
    speed, way = SPEED[0] + (SPEED[1] - SPEED[0]) * u[4], 2 * math.pi * u[5]
    return _Mover(
        piece,
        (cell[0] + 12 * (u[6] - 0.5), cell[1] + 12 * (u[7] - 0.5)),
        (speed * math.cos(way), speed * math.sin(way)),
        ACROSS[0] + (ACROSS[1] - ACROSS[0]) * float(u[8]),
        0.6 * (float(u[9]) - 0.5),
        0.12 * (float(u[10]) - 0.5),
        2 * math.pi * float(u[11]),
    )


def _digit(split: str, u: npt.NDArray[np.float64]) -> Image.Image:
    """A digit sample in one bright or dark colour."""
    rows = digit_indices(split)
    stroke = glyph(int(rows[int(u[0] * len(rows))]), _PIECE).point(_OPACITY)
    tint = 60 + 195 * u[1:4]
    tint[int(u[12] * 3)] *= 0.25  # a saturated colour: one channel is low
    piece = Image.new("RGB", stroke.size, (int(tint[0]), int(tint[1]), int(tint[2])))
    piece.putalpha(stroke)
    return piece


def _cutout(split: str, background: int, u: npt.NDArray[np.float64]) -> Image.Image:
    """A round piece, more or less lobed, of a photograph that is not the background."""
    photos = pyramids(split, _PIECE)
    which = (background + 1 + int(u[0] * (len(photos) - 1))) % len(photos)
    levels = photos[which]
    level = levels[int(u[1] * len(levels))]
    top, left = int(u[2] * (level.shape[0] - _PIECE + 1)), int(u[3] * (level.shape[1] - _PIECE + 1))
    y, x = np.mgrid[:_PIECE, :_PIECE] - (_PIECE - 1) / 2
    lobes = 2 + int(u[12] * 4)
    edge = _PIECE * (0.4 + 0.08 * np.cos(lobes * np.arctan2(y, x) + 2 * math.pi * u[13]))
    alpha = np.clip(edge - np.hypot(x, y) + 0.5, 0, 1)
    piece = Image.fromarray(level[top : top + _PIECE, left : left + _PIECE])
    piece.putalpha(Image.fromarray(np.rint(255 * alpha).astype(np.uint8)))
    return piece


def _placed(mover: _Mover, t: int) -> Image.Image:
    """The object at frame `t` on an empty frame (RGBA)."""
    radius = mover.across / 2
    x, y = (_thrown_back(mover.start[i] + t * mover.velocity[i], radius * 0.7, SIZE - radius * 0.7) for i in (0, 1))
    scale = mover.across / (_PIECE * 0.9) * (1 + 0.12 * (math.sin(mover.phase + 0.3 * t) - math.sin(mover.phase)))
    angle = mover.angle + mover.spin * t
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle = _PIECE / 2
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    return mover.piece.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _thrown_back(value: float, low: float, high: float) -> float:
    """A place on a line between two walls."""
    span = high - low
    along = (value - low) % (2 * span)
    return low + (along if along <= span else 2 * span - along)


__all__ = ["COUNTS", "FRAMES", "SIZE", "Videos", "clip"]
