"""`scenes`: 128x128 photographs with one to six real handwritten digits on them, drawn on demand from a seed (DESIGN 8).

One scene is a pure function of (seed, VERSION, split, index). Its digits have a shorter side (of the tight box) log-uniform in
14..56 px (smaller where they would not fit: longer side at most 112 px), a rotation within 20 degrees, any colour whose
luminance differs from the background's mean under the digit by 0.2 to 0.8, and pairwise overlaps up to 30 % of the smaller
box. Later digits lie on top. Boxes are tight around the whole digit; masks hold its visible pixels. The three splits share no
digit sample and no photograph. `scenes-small`, `-crowded`, `-occluded`, `-cluttered` and `-varied` make one thing harder each
(scale, number, overlap, things that are no digits, variation within a class); `scenes-hard` makes all of them harder.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from opticus.data.embedded.material import MATERIAL, PHOTOGRAPHS, SPLITS, all_digits, digit_indices, glyph, pyramids
from opticus.data.records import Boxes, digest
from opticus.structures import DataError, Instances, LabelMap, Panoptic, Sample, Task, UnknownNameError

VERSION = 1
SIZE = 128
COUNTS = {"train": 4000, "val": 500, "test": 500}
LONG = 112.0  # pixels
KEYPOINTS = ("top_left", "top_right", "bottom_right", "bottom_left", "centre")
_GLYPH = 80  # px; eight times the padded 10x10 original
_TRIES = 12
_NUMBERS = 48  # random numbers reserved for each digit
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
# stroke intensity -> opacity: soft edges of the pen, solid strokes; a pixel belongs to the mask from one half on
_OPACITY = [round(255 * min(max((v / 255 - 0.35) / 0.3, 0.0), 1.0)) for v in range(256)]
_WORDS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
          "fourteen", "fifteen", "sixteen")  # fmt: skip


class Challenge(NamedTuple):
    """How scenes are drawn: numbers of `digits`, shorter sides `short` px, `tilt` radians, luminance `contrast`, largest `overlap`,
    `near`, the share of digits that are put beside or on an earlier one, and `clutter` pieces of turned digits on the photograph.
    """

    number: int
    digits: tuple[int, int] = (1, 6)
    short: tuple[float, float] = (14.0, 56.0)
    tilt: float = math.radians(20.0)
    contrast: tuple[float, float] = (0.2, 0.8)
    overlap: float = 0.3
    near: float = 0.0
    clutter: int = 0


CHALLENGES: dict[str, Challenge] = {
    "": Challenge(0),
    "small": Challenge(1, short=(6.0, 16.0)),
    "crowded": Challenge(2, digits=(8, 16), short=(10.0, 28.0)),
    "occluded": Challenge(3, digits=(3, 8), short=(18.0, 48.0), overlap=0.65, near=0.7),
    "cluttered": Challenge(4, clutter=14),
    "varied": Challenge(5, tilt=math.radians(60.0), contrast=(0.08, 0.9)),
    "hard": Challenge(6, (6, 14), (8.0, 32.0), math.radians(40.0), (0.1, 0.9), 0.5, 0.4, 8),
}


class Scene(NamedTuple):
    """Everything that is known about one scene."""

    pixels: npt.NDArray[np.uint8]  # (128, 128, 3)
    owner: npt.NDArray[np.uint8]  # (128, 128): 0 background, k + 1 where digit k is visible
    boxes: npt.NDArray[np.float32]  # (N, 4) xyxy around whole digits
    labels: npt.NDArray[np.int64]  # (N,)
    keypoints: npt.NDArray[np.float32]  # (N, 5, 3) corners of the digit's own upright frame, in KEYPOINTS' order, and its centre
    rows: npt.NDArray[np.int64]  # (N,) digit samples used
    photograph: int


class _Plan(NamedTuple):
    row: int
    scale: float
    angle: float
    width: float
    height: float
    left: int
    top: int


class Scenes:
    """Detection data of ten classes. `masks` and `keypoints` add those fields to the targets."""

    task: Task = "detect"
    names: tuple[str, ...] = tuple("0123456789")
    label_ids: tuple[int, ...] = tuple(range(10))
    keypoint_names: tuple[str, ...] = KEYPOINTS
    splits: tuple[str, ...] = SPLITS
    boxes: Boxes | None = None

    def __init__(
        self,
        split: str = "train",
        *,
        challenge: str = "",
        count: int | None = None,
        seed: int = 0,
        masks: bool = False,
        keypoints: bool = False,
    ) -> None:
        if split not in COUNTS:
            raise DataError(f"scenes has the splits {', '.join(COUNTS)}, found {split!r}")
        if challenge not in CHALLENGES:
            raise UnknownNameError("challenge of scenes", challenge, CHALLENGES)
        self.challenge = challenge
        self.split = split
        self.seed = seed
        self.count = COUNTS[split] if count is None else count
        self.masks = masks
        self.keypoints = keypoints
        kind = f"scenes-{challenge}" if challenge else "scenes"
        self.hash = digest(f"{kind} {VERSION} {MATERIAL} {seed} {split} {self.count} {PHOTOGRAPHS[split]}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        drawn = self.draw(index)
        return Sample.of(torch.from_numpy(drawn.pixels), self._target(drawn), self.id_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The split and number of the scene."""
        return f"{self.split}{index:06d}"

    def file_of(self, index: int) -> Path | None:
        """None: scenes are drawn, not read."""
        return None

    def target_of(self, index: int) -> Instances:
        """The digits of scene `index` (the scene is drawn for it: about a millisecond)."""
        return self._target(self.draw(index))

    def draw(self, index: int) -> Scene:
        """Scene `index` with all that is known about it."""
        return scene(self.seed, self.split, index, CHALLENGES[self.challenge])

    def semantic(self, index: int) -> LabelMap:
        """Class of every pixel: 0 background, 1 + digit where a digit is visible."""
        drawn = self.draw(index)
        table = np.concatenate([[0], drawn.labels + 1])
        return LabelMap(torch.from_numpy(table[drawn.owner]))

    def panoptic(self, index: int) -> Panoptic:
        """Segments 1..N of things (the digits' classes) and segment N + 1, the photograph (class 10, stuff)."""
        drawn = self.draw(index)
        count = len(drawn.labels)
        segments = torch.from_numpy(np.where(drawn.owner == 0, count + 1, drawn.owner).astype(np.int64))
        labels = torch.from_numpy(np.append(drawn.labels, 10))
        return Panoptic(segments, torch.arange(1, count + 2), labels, torch.arange(count + 1) < count)

    def caption(self, index: int) -> str:
        """One sentence that says which digits are there, in increasing order."""
        counts = Counter(self.draw(index).labels.tolist())
        parts = [f"{_WORDS[n]} {digit}{'s' if n > 1 else ''}" for digit, n in sorted(counts.items())]
        return "a photograph with " + (parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}")

    def questions(self, index: int) -> tuple[tuple[str, str], ...]:
        """Question-answer pairs about the scene."""
        drawn = self.draw(index)
        labels = drawn.labels
        area = (drawn.boxes[:, 2] - drawn.boxes[:, 0]) * (drawn.boxes[:, 3] - drawn.boxes[:, 1])
        centre = drawn.boxes[:, 0] + drawn.boxes[:, 2]
        return (
            ("how many digits are there?", str(len(labels))),
            ("what is the sum of the digits?", str(int(labels.sum()))),
            ("which digit is the largest in the picture?", str(int(labels[area.argmax()]))),
            ("which digit is leftmost?", str(int(labels[centre.argmin()]))),
            ("is there a seven?", "yes" if 7 in labels else "no"),
        )

    def _target(self, drawn: Scene) -> Instances:
        count = len(drawn.labels)
        areas = np.bincount(drawn.owner.reshape(-1), minlength=count + 1)[1:].astype(np.float32)
        masks: Tensor | None = None
        if self.masks:
            masks = torch.from_numpy(drawn.owner[None] == np.arange(1, count + 1, dtype=np.uint8)[:, None, None])
        return Instances(
            torch.from_numpy(drawn.boxes),
            torch.from_numpy(drawn.labels),
            (SIZE, SIZE),
            masks=masks,
            keypoints=torch.from_numpy(drawn.keypoints) if self.keypoints else None,
            areas=torch.from_numpy(areas),
        )


