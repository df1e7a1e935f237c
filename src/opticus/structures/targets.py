"""What a vision system is asked for and answers with: one set of types for targets and for results (DESIGN 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from opticus.structures.errors import DataError


@dataclass(slots=True)
class RLE:
    """N masks in COCO's run-length encoding (column-major, background first), as compressed byte strings."""

    counts: tuple[bytes, ...]
    size: tuple[int, int]  # (H, W) pixels, shared by all masks

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: Any) -> RLE:
        picks = torch.arange(len(self.counts))[index].reshape(-1).tolist()
        return RLE(tuple(self.counts[i] for i in picks), self.size)


@dataclass(slots=True)
class Classes:
    """Image-level labels.

    As a target: `labels` (N,) int64 in 0..K-1 (one for single-label data) and `scores` (N,) soft weights, None meaning all 1.
    As a result: `labels` ranked best first with their probabilities in `scores`; `probs` (K,) holds the whole distribution.
    """

    labels: Tensor
    scores: Tensor | None = None
    probs: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(slots=True)
class Instances:
    """N objects in one picture; one type for targets and predictions.

    `boxes` (N,4) float32 xyxy in pixels of the frame `size` (H, W); `labels` (N,) int64, contiguous 0..C-1; `scores` (N,)
    float32 in [0,1], predictions ranked best first; `masks` (N,H,W) bool or RLE; `keypoints` (N,K,3) float32 x, y, visibility
    (0 absent, 1 hidden, 2 visible) or score; `tracks` (N,) int64; `crowd` (N,) bool (regions to ignore); `areas` (N,) float32
    square pixels (the annotation's own area, used by COCO's size ranges).
    """

    boxes: Tensor
    labels: Tensor
    size: tuple[int, int]
    scores: Tensor | None = None
    masks: Tensor | RLE | None = None
    keypoints: Tensor | None = None
    tracks: Tensor | None = None
    crowd: Tensor | None = None
    areas: Tensor | None = None

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def __getitem__(self, index: Any) -> Instances:
        """A subset of the instances: a slice, an index tensor or a boolean mask, applied to every field."""
        return self._each(lambda value: value[index])

    def to(self, device: torch.device | str) -> Instances:
        """The same instances with every tensor on `device`."""
        return self._each(lambda value: value.to(device) if isinstance(value, Tensor) else value)

    def _each(self, function: Callable[[Any], Any]) -> Instances:
        changes = {
            f.name: function(getattr(self, f.name)) for f in fields(self) if f.name != "size" and getattr(self, f.name) is not None
        }
        return replace(self, **changes)

    @staticmethod
    def empty(size: tuple[int, int], scored: bool = False) -> Instances:
        """No object in a frame of `size` (H, W); background-only pictures are legal."""
        return Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size, torch.zeros(0) if scored else None)

    def check(self, name: str) -> Instances:
        """Raise DataError naming `name` if a field has a wrong shape, type or a non-finite value; else return self."""
        n = len(self)
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise DataError(f"{name}: boxes must have shape (N, 4), found {tuple(self.boxes.shape)}")
        for field in ("labels", "scores", "masks", "keypoints", "tracks", "crowd", "areas"):
            value = getattr(self, field)
            if value is not None and len(value) != n:
                raise DataError(f"{name}: {n} boxes but {len(value)} {field}")
        if not bool(torch.isfinite(self.boxes).all()):
            raise DataError(f"{name}: box {int((~torch.isfinite(self.boxes)).any(1).nonzero()[0])} has a non-finite coordinate")
        if self.labels.dtype != torch.int64:
            raise DataError(f"{name}: labels must be int64, found {self.labels.dtype}")
        return self


@dataclass(slots=True)
class LabelMap:
    """A class for every pixel: `labels` (H,W) int64, `ignore` marking pixels without a class; `probs` (K,H,W) optional."""

    labels: Tensor
    ignore: int = 255
    probs: Tensor | None = None


@dataclass(slots=True)
class Panoptic:
    """`segments` (H,W) int64 segment ids (0 = void) and, per id, its class, whether it is a thing, and its score."""

    segments: Tensor
    ids: Tensor  # (S,) int64
    labels: Tensor  # (S,) int64
    things: Tensor  # (S,) bool
    scores: Tensor | None = None


@dataclass(slots=True)
class Embedding:
    """One feature vector (D,) of a picture, face or clip, with the identity it belongs to, if known."""

    vector: Tensor
    identity: int | None = None


@dataclass(slots=True)
class Text:
    """One string (captions, answers, translations), with several references where the data has them."""

    text: str
    references: tuple[str, ...] = ()
    score: float | None = None


@dataclass(slots=True)
class Picture:
    """A picture: `pixels` (H, W, C) uint8, C = 3 in RGB order or 1; also the target and result of generative systems."""

    pixels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])


@dataclass(slots=True)
class Clip:
    """A video clip: `pixels` (T, H, W, C) uint8 RGB and its frame rate in 1/s."""

    pixels: Tensor
    rate: float | None = None


@dataclass(slots=True)
class Sequence:
    """A sequence of feature or pose vectors: `values` (T, ...) float32, `valid` (T,) bool."""

    values: Tensor
    valid: Tensor | None = None


@dataclass(slots=True)
class Trajectory:
    """Joint positions over time: `joints` (T, K, 2|3) float32, `scores` (T, K), `rate` in 1/s."""

    joints: Tensor
    scores: Tensor | None = None
    rate: float | None = None


@dataclass(slots=True)
class Mesh:
    """A triangle mesh: `vertices` (V, 3) float32, `faces` (F, 3) int64."""

    vertices: Tensor
    faces: Tensor


@dataclass(slots=True)
class Relevant:
    """What a query should find in the data's "database" split: positions in it, (N,) int64 each.

    `easy` and `hard` are pictures of the same thing, `junk` those that count neither way. `group` names the block of queries that a
    figure is given for (a kind of distortion in copy detection).
    """

    easy: Tensor
    hard: Tensor
    junk: Tensor
    group: str = ""


@dataclass(slots=True)
class Several:
    """Targets of several kinds for one picture, by name (boxes and a caption, both read by one system)."""

    parts: Mapping[str, Target]


Target = Classes | Instances | LabelMap | Panoptic | Embedding | Text | Picture | Trajectory | Mesh | Relevant | Several
Result = Target
Input = Picture | Clip | Sequence | Text | Tensor
