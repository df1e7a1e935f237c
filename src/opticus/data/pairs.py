"""Pairs of pictures made from any pictures: "x4:" (a quarter of the size and the picture itself), "grey:", "noisy:".

The input is what the prefix makes of a picture, the target is the picture: what super-resolution, colourisation and denoising learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opticus.data.records import Boxes, Source, digest
from opticus.structures import Picture, Sample, Target, Task
from opticus.transforms.pixels import channelled, resize

SIGMA = 25.0  # of "noisy:", in grey levels
Make = Callable[[Tensor, str], Tensor]


def smaller(factor: int) -> Make:
    """Bicubic, antialiased reduction by `factor`; the picture is cut to a multiple of it beforehand."""

    def make(pixels: Tensor, id: str) -> Tensor:
        size = (max(pixels.shape[0] // factor, 1), max(pixels.shape[1] // factor, 1))
        return resize(pixels, size, "bicubic", True)

    return make


def grey(pixels: Tensor, id: str) -> Tensor:
    """The luminance, (H, W, 1)."""
    return channelled(pixels, 1, id)


def noisy(pixels: Tensor, id: str) -> Tensor:
    """Normal noise of deviation SIGMA, a function of the record's id."""
    key = int(digest(id)[:16], 16)
    drawn = np.random.Generator(np.random.Philox(key=[key, 0x2015E])).standard_normal(tuple(pixels.shape), np.float32)
    return (pixels.float() + SIGMA * torch.from_numpy(drawn)).round().clamp(0, 255).to(torch.uint8)


KINDS: dict[str, tuple[Make, int]] = {
    **{f"x{n}": (smaller(n), n) for n in (2, 3, 4, 8)},
    "grey": (grey, 1),
    "noisy": (noisy, 1),
}


def prefix_of(name: str) -> str | None:
    """The kind of pairs that a data name asks for ("x4:photos" -> "x4"), or None."""
    kind, colon, _ = name.partition(":")
    return kind if colon and kind in KINDS else None


class Pairs:
    """A data set as pairs: what `kind` makes of each picture, and the picture. Labels are left out."""

    task: Task = "translate"
    boxes: Boxes | None = None

    def __init__(self, base: Source, kind: str) -> None:
        self.base, self.kind = base, kind
        self.names: tuple[str, ...] = ()
        self.label_ids: tuple[int, ...] = ()
        self.split: str = base.split
        self.splits: tuple[str, ...] = base.splits
        self.hash: str = digest("pairs", kind, base.hash)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Sample:
        sample = self.base[index]
        make, factor = KINDS[self.kind]
        pixels = whole(sample.picture.pixels, factor)
        return Sample.of(make(pixels, sample.id), Picture(pixels), sample.id)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The picture's id."""
        return self.base.id_of(index)

    def target_of(self, index: int) -> Target:
        """The picture itself."""
        return Picture(whole(self.base[index].picture.pixels, KINDS[self.kind][1]))

    def file_of(self, index: int) -> Path | None:
        """The picture's file, where there is one."""
        return self.base.file_of(index)


def whole(pixels: Tensor, factor: int) -> Tensor:
    """The picture cut at the right and bottom so that both sides are multiples of `factor`, where it is that large."""
    height, width = (max(int(n) // factor, 1) * factor for n in pixels.shape[:2])
    return pixels[:height, :width].contiguous() if (height, width) <= tuple(pixels.shape[:2]) else pixels
