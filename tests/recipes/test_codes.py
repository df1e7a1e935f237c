"""Anomalies and compression on codes with a known answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opticus import zoo
from opticus.recipes.codes import Principal, auroc, encoded, misfit, principal, stored, stored_at
from opticus.structures import Autoencoder, UsageError


class Same:
    """The code is the picture."""

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, 1, 2, 2)


def on_a_plane(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures of 4x4 pixels that two numbers describe, and these numbers."""
    chance = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(9)))[0]
    numbers = torch.randn(count, 2, generator=chance)
    return (numbers @ basis.T + 0.3).reshape(-1, 1, 4, 4), numbers


def test_pca_is_an_autoencoder_that_loses_nothing_on_its_plane() -> None:
    pixels, _ = on_a_plane(50, 0)
    coder = principal(pixels, 2)
    assert isinstance(coder, Autoencoder) and isinstance(coder, Principal)
    torch.testing.assert_close(coder.decode(coder.encode(on_a_plane(5, 1)[0])), on_a_plane(5, 1)[0], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match=r"1\.\.16 numbers for 50 pictures, found 17"):
        principal(pixels, 17)


def test_misfit_is_the_distance_from_the_plane() -> None:
    pixels, _ = on_a_plane(50, 0)
    coder = principal(pixels, 2)
    away = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    away = away - (coder.decode(coder.encode(away + coder.middle)) - coder.middle)  # its part off the plane
    found = misfit(coder, torch.cat([pixels[:1], pixels[:1] + 2 * away]))
    assert float(found[0]) < 1e-10
    assert float(found[1]) == pytest.approx(float((2 * away).square().mean()), rel=1e-4)


def test_auroc_counts_pairs() -> None:
    usual, odd = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0])
    assert auroc(usual, odd) == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    assert auroc(usual, usual + 10) == 1.0 and auroc(usual + 10, usual) == 0.0
    with pytest.raises(UsageError, match="found 3 usual and 0 odd"):
        auroc(usual, odd[:0])


def test_bits_of_fair_coins_are_counted() -> None:
    """Four pixels that are -1 or 1 with equal chance: a bit each, and nothing is lost."""
    chance = torch.Generator().manual_seed(0)
    known, new = (torch.randint(2, (4000, 1, 2, 2), generator=chance).float() * 2 - 1 for _ in range(2))
    found = stored(Same(), known, new, 2.0)  # the deviation is one: the two values are one step apart
    assert found.bits == pytest.approx(4, abs=0.05)
    finer = stored(Same(), known, new, 0.01)
    assert finer.psnr > 45 and finer.bits < 4.6, "empty values of the table cost little"


def test_a_uniform_number_costs_the_logarithm_of_its_steps() -> None:
    chance = torch.Generator().manual_seed(0)
    known, new = (torch.rand(20_000, 1, 2, 2, generator=chance) * 2 - 1 for _ in range(2))
    found = stored(Same(), known, new, 0.1)
    width = 0.1 * math.sqrt(1 / 3)
    assert found.bits == pytest.approx(4 * math.log2(2 / width), rel=0.01)
    assert found.psnr == pytest.approx(10 * math.log10(4 / (width**2 / 12)), abs=0.1)


def test_a_picture_far_from_all_others_costs_more_but_is_stored() -> None:
    known = torch.randn(500, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found = stored(Same(), known, known[:1] * 0 + 50, 0.1)
    assert found.bits > 4 * 16 and found.psnr > 10 * math.log10(4 / 0.055**2), "no pixel is off by more than half a step"


def test_fewer_bits_for_less_quality() -> None:
    chance = torch.Generator().manual_seed(0)
    known, new = (torch.randn(2000, 1, 2, 2, generator=chance) * 0.3 for _ in range(2))
    rough, fine = stored_at(Same(), known, new, 25), stored_at(Same(), known, new, 35)
    assert rough.psnr == pytest.approx(25, abs=0.05) and fine.psnr == pytest.approx(35, abs=0.05)
    # ten decibels are a factor of sqrt(10) in the step: 1.66 bits for each of four numbers
    assert fine.bits - rough.bits == pytest.approx(4 * math.log2(math.sqrt(10)), abs=0.4)
    pixels, _ = on_a_plane(50, 0)
    with pytest.raises(UsageError, match=r"dB at most, a PSNR of 60 dB was asked for"):
        stored_at(principal(pixels, 1), pixels, pixels, 60)
    with pytest.raises(UsageError, match="a step must be positive, found 0"):
        stored(Same(), known, new, 0)


@pytest.mark.parametrize("name", ["autoencoder/tiny", "vae/tiny"])
def test_networks_are_coders(name: str) -> None:
    network = zoo.create(name).eval()
    assert isinstance(network, Autoencoder)
    pixels = torch.zeros(3, 1, 16, 16)
    assert misfit(network, pixels).shape == (3,) and encoded(network, pixels).shape == (3, 16)
