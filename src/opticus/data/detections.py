"""Picture files with boxes: the one data set class behind the COCO, VOC and YOLO readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opticus.data.decode import decode, header
from opticus.data.federated import Federation
from opticus.data.findings import Finding
from opticus.data.records import Boxes, Strings
from opticus.structures import RLE, DataError, Instances, Sample, Task

MaskReader = Callable[[slice, tuple[int, int]], RLE]


@dataclass(slots=True)
class Pictures:
    """The files of one split: names relative to `root`, ids, and sizes (H, W) as annotated (0 = not stated)."""

    root: Path
    files: Strings
    ids: Strings
    sizes: npt.NDArray[np.int32]  # (images, 2)


@dataclass(slots=True)
class Origin:
    """Where annotations come from and what the reader noticed while reading them leniently."""

    split: str
    splits: tuple[str, ...]
    hash: str
    notes: list[Finding] = field(default_factory=list[Finding])


class Detections:
    """Pictures with boxes in flat arrays. `relative` boxes are fractions of the picture's size (YOLO) until they are asked for."""

    task: Task = "detect"

    def __init__(
        self,
        pictures: Pictures,
        boxes: Boxes,
        names: tuple[str, ...],
        label_ids: tuple[int, ...],
        origin: Origin,
        *,
        relative: bool = False,
        masks: MaskReader | None = None,
    ) -> None:
        self.pictures = pictures
        self.boxes: Boxes | None = boxes
        self.table = boxes
        self.names = names
        self.label_ids = label_ids
        self.split = origin.split
        self.splits = origin.splits
        self.hash = origin.hash
        self.notes = origin.notes
        self.relative = relative
        self.read_masks = masks
        self.federation: Federation | None = None  # LVIS: what is known about classes without a box
        self.masks = False  # True adds instance masks to the targets, where the format has them

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """(images, 2) heights and widths as annotated, 0 where not stated."""
        return self.pictures.sizes

    def __len__(self) -> int:
        return len(self.pictures.files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = self.file_of(index)
        picture = decode(file)
        stated = self._stated(index)
        if stated is not None and stated != picture.size:
            raise DataError(
                f"{file}: the annotations say {stated[1]}x{stated[0]} pixels, the picture has {picture.size[1]}x{picture.size[0]} "
                f"(EXIF orientation {header(file).orientation}, applied once)"
            )
        return Sample({"image": picture}, self._target(index, picture.size), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The data set's own id of the picture."""
        return self.pictures.ids[index]

    def file_of(self, index: int) -> Path:
        """The picture's file."""
        return self.pictures.root / self.pictures.files[index]

    def target_of(self, index: int) -> Instances:
        """The objects of picture `index`; its file's header is read only if the annotations do not state the size."""
        return self._target(index, self._stated(index) or header(self.file_of(index)).size)

    def _stated(self, index: int) -> tuple[int, int] | None:
        height, width = self.pictures.sizes[index].tolist()
        return (height, width) if height and width else None

    def _target(self, index: int, size: tuple[int, int]) -> Instances:
        scale = (float(size[1]), float(size[0])) if self.relative else (1.0, 1.0)
        target = self.table.instances(index, size, scale)
        if self.masks and self.read_masks is not None:
            target.masks = self.read_masks(self.table.rows(index), size)
        return target
