"""Which patches of a picture are hidden from an encoder: at random, or first of all those that matter (a hand, an object).

He et al., CVPR 2022, arXiv 2111.06377, section 3 ("Masking"): a share of the patches, drawn without replacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from opticus.structures import Batch, DataError, Instances, UsageError

Kind = Literal["boxes", "keypoints", "masks"]


class Mask(Protocol):
    """Chooses the patches to hide: `(batch, rows, columns, generator) -> (B, rows * columns)` bool, True = hidden.

    Every picture of a batch must have the same number of hidden patches, at least one, and at least one visible patch. `batch` is
    what the objective sees (targets in input pixels); `generator` is on the CPU, None = torch's own.
    """

    def __call__(self, batch: Batch, rows: int, columns: int, generator: Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class RandomMask:
    """Hides the share `ratio` of the patches; floor(N (1 - ratio)) stay visible, as published (49 of 196 at 0.75)."""

    ratio: float = 0.75

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def __call__(self, batch: Batch, rows: int, columns: int, generator: Generator | None = None) -> Bool[Tensor, "B N"]:
        return hidden_first(torch.rand(len(batch), rows * columns, generator=generator), self.ratio)


@dataclass(frozen=True)
class RegionMask:
    """Informed masking: patches under the target's regions are hidden before others, `ratio` of the patches in all.

    Each region (a box, a visible keypoint with `radius` pixels around it, an instance's mask) is chosen with `probability`; `parts`
    are the numbers of the keypoints that count (those of a hand), empty = all. If the chosen regions cover more than `ratio` of the
    picture, some of their patches stay visible. Pictures without regions are masked at random.
    """

    ratio: float = 0.75
    kind: Kind = "boxes"
    probability: float = 1.0
    radius: float = 8.0
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 <= self.probability <= 1 or not self.radius >= 0:
            raise UsageError(
                f"probability must be in [0, 1] and radius not negative, found probability={self.probability}, radius={self.radius}"
            )
        if self.kind not in ("boxes", "keypoints", "masks"):
            raise UsageError(f"kind must be boxes, keypoints or masks, found {self.kind!r}")

    def __call__(self, batch: Batch, rows: int, columns: int, generator: Generator | None = None) -> Bool[Tensor, "B N"]:
        if batch.images is None:
            raise DataError("a region mask needs pictures, this batch has none")
        height, width = batch.images.pixels.shape[-2:]
        scores = torch.rand(len(batch), rows * columns, generator=generator)
        for i, (target, name) in enumerate(zip(batch.targets, batch.ids, strict=True)):
            if not isinstance(target, Instances):
                raise DataError(f"{name}: a mask of {self.kind} needs instances as the target, found {type(target).__name__}")
            covered = self._covered(target, (rows, columns), (height, width), name).cpu()
            chosen = torch.rand(len(covered), generator=generator) < self.probability
            scores[i] += covered[chosen].any(0)
        return hidden_first(scores, self.ratio)

    def _covered(self, target: Instances, grid: tuple[int, int], size: tuple[int, int], name: str) -> Bool[Tensor, "R N"]:
        if self.kind == "masks":
            if not isinstance(target.masks, Tensor):
                raise DataError(f"{name}: a mask of masks needs instance masks as tensors, found {type(target.masks).__name__}")
            cells = torch.nn.functional.adaptive_max_pool2d(target.masks.float()[:, None], grid)
            return cells.flatten(1) > 0
        if self.kind == "boxes":
            return touched(target.boxes, grid, size)
        if target.keypoints is None:
            raise DataError(f"{name}: a mask of keypoints needs keypoints in the target, found none")
        points = target.keypoints[:, list(self.parts)] if self.parts else target.keypoints
        points = points.reshape(-1, 3)
        points = points[points[:, 2] > 0, :2]
        return touched(torch.cat([points - self.radius, points + self.radius], 1), grid, size)


def check_ratio(ratio: float) -> None:
    """UsageError unless the share of hidden patches is above 0 and below 1."""
    if not 0 < ratio < 1:
        raise UsageError(f"the ratio of hidden patches must be above 0 and below 1, found {ratio}")


def hidden_first(scores: Float[Tensor, "B N"], ratio: float) -> Bool[Tensor, "B N"]:
    """Hides the patches with the largest scores, all but floor(N (1 - ratio)) of them. UsageError if all or none would be hidden."""
    patches = scores.shape[1]
    visible = int(patches * (1 - ratio) + 1e-9)
    if not 0 < visible < patches:
        raise UsageError(f"a ratio of {ratio} leaves {visible} of {patches} patches visible; some must be visible and some hidden")
    order = scores.argsort(1)
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, :visible], False)


def touched(boxes: Float[Tensor, "R 4"], grid: tuple[int, int], size: tuple[int, int]) -> Bool[Tensor, "R N"]:
    """Which patches of a (rows, columns) grid over a picture of `size` = (H, W) pixels each xyxy box overlaps, row by row."""
    rows, columns = grid
    top, left = (torch.arange(n, device=boxes.device) * (side / n) for n, side in ((rows, size[0]), (columns, size[1])))
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    across = (x1 < left + size[1] / columns) & (x2 > left)
    down = (y1 < top + size[0] / rows) & (y2 > top)
    return (down[:, :, None] & across[:, None, :]).flatten(1)
