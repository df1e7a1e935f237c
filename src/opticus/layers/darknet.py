"""The unit that YOLO's networks are made of, as darknet has it."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1  # of darknet's "leaky" activation


class ConvUnit(nn.Module):
    """A convolution without bias, batch norm, leaky ReLU of slope 0.1; odd kernels keep the size, stride 2 halves it upwards."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)  # eps 1e-5: darknet's GPU code, which trained the published files
        he_normal(self.conv)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D i j"]:
        return F.leaky_relu(self.bn(self.conv(x)), SLOPE, inplace=True)


def he_normal(module: nn.Conv2d | nn.Linear) -> None:
    """darknet's start of convolutions: deviation sqrt(2 / fan in), no bias."""
    fan = math.prod(module.weight.shape[1:])
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def half_pool(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C i j"]:
    """darknet's [maxpool] of size 2 and stride 2: half the size, rounded up."""
    return F.max_pool2d(x, 2, 2, ceil_mode=True)
