"""DCGAN: its guidelines (section 3) and its initial weights (section 4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.structures import Noise, UsageError


def test_the_guidelines_of_section_3() -> None:
    network = zoo.create("dcgan/64")
    discriminator = zoo.paper("dcgan").objective(network).discriminator
    pools = (nn.MaxPool2d, nn.AvgPool2d, nn.Linear)
    assert not [m for module in (network, discriminator) for m in module.modules() if isinstance(m, pools)]
    drawing = [m for m in network.main if isinstance(m, nn.ConvTranspose2d)]
    judging = [m for m in discriminator.main if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in drawing] == [512, 256, 128, 64, 3] and [m.out_channels for m in judging] == [
        64,
        128,
        256,
        512,
        1,
    ]
    assert isinstance(discriminator.main[1], nn.LeakyReLU) and isinstance(network.main[-1], nn.Tanh), (
        "no norm in D's input and G's output"
    )
    assert {m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


def test_weights_start_at_a_deviation_of_two_hundredths() -> None:
    torch.manual_seed(0)
    network = zoo.create("dcgan/64")
    for module in (network, zoo.paper("dcgan").objective(network).discriminator):
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.weight.numel() > 10_000:
                assert float(part.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
            if isinstance(part, nn.BatchNorm2d) and part.num_features >= 256:
                assert (
                    float(part.weight.detach().mean()) == pytest.approx(1.0, abs=0.01) and float(part.weight.detach().std()) < 0.03
                )
                assert not bool(part.bias.any())


@pytest.mark.parametrize("size", [8, 16, 32, 128])
def test_any_power_of_two(size: int) -> None:
    network = zoo.create("dcgan/tiny", size=size, width=4, critic=4).eval()
    pictures = network.sample(Noise(0, 2))
    assert tuple(pictures.shape) == (2, 1, size, size)
    assert tuple(zoo.paper("dcgan").objective(network).discriminator(pictures).shape) == (2, 1, 1, 1)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="size must be a power of two, at least 8, found 24"):
        zoo.create("dcgan/tiny", size=24)
