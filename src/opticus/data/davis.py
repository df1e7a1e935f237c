"""DAVIS: JPEGImages/480p/<sequence>/*.jpg, Annotations/480p/<sequence>/*.png (palette PNG), ImageSets/2017/<split>.txt.

An annotation's pixels are object ids (1, 2, ... within a sequence), 0 background and 255 void; its palette is only for the eye. A frame
without annotation (all but the first ones of test-dev) has no target. Results are written in the same layout: <sequence>/<frame>.png.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from opticus.data.decode import decode, decode_indices, header
from opticus.data.findings import Finding
from opticus.data.records import Boxes, Source, Strings, digest
from opticus.data.splits import resolve
from opticus.structures import DataError, LabelMap, Sample, Task
from opticus.structures.files import write_atomic

NAMES = ("background", "object")  # what ids above 0 mean differs from sequence to sequence
Pixels = npt.NDArray[np.uint8]


@runtime_checkable
class Sequences(Source, Protocol):
    """A data set whose records are frames: those of `sequences[s]` are records `starts[s]` to `starts[s + 1]` - 1."""

    sequences: tuple[str, ...]
    starts: npt.NDArray[np.int64]


class Davis:
    """The frames of one split of a DAVIS folder, sequence by sequence."""

    task: Task = "segment"
    names: tuple[str, ...] = NAMES
    label_ids: tuple[int, ...] = tuple(range(len(NAMES)))
    boxes: Boxes | None = None

    def __init__(self, root: Path, split: str) -> None:
        lists = _lists(root)
        self.root = root
        self.split: str = resolve(split, lists, str(root))
        self.splits: tuple[str, ...] = tuple(sorted(lists))
        self.resolution = _resolution(root)
        self.sequences: tuple[str, ...] = tuple(lists[self.split])
        self.notes: list[Finding] = []
        self.frames = Strings()
        starts = [0]
        for name in self.sequences:
            pictures = sorted(file.name for file in (self._pictures / name).glob("*.jpg"))
            if not pictures:
                raise DataError(f"{self._pictures / name}: the sequence {name!r} of {self.split}.txt has no frame (*.jpg)")
            if not self._annotation(name, Path(pictures[0]).stem).is_file():
                file = self._annotation(name, Path(pictures[0]).stem)
                self.notes.append(
                    Finding("missing annotation", "error", f"{name}/{file.stem}", str(file), "a sequence's first frame needs one")
                )
            for picture in pictures:
                self.frames.append(f"{name}/{Path(picture).stem}")
            starts.append(len(self.frames))
        self.starts = np.asarray(starts, np.int64)
        sizes = [f"{frame} {_bytes(self.file_of(i))} {_bytes(self.annotation_of(i))}" for i, frame in enumerate(self.frames)]
        self.hash: str = digest("davis", self.split, self.resolution, *sizes)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        return Sample({"image": decode(self.file_of(index))}, self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The sequence and the frame's number: "bike-packing/00012"."""
        return self.frames[index]

    def file_of(self, index: int) -> Path:
        """The frame's JPEG."""
        return self._pictures / f"{self.frames[index]}.jpg"

    def annotation_of(self, index: int) -> Path | None:
        """The frame's palette PNG; None where it is not annotated."""
        file = self._annotation(*self.frames[index].split("/"))
        return file if file.is_file() else None

    def target_of(self, index: int) -> LabelMap | None:
        """Object ids of frame `index`, None where it is not annotated; DataError for a map of another size than the frame."""
        file = self.annotation_of(index)
        if file is None:
            return None
        ids = decode_indices(file)
        size = header(self.file_of(index)).size
        if tuple(ids.shape) != size:
            raise DataError(f"{file}: expected {size[1]}x{size[0]} pixels as in the frame, found {ids.shape[1]}x{ids.shape[0]}")
        return LabelMap(ids.long())

    @property
    def _pictures(self) -> Path:
        return self.root / "JPEGImages" / self.resolution

    def _annotation(self, sequence: str, stem: str) -> Path:
        return self.root / "Annotations" / self.resolution / sequence / f"{stem}.png"


