"""Feature pyramid: coarse maps that know what, added to fine maps that know where (Lin et al. 2017, arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """A 1x1 convolution brings each map to `width`, the next coarser sum is added (nearest neighbour), a 3x3 smooths (figure 3).

    Maps go in and come out fine to coarse; sizes need not be multiples of each other.
    """

    def __init__(self, widths: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(source, width, 1) for source in widths)
        self.outer = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths)
        for conv in (*self.inner, *self.outer):
            nn.init.kaiming_uniform_(conv.get_parameter("weight"), a=1)
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        top: Tensor | None = None
        found: list[Tensor] = []
        for x, inner, outer in zip(reversed(maps), reversed(self.inner), reversed(self.outer), strict=True):
            lateral = inner(x)
            top = lateral if top is None else lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            found.append(outer(top))
        return found[::-1]


class CoarserLevels(nn.Module):
    """Two more maps, each half the size of the one before, by 3x3 convolutions (RetinaNet, 1708.02002, section 4: P6 and P7)."""

    def __init__(self, width_in: int, width: int = 256) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(width_in, width, 3, 2, 1)
        self.p7 = nn.Conv2d(width, width, 3, 2, 1)
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> list[Tensor]:
        sixth = self.p6(x)
        return [sixth, self.p7(F.relu(sixth))]
