"""YOLO text labels: one line "class cx cy w h" (fractions of the picture) per object in labels/, beside images/.

Layouts: images/<split> + labels/<split>, <split>/images + <split>/labels, images + labels, or what a `data.yaml` names. Only the
few YAML forms that such files use are read (scalars, inline and block lists and maps). Lines with more numbers are polygons; their
bounding box is used.
"""

from __future__ import annotations

import math
import re
from array import array
from pathlib import Path

import numpy as np

from opticus.data.detections import Detections, Origin, Pictures
from opticus.data.files import pictures_under
from opticus.data.findings import Finding
from opticus.data.records import Boxes, Strings, digest
from opticus.data.splits import canonical, is_split, resolve
from opticus.structures import DataError

Yaml = dict[str, "str | list[str] | dict[str, str]"]


def matches(path: Path) -> bool:
    """Whether `path` is a data.yaml, or a folder with one or with images/ and labels/."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return path.is_dir() and bool(_yaml_in(path) or _layout(path))


def read(path: Path, split: str) -> Detections:
    """The split `split` of the YOLO data at `path`."""
    config = path if path.is_file() else _yaml_in(path)
    root = path.parent if path.is_file() else path
    described = parse_yaml(config) if config else {}
    places = _from_yaml(root, described, config) or _layout(root)
    if not places:
        raise DataError(f"{config or root}: no folder of pictures found (train/val/test in data.yaml, or images/ beside labels/)")
    name = resolve(split, places, str(config or root))
    folder = places[name]
    files = list(pictures_under(folder))
    if not files:
        raise DataError(f"{folder}: no pictures in the folder of split {name!r}")
    labels = labels_of(folder)
    notes: list[Finding] = []
    boxes, content = _boxes(labels, [file for file, _ in files], notes)
    names = _names(described, boxes, root)
    boxes.labels[boxes.labels >= len(names)] = -1
    state = digest("yolo", name, *names, content, *(f"{file} {size}" for file, size in files))
    pictures = Pictures(
        folder,
        Strings(file for file, _ in files),
        Strings(str(Path(file).with_suffix("")) for file, _ in files),
        np.zeros((len(files), 2), np.int32),
    )
    origin = Origin(name, tuple(sorted(places)), state, notes)
    return Detections(pictures, boxes, names, tuple(range(len(names))), origin, relative=True)


def labels_of(images: Path) -> Path:
    """The folder of labels that belongs to a folder of pictures: the last "images" in the path becomes "labels"."""
    parts = list(images.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
        return Path(*parts)
    return images


def _boxes(folder: Path, files: list[str], notes: list[Finding]) -> tuple[Boxes, str]:
    starts, corners, kinds, texts = [0], array("f"), array("h"), list[str]()
    for file in files:
        label = (folder / file).with_suffix(".txt")
        text = label.read_text("utf-8", "replace") if label.is_file() else ""  # no file: a picture without objects
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            fault = _line(words, corners, kinds)
            if fault:
                record = str(Path(file).with_suffix(""))
                notes.append(Finding("malformed record", "error", record, str(label), f"line {number} {line[:60]!r}: {fault}"))
        starts.append(len(kinds))
        texts.append(text)
    table = np.array(corners, np.float32).reshape(-1, 4)
    return Boxes(np.asarray(starts, np.int64), table, np.array(kinds, np.int16)), digest(*texts)


def _line(words: list[str], corners: array[float], kinds: array[int]) -> str:
    """Append one object; returns what is wrong with the line, "" if nothing."""
    if len(words) < 5 or (len(words) > 5 and len(words) % 2 == 0):
        return f"expected a class and 4 numbers (or a polygon), found {len(words)} words"
    try:
        kind, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        return "a word is not a number"
    if not 0 <= kind < 2**15 or kind != int(kind):
        return f"the class {words[0]} is not a whole number from 0 on"
    if len(values) == 4:
        x, y, w, h = values
        corners.extend((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    else:
        finite = all(map(math.isfinite, values))
        xs, ys = values[::2], values[1::2]
        corners.extend((min(xs), min(ys), max(xs), max(ys)) if finite else (math.nan,) * 4)
    kinds.append(int(kind))
    return ""


def _names(described: Yaml, boxes: Boxes, root: Path) -> tuple[str, ...]:
    names = described.get("names")
    if isinstance(names, dict):
        order = {int(key): word for key, word in names.items() if key.isdigit()}
        return tuple(order.get(i, str(i)) for i in range(max(order, default=-1) + 1))
    if isinstance(names, list):
        return tuple(names)
    listed = root / "classes.txt"
    if listed.is_file():
        return tuple(line.strip() for line in listed.read_text("utf-8").splitlines() if line.strip())
    count = described.get("nc")
    highest = int(boxes.labels.max()) + 1 if len(boxes) else 0
    return tuple(str(i) for i in range(int(count) if isinstance(count, str) and count.isdigit() else highest))


def _yaml_in(folder: Path) -> Path | None:
    found = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in (".yaml", ".yml") and file.is_file()]
    named = [file for file in found if file.stem in ("data", "dataset")]
    return next((file for file in named or found if _describes(file, strict=bool(named))), None)


def _describes(file: Path, *, strict: bool) -> bool:
    """Whether the file speaks of splits and names; other YAML files (not `strict`) may hold what is not understood here."""
    try:
        return bool({"train", "val", "names"} & set(parse_yaml(file)))
    except DataError:
        if strict:
            raise
        return False


def _layout(root: Path) -> dict[str, Path]:
    """Split -> folder of pictures, by the usual layouts."""
    if (root / "images").is_dir() and (root / "labels").is_dir():
        inner = {place.name: place for place in sorted((root / "images").iterdir()) if place.is_dir() and is_split(place.name)}
        return inner or {"train": root / "images"}
    halves = [place for place in sorted(root.iterdir()) if place.is_dir() and is_split(place.name)]
    return {half.name: half / "images" for half in halves if (half / "images").is_dir() and (half / "labels").is_dir()}


def _from_yaml(root: Path, described: Yaml, config: Path | None) -> dict[str, Path]:
    """Split -> folder of pictures, as data.yaml names them; relative to its `path`, else to itself."""
    stated = described.get("path")
    bases = [root / stated, root] if isinstance(stated, str) and stated else [root]
    found: dict[str, Path] = {}
    for key, value in described.items():
        if canonical(key) not in ("train", "val", "test") or not isinstance(value, str) or not value:
            continue
        options = [base / value for base in bases] + [root / value.removeprefix("../")]
        place = next((option for option in options if option.is_dir()), None)
        if place is None and canonical(key) != "test":
            raise DataError(f"{config}: {key}: there is no folder {options[0]}")
        if place is not None:
            found[key] = place / "images" if (place / "images").is_dir() else place
    return found


def parse_yaml(file: Path) -> Yaml:
    """The top level of a small YAML file: scalars, "[a, b]", "- a" lists, and one-level maps. Anything else raises DataError."""
    out: Yaml = {}
    key = ""
    for number, raw in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        if not line.strip() or line.strip() == "---":
            continue
        body = line.strip()
        if body.startswith("- "):
            _extend(out, key, body[2:], f"{file}: line {number}")
            continue
        word, colon, rest = body.partition(":")
        if not colon:
            raise DataError(f"{file}: line {number}: expected 'key: value', found {body!r}")
        if line[0].isspace():
            value = out.setdefault(key, {}) or {}
            if not isinstance(value, dict):
                raise DataError(f"{file}: line {number}: {body!r} is nested in {key!r}, which is not a map")
            value[_plain(word)] = _plain(rest)
            out[key] = value
        else:
            key = _plain(word)
            out[key] = _inline(rest.strip())
    return out


def _extend(out: Yaml, key: str, item: str, where: str) -> None:
    value = out.get(key) or []
    if not isinstance(value, list):
        raise DataError(f"{where}: a list item under {key!r}, which is not a list")
    out[key] = [*value, _plain(item)]


def _inline(text: str) -> str | list[str] | dict[str, str]:
    if text.startswith("[") and text.endswith("]"):
        return [_plain(part) for part in _commas(text[1:-1])]
    if text.startswith("{") and text.endswith("}"):
        pairs = [part.partition(":") for part in _commas(text[1:-1])]
        return {_plain(word): _plain(rest) for word, _, rest in pairs}
    return _plain(text)


def _commas(text: str) -> list[str]:
    """Split at commas outside quotes."""
    return [part for part in re.findall(r"""(?:'[^']*'|"[^"]*"|[^,])+""", text) if part.strip()]


def _plain(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