def scene(seed: int, split: str, index: int, look: Challenge = CHALLENGES[""]) -> Scene:
    """Draw scene `index` of `split`: the same arguments always give the same scene."""
    fewest, most = look.digits
    u = _uniforms(seed, split, index, look)
    photograph, pixels = _background(split, u[:8])
    rows = digit_indices(split)
    owner = np.zeros((SIZE, SIZE), np.uint8)
    plans: list[_Plan] = []
    boxes: list[tuple[int, int, int, int]] = []
    corners: list[npt.NDArray[np.float32]] = []
    for k in range(most, most + look.clutter):
        draws = u[8 + k * _NUMBERS : 8 + (k + 1) * _NUMBERS]
        turned = look._replace(tilt=math.pi, overlap=1.0, near=0.0)
        piece = _placed(int(rows[int(draws[0] * len(rows))]), draws, [], turned)
        if piece is not None:
            _paint(pixels, np.zeros_like(owner), piece, 1, draws, look, half=True)
    for k in range(fewest + int(u[7] * (most - fewest + 1))):
        draws = u[8 + k * _NUMBERS : 8 + (k + 1) * _NUMBERS]
        plan = _placed(int(rows[int(draws[0] * len(rows))]), draws, plans, look)
        if plan is None:
            continue
        box, points = _paint(pixels, owner, plan, len(plans) + 1, draws, look)
        plans.append(plan)
        boxes.append(box)
        corners.append(points)
    used = np.asarray([plan.row for plan in plans], np.int64)
    return Scene(pixels, owner, np.asarray(boxes, np.float32), all_digits()[1][used], np.stack(corners), used, photograph)


