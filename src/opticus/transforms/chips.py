"""Chips: windows of one size cut at several scales, so that every object is seen, at a size that suits it, in few pixels.

SNIPER (Singh, Najibi and Davis, NeurIPS 2018, arXiv 1805.09300, section 3); rules from the authors' repository mahyarnajibi/SNIPER
(Apache-2.0). Differs: one chip is drawn per visit of a picture, and objects of other scales are marked as crowds, so that detectors
that honour crowds (Faster R-CNN and what builds on it) neither learn them nor take them for background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from opticus.structures import Instances, Sample, UsageError
from opticus.transforms.draw import Draw
from opticus.transforms.geometry import matrix_of
from opticus.transforms.pixels import framed, resize
from opticus.transforms.targets import KEEP, moved_sample


class Chip(NamedTuple):
    """A square window: upper left corner and `side` in pixels of the picture, and the number of its scale."""

    top: int
    left: int
    side: int
    scale: int


@dataclass(frozen=True, slots=True)
class Chips:
    """A chip of `side` x `side` pixels, drawn from those that together hold every object in the range of a scale.

    `scales` are (factor, least, most): the picture is enlarged by `factor` (0: it fits into the chip) and objects are learned whose
    square root of area, in the picture before, lies in [least, most). `stride` is pixels of a chip between the places where one may lie.
    `negatives` are false positives (M, 4) xyxy of each sample id: with probability `share` a chip is drawn that holds at least
    `enough` of them and no chip with objects covers them.
    """

    side: int = 512
    scales: tuple[tuple[float, float, float], ...] = ((3.0, 0.0, 80.0), (1.667, 32.0, 150.0), (0.0, 120.0, 1e5))
    stride: int = 32
    negatives: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    share: float = 0.3
    enough: int = 1
    fill: float = 114
    keep: float = KEEP

    def __post_init__(self) -> None:
        if not self.scales or any(factor < 0 or least >= most for factor, least, most in self.scales):
            raise UsageError(f"Chips: expected scales (factor >= 0, least, most) with least < most, found {list(self.scales)}")
        if not 0 < self.stride < self.side:
            raise UsageError(f"Chips: expected a stride between 0 and the chip's side {self.side}, found {self.stride}")

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        target = sample.target
        if not isinstance(target, Instances):
            raise UsageError(f"{sample.id}: chips are cut around objects, expected a target of type Instances")
        crowd = torch.zeros(len(target), dtype=torch.bool) if target.crowd is None else target.crowd.bool()
        chips = self.positive(sample.size, target.boxes[~crowd])
        rivals = self.negative(sample.size, self.negatives.get(sample.id, torch.zeros(0, 4)), chips)
        if draw.chance(self.share) and rivals:
            chips = rivals
        chip = chips[draw.integer(0, len(chips))]
        learned = self.learned(target.boxes, chip.scale)
        sample = replace(sample, target=replace(target, crowd=crowd | ~learned))
        factor = self.side / chip.side

        def move(pixels: Tensor) -> Tensor:
            return resize(framed(pixels, chip.top, chip.left, (chip.side, chip.side), self.fill), (self.side, self.side))

        matrix = matrix_of(factor, factor, -chip.left * factor, -chip.top * factor)
        return moved_sample(sample, matrix, (self.side, self.side), move, self.keep)

    def learned(self, boxes: Tensor, scale: int) -> Tensor:
        """Which boxes (N, 4) of the picture are in the range of a scale: (N,) bool."""
        _, least, most = self.scales[scale]
        root = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
        return (root >= least) & (root < most)

    def positive(self, size: tuple[int, int], boxes: Tensor) -> list[Chip]:
        """Chips of all scales that hold every box (N, 4) of a picture of `size` (H, W) in its scales, fewest first chosen greedily.

        The whole picture at the last scale where there is none.
        """
        found: list[Chip] = []
        for i in range(len(self.scales)):
            found += [chip for chip, _ in self._cover(size, boxes[self.learned(boxes, i)], i)]
        return found or [Chip(0, 0, self._window(size, len(self.scales) - 1), len(self.scales) - 1)]

    def negative(self, size: tuple[int, int], boxes: Tensor, positive: list[Chip]) -> list[Chip]:
        """Chips that hold at least `enough` of the false positives (M, 4) that no chip of their scale in `positive` covers."""
        found: list[Chip] = []
        for i in range(len(self.scales)):
            rest = boxes[self.learned(boxes, i)]
            for chip in positive:
                if chip.scale == i:
                    window = rest.new_tensor([chip.left, chip.top, chip.left + chip.side, chip.top + chip.side])
                    rest = rest[~((rest[:, :2] >= window[:2]).all(1) & (rest[:, 2:] <= window[2:]).all(1))]
            found += [chip for chip, count in self._cover(size, rest, i) if count >= self.enough]
        return found

    def _window(self, size: tuple[int, int], scale: int) -> int:
        """A chip's side in pixels of the picture."""
        factor = self.scales[scale][0]
        return max(round(self.side / factor), 1) if factor else max(size)

    def _cover(self, size: tuple[int, int], boxes: Tensor, scale: int) -> list[tuple[Chip, int]]:
        """Greedy: the chip that holds most boxes, then the one that holds most of the rest, and so on, with their counts."""
        side = self._window(size, scale)
        step = max(self.stride * side // self.side, 1)
        starts = [torch.tensor([*range(0, length - side, step), max(length - side, 0)]) for length in size]
        corners = torch.cartesian_prod(*starts).reshape(-1, 2).to(boxes)
        low = corners.flip(1)[:, None]
        inside = (boxes[:, :2] >= low).all(-1) & (boxes[:, 2:] <= low + side).all(-1)
        found: list[tuple[Chip, int]] = []
        while inside.numel():
            counts = inside.sum(1)
            best = int(counts.argmax())
            if int(counts[best]) == 0:
                break
            top, left = (int(v) for v in corners[best])
            found.append((Chip(top, left, side, scale), int(counts[best])))
            inside = inside & ~inside[best]
        return found
