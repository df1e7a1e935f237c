"""COCO instances JSON, read record by record into flat arrays.

Boxes become xyxy (x, y, x + w, y + h), category ids contiguous labels in the order of the ids; `iscrowd` and the annotation's own
`area` are kept (COCO's evaluation uses them); masks stay in the file and are read when they are asked for.

Read as published are also LVIS (pictures named by `coco_url`, categories that a picture was searched for in vain or marked
incompletely: `Detections.federation`), Objects365 (pictures in patch0/, patch1/, ... or under images/v1/patch0/) and Roboflow's
exports (`<split>/_annotations.coco.json`, whose category 0 is only the heading of the others and becomes no class).
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from opticus.data.detections import Detections, Origin, Pictures
from opticus.data.federated import FREQUENCIES, Federation, Lists, contradictions, known
from opticus.data.findings import Finding
from opticus.data.jsonstream import record_at, records, text_of
from opticus.data.records import Boxes, Strings
from opticus.data.splits import canonical, resolve, split_in
from opticus.structures import RLE, DataError

_FORMS = ("annotations/*.json", "*.json", "*/_annotations.coco.json", "*/zhiyuan_objv2_*.json")
_KEYS = frozenset({"images", "annotations", "categories"})
_OTHER = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_", "lvis_v1_image_info_")
_ROBOFLOW = "_annotations.coco.json"


def matches(path: Path) -> bool:
    """Whether `path` is a COCO JSON or a folder that holds one."""
    return bool(_files(path))


def read(path: Path, split: str, *, pictures: bool = True) -> Detections:
    """The split `split` of the COCO data at `path` (a JSON, or a folder with `annotations/*.json` or `*/_annotations.coco.json`).

    With `pictures=False` the annotations are all that is wanted: no picture is looked for, and boxes and areas keep double precision.
    """
    files = _files(path)
    name = next(iter(files)) if path.is_file() else resolve(split, files, str(path))
    file = files[name]
    parsed = _parse(file, pictures)
    root, parsed.files = _image_root(file, name, parsed.files) if pictures else (file.parent, parsed.files)
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    origin = Origin(name, tuple(sorted(files)), content, parsed.notes)
    names, ids = _categories(parsed)
    listed = Pictures(
        root,
        parsed.files,
        Strings(str(i) for i in parsed.image_ids),
        np.stack([np.frombuffer(parsed.heights, np.int32), np.frombuffer(parsed.widths, np.int32)], 1),
    )
    boxes = _flat(parsed, ids, file)
    where = boxes.where if boxes.where is not None else np.zeros(0, np.int64)
    data = Detections(listed, boxes, names, ids, origin, masks=Masks(file, where))
    data.federation = _federation(parsed, data, ids)
    return data


def _files(path: Path) -> dict[str, Path]:
    """The instances file of every split."""
    if path.is_file():
        if path.suffix.lower() != ".json" or not _looks_right(path):
            return {}
        return {split_in(path.stem) or "train": path}
    candidates = sorted({file for form in _FORMS for file in path.glob(form)})
    candidates = [file for file in candidates if _looks_right(file)]
    plain = [file for file in candidates if not file.name.startswith(_OTHER)] or candidates
    found: dict[str, Path] = {}
    for file in plain:
        name = file.parent.name if file.name == _ROBOFLOW else split_in(file.stem) or "train"
        # LVIS beside COCO: "train" must not silently be the one and "train2017" the other
        rival = found.get(name) or next(
            (f for s, f in found.items() if canonical(s) == canonical(name) and _is_lvis(f) != _is_lvis(file)), None
        )
        if rival is not None:
            raise DataError(f"{path}: both {rival.name} and {file.name} are the split {name!r}; give the JSON file itself")
        found[name] = file
    return found


def _is_lvis(file: Path) -> bool:
    return file.name.startswith("lvis")


def _looks_right(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
        stream.seek(max(path.stat().st_size - (1 << 16), 0))
        head += stream.read(1 << 16)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(f'"{key}"'.encode() in head for key in _KEYS)


@dataclass(slots=True)
class _Parsed:
    path: Path
    pictures: bool = True  # False: file names may be missing
    image_ids: array[int] = field(default_factory=lambda: array("q"))
    heights: array[int] = field(default_factory=lambda: array("i"))
    widths: array[int] = field(default_factory=lambda: array("i"))
    files: Strings = field(default_factory=Strings)
    owners: array[int] = field(default_factory=lambda: array("q"))  # image id of each annotation
    boxes: array[float] = field(default_factory=lambda: array("f"))
    areas: array[float] = field(default_factory=lambda: array("f"))
    kinds: array[int] = field(default_factory=lambda: array("i"))  # category id of each annotation
    crowd: array[int] = field(default_factory=lambda: array("b"))
    ids: array[int] = field(default_factory=lambda: array("q"))
    where: array[int] = field(default_factory=lambda: array("q"))
    categories: dict[int, str] = field(default_factory=dict[int, str])
    parents: dict[int, str] = field(default_factory=dict[int, str])  # supercategory of each category
    frequencies: dict[int, str] = field(default_factory=dict[int, str])  # LVIS
    absent: Lists = field(default_factory=Lists)  # LVIS: neg_category_ids of every picture
    partial: Lists = field(default_factory=Lists)  # LVIS: not_exhaustive_category_ids
    federated: bool = False
    notes: list[Finding] = field(default_factory=list[Finding])

    def note(self, kind: str, record: str, detail: str) -> None:
        self.notes.append(Finding(kind, "error", record, str(self.path), detail))


def _parse(path: Path, pictures: bool) -> _Parsed:
    parsed = _Parsed(path, pictures)
    if not pictures:
        parsed.boxes, parsed.areas = array("d"), array("d")
    for key, number, offset, value in records(path, _KEYS):
        try:
            if key == "annotations":
                _annotation(parsed, value, offset)
            elif key == "images":
                _image(parsed, value)
            else:
                _category(parsed, value)
        except KeyError as error:
            parsed.note("malformed record", _owner(key, value), f"{key}[{number}] has no {error.args[0]!r}")
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            parsed.note("malformed record", _owner(key, value), f"{key}[{number}] holds a value of a wrong kind ({error})")
    if not len(parsed.files):
        raise DataError(f"{path}: the list 'images' is missing or empty")
    return parsed


def _owner(key: str, value: Any) -> str:
    """The id of the picture that a malformed record belongs to, "" where it does not say."""
    field = {"annotations": "image_id", "images": "id"}.get(key)
    return str(value.get(field, "")) if field and isinstance(value, dict) else ""


def _annotation(parsed: _Parsed, value: dict[str, Any], offset: int) -> None:
    owner, kind = int(value["image_id"]), int(value["category_id"])
    x, y, w, h = value["bbox"]
    x, y, w, h = float(x), float(y), float(w), float(h)
    area = float(value.get("area", w * h))
    crowd, number = int(value.get("iscrowd", 0)), int(value.get("id", -1))
    parsed.boxes.extend((x, y, x + w, y + h))
    parsed.owners.append(owner)
    parsed.kinds.append(kind)
    parsed.areas.append(area)
    parsed.crowd.append(crowd)
    parsed.ids.append(number)
    parsed.where.append(offset)


def _category(parsed: _Parsed, value: dict[str, Any]) -> None:
    number, frequency = int(value["id"]), value.get("frequency", "")
    if frequency not in ("", *FREQUENCIES):
        raise ValueError(f"frequency {frequency!r} of category {number} is none of {', '.join(FREQUENCIES)}")
    parsed.categories[number] = text_of(value.get("name", number))
    parsed.parents[number] = text_of(value.get("supercategory", ""))
    parsed.frequencies[number] = frequency


def _file(value: dict[str, Any], needed: bool) -> str:
    """The picture's name; of LVIS v1, which has none, the folder and name at the end of its address."""
    if "file_name" not in value and "coco_url" in value:
        return "/".join(text_of(value["coco_url"]).split("/")[-2:])
    return text_of(value["file_name"] if needed else value.get("file_name", value["id"]))


