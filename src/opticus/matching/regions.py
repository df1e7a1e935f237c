"""Regions that come from outside a network: boxes that selective search proposes, found once per picture and kept on disk.

They travel as the input "regions" of a sample, (N, 4) float32 xyxy in pixels of its present picture, which geometric transforms move
like boxes; of a batch they are a tuple with one such tensor a picture, which a network takes as the keyword `regions` of `forward`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from opticus.matching.detections import windows
from opticus.matching.selective_search import selective_search
from opticus.structures import Images, Picture, Prepare
from opticus.weights.cache import cache_folder

FORMAT = 1  # raise when the proposals of the same picture and settings would change
LONGEST = 500  # pixels of a picture's longer side in which regions are looked for, as the authors of selective search do
RECENT = 1024  # pictures whose proposals stay in memory


@dataclass(frozen=True, slots=True)
class Search:
    """Settings of selective search: at most `limit` boxes, from start regions of every scale in every colour space."""

    limit: int = 2000
    scales: tuple[float, ...] = (50.0, 100.0)
    spaces: tuple[str, ...] = ("hsv", "lab")


def propose(pixels: UInt8[Tensor, "H W C"], search: Search) -> Float[Tensor, "N 4"]:
    """Proposals of one picture, xyxy in its own pixels, likeliest first; the same for the same pixels.

    A picture is looked up by its content: in memory, then in the store on disk. What is not there is searched for, in a picture
    whose longer side is at most 500 pixels. The store grows only inside `keeping()`.
    """
    if _afresh[0]:
        return _searched(pixels, search)
    key = _key(pixels, search)
    known = _recent.get(key)
    if known is None:
        known = _store(search).get(key)
        if known is None:
            known = _searched(pixels, search)
            if _keeping[0]:
                _store(search).put(key, known)
    _recent[key] = known
    _recent.move_to_end(key)
    if len(_recent) > RECENT:
        _recent.popitem(last=False)
    return known.clone()


def regions_in(
    pixels: Float[Tensor, "B C H W"], valid: Tensor | None, rule: Prepare, search: Search
) -> tuple[Float[Tensor, "N 4"], ...]:
    """Proposals of every picture of a prepared batch, xyxy in the network's pixels; nothing is looked for in the padding."""
    mean, std = (torch.tensor(v, dtype=torch.float64, device=pixels.device)[:, None, None] for v in (rule.mean, rule.std))
    levels = ((pixels.detach().double() * std + mean) / rule.scale).round().clamp(0, 255).to(torch.uint8)
    levels = levels.flip(1) if rule.order == "bgr" and rule.channels == 3 else levels
    found: list[Tensor] = []
    for picture, window in zip(levels.cpu(), windows(Images(pixels, valid, pixels.new_zeros(0), ()), pixels).tolist()):
        left, top, right, bottom = (int(side) for side in window)
        boxes = propose(picture[:, top:bottom, left:right].permute(1, 2, 0).contiguous(), search)
        found.append((boxes + torch.tensor([left, top, left, top])).to(pixels))
    return tuple(found)


@contextmanager
def keeping() -> Generator[None]:
    """Write what is searched for to the store: for the pictures of a data set, which are seen again, unlike those of a video."""
    before, _keeping[0] = _keeping[0], True
    try:
        yield
    finally:
        _keeping[0] = before


@contextmanager
def afresh() -> Generator[None]:
    """Search for the regions of every picture, whatever is kept: to measure what a new picture costs."""
    before, _afresh[0] = _afresh[0], True
    try:
        yield
    finally:
        _afresh[0] = before


def listed(regions: Sequence[Tensor], like: Tensor) -> tuple[Float[Tensor, "R 4"], Tensor]:
    """The regions of all pictures one after another, and the number of the picture that each belongs to."""
    counts = torch.tensor([len(boxes) for boxes in regions], device=like.device)
    boxes = torch.cat([like.new_zeros(0, 4), *(boxes.to(like) for boxes in regions)])
    return boxes, torch.arange(len(regions), device=like.device).repeat_interleave(counts)


