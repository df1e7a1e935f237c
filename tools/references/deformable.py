"""CenterNet's networks with deformable convolutions, imported from a clone; their compiled part is replaced by sampling tap by tap."""

import sys
import types

import torch
import torch.nn.functional as F
from clones import clone
from torch import nn


class DCN(nn.Module):
    """What the authors' `DCN` computes (modulated deformable convolution, stride 1), with its parameters' names."""

    def __init__(self, chi, cho, kernel_size, stride, padding, dilation=1, deformable_groups=1):
        super().__init__()
        assert tuple(kernel_size) == (3, 3) and (stride, padding, dilation, deformable_groups) == (1, 1, 1, 1)
        self.weight = nn.Parameter(torch.zeros(cho, chi, 3, 3))
        self.bias = nn.Parameter(torch.zeros(cho))
        self.conv_offset_mask = nn.Conv2d(chi, 27, 3, 1, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        found = self.conv_offset_mask(x)
        offsets, factors = found[:, :18], found[:, 18:].sigmoid()
        rows, columns = torch.meshgrid(torch.arange(height).to(x), torch.arange(width).to(x), indexing="ij")
        total = self.bias[:, None, None]
        for tap in range(9):
            y = rows + tap // 3 - 1 + offsets[:, 2 * tap]
            z = columns + tap % 3 - 1 + offsets[:, 2 * tap + 1]
            seen = 0
            for dy in (0, 1):
                for dz in (0, 1):
                    i, j = y.floor() + dy, z.floor() + dz
                    share = (1 - (y - i).abs()) * (1 - (z - j).abs())
                    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
                    flat = (i.clamp(0, height - 1) * width + j.clamp(0, width - 1)).long().flatten(1)
                    value = x.flatten(2).gather(2, flat[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
                    seen = seen + value * (share * inside)[:, None]
            seen = seen * factors[:, tap : tap + 1]
            total = total + F.conv2d(seen, self.weight[:, :, tap // 3, tap % 3, None, None])
        return total


def networks():
    """The modules `pose_dla_dcn`, `resnet_dcn` and `large_hourglass` of the authors' repository."""
    name = "models.networks.DCNv2.dcn_v2"
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].DCN = DCN
    with clone("CenterNet/src/lib"):
        from models.networks import large_hourglass, pose_dla_dcn, resnet_dcn
    return pose_dla_dcn, resnet_dcn, large_hourglass
