"""`copies`: copy detection in the manner of Copydays out of photographs (splits "database", "query"; Douze et al., CIVR 2009).

Originals and distractors are upright squares of photographs that share no pixel; queries are originals that were distorted: saved as JPEG at
a low quality, cropped to a part of their area and enlarged again, or "strong" (turned, mirrored, blurred, relit and partly covered).
Every picture is a pure function of (seed, VERSION, split, index) and of Pillow's JPEG encoder.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter, ImageOps

from opticus.data.embedded.views import SOURCES, View, draw, photograph
from opticus.data.records import Boxes, digest
from opticus.structures import DataError, Relevant, Sample, Target, Task

VERSION = 1
SIDE = 64
SPLITS = ("database", "query")
GRID = 4  # squares along each side of a photograph; those of a chessboard's white fields are originals, the others distractors
BLOCKS = ("strong", "jpegqual/3", "jpegqual/10", "jpegqual/30", "crops/20", "crops/50", "crops/80")
Pixels = npt.NDArray[np.uint8]


class Copies:
    """Pictures (64, 64, 3) uint8: half the database are originals (first), half distractors; seven distorted copies of each original."""

    task: Task = "embed"
    protocol = "copydays"  # how retrieval in this data is scored
    names: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "database", *, seed: int = 0) -> None:
        if split not in SPLITS:
            raise DataError(f"copies has the splits {', '.join(SPLITS)}, found {split!r}")
        self.split: str = split
        self.seed = seed
        self.originals = len(SOURCES) * GRID * GRID // 2
        self.hash: str = digest(f"copies {VERSION} {seed} {split} {GRID} {BLOCKS} {SOURCES}")

    def __len__(self) -> int:
        return self.originals * (2 if self.split == "database" else len(BLOCKS))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        pixels = square(index) if self.split == "database" else self._distorted(index)
        return Sample.of(torch.from_numpy(pixels), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """Number of the original and, for a query, its distortion."""
        if self.split == "query":
            return f"{BLOCKS[index % len(BLOCKS)]}/{index // len(BLOCKS):04d}"
        return f"original/{index:04d}" if index < self.originals else f"distractors/{index - self.originals:04d}"

    def target_of(self, index: int) -> Target | None:
        """A query's original."""
        if self.split == "database":
            return None
        none = torch.zeros(0, dtype=torch.int64)
        return Relevant(torch.tensor([index // len(BLOCKS)]), none, none, BLOCKS[index % len(BLOCKS)])

    def file_of(self, index: int) -> Path | None:
        """None: pictures are drawn, not read."""
        return None

    def _distorted(self, index: int) -> Pixels:
        kind, _, amount = BLOCKS[index % len(BLOCKS)].partition("/")
        original = Image.fromarray(square(index // len(BLOCKS)))
        raw = np.random.Philox(key=((self.seed & 0xFFFFFFFF) << 32) | (VERSION << 8) | 0xC0, counter=[0, 0, index, 0]).random_raw(
            12
        )
        u: list[float] = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        if kind == "jpegqual":
            return _saved(original, int(amount))
        if kind == "crops":
            return _cut(original, int(amount) / 100, u)
        return _strong(original, u)


@functools.lru_cache(1024)
def square(index: int) -> Pixels:
    """Database picture `index` (64, 64, 3)."""
    half = GRID * GRID // 2
    originals = len(SOURCES) * half
    white = index < originals
    photo, field = divmod(index if white else index - originals, half)
    row = field * 2 // GRID
    column = (field * 2) % GRID + (row + (0 if white else 1)) % 2
    height, width = photograph(photo).shape[:2]
    span = 0.96 * min(height, width) / GRID
    x, y = (column + 0.5) * width / GRID, (row + 0.5) * height / GRID
    return draw(View(photo, field, x, y, span, 0.0, (1.0, 0.0, 1.0, 1.0, 1.0), "mild"), SIDE)


def _saved(image: Image.Image, quality: int) -> Pixels:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def _cut(image: Image.Image, share: float, u: list[float]) -> Pixels:
    """What is left when `share` of the area is cut away, at the full size again."""
    side = SIDE * (1 - share) ** 0.5
    x, y = (SIDE - side) * u[0], (SIDE - side) * u[1]
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side)))


def _strong(image: Image.Image, u: list[float]) -> Pixels:
    image = ImageOps.mirror(image) if u[0] < 0.5 else image
    image = Image.fromarray(
        _cut(image.rotate(40 * u[1] - 20, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)), 0.3, [0.5, 0.5])
    )
    blurred = image.filter(ImageFilter.GaussianBlur(0.5 + 1.5 * u[2]))
    gain, offset, tint = 0.5 + u[3], 80 * (u[4] - 0.5), 0.7 + 0.6 * np.asarray(u[5:8])
    pixels = np.clip(((np.asarray(blurred, np.float64) - 128) * gain + 128 + offset) * tint, 0, 255).astype(np.uint8)
    top, left = int(u[8] * SIDE * 0.6), int(u[9] * SIDE * 0.6)
    pixels[top : top + SIDE // 6, left : left + SIDE // 2] = np.asarray([255 * u[10], 255 * u[11], 128]).astype(np.uint8)
    return _saved(Image.fromarray(pixels), 15)