def _image(parsed: _Parsed, value: dict[str, Any]) -> None:
    number = int(value["id"])
    file = _file(value, parsed.pictures)
    lists = [[int(i) for i in value.get(key, ())] for key in ("neg_category_ids", "not_exhaustive_category_ids")]
    height, width = int(value.get("height") or 0), int(value.get("width") or 0)
    if file.startswith(("/", "\\")) or ".." in Path(file).parts:
        parsed.note("unsafe path", str(number), f"file_name {file!r} leaves the folder of the data")
        file = Path(file).name
    parsed.image_ids.append(number)
    parsed.files.append(file)
    parsed.heights.append(height)
    parsed.widths.append(width)
    parsed.absent.append(lists[0])
    parsed.partial.append(lists[1])
    parsed.federated |= "neg_category_ids" in value


def _categories(parsed: _Parsed) -> tuple[tuple[str, ...], tuple[int, ...]]:
    ids = tuple(sorted(parsed.categories))
    if parsed.path.name == _ROBOFLOW and len(ids) > 1 and ids[0] == 0 and 0 not in set(parsed.kinds):
        heading = parsed.categories[0]
        if all(parsed.parents[i] == heading for i in ids[1:]) and parsed.parents[0] in ("", "none"):
            ids = ids[1:]
    return tuple(parsed.categories[i] for i in ids), ids


def _federation(parsed: _Parsed, data: Detections, ids: tuple[int, ...]) -> Federation | None:
    """What LVIS knows about every picture; None for data that says nothing of the kind."""
    if not parsed.federated:
        return None
    pictures, file, known_ids = data.pictures.ids, str(parsed.path), np.asarray(ids, np.int64)
    pairs = [
        known(owners, values, _positions(known_ids, values), pictures, file, parsed.notes)
        for owners, values in (parsed.absent.flat(), parsed.partial.flat())
    ]
    parsed.notes += contradictions(pairs[0], data.table, pictures, data.names, file)
    return Federation(pictures, pairs[0], pairs[1], tuple(parsed.frequencies[i] for i in ids))


