"""Embedded data sets written out in the real formats, so that real readers can be tested on real files."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from opticus.data import davis
from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.structures import Classes, DataError, Instances, Task, UnknownNameError, UsageError

ExportFormat = Literal["coco", "voc", "yolo", "folder", "mnist", "cifar", "cifar-python", "shards", "davis"]
SHARD = 1000  # samples in a shard
_TASKS: dict[str, Task] = {"coco": "detect", "voc": "detect", "yolo": "detect", "davis": "segment"}
_IDX = {"train": "train", "val": "val", "test": "t10k"}


class _Target(NamedTuple):
    folder: Path
    limit: int | None

    def count(self, data: Source) -> int:
        return len(data) if self.limit is None else min(self.limit, len(data))


def export_data(name: str, format: ExportFormat, folder: str | Path, *, limit: int | None = None) -> Path:
    """Write every split of the embedded set `name` in `format` into the new or empty folder `folder`, whole or not at all; returns it.

    Detection data can be written as "coco" (with masks as uncompressed RLE), "voc" or "yolo"; classification data as "folder",
    "mnist" (IDX, gzip; 28x28 gray), "cifar" (binary), "cifar-python" (32x32 RGB, smaller pictures centred on black) or "shards"
    (WebDataset: tar files of up to 1,000 samples; `name` may also be a folder of pictures, whose files are kept as they are); clips as "davis".
    Pictures in files are PNG (DAVIS's frames JPEG). `limit` is the most samples (DAVIS: clips) of each split. Raises UsageError when the
    data cannot be written in the format, DataError when the folder is not empty.
    """
    if format not in _WRITERS:
        raise UnknownNameError("export format", format, _WRITERS)
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, found {limit}")
    final = Path(folder)
    target = _Target(final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.part"), limit)
    try:
        if final.exists() and any(final.iterdir()):
            raise DataError(f"{final}: the folder is not empty")
        options: dict[str, Any] = {"masks": True} if name.startswith("scenes") and format == "coco" else {}
        data = [open_data(name, split, on_bad="keep", **options) for split in open_data(name).splits]
        wanted = _TASKS.get(format, "classify")
        if data[0].task != wanted:
            raise UsageError(f"{name} is {data[0].task} data, which {format} does not hold")
        target.folder.mkdir(parents=True)
        _WRITERS[format](data, target)
        if final.exists():
            final.rmdir()
        target.folder.replace(final)
    except OSError as error:
        raise DataError(f"{final}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(target.folder, ignore_errors=True)
    return final


def save_png(pixels: npt.NDArray[np.uint8], file: Path) -> None:
    """Write (H, W, C) uint8 losslessly, quickly rather than small."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _image(pixels).save(file, "PNG", compress_level=1)


def _image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _instances(data: Source, index: int) -> Instances:
    target = data.target_of(index)
    if not isinstance(target, Instances):
        raise DataError(f"{data.id_of(index)}: expected boxes, found {type(target).__name__}")
    return target


def _pixels(data: Source, index: int) -> npt.NDArray[np.uint8]:
    return data[index].picture.pixels.numpy()


def _coco(splits: Iterable[Source], to: _Target) -> None:
    (to.folder / "annotations").mkdir()
    number = 0
    for data in splits:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(to.count(data)):
            target, file = _instances(data, i), f"{data.id_of(i)}.png"
            save_png(_pixels(data, i), to.folder / "images" / data.split / file)
            height, width = target.size
            images.append({"id": i + 1, "file_name": file, "height": height, "width": width})
            for k in range(len(target)):
                number += 1
                annotations.append(_coco_row(data, target, k) | {"id": number, "image_id": i + 1})
        categories = [{"id": i, "name": name, "supercategory": "digit"} for i, name in zip(data.label_ids, data.names)]
        tree = {"info": {"description": "opticus"}, "images": images, "annotations": annotations, "categories": categories}
        (to.folder / "annotations" / f"instances_{data.split}.json").write_text(json.dumps(tree), "utf-8")


def _coco_row(data: Source, target: Instances, k: int) -> dict[str, Any]:
    x0, y0, x1, y1 = target.boxes[k].tolist()
    row: dict[str, Any] = {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "category_id": data.label_ids[int(target.labels[k])],
        "iscrowd": 0,
        "area": (x1 - x0) * (y1 - y0) if target.areas is None else float(target.areas[k]),
    }
    if target.masks is not None and not hasattr(target.masks, "counts"):
        row["segmentation"] = {"counts": _runs(np.asarray(target.masks[k])), "size": list(target.size)}
    return row


def _runs(mask: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, background first."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def _voc(splits: Iterable[Source], to: _Target) -> None:
    for place in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (to.folder / place).mkdir(parents=True)
    for data in splits:
        stems: list[str] = []
        for i in range(to.count(data)):
            target, stem = _instances(data, i), data.id_of(i)
            save_png(_pixels(data, i), to.folder / "JPEGImages" / f"{stem}.png")
            (to.folder / "Annotations" / f"{stem}.xml").write_text(_voc_xml(data, target, f"{stem}.png"), "utf-8")
            stems.append(stem)
        (to.folder / "ImageSets" / "Main" / f"{data.split}.txt").write_text("\n".join(stems) + "\n", "utf-8")


def _voc_xml(data: Source, target: Instances, file: str) -> str:
    objects: list[str] = []
    for box, label in zip(target.boxes.tolist(), target.labels.tolist()):
        x0, y0, x1, y1 = box
        corners = f"<xmin>{x0 + 1:g}</xmin><ymin>{y0 + 1:g}</ymin><xmax>{x1:g}</xmax><ymax>{y1:g}</ymax>"
        objects.append(
            f"  <object><name>{escape(data.names[label])}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>\n"
        )
    height, width = target.size
    size = f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    return f"<annotation>\n  <filename>{escape(file)}</filename>\n{size}{''.join(objects)}</annotation>\n"


def _yolo(splits: Iterable[Source], to: _Target) -> None:
    described = ["path: ."]
    names: tuple[str, ...] = ()
    for data in splits:
        names = data.names
        described.append(f"{data.split}: images/{data.split}")
        labels = to.folder / "labels" / data.split
        labels.mkdir(parents=True)
        for i in range(to.count(data)):
            target, stem = _instances(data, i), data.id_of(i)
            save_png(_pixels(data, i), to.folder / "images" / data.split / f"{stem}.png")
            height, width = target.size
            lines: list[str] = []
            for (x0, y0, x1, y1), label in zip(target.boxes.tolist(), target.labels.tolist()):
                centre = f"{(x0 + x1) / 2 / width:.9g} {(y0 + y1) / 2 / height:.9g}"
                lines.append(f"{label} {centre} {(x1 - x0) / width:.9g} {(y1 - y0) / height:.9g}\n")
            (labels / f"{stem}.txt").write_text("".join(lines), "utf-8")
    described += ["names:", *(f"  {i}: '{name}'" for i, name in enumerate(names))]
    (to.folder / "data.yaml").write_text("\n".join(described) + "\n", "utf-8")


def _labels(data: Source, count: int) -> npt.NDArray[np.uint8]:
    targets = [data.target_of(i) for i in range(count)]
    return np.asarray([int(t.labels[0]) for t in targets if isinstance(t, Classes)], np.uint8)


def _folder(splits: Iterable[Source], to: _Target) -> None:
    for data in splits:
        for i, label in enumerate(_labels(data, to.count(data))):
            save_png(_pixels(data, i), to.folder / data.split / data.names[label] / f"{data.id_of(i)}.png")


def _mnist(splits: Iterable[Source], to: _Target) -> None:
    for data in splits:
        count = to.count(data)
        pictures = np.stack([_grey(_pixels(data, i), 28) for i in range(count)])
        for kind, array in (("images-idx3", pictures), ("labels-idx1", _labels(data, count))):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            packed = gzip.compress(head + array.tobytes(), 6, mtime=0)
            (to.folder / f"{_IDX[data.split]}-{kind}-ubyte.gz").write_bytes(packed)


def _cifar(splits: Iterable[Source], to: _Target) -> None:
    for data in splits:
        count = to.count(data)
        rows = np.concatenate([_labels(data, count)[:, None], _planes(data, count)], 1)
        (to.folder / (_batch_name(data.split) + ".bin")).write_bytes(rows.tobytes())
        (to.folder / "batches.meta.txt").write_text("\n".join(data.names) + "\n", "utf-8")


def _cifar_python(splits: Iterable[Source], to: _Target) -> None:
    for data in splits:
        count = to.count(data)
        batch = {b"data": _planes(data, count), b"labels": _labels(data, count).tolist(), b"batch_label": data.split.encode()}
        (to.folder / _batch_name(data.split)).write_bytes(pickle.dumps(batch, protocol=2))
        (to.folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in data.names]}, protocol=2))


