"""`views`: retrieval without labels out of photographs: find the pictures that show the place of a query (splits "database", "query").

A place is a point of a photograph, a query the upright square around it. Database pictures are further squares, in turns changed mildly
(shifted, turned, zoomed, lit in another way), strongly, or moved away. What they count as for a query follows from geometry alone:
`easy` if the squares overlap by half (intersection over union) and the view is mild, `hard` if they otherwise overlap by a fifth,
`junk` if they overlap less than that but at all. Other photographs and other parts of the same one are to be told apart. Every
picture is a pure function of (seed, VERSION, split, index).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from opticus.data.decode import decode
from opticus.data.embedded.material import shipped
from opticus.data.records import Boxes, digest
from opticus.structures import DataError, Embedding, Relevant, Sample, Target, Task, UsageError

VERSION = 1
SIDE = 64
SPLITS = ("database", "query")
PLACES = 4  # in each photograph
VIEWS = 6  # database pictures of each place, of the three kinds in turns
KINDS = {  # turn in degrees, zoom (log), shift in sides of the square, gain and offset of the light, tint: the largest of each
    "mild": (12.0, 0.12, 0.1, 0.15, 0.05),
    "strong": (75.0, 0.35, 0.22, 0.4, 0.2),
    "far": (40.0, 0.2, 0.9, 0.2, 0.1),
}
EASY, HARD = 0.5, 0.2  # overlap (intersection over union) from which a picture is easy, or hard
SOURCES = (
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/astronaut.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
)
_NUMBERS = 16
_GRID = 24  # points along the side of a square by which overlap is measured
Floats = npt.NDArray[np.float64]


class View(NamedTuple):
    """One square of a photograph: centre and side in its pixels, angle in radians, and how it is lit (gain, offset, tint)."""

    photo: int
    place: int
    x: float
    y: float
    span: float
    angle: float
    light: tuple[float, ...]  # gain, offset in grey levels, a factor for each of red, green and blue
    kind: str  # of KINDS


class Views:
    """Pictures (64, 64, 3) uint8. Queries have a `Relevant` target, database pictures the identity of their place."""

    task: Task = "embed"
    protocol = "revisited"  # how retrieval in this data is scored
    names: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(self, split: str = "database", *, places: int = PLACES, views: int = VIEWS, seed: int = 0) -> None:
        if split not in SPLITS:
            raise DataError(f"views has the splits {', '.join(SPLITS)}, found {split!r}")
        if not 1 <= places <= 16 or views < 1:
            raise UsageError(f"views: places must be in 1..16 and views at least 1, found {places} and {views}")
        self.split: str = split
        self.seed, self.places, self.views = seed, places, views
        self.hash: str = digest(f"views {VERSION} {seed} {split} {places} {views} {EASY} {HARD} {SOURCES}")

    def __len__(self) -> int:
        return len(SOURCES) * self.places * (self.views if self.split == "database" else 1)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"view {index} of {len(self)}")
        return Sample.of(torch.from_numpy(draw(self.view(index))), self.target_of(index), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The split and number of the view."""
        return f"{self.split}{index:06d}"

    def file_of(self, index: int) -> Path | None:
        """None: views are drawn, not read."""
        return None

    def view(self, index: int) -> View:
        """Where view `index` lies."""
        place = index // self.views if self.split == "database" else index
        query = _query(self.seed, place // self.places, place % self.places, self.places)
        if self.split == "query":
            return query
        return _changed(query, self.seed, index, kind_of(index % self.views))

    def target_of(self, index: int) -> Target:
        """What a query is to find, or the place that a database picture was made of."""
        if self.split == "database":
            return Embedding(torch.zeros(0), index // self.views)
        overlap = overlaps(self.seed, self.places, self.views)[index]
        mild = np.asarray([kind_of(i % self.views) == "mild" for i in range(len(overlap))])
        easy = (overlap >= EASY) & mild
        hard = (overlap >= HARD) & ~easy
        junk = (overlap > 0) & ~easy & ~hard
        found = [torch.from_numpy(np.flatnonzero(part)) for part in (easy, hard, junk)]
        return Relevant(found[0], found[1], found[2])


@functools.lru_cache(8)
def overlaps(seed: int, places: int, views: int) -> Floats:
    """(queries, database) intersection over union of the squares, on a grid of points; zero across photographs."""
    queries, database = (Views(split, places=places, views=views, seed=seed) for split in ("query", "database"))
    table = np.zeros((len(queries), len(database)))
    grids = [_grid(database.view(i)) for i in range(len(database))]
    for row in range(len(queries)):
        one = queries.view(row)
        first = one.photo * places * views
        for column in range(first, first + places * views):
            other = database.view(column)
            shared = (_inside(one, grids[column]) * other.span**2 + _inside(other, _grid(one)) * one.span**2) / 2
            table[row, column] = shared / (one.span**2 + other.span**2 - shared)
    return table


def _grid(view: View) -> Floats:
    """(2, points) in the photograph."""
    steps = (np.arange(_GRID) + 0.5) / _GRID - 0.5
    u, v = (axis.ravel() * view.span for axis in np.meshgrid(steps, steps))
    c, s = math.cos(view.angle), math.sin(view.angle)
    return np.stack([view.x + c * u - s * v, view.y + s * u + c * v])


def _inside(view: View, points: Floats) -> float:
    """Share of the points that lie in the view's square."""
    dx, dy = points[0] - view.x, points[1] - view.y
    c, s = math.cos(view.angle), math.sin(view.angle)
    half = view.span / 2
    return float(((np.abs(c * dx + s * dy) <= half) & (np.abs(c * dy - s * dx) <= half)).mean())


def _uniform(seed: int, kind: int, index: int) -> list[float]:
    key = ((seed & 0xFFFFFFFF) << 32) | (VERSION << 8) | 0x80 | kind
    raw = np.random.Philox(key=key, counter=[0, 0, index, 0]).random_raw(_NUMBERS)
    return ((raw >> np.uint64(11)) * 2.0**-53).tolist()


def _query(seed: int, photo: int, place: int, places: int) -> View:
    """The upright square around a place; the places of a photograph sit on a jittered grid."""
    height, width = photograph(photo).shape[:2]
    columns = math.ceil(math.sqrt(places))
    rows = math.ceil(places / columns)
    u = _uniform(seed, 0, photo * 64 + place)
    span = min(height / rows, width / columns) * (0.5 + 0.25 * u[0])
    room_x, room_y = width / columns - span, height / rows - span
    x = place % columns * width / columns + span / 2 + u[1] * room_x
    y = place // columns * height / rows + span / 2 + u[2] * room_y
    return View(photo, place, x, y, span, 0.0, (1.0, 0.0, 1.0, 1.0, 1.0), "mild")


def kind_of(number: int) -> str:
    """The kind of a place's view `number`."""
    return list(KINDS)[number % len(KINDS)]


def _changed(query: View, seed: int, index: int, kind: str) -> View:
    u = [2 * value - 1 for value in _uniform(seed, 1, index)]
    turn, zoom, shift, gain, tint = KINDS[kind]
    span = query.span * math.exp(zoom * u[0])
    light = (1 + gain * u[4], 160 * gain * u[5], *(1 + tint * value for value in u[6:9]))
    x, y = query.x + shift * query.span * u[2], query.y + shift * query.span * u[3]
    return query._replace(x=x, y=y, span=span, angle=math.radians(turn * u[1]), light=light, kind=kind)


def draw(view: View, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """The picture (side, side, 3) of a view, drawn at twice the size and averaged; what lies outside the photograph mirrors it."""
    fine = 2 * side
    photo = photograph(view.photo)
    reach = view.span / 2 * (abs(math.cos(view.angle)) + abs(math.sin(view.angle))) + 2
    top, left = math.floor(view.y - reach), math.floor(view.x - reach)
    size = math.ceil(2 * reach) + 2
    rows, columns = (_mirror(np.arange(start, start + size), n) for start, n in zip((top, left), photo.shape))
    a, b = view.span / fine * math.cos(view.angle), view.span / fine * math.sin(view.angle)
    matrix = (a, -b, view.x - left - (a - b) * fine / 2, b, a, view.y - top - (a + b) * fine / 2)
    part = Image.fromarray(photo[rows[:, None], columns])
    image = part.transform((fine, fine), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).reshape(side, 2, side, 2, 3).mean((1, 3))
    gain, offset, *tint = view.light
    lit = ((pixels - 128) * np.float32(gain) + np.float32(128 + offset)) * np.asarray(tint, np.float32)
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


@functools.cache
def photograph(number: int) -> npt.NDArray[np.uint8]:
    """Photograph `number` (H, W, 3)."""
    return decode(shipped(SOURCES[number])).pixels.numpy()


def _mirror(places: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Indices into an axis whose ends are mirrors."""
    inside = places % (2 * length)
    return np.minimum(inside, 2 * length - 1 - inside)
