"""Recipes for SRResNet and SRGAN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from opticus.structures import Backbone, CapabilityError, Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.pairs import CropPair, FlipPair

# PSNR in dB and SSIM on the Y channel of 4x enlargements (paper, table 2)
PUBLISHED = "published at 4x: SRResNet 32.05 dB / 0.9019 on Set5, 28.49 / 0.8184 on Set14, 27.58 / 0.7620 on BSD100"


def default(model: str, data: Dataset) -> Recipe:
    """Patches of photographs for "tiny"; the paper's training of SRResNet for the others."""
    return small(model) if model.endswith("/tiny") else published(model)


def small(model: str) -> Recipe:
    """Photograph patches at half their size, from 16x16 pixels to 32x32, the squared error of pixels."""
    return Recipe(
        model,
        "x2:patches",
        transforms=(CropPair((16, 16)), FlipPair(vertical=0.5, turn=0.5)),
        batch=16,
        steps=3000,
        optim={"all": Optim("adam", lr=3e-3, weight_decay=0.0, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.01),),
        average=0.99,
        precision="bf16",
        workers=1,
        evaluate_every=0,
        note="SRResNet's loss; minutes on one core; patches of other photographs than those it is tried on",
    )


def adversarial(model: str, weights: str, features: Any = None, steps: int = 600) -> Recipe:
    """SRGAN on photograph patches: the generator starts at `weights`, those of an SRResNet (section 3.2).

    Without `features` (a function from pictures to feature maps, such as a trained VGG's) the content loss stays that of pixels.
    """
    rule = Optim("adam", lr=2e-4, weight_decay=0.0)
    return Recipe(
        model,
        "x2:patches",
        options={"adversarial": 1e-3, "features": features, "width": 16, "hidden": 128, "pool": 2},
        transforms=(CropPair((16, 16)), FlipPair(vertical=0.5, turn=0.5)),
        batch=16,
        steps=steps,
        optim={"d": rule, "g": rule},
        schedules=(Schedule("linear", start=1.0, end=0.1),),
        average=0.99,
        precision="bf16",
        workers=1,
        evaluate_every=0,
        note=f"SRGAN after {weights}; with pixels as content the paper calls it SRGAN-MSE",
    )


def vgg54(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """`features` of the paper's best SRGAN: the last maps before the fifth pooling of a trained VGG-19 (eq. 5, phi_5,4).

    Such as `adversarial("srgan/x4", "...", vgg54(opticus.load("vgg/19:imagenet1k_v1")))`; CapabilityError without five maps.
    """
    if not isinstance(network, Backbone) or len(network.widths) < 5:
        raise CapabilityError(f"srgan: a network with five feature maps is needed, such as vgg/19, found {type(network).__name__}")
    network.eval().requires_grad_(False)
    return lambda pixels: network.features(pixels)[4]


def published(model: str) -> Recipe:
    """The paper's: a million steps of sixteen 96x96 crops, Adam with 1e-4, the squared error of pixels."""
    return Recipe(
        model,
        "",
        transforms=(CropPair((24, 24)),),
        batch=16,
        steps=1_000_000,
        optim={"all": Optim("adam", lr=1e-4, weight_decay=0.0, betas=(0.9, 0.999))},
        schedules=(Schedule("constant"),),
        evaluate_every=0,
        workers=8,
        note=f"Ledig et al. 2017, section 3.2, on 350,000 pictures of ImageNet; {PUBLISHED}; then SRGAN: 1e5 steps at 1e-4 and 1e5 at "
        "1e-5 with adversarial=1e-3 and VGG-19's last maps as features; not run here",
    )
