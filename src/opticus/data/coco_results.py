"""COCO results: the list of detections that any program writes, {"image_id", "category_id", "bbox": [x, y, w, h] | "segmentation", "score"}.

Format: cocodataset.org/#format-results. Every record is checked against the annotations that it is to be scored with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch

from opticus.data.coco import code_of
from opticus.data.jsonstream import elements, text_of
from opticus.ops.masks import boxes_of_codes, run_lengths
from opticus.structures import RLE, DataError, Instances

Size = tuple[int, int]


class Truth(Protocol):
    """What results refer to: pictures by id, and categories by the data set's own ids."""

    label_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def id_of(self, index: int) -> str:
        """The data set's own id of the picture."""
        ...


class _Claim(NamedTuple):
    box: tuple[float, float, float, float] | None  # x, y, width, height
    label: int
    score: float
    code: bytes | None


class Results(NamedTuple):
    """Detections of every picture of the truth in its order, and whether they carry masks."""

    instances: list[Instances]
    masks: bool


def read_results(source: str | Path | Iterable[Mapping[str, Any]], truth: Truth, sizes: list[Size]) -> Results:
    """Read a results file (or take its records) for the pictures of `truth`, whose frames are `sizes` (H, W).

    Boxes are double precision xyxy pixels; a picture without records has no detections. Raises DataError naming the first record
    that is malformed, or that names a picture or category which the truth lacks; masks must come with all records or with none.
    """
    name = str(source) if isinstance(source, str | Path) else "results"
    places = {truth.id_of(i): i for i in range(len(truth))}
    labels = {number: label for label, number in enumerate(truth.label_ids)}
    found: list[list[_Claim]] = [[] for _ in places]
    masked = plain = None
    for number, value in enumerate(_records(source)):
        where = f"{name}: record {number}"
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: expected a mapping, found {type(value).__name__}")
        record = cast("Mapping[str, Any]", value)
        index = _picture(record, places, where, text_of if isinstance(source, str | Path) else str)
        claim = _claim(record, labels, sizes[index], where)
        masked, plain = (number, plain) if claim.code is not None else (masked, number)
        if masked is not None and plain is not None:
            raise DataError(f"{name}: record {masked} has a segmentation, record {plain} has none; expected it in all or in none")
        found[index].append(claim)
    both = zip(found, sizes, strict=True)
    return Results([_instances(claims, size, masked is not None) for claims, size in both], masked is not None)


def _records(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    if not isinstance(source, str | Path):
        yield from source
        return
    path = Path(source).expanduser()
    try:
        yield from (record.value for record in elements(path, "results"))
    except OSError as error:
        raise DataError(f"{source}: the results cannot be read ({error.strerror or error})") from error


def _field(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise DataError(f"{where}: has no {key!r}, found the keys {', '.join(map(str, record)) or 'none'}")
    return record[key]


def _picture(record: Mapping[str, Any], places: dict[str, int], where: str, text: Callable[[Any], str]) -> int:
    value = _field(record, "image_id", where)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: image_id must be a whole number or a name, found {value!r}")
    place = places.get(text(value))
    if place is None:
        raise DataError(f"{where}: image_id {value!r} is unknown, expected one of the {len(places)} pictures of the annotations")
    return place


def _claim(record: Mapping[str, Any], labels: dict[int, int], size: Size, where: str) -> _Claim:
    category = _field(record, "category_id", where)
    if isinstance(category, bool) or not isinstance(category, int | float) or category not in labels:
        known = ", ".join(map(str, list(labels)[:8])) + (", ..." if len(labels) > 8 else "")
        raise DataError(f"{where}: category_id {category!r} is unknown, expected one of {known}")
    score = _field(record, "score", where)
    if not _is_number(score):
        raise DataError(f"{where}: score must be a finite number, found {score!r}")
    box, shape = record.get("bbox"), record.get("segmentation")
    if not box and not shape:
        raise DataError(f"{where}: has neither 'bbox' nor 'segmentation', found the keys {', '.join(map(str, record))}")
    if box and not (
        isinstance(box, list | tuple) and len(cast("list[Any]", box)) == 4 and all(map(_is_number, cast("list[Any]", box)))
    ):
        raise DataError(f"{where}: bbox must be four finite numbers x, y, width, height, found {box!r}")
    if box and (box[2] < 0 or box[3] < 0):
        raise DataError(f"{where}: bbox must have a width and height of at least 0, found {box!r}")
    code = _code(shape, size, where) if shape else None
    corners = cast("tuple[float, float, float, float]", tuple(float(v) for v in box)) if box else None
    return _Claim(corners, labels[int(category)], float(score), code)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _code(shape: Any, size: Size, where: str) -> bytes:
    if not all(size):
        raise DataError(f"{where}: masks need the width and height of the picture, which the annotations do not state")
    code = code_of(shape, size, where)
    lengths = run_lengths(code)
    if lengths.sum() != size[0] * size[1] or bool((lengths < 0).any()):
        raise DataError(f"{where}: the mask's runs cover {int(lengths.sum())} pixels, the picture has {size[0] * size[1]}")
    return code


def _instances(claims: list[_Claim], size: Size, masks: bool) -> Instances:
    codes = RLE(tuple(claim.code for claim in claims if claim.code is not None), size) if masks else None
    boxes = torch.tensor([claim.box or (0.0,) * 4 for claim in claims], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    if codes is not None and (bare := torch.tensor([claim.box is None for claim in claims], dtype=torch.bool)).any():
        boxes[bare] = boxes_of_codes(codes[bare]).double()
    labels = torch.tensor([claim.label for claim in claims], dtype=torch.int64)
    return Instances(boxes, labels, size, torch.tensor([claim.score for claim in claims], dtype=torch.float64), codes)
