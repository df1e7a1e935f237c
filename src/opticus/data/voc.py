"""Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt.

VOC counts pixels from 1 and includes both ends; a box becomes the corners (xmin - 1, ymin - 1, xmax, ymax). Objects flagged
`difficult` become `crowd` (regions that evaluation ignores), as VOC's own scoring does. Labels follow the order of the twenty
VOC classes, or the alphabet when a data set has other names.
"""

from __future__ import annotations

import contextlib
import math
import re
from array import array
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from opticus.data.decode import SUFFIXES
from opticus.data.detections import Detections, Origin, Pictures
from opticus.data.findings import Finding
from opticus.data.records import Boxes, Strings, digest
from opticus.data.splits import resolve
from opticus.structures import DataError

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_NAME = re.compile(rb"<name>\s*([^<]*?)\s*</name>")
_DEPTH = 32  # levels of XML; VOC uses four


def matches(path: Path) -> bool:
    """Whether `path` is a VOC folder, or holds one (VOCdevkit/VOC2012)."""
    return path.is_dir() and bool(_roots(path))


def read(path: Path, split: str) -> Detections:
    """The split `split` ("train", "val", "trainval", "test": the lists in ImageSets/Main) of the VOC folder at `path`."""
    roots = _roots(path)
    if len(roots) > 1:
        raise DataError(f"{path}: several VOC folders ({', '.join(r.name for r in roots)}); give one of them")
    root = roots[0]
    lists = _lists(root)
    name = resolve(split, lists, str(root))
    stems = lists[name]
    notes: list[Finding] = []
    parsed = [_record(root / "Annotations" / f"{stem}.xml", stem, notes) for stem in stems]
    names = _names(root, [obj[0] for _, _, objects in parsed for obj in objects])
    pictures = root / ("JPEGImages" if (root / "JPEGImages").is_dir() else "images")
    files = Strings(_picture(pictures, stem, file) for stem, (file, _, _) in zip(stems, parsed))
    sizes = np.asarray([size for _, size, _ in parsed], np.int32).reshape(-1, 2)
    label_of = {word: i for i, word in enumerate(names)}
    labels = np.asarray([label_of.get(obj[0], -1) for _, _, objects in parsed for obj in objects], np.int16)
    corners = array("f", (v for _, _, objects in parsed for obj in objects for v in obj[1]))
    difficult = np.asarray([obj[2] for _, _, objects in parsed for obj in objects], np.bool_)
    boxes = Boxes(
        np.concatenate([[0], np.cumsum([len(objects) for _, _, objects in parsed], dtype=np.int64)]),
        np.array(corners, np.float32).reshape(-1, 4),
        labels,
        difficult,
    )
    content = digest("voc", name, *stems, *names, boxes.boxes, labels, difficult)
    origin = Origin(name, tuple(sorted(lists)), content, notes)
    return Detections(Pictures(pictures, files, Strings(stems), sizes), boxes, names, tuple(range(len(names))), origin)


def _roots(path: Path) -> list[Path]:
    places = [path, *sorted(path.glob("VOC[0-9]*")), *sorted(path.glob("VOCdevkit/VOC[0-9]*"))]
    return [place for place in places if (place / "Annotations").is_dir() and next((place / "Annotations").glob("*.xml"), None)]


def _lists(root: Path) -> dict[str, list[str]]:
    """The stems of every split; lists of one class ("cat_train.txt") are not splits."""
    found: dict[str, list[str]] = {}
    for file in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        if "_" not in file.stem:
            found[file.stem] = [line.split()[0] for line in file.read_text("utf-8").splitlines() if line.strip()]
    return found or {"train": sorted(file.stem for file in (root / "Annotations").glob("*.xml"))}


def _picture(folder: Path, stem: str, stated: str) -> str:
    """The picture's file name: stem + .jpg, else the one that the XML states, else any suffix that exists."""
    for name in (f"{stem}.jpg", Path(stated).name if stated else "", *(f"{stem}{suffix}" for suffix in sorted(SUFFIXES))):
        if name and (folder / name).is_file():
            return name
    return f"{stem}.jpg"


Object = tuple[str, tuple[float, float, float, float], bool]


def _record(file: Path, stem: str, notes: list[Finding]) -> tuple[str, tuple[int, int], list[Object]]:
    """(file name, (H, W), objects) of one XML; what cannot be read is noted."""
    try:
        tree = parse_xml(file)
    except DataError as error:
        notes.append(Finding("unreadable annotation", "error", stem, str(file), str(error)))
        return "", (0, 0), []
    size = _children(tree, "size")
    height, width = (_whole(_text(size[0], key)) if size else 0 for key in ("height", "width"))
    objects: list[Object] = []
    for number, node in enumerate(_children(tree, "object")):
        box = _children(node, "bndbox")
        try:
            x0, y0, x1, y1 = (float(_text(box[0], key)) for key in ("xmin", "ymin", "xmax", "ymax"))
        except (ValueError, IndexError):
            notes.append(Finding("malformed record", "error", stem, str(file), f"object {number} has no bndbox of four numbers"))
            continue
        objects.append((_text(node, "name"), (x0 - 1.0, y0 - 1.0, x1, y1), _text(node, "difficult").strip() == "1"))
    return _text(tree, "filename"), (height, width), objects


def _whole(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        return 0
    return int(value) if math.isfinite(value) and 0 < value < 2**31 else 0


def _names(root: Path, used: list[str]) -> tuple[str, ...]:
    """The same for every split: VOC's twenty names if no annotation has another one, else all that occur."""
    everything = set(used)
    for file in (root / "Annotations").glob("*.xml"):
        with contextlib.suppress(OSError):  # an unreadable file is noted where its record is read
            quick = {word.decode("utf-8", "replace") for word in _NAME.findall(file.read_bytes())}
            if not quick <= everything | set(NAMES):  # names of parts ("head") are not those of objects: look closely
                everything |= {name for name, _, _ in _record(file, file.stem, [])[2]}
    if everything <= set(NAMES):
        return NAMES
    for file in (root / "Annotations").glob("*.xml"):
        everything |= {name for name, _, _ in _record(file, file.stem, [])[2]}
    return tuple(sorted(everything))


# A node is (tag, children, pieces of text).
Node = tuple[str, list[Any], list[str]]


def parse_xml(file: Path) -> Node:
    """The tree of a small XML file. Document types and entities are refused: they are how XML is made to expand or to read files."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: the annotation cannot be read ({error.strerror})") from error
    top: Node = ("", [], [])
    stack: list[Node] = [top]

    def refuse(*_: Any) -> int:
        raise DataError(f"{file}: the XML declares a document type or an entity, which annotations never need; refused")

    def start(tag: str, _: dict[str, str]) -> None:
        if len(stack) > _DEPTH:
            raise DataError(f"{file}: the XML is nested deeper than {_DEPTH} levels")
        node: Node = (tag, [], [])
        stack[-1][1].append(node)
        stack.append(node)

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = lambda text: stack[-1][2].append(text)
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise DataError(f"{file}: not well-formed XML ({error})") from error
    return top[1][0]


def _children(node: Node, tag: str) -> list[Node]:
    return [child for child in node[1] if child[0] == tag]


def _text(node: Node, tag: str) -> str:
    found = _children(node, tag)
    return "".join(found[0][2]).strip() if found else ""
