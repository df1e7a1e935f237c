"""`crops`: 32x32 colour pictures of single digits cut out of scenes, a classification set that raw pixels do not solve.

Crop i shows the topmost digit of scene i: the square around its box, a fifth larger than the box's longer side, clipped to the scene,
resized by bilinear interpolation with antialiasing. Splits are those of `scenes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opticus.data.embedded.scenes import SIZE, Scenes
from opticus.data.records import Boxes, digest
from opticus.structures import Classes, Sample, Task

VERSION = 1
SIDE = 32
_MARGIN = 1.2


class Crops:
    """Single-label data of ten classes; pictures (32, 32, 3) uint8."""

    task: Task = "classify"
    boxes: Boxes | None = None

    def __init__(self, split: str = "train", *, count: int | None = None, seed: int = 0) -> None:
        self.scenes = Scenes(split, count=count, seed=seed)
        self.names: tuple[str, ...] = self.scenes.names
        self.label_ids: tuple[int, ...] = self.scenes.label_ids
        self.split: str = split
        self.splits: tuple[str, ...] = self.scenes.splits
        self.hash: str = digest(f"crops {VERSION}", self.scenes.hash)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"crop {index} of {len(self)}")
        drawn = self.scenes.draw(index)
        x0, y0, x1, y1 = drawn.boxes[-1].tolist()
        side = min(math.ceil(max(x1 - x0, y1 - y0) * _MARGIN), SIZE)
        left = min(max(round((x0 + x1 - side) / 2), 0), SIZE - side)
        top = min(max(round((y0 + y1 - side) / 2), 0), SIZE - side)
        cut = Image.fromarray(drawn.pixels[top : top + side, left : left + side])
        pixels = np.array(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return Sample.of(torch.from_numpy(pixels), Classes(torch.tensor([int(drawn.labels[-1])])), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The id of the scene."""
        return self.scenes.id_of(index)

    def target_of(self, index: int) -> Classes:
        """The digit's class."""
        return Classes(torch.tensor([int(self.scenes.draw(index).labels[-1])]))

    def file_of(self, index: int) -> Path | None:
        """None: crops are drawn, not read."""
        return None
