"""`tints`: 32x32 colour pictures of handwritten digits that are red, green or blue: domains whose translation has a known answer.

A picture is a digit over a ground of one grey, both brightnesses drawn; its class is the digit's colour. What a picture looks like in
another domain is a formula of the same numbers: `Tints.answer`. Splits share no digit sample. In "tints-equal" the three colours are
equally light, so that a grey picture does not tell which it was: the mean of what it may have been is grey.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from opticus.data.embedded.material import MATERIAL, SPLITS, digit_indices, glyph
from opticus.data.records import Boxes, digest
from opticus.ops.lab import to_rgb
from opticus.structures import Classes, DataError, Picture, Sample, Task

VERSION = 1
SIDE = 32
COUNTS = {"train": 3000, "val": 300, "test": 600}
NAMES = ("red", "green", "blue")
GROUND = (0.05, 0.45)  # range of the ground's grey, of 1
BRIGHT = (0.65, 1.0)  # range of the digit's brightest channel; the two others have an eighth of it
EQUAL = ((40.0, 23.0), (-40.0, 23.0), (0.0, -46.0))  # a and b of colours of equal lightness and strength
LIGHT = (52.0, 68.0)  # range of their lightness L, of 100


class Tints:
    """Single-label data of three classes; pictures (32, 32, 3) uint8. Class i % 3 is picture i's."""

    task: Task = "classify"
    names: tuple[str, ...] = NAMES
    label_ids: tuple[int, ...] = (0, 1, 2)
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "train", *, count: int | None = None, seed: int = 0, equal: bool = False) -> None:
        if split not in COUNTS:
            raise DataError(f"tints has the splits {', '.join(COUNTS)}, found {split!r}")
        if count is not None and count < 1:
            raise DataError(f"tints: count must be at least 1, found {count}")
        self.split: str = split
        self.seed, self.equal = seed, equal
        self.count = COUNTS[split] if count is None else count
        self.hash: str = digest(f"tints {VERSION} {MATERIAL} {seed} {split} {self.count} {equal}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        return Sample.of(torch.from_numpy(self._drawn(index, index % len(NAMES))), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def answer(self, index: int, domain: int) -> Picture:
        """Picture `index` as it would be in another domain."""
        return Picture(torch.from_numpy(self._drawn(index, domain)))

    def id_of(self, index: int) -> str:
        """The split and number of the picture."""
        return f"{self.split}{index:06d}"

    def target_of(self, index: int) -> Classes:
        """The digit's colour."""
        return Classes(torch.tensor([index % len(NAMES)]))

    def file_of(self, index: int) -> Path | None:
        """None: pictures are drawn, not read."""
        return None

    def _drawn(self, index: int, domain: int) -> npt.NDArray[np.uint8]:
        key = ((self.seed & 0xFFFFFFFF) << 32) | (VERSION << 8) | 0xC0 | SPLITS.index(self.split)
        raw = np.random.Philox(key=key, counter=[0, 0, index, 0]).random_raw(3)
        u: list[float] = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        rows = digit_indices(self.split)
        cover = np.asarray(glyph(int(rows[int(u[0] * len(rows))]), SIDE), np.float64)[..., None] / 255
        if self.equal:
            light = 100 * (GROUND[0] + u[1] * (GROUND[1] - GROUND[0]))
            lab = cover * np.asarray([LIGHT[0] + u[2] * (LIGHT[1] - LIGHT[0]), *EQUAL[domain]]) + (1 - cover) * [light, 0.0, 0.0]
            rgb = to_rgb(torch.from_numpy(lab).permute(2, 0, 1)[None])[0]
            return (255 * rgb).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        ground = GROUND[0] + u[1] * (GROUND[1] - GROUND[0])
        ink = np.full(3, (BRIGHT[0] + u[2] * (BRIGHT[1] - BRIGHT[0])) / 8)
        ink[domain] *= 8
        return np.rint(255 * (cover * ink + (1 - cover) * ground)).astype(np.uint8)
