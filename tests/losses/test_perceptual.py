"""LPIPS against recorded figures of the authors' package (richzhang/PerceptualSimilarity at 082bb24), and feature distances by hand."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.losses.perceptual import LPIPS, FeatureDistance, linear_weights, unit
from opticus.parity.fill import fill, pixels_of
from opticus.structures import CapabilityError, UsageError, WeightsError
from opticus.weights.load import load_into

# VGG-16 and the linear weights (their absolute values) filled by formula under the published names, float64
PICTURES = [pixels_of((2, 3, 32, 48), seed) * 0.5 for seed in (1, 2)]
LEARNED = [0.14849738768833343, 0.14520581240500222]
PLAIN = [1.538681309113407, 1.5018273608080153]
SQUARED = [0.37331515432391066, 0.37718939758859055]  # the sum over the five maps of their mean squared differences
WIDTHS = (64, 128, 256, 512, 512)


@functools.cache
def vgg() -> nn.Module:
    network = zoo.create("vgg/16", classes=0, hidden=0)
    shapes = {k.replace("trunk", "features"): tuple(v.shape) for k, v in network.state_dict().items()}
    load_into(network, {k: fill(k, shape) for k, shape in shapes.items()}, zoo.paper("vgg").FORMATS["torchvision"])
    return network.double()


def published(folder: Path) -> Path:
    """A file with the layout of lpips/weights/v0.1/vgg.pth."""
    keys = [(f"lin{i}.model.1.weight", (1, width, 1, 1)) for i, width in enumerate(WIDTHS)]
    torch.save({key: fill(key, shape).abs() for key, shape in keys}, folder / "vgg.pth")
    return folder / "vgg.pth"


def test_lpips_equals_the_authors(tmp_path: Path) -> None:
    torch.testing.assert_close(
        LPIPS(vgg(), published(tmp_path))(*PICTURES).tolist(), LEARNED, rtol=1e-6, atol=0
    )  # weights are float32
    exact = [fill(f"lin{i}.model.1.weight", (1, width, 1, 1)).abs() for i, width in enumerate(WIDTHS)]
    distance = LPIPS(vgg(), exact)
    for mine, weight in zip(distance.linear, exact):
        mine.data = weight.flatten()
    torch.testing.assert_close(distance(*PICTURES).tolist(), LEARNED, rtol=1e-10, atol=0)
    torch.testing.assert_close(LPIPS(vgg())(*PICTURES).tolist(), PLAIN, rtol=1e-10, atol=0)


def test_feature_distance_is_the_sum_over_the_maps() -> None:
    torch.testing.assert_close(FeatureDistance(vgg(), weights=(1,) * 5)(*PICTURES).tolist(), SQUARED, rtol=1e-10, atol=0)
    one = FeatureDistance(vgg(), weights=(0, 0, 2), absolute=True)(*PICTURES)
    a, b = (FeatureDistance(vgg()).trunk(x)[2] for x in PICTURES)
    torch.testing.assert_close(one, 2 * (a - b).abs().mean((1, 2, 3)))


def test_the_same_picture_has_no_distance_and_the_gradient_is_finite() -> None:
    for distance in (LPIPS(vgg()), FeatureDistance(vgg())):
        picture = PICTURES[0].clone().requires_grad_()
        assert distance(picture, PICTURES[0]).tolist() == [0, 0]
        distance(picture, PICTURES[1]).sum().backward()
        assert picture.grad is not None and bool(torch.isfinite(picture.grad).all()) and bool(picture.grad.abs().sum() > 0)
        assert not distance.train().trunk.training, "what measures does not learn"
        assert not any(p.requires_grad for p in distance.parameters())


def test_grey_pictures_are_looked_at_as_colour_ones() -> None:
    grey = [x[:, :1] for x in PICTURES]
    torch.testing.assert_close(LPIPS(vgg())(*grey), LPIPS(vgg())(*(x.expand(-1, 3, -1, -1) for x in grey)))


def test_a_dead_place_has_no_direction_and_no_infinite_gradient() -> None:
    maps = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    maps[0, :, 0, 1] = torch.tensor([3.0, 0, 4])
    maps.requires_grad_()
    vectors = unit(maps)
    assert vectors[0, :, 0, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(vectors[0, :, 0, 1].tolist(), [0.6, 0, 0.8])
    vectors[..., 1].sum().backward()
    assert maps.grad is not None and bool(torch.isfinite(maps.grad).all())


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="Linear has none"):
        LPIPS(nn.Linear(2, 2))
    with pytest.raises(CapabilityError, match="the distance needs 7"):
        LPIPS(vgg(), levels=7)
    with pytest.raises(UsageError, match="of one shape"):
        LPIPS(vgg())(PICTURES[0], PICTURES[1][:1])
    with pytest.raises(UsageError, match="1 or 3 channels, found 2"):
        LPIPS(vgg())(*(x[:, :2] for x in PICTURES))
    with pytest.raises(UsageError, match="not all 0"):
        FeatureDistance(vgg(), weights=(0, 0))
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: expected LPIPS's linear weights"):
        linear_weights(tmp_path / "other.pth")
    short: list[Tensor] = [torch.ones(width) for width in (*WIDTHS[:4], 100)]
    with pytest.raises(WeightsError, match=r"512\] channels, the linear weights are for \[64, 128, 256, 512, 100\]"):
        LPIPS(vgg(), short)
