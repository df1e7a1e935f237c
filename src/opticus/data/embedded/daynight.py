"""`daynight`: patches of photographs by day and, unpaired, by night (task "translate").

A patch is a square of a colour photograph, reduced to 32x32. Its night is a fixed function of its colours: dark, with little colour, bluish, and
bright things glow warm. In the train split a sample shows a day patch (view "a") and the night of another patch (view "b"), never the same
one; in val and test the target is the night of the very patch, so that a method which never saw a pair can be scored. The splits share
no photograph. Every patch is a pure function of (seed, VERSION, split, index).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from opticus.data.embedded.material import MATERIAL, PHOTOGRAPHS, SPLITS, photographs
from opticus.data.records import Boxes, digest
from opticus.structures import DataError, Picture, Sample, Task

VERSION = 1
SIDE = 32
COUNTS = {"train": 3000, "val": 200, "test": 500}
SPAN = (48.0, 160.0)  # side of the square that a patch shows, in pixels of its photograph
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
Pixels = npt.NDArray[np.uint8]


class DayNight:
    """Patches (32, 32, 3) uint8; domain "a" is day, "b" night."""

    task: Task = "translate"
    names: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "train", *, count: int | None = None, seed: int = 0) -> None:
        if split not in COUNTS:
            raise DataError(f"daynight has the splits {', '.join(COUNTS)}, found {split!r}")
        self.split: str = split
        self.seed = seed
        self.count = COUNTS[split] if count is None else count
        self.hash: str = digest(f"daynight {VERSION} {MATERIAL} {seed} {split} {self.count} {PHOTOGRAPHS[split]}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"patch {index} of {self.count}")
        day = torch.from_numpy(patch(self.seed, self.split, index))
        if self.split != "train":
            return Sample.of(day, self.target_of(index), self.id_of(index))
        other = torch.from_numpy(night(patch(self.seed, self.split, index + 1_000_000)))
        views = (("a", Sample.of(day, None, self.id_of(index))), ("b", Sample.of(other, None, self.id_of(index))))
        return Sample({"image": Picture(day)}, None, self.id_of(index), views=views)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The split and number of the patch."""
        return f"{self.split}{index:06d}"

    def target_of(self, index: int) -> Picture | None:
        """The patch by night; None in the train split, where nobody tells."""
        return None if self.split == "train" else Picture(torch.from_numpy(night(patch(self.seed, self.split, index))))

    def file_of(self, index: int) -> Path | None:
        """None: patches are drawn, not read."""
        return None


@functools.cache
def colourful(split: str) -> list[Pixels]:
    """The photographs of a split that show something by daylight colour: not the grey ones."""
    return [
        photo for photo in photographs(split) if photo.shape[2] == 3 and bool((np.ptp(photo[::16, ::16], axis=2) > 12).mean() > 0.2)
    ]


def patch(seed: int, split: str, index: int) -> Pixels:
    """Patch `index` (32, 32, 3) of a split."""
    sources = colourful(split)
    key = ((seed & 0xFFFFFFFF) << 32) | (VERSION << 8) | 0x60 | SPLITS.index(split)
    raw = np.random.Philox(key=key, counter=[0, 0, index, 0]).random_raw(4)
    u: list[float] = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
    photo = sources[int(u[0] * len(sources))]
    height, width = photo.shape[:2]
    span = min(SPAN[0] * (SPAN[1] / SPAN[0]) ** u[1], height, width)
    x, y = u[2] * (width - span), u[3] * (height - span)
    image = Image.fromarray(photo).resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + span, y + span))
    return np.array(image)


def night(pixels: Pixels) -> Pixels:
    """The same place by night: luminance darkened more than in proportion, a third of the colour left, blue added, lights glowing."""
    colours = pixels.astype(np.float32) / 255
    light = colours @ _LUMA
    dim = 0.55 * light**1.8
    tinted = dim[..., None] * np.asarray([0.75, 0.9, 1.35], np.float32) + (colours - light[..., None]) * dim[..., None] * 0.6
    glow = np.clip((light - 0.8) / 0.2, 0, 1)[..., None] * np.asarray([0.55, 0.4, 0.05], np.float32)
    lit = tinted + glow + np.asarray([0.01, 0.015, 0.05], np.float32)
    return np.clip(np.rint(lit * 255), 0, 255).astype(np.uint8)