def _flat(parsed: _Parsed, category_ids: tuple[int, ...], path: Path) -> Boxes:
    """Sort the annotations by picture; those of unknown pictures are noted and left out."""
    image_ids = np.frombuffer(parsed.image_ids, np.int64)
    owners = np.frombuffer(parsed.owners, np.int64) if parsed.owners else np.zeros(0, np.int64)
    ids = np.frombuffer(parsed.ids, np.int64) if parsed.ids else np.zeros(0, np.int64)
    images = _positions(image_ids, owners)
    for row in np.flatnonzero(images < 0).tolist():
        parsed.note(
            "unknown image", str(owners[row]), f"annotation {ids[row]} belongs to image {owners[row]}, which is not in 'images'"
        )
    _note_repeats(parsed, ids)
    order = np.argsort(images, kind="stable").astype(np.int32 if len(images) < 2**31 else np.int64)
    order = order[int((images < 0).sum()) :]
    counts = np.bincount(images[order], minlength=len(image_ids))
    del images, owners
    parsed.owners = array("q")
    labels = _positions(np.asarray(category_ids, np.int64), np.frombuffer(parsed.kinds or array("i", [0]), np.int32))[: len(ids)]
    return Boxes(
        np.concatenate([[0], np.cumsum(counts)]),
        _view(parsed.boxes).reshape(-1, 4)[order],
        labels.astype(np.int16)[order],
        np.frombuffer(parsed.crowd or array("b", [0]), np.int8)[order] != 0,
        _view(parsed.areas)[order],
        ids[order],
        np.frombuffer(parsed.where or array("q", [0]), np.int64)[order],
    )


def _view(values: array[float]) -> Any:
    """The numbers without a copy, in the precision that they are stored in."""
    return np.frombuffer(values, values.typecode) if values else np.zeros(0, values.typecode)


def _positions(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index in `known` (the first, where it repeats) of each element of `wanted`, -1 where absent."""
    if not len(known):
        return np.full(len(wanted), -1)
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    hit = order[place]
    return np.where(known[hit] == wanted, hit, -1)


def _note_repeats(parsed: _Parsed, ids: np.ndarray) -> None:
    stated = np.sort(ids[ids >= 0])
    for value in np.unique(stated[1:][stated[1:] == stated[:-1]]).tolist():
        parsed.notes.append(
            Finding("duplicate annotation id", "warning", "", str(parsed.path), f"annotation id {value} occurs more than once")
        )


class Masks:
    """Reads the segmentation of rows of the flat table from the file: polygons and both kinds of RLE become compressed RLE."""

    def __init__(self, path: Path, where: np.ndarray) -> None:
        self.path = path
        self.where = where

    def __call__(self, rows: slice, size: tuple[int, int]) -> RLE:
        return RLE(tuple(self._one(int(offset), size) for offset in self.where[rows]), size)

    def _one(self, offset: int, size: tuple[int, int]) -> bytes:
        value = record_at(self.path, offset)
        return code_of(value.get("segmentation") or [], size, f"{self.path}: annotation {value.get('id')}")


def code_of(shape: Any, size: tuple[int, int], where: str) -> bytes:
    """A COCO segmentation (polygons, compressed or plain RLE) as compressed RLE; DataError beginning with `where` if it is not one."""
    import hotcoco.mask as masks

    height, width = size
    try:
        if isinstance(shape, dict):
            if list(shape["size"]) != [height, width]:
                raise DataError(f"{where}: the mask has size {shape['size']}, the picture {[height, width]}")
            counts = shape["counts"]
            coded = masks.frPyObjects(shape, height, width) if isinstance(counts, list) else {"counts": counts}
        elif shape:
            coded = masks.merge(masks.frPyObjects(shape, height, width))
        else:
            coded = masks.encode(np.zeros((height, width), np.uint8, order="F"))
    except DataError:
        raise
    except Exception as error:  # the library reports bad runs and polygons by exceptions of several kinds
        raise DataError(f"{where}: the segmentation cannot be read ({error})") from error
    counts = coded["counts"]
    return counts if isinstance(counts, bytes) else str(counts).encode("latin-1")


def _image_root(file: Path, split: str, names: Strings) -> tuple[Path, Strings]:
    """The folder of the pictures and their names relative to it: found by looking for the first few of them.

    Names of several folders are tried whole and by their last two parts (Objects365: images/v1/patch0/a.jpg lies in train/patch0).
    """
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    short = file.stem.removeprefix("instances_")
    inner = [f"images/{split}", f"images/{short}", split, short, "images", "."]
    beside = [base.parent / "coco"] if _is_lvis(file) else []  # LVIS has COCO's pictures
    tried = list(dict.fromkeys([base / name for name in inner] + [file.parent / name for name in inner] + beside))
    first = list(islice(names, 5))
    for root in tried:
        if any((root / name).is_file() for name in first):
            return root, names
    for root in tried:
        if any((root / _end(name)).is_file() for name in first):
            return root, Strings(_end(name) for name in names)
    shown = ", ".join(str(root) for root in tried)
    raise DataError(f"{file}: the picture {names[0]!r} was not found in any of {shown}")


def _end(name: str) -> str:
    return "/".join(name.split("/")[-2:])