def matches(path: Path) -> bool:
    """Whether there are JPEGImages/<resolution>/<sequence>/ and lists in ImageSets/2017 (or another year)."""
    return path.is_dir() and (path / "JPEGImages").is_dir() and bool(_years(path)) and _resolutions(path) != []


def read(path: Path, split: str) -> Davis:
    """The split `split` ("train", "val", "test-dev", ...) of the DAVIS folder at `path`, at 480p where it is there."""
    return Davis(path, split)


def palette() -> bytes:
    """Colours of the 256 ids, 768 bytes: bits 0, 3 and 6 of an id are red's highest bits, 1, 4 and 7 green's, 2, 5 blue's (VOC)."""
    ids = np.arange(256)
    table = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return table.tobytes()


def palette_of(file: Path | None) -> bytes:
    """The colours of an annotation's own palette (those that it lacks from `palette`); `palette` where there is none."""
    known = palette()
    if file is None:
        return known
    with Image.open(file) as image:
        own = bytes(image.getpalette() or ()) if image.mode == "P" else b""
    return own + known[len(own) :]


def write_ids(ids: Pixels, file: Path, colours: bytes | None = None) -> Path:
    """Write object ids (H, W) uint8 as a palette PNG, whole or not at all."""
    image = Image.fromarray(ids)
    image.putpalette(palette() if colours is None else colours)
    return write_atomic(file, lambda part: image.save(part, "PNG"))


def write(splits: Iterable[Source], folder: Path, limit: int | None = None) -> None:
    """Write clips (their first `limit` of each split) in DAVIS's layout into `folder`; frames become JPEG, as in DAVIS."""
    (folder / "ImageSets" / "2017").mkdir(parents=True)
    for data in splits:
        if not isinstance(data, Sequences):
            raise DataError(f"split {data.split!r} holds single pictures, no sequences")
        chosen = data.sequences[:limit]
        (folder / "ImageSets" / "2017" / f"{data.split}.txt").write_text("".join(f"{name}\n" for name in chosen), "utf-8")
        for i in range(int(data.starts[len(chosen)])):
            sample = data[i]
            file = folder / "JPEGImages" / "480p" / f"{sample.id}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.picture.pixels.numpy()).save(file, "JPEG", quality=95, subsampling=0)
            if isinstance(sample.target, LabelMap):
                write_ids(sample.target.labels.to(torch.uint8).numpy(), folder / "Annotations" / "480p" / f"{sample.id}.png")


def _years(path: Path) -> list[Path]:
    """Folders of lists, the one of 2017 first."""
    years = [place for place in path.glob("ImageSets/*") if place.name.isdigit() and next(place.glob("*.txt"), None)]
    return sorted(years, key=lambda place: (place.name != "2017", place.name))


def _resolutions(path: Path) -> list[str]:
    found = [
        place.name
        for place in (path / "JPEGImages").iterdir()
        if place.is_dir() and any(inner.is_dir() for inner in place.iterdir())
    ]
    return sorted(found, key=lambda name: (name != "480p", name))


def _resolution(path: Path) -> str:
    return _resolutions(path)[0]


def _lists(root: Path) -> dict[str, list[str]]:
    """The sequences of every split; DataError for an empty list or a name that leaves the folder."""
    found: dict[str, list[str]] = {}
    for file in sorted(_years(root)[0].glob("*.txt")):
        names = file.read_text("utf-8").split()
        for name in names:
            if "/" in name or "\\" in name or name in (".", ".."):
                raise DataError(f"{file}: expected names of sequences, found {name!r}")
        if len(set(names)) < len(names):
            raise DataError(f"{file}: the sequence {next(name for name in names if names.count(name) > 1)!r} is listed twice")
        found[file.stem] = names
    return found


def _bytes(file: Path | None) -> int:
    return -1 if file is None or not file.is_file() else file.stat().st_size


__all__ = ["NAMES", "Davis", "Sequences", "matches", "palette", "palette_of", "read", "write", "write_ids"]