def _shards(splits: Iterable[Source], to: _Target) -> None:
    for data in splits:
        count = to.count(data)
        labels = [int(t.labels[0]) for t in map(data.target_of, range(count)) if isinstance(t, Classes)]
        for first in range(0, count, SHARD):
            with tarfile.open(to.folder / f"{data.split}-{first // SHARD:06d}.tar", "w", format=tarfile.GNU_FORMAT) as shard:
                for i in range(first, min(first + SHARD, count)):
                    _add(shard, data, i, labels[i])
        (to.folder / "classes.txt").write_text("".join(f"{name}\n" for name in data.names), "utf-8")


def _add(shard: tarfile.TarFile, data: Source, index: int, label: int) -> None:
    """A sample's two members; the key is its number and its id without dots, which would end it."""
    file = data.file_of(index)
    if file is None:
        suffix, picture = ".png", io.BytesIO()
        _image(_pixels(data, index)).save(picture, "PNG", compress_level=1)
        content = picture.getvalue()
    else:
        suffix, content = file.suffix.lower(), file.read_bytes()
    key = f"{index:08d}_{Path(data.id_of(index)).stem}".replace(".", "_")
    for end, part in ((suffix, content), (".cls", str(label).encode())):
        member = tarfile.TarInfo(key + end)  # without owner and time: the same data make the same bytes
        member.size = len(part)
        shard.addfile(member, io.BytesIO(part))


def _batch_name(split: str) -> str:
    return "data_batch_1" if split == "train" else f"{split}_batch"


def _planes(data: Source, count: int) -> npt.NDArray[np.uint8]:
    """(N, 3072): red, green and blue planes of 32x32 pictures, smaller ones centred on black."""
    out = np.zeros((count, 32, 32, 3), np.uint8)
    for i in range(count):
        out[i] = _framed(_pixels(data, i), 32)
    return out.transpose(0, 3, 1, 2).reshape(count, -1)


def _grey(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    if pixels.shape[2] != 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return _framed(pixels, side)[..., 0]


def _framed(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    if max(height, width) > side:
        raise UsageError(f"pictures of {width}x{height} pixels do not fit into {side}x{side}")
    top, left = (side - height) // 2, (side - width) // 2
    out = np.zeros((side, side, pixels.shape[2]), np.uint8)
    out[top : top + height, left : left + width] = pixels
    return out


_WRITERS: dict[str, Callable[[Iterable[Source], _Target], None]] = {
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
    "folder": _folder,
    "mnist": _mnist,
    "cifar": _cifar,
    "cifar-python": _cifar_python,
    "shards": _shards,
    "davis": lambda splits, to: davis.write(splits, to.folder, to.limit),
}