# --- finding and keeping -------------------------------------------------------------------------------------------------

_recent: OrderedDict[bytes, Tensor] = OrderedDict()
_keeping = [False]
_afresh = [False]
_stores: dict[tuple[Path, int], Store] = {}


def _key(pixels: Tensor, search: Search) -> bytes:
    digest = hashlib.sha256(f"{FORMAT} {search} {tuple(pixels.shape)}".encode())
    digest.update(np.ascontiguousarray(pixels.numpy()).data)
    return digest.digest()[:16]


def _searched(pixels: Tensor, search: Search) -> Tensor:
    from opticus.transforms.pixels import resize

    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    share = min(LONGEST / max(height, width), 1.0)
    small = (max(round(height * share), 1), max(round(width * share), 1))
    picture = Picture(resize(pixels, small, "bilinear", True) if share < 1 else pixels)
    boxes = selective_search(picture, scales=search.scales, spaces=search.spaces, limit=search.limit)
    scale = torch.tensor([width / small[1], height / small[0]] * 2, dtype=torch.float64)
    return (torch.from_numpy(boxes) * scale).float()


def _store(search: Search) -> Store:
    """The store of these settings; every process writes files of its own, also after a fork."""
    name = hashlib.sha256(f"{FORMAT} {search}".encode()).hexdigest()[:16]
    place = (cache_folder().parent / "proposals" / name, os.getpid())
    if place not in _stores:
        _stores[place] = Store(place[0])
    return _stores[place]


class _Place(NamedTuple):
    """Where the boxes of a picture lie: rows `first` to `first + rows` of a file."""

    file: Path
    first: int
    rows: int


_RECORD = np.dtype([("key", "V16"), ("first", "<i8"), ("count", "<i8")])


class Store:
    """Boxes by key in flat files of a folder: `*.boxes` (float32 rows of four) and `*.index` (key, first row, rows).

    A process appends to a pair of files of its own, boxes first, and reads everyone's, so that none waits for another and a killed
    one leaves at most rows that nobody looks for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self.places: dict[bytes, _Place] = {}
        self.seen: dict[Path, int] = {}  # records of each index that are in `places`
        self.rows = 0
        self.broken = False

    def get(self, key: bytes) -> Tensor | None:
        """The boxes (N, 4) of `key`, None if nobody kept them."""
        if key not in self.places:
            self._look()
        place = self.places.get(key)
        if place is None:
            return None
        try:
            values = np.fromfile(place.file, "<f4", place.rows * 4, offset=place.first * 16)
        except OSError:
            return None
        return torch.from_numpy(values.reshape(-1, 4)) if len(values) == place.rows * 4 else None

    def put(self, key: bytes, boxes: Tensor) -> None:
        """Keep `boxes`; a folder that cannot be written is said once, and then nothing is kept."""
        if self.broken:
            return
        record = np.zeros(1, _RECORD)
        record["key"], record["first"], record["count"] = np.void(key), self.rows, len(boxes)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for suffix, values in ((".boxes", boxes.numpy().astype("<f4")), (".index", record)):
                with self.own.with_suffix(suffix).open("ab") as file:
                    file.write(values.tobytes())
        except OSError as error:
            self.broken = True
            print(f"opticus: proposals are not kept: {error}", file=sys.stderr)  # noqa: T201 - says why the next run is as slow
            return
        self.places[key] = _Place(self.own.with_suffix(".boxes"), self.rows, len(boxes))
        self.rows += len(boxes)

    def _look(self) -> None:
        """Read what was added to the folder's indices since the last look."""
        for index in sorted(self.folder.glob("*.index")) if self.folder.is_dir() else ():
            done = self.seen.get(index, 0)
            size = index.stat().st_size // _RECORD.itemsize
            if index.stem == self.own.name or size == done:
                continue
            for row in np.fromfile(index, _RECORD, size - done, offset=done * _RECORD.itemsize):
                self.places[row["key"].tobytes()] = _Place(index.with_suffix(".boxes"), int(row["first"]), int(row["count"]))
            self.seen[index] = size