def _uniforms(seed: int, split: str, index: int, look: Challenge) -> list[float]:
    """Doubles in [0, 1) from Philox's raw output, which no numpy version changes."""
    key = ((seed & 0xFFFFFFFF) << 32) | (look.number << 16) | (VERSION << 8) | SPLITS.index(split)
    raw = np.random.Philox(key=key, counter=[0, 0, index, 0]).random_raw(8 + (look.digits[1] + look.clutter) * _NUMBERS)
    return ((raw >> np.uint64(11)) * 2.0**-53).tolist()


def _background(split: str, u: list[float]) -> tuple[int, npt.NDArray[np.uint8]]:
    photos = pyramids(split, SIZE)
    which = int(u[0] * len(photos))
    level = photos[which][int(u[1] * len(photos[which]))]
    top, left = int(u[2] * (level.shape[0] - SIZE + 1)), int(u[3] * (level.shape[1] - SIZE + 1))
    crop = level[top : top + SIZE, left : left + SIZE]
    return which, (crop[:, ::-1] if u[4] < 0.5 else crop).copy()


@functools.cache
def _outline(row: int) -> tuple[npt.NDArray[np.float64], tuple[float, float, float, float]]:
    """Corner points (P, 2) of the digit's mask in glyph pixels, enough for its extent at any angle, and its upright box."""
    mask = np.asarray(glyph(row, _GLYPH).point(_OPACITY)) >= 128
    lines = np.flatnonzero(mask.any(1))
    first, last = mask[lines].argmax(1), _GLYPH - mask[lines][:, ::-1].argmax(1)
    points = np.concatenate([np.stack([x, y], 1) for x in (first, last) for y in (lines, lines + 1)]).astype(np.float64)
    return points, (float(first.min()), float(lines[0]), float(last.max()), float(lines[-1] + 1))


