"""Samples (one record of a data set) and batches (what an objective sees)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from opticus.structures.errors import DataError
from opticus.structures.targets import Input, Instances, Picture, Target


class Images(NamedTuple):
    """A batch of network inputs.

    `pixels` (B,C,H,W) float, normalised; `valid` (B,H,W) bool, True where a pixel is picture and not padding, None when all are;
    `to_input` (B,3,3) float64, maps homogeneous pixel coordinates of the original picture (x right, y down, pixel corners at
    integers) to those of the network input; `sizes` ((H, W), ...) of the original pictures.
    """

    pixels: Tensor
    valid: Tensor | None
    to_input: Tensor
    sizes: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Images:
        """The same images on `device`; `dtype` changes `pixels` only."""
        valid = None if self.valid is None else self.valid.to(device, non_blocking=True)
        return Images(self.pixels.to(device, dtype, non_blocking=True), valid, self.to_input, self.sizes)


@dataclass(slots=True)
class Sample:
    """One record: named inputs, its target, its id, and the 3x3 matrix from the original picture to the present pixels.

    `sources` holds, for mosaics and mixes, one (id, matrix) per source picture. `weight` scales the sample's loss. `views` holds, for
    methods that compare several views of one picture, (role, sample) per view, each with its own matrix.
    """

    inputs: dict[str, Input]
    target: Target | None
    id: str
    matrix: Tensor = field(default_factory=lambda: torch.eye(3, dtype=torch.float64))
    weight: float = 1.0
    sources: tuple[tuple[str, Tensor], ...] = ()
    original: tuple[int, int] | None = None  # (H, W) of the picture before any transform; None = as it is now
    views: tuple[tuple[str, Sample], ...] = ()

    @property
    def picture(self) -> Picture:
        """The input named "image"; DataError if there is none."""
        value = self.inputs.get("image")
        if not isinstance(value, Picture):
            raise DataError(f"{self.id}: the sample has no picture named 'image' (inputs: {', '.join(self.inputs) or 'none'})")
        return value

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture as it is now."""
        return self.picture.size

    def with_picture(self, pixels: Tensor, target: Target | None, matrix: Tensor | None = None) -> Sample:
        """A copy with new pixels (H,W,C) uint8 and target; `matrix` (3,3) is composed after the present one."""
        return replace(
            self,
            inputs={**self.inputs, "image": Picture(pixels)},
            target=target,
            matrix=self.matrix if matrix is None else matrix.to(torch.float64) @ self.matrix,
            original=self.original or self.size,
        )

    @staticmethod
    def of(pixels: Tensor, target: Target | None = None, id: str = "") -> Sample:
        """A sample made from pixels (H, W, C) uint8."""
        return Sample({"image": Picture(pixels)}, target, id)


@dataclass(slots=True)
class Batch:
    """What an objective sees: images, further views (each tuple element one role), other inputs, targets and ids."""

    images: Images | None
    targets: tuple[Target | None, ...]
    ids: tuple[str, ...]
    views: tuple[Images, ...] = ()
    roles: tuple[str, ...] = ()
    inputs: Mapping[str, Input | tuple[Input, ...]] = field(default_factory=dict[str, "Input | tuple[Input, ...]"])
    weights: Tensor | None = None  # (B,) float32 loss weights of the samples, None = all 1

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The same batch with images, views, weights and tensor targets on `device`."""
        return replace(
            self,
            images=None if self.images is None else self.images.to(device, dtype),
            views=tuple(view.to(device, dtype) for view in self.views),
            targets=tuple(_target_to(target, device) for target in self.targets),
            weights=None if self.weights is None else self.weights.to(device),
        )


def _target_to(target: Target | None, device: torch.device | str) -> Target | None:
    if target is None or isinstance(target, Instances):
        return None if target is None else target.to(device)
    moved = {f.name: v.to(device) for f in fields(target) if isinstance(v := getattr(target, f.name), Tensor)}
    return replace(target, **moved)
