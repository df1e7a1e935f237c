"""Discriminators that judge patches (Isola 2017, arXiv 1611.07004, section 3.2.2), and how they and their generators start."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from opticus.structures import UsageError

Norm = Callable[[int], nn.Module]


class PatchGAN(nn.Module):
    """One score per overlapping patch; three strided layers see 70x70 pixels each, two 34x34, one 16x16, four 142x142.

    `norm` makes the norm of a number of channels; `bias` is for the convolutions that it follows (a norm with a shift needs none).
    """

    def __init__(self, channels: int, norm: Norm, *, width: int = 64, layers: int = 3, bias: bool = False) -> None:
        super().__init__()
        if layers < 1:
            raise UsageError(f"a patch discriminator has at least 1 strided layer, found layers={layers}")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        self.strides = (*(2,) * layers, 1, 1)
        model: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for before, after, stride in zip(widths, widths[1:], self.strides[1:]):
            model += [nn.Conv2d(before, after, 4, stride, 1, bias=bias), norm(after), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*model, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 h w"]:
        """The scores; UsageError for pictures that are too small to have any."""
        least = min(pixels.shape[2:])
        for stride in self.strides:
            least = (least - 2) // stride + 1
        if least < 1:
            raise UsageError(
                f"a patch discriminator of {len(self.strides) - 2} strided layers cannot judge {pixels.shape[2]}x{pixels.shape[3]} "
                "pixels: take fewer layers or larger pictures"
            )
        return self.model(pixels)


class PixelGAN(nn.Module):
    """One score per pixel: a 1x1 discriminator, which sees colours and no structure."""

    def __init__(self, channels: int, norm: Norm, *, width: int = 64, bias: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 1, bias=bias),
            norm(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        )

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        return self.net(pixels)


def normal_weights(network: nn.Module, deviation: float = 0.02) -> None:
    """Kernels from N(0, deviation), gains of norms from N(1, deviation), every bias 0."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, deviation)