def _placed(row: int, u: list[float], others: list[_Plan], look: Challenge) -> _Plan | None:
    """A size, angle and place for digit `row` that fits between `others`; smaller if necessary, None if it never fits."""
    angle = (2 * u[1] - 1) * look.tilt
    points, _ = _outline(row)
    turned = points @ np.asarray([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    width, height = (turned.max(0) - turned.min(0)).tolist()
    least, greatest = look.short
    short = least * (greatest / least) ** u[2]
    beside = others[int(u[46] * len(others))] if others and u[47] < look.near else None
    for attempt in range(2 * _TRIES):
        if attempt and attempt % _TRIES == 0:
            short = max(least, short * 0.6)
        scale = min(short / min(width, height), LONG / max(width, height))
        w, h = width * scale, height * scale
        x, y = u[8 + attempt % 20 * 2], u[9 + attempt % 20 * 2]
        left, top = 1 + int(x * (SIZE - 2 - math.ceil(w))), 1 + int(y * (SIZE - 2 - math.ceil(h)))
        if beside is not None:  # its middle anywhere in the other's frame, but inside the picture
            left = min(max(int(beside.left + x * beside.width - w / 2), 1), SIZE - 1 - math.ceil(w))
            top = min(max(int(beside.top + y * beside.height - h / 2), 1), SIZE - 1 - math.ceil(h))
        if all(_overlap(left, top, w, h, other) <= look.overlap for other in others):
            return _Plan(row, scale, angle, w, h, left, top)
    return None


def _overlap(left: int, top: int, width: float, height: float, other: _Plan) -> float:
    x = min(left + width, other.left + other.width) - max(left, other.left)
    y = min(top + height, other.top + other.height) - max(top, other.top)
    return max(x, 0.0) * max(y, 0.0) / min(width * height, other.width * other.height)


def _paint(
    pixels: npt.NDArray[np.uint8], owner: npt.NDArray[np.uint8], plan: _Plan, number: int, u: list[float], look: Challenge,
    half: bool = False,
) -> tuple[tuple[int, int, int, int], npt.NDArray[np.float32]]:  # fmt: skip
    """Draw a digit in place, or its upper `half` only; returns its tight box and its keypoints (5, 3)."""
    points, upright = _outline(plan.row)
    cos, sin = math.cos(plan.angle), math.sin(plan.angle)
    turn = np.asarray([[cos, sin], [-sin, cos]])  # row vectors: glyph -> turned
    shift = (points @ turn).min(0) * plan.scale  # of the digit's tight box; it goes to (1, 1) of the patch
    size = (math.ceil(plan.width) + 2, math.ceil(plan.height) + 2)
    back = turn.T / plan.scale
    origin = (shift - 1.0) @ back
    matrix = (back[0, 0], back[1, 0], origin[0], back[0, 1], back[1, 1], origin[1])
    whole = glyph(plan.row, _GLYPH)
    if half:
        whole = Image.new("L", whole.size)
        whole.paste(glyph(plan.row, _GLYPH).crop((0, 0, _GLYPH, _GLYPH // 2)))
    patch = whole.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    alpha = np.asarray(patch.point(_OPACITY))
    left, top = plan.left - 1, plan.top - 1
    area = (slice(top, top + size[1]), slice(left, left + size[0]))
    inside = alpha >= 128
    below = pixels[area].astype(np.float32)
    colour = _colour(float((below @ _LUMA)[inside].mean()) / 255.0, u, look.contrast)
    blend = alpha[..., None] * np.float32(1 / 255)
    pixels[area] = (below + (colour - below) * blend + 0.5).astype(np.uint8)
    owner[area][inside] = number
    columns, lines = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    box = (left + int(columns[0]), top + int(lines[0]), left + int(columns[-1]) + 1, top + int(lines[-1]) + 1)
    x0, y0, x1, y1 = upright
    frame = np.asarray([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [(x0 + x1) / 2, (y0 + y1) / 2]])
    placed = frame @ turn * plan.scale - shift + (plan.left, plan.top)
    return box, np.concatenate([placed, np.full((5, 1), 2.0)], 1).astype(np.float32)


def _colour(background: float, u: list[float], range: tuple[float, float]) -> npt.NDArray[np.float32]:
    """A random RGB colour (0..255) whose luminance differs from `background` (0..1) by an amount in `range`."""
    up, down = 1.0 - background, background
    brighter = (u[3] < 0.5 and up >= range[0]) or down < range[0]
    contrast = range[0] + u[4] * (min(range[1], up if brighter else down) - range[0])
    wanted = background + contrast if brighter else background - contrast
    rgb = np.asarray(u[5:8], np.float32)
    luminance = float(rgb @ _LUMA)
    if luminance >= wanted:
        rgb = rgb * np.float32(wanted / luminance)
    else:  # towards white, which keeps the hue and reaches every luminance
        rgb = rgb + (1 - rgb) * np.float32((wanted - luminance) / (1 - luminance))
    return rgb * np.float32(255)
