"""Region maps of pictures: "segment:scenes" (drawn masks) and "segment:VOC2012" (SegmentationClass/*.png, ImageSets/Segmentation)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from opticus.data.decode import decode, decode_indices
from opticus.data.records import Boxes, Source, Strings, digest
from opticus.data.splits import resolve
from opticus.data.voc import NAMES
from opticus.ops.masks import decode as decode_runs
from opticus.structures import RLE, DataError, Instances, LabelMap, Sample, Task

PREFIX = "segment:"
VOID = 255


class VocSegments:
    """Pascal VOC's class maps: pixels are 0 background, 1..20 the classes in VOC's order, 255 void."""

    task: Task = "segment"
    names: tuple[str, ...] = ("background", *NAMES)
    label_ids: tuple[int, ...] = tuple(range(21))
    boxes: Boxes | None = None

    def __init__(self, root: Path, split: str) -> None:
        lists = {file.stem: file.read_text("utf-8").split() for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))}
        self.root = root
        self.split: str = resolve(split, lists, f"{root}/ImageSets/Segmentation")
        self.splits: tuple[str, ...] = tuple(sorted(lists))
        self.stems = Strings(lists[self.split])
        self.hash: str = digest("voc segments", self.split, *self.stems)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        picture, target = decode(self.file_of(index)), self.target_of(index)
        size = tuple(target.labels.shape)
        if size != picture.size:
            raise DataError(
                f"{self._map(index)}: expected {picture.size[1]}x{picture.size[0]} pixels as in the picture, found {size[1]}x{size[0]}"
            )
        return Sample({"image": picture}, target, self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """VOC's name of the picture."""
        return self.stems[index]

    def file_of(self, index: int) -> Path:
        """The JPEG."""
        return self.root / "JPEGImages" / f"{self.stems[index]}.jpg"

    def target_of(self, index: int) -> LabelMap:
        """The class of every pixel; ImageError for a map that is missing or broken."""
        return LabelMap(decode_indices(self._map(index)).long(), VOID)

    def _map(self, index: int) -> Path:
        return self.root / "SegmentationClass" / f"{self.stems[index]}.png"


class Segments:
    """A detection set with masks as maps: a pixel's label is 1 + the class of the last object that covers it, 0 background."""

    task: Task = "segment"
    boxes: Boxes | None = None

    def __init__(self, base: Source) -> None:
        self.base = base
        self.names: tuple[str, ...] = ("background", *base.names)
        self.label_ids: tuple[int, ...] = tuple(range(len(self.names)))
        self.split: str = base.split
        self.splits: tuple[str, ...] = base.splits
        self.hash: str = digest("segments", base.hash)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Sample:
        sample = self.base[index]
        return Sample(sample.inputs, map_of(sample.target, sample.id), sample.id)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The id in the detection set."""
        return self.base.id_of(index)

    def target_of(self, index: int) -> LabelMap:
        """The map of record `index`."""
        return map_of(self.base.target_of(index), self.id_of(index))

    def file_of(self, index: int) -> Path | None:
        """The picture's file, where there is one."""
        return self.base.file_of(index)


def map_of(target: object, id: str) -> LabelMap:
    """The class map of a picture's masks, crowd regions as void; a map stays as it is."""
    if isinstance(target, LabelMap):
        return target
    if not isinstance(target, Instances) or target.masks is None:
        found = "boxes without masks" if isinstance(target, Instances) else type(target).__name__
        raise DataError(f"{id}: expected masks of regions, found {found}")
    if isinstance(target.masks, RLE):
        masks = decode_runs(target.masks).numpy().astype(np.bool_)
    else:
        masks = target.masks.numpy().astype(np.bool_)
    labels = np.zeros(target.size, np.int64)
    crowd = np.zeros(len(target), np.bool_) if target.crowd is None else target.crowd.numpy()
    for mask, label, void in zip(masks, target.labels.tolist(), crowd, strict=True):
        labels[mask] = VOID if void else label + 1
    return LabelMap(torch.from_numpy(labels), VOID)


def voc_root(path: Path) -> Path | None:
    """The VOC folder at or below `path` that holds class maps."""
    places = [path, *sorted(path.glob("VOC[0-9]*")), *sorted(path.glob("VOCdevkit/VOC[0-9]*"))]
    return next((p for p in places if (p / "SegmentationClass").is_dir() and (p / "ImageSets" / "Segmentation").is_dir()), None)


__all__ = ["PREFIX", "Segments", "VocSegments", "map_of", "voc_root"]
