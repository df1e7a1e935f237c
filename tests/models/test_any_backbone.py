"""Any backbone under any detector with a `backbone` part: it finds boxes on a picture, or a sentence says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import opticus
from opticus import zoo
from opticus.structures import CapabilityError, Error, Instances, Part, UsageError

BACKBONES = (
    "resnet/18",
    "resnet/tiny",
    "vgg/tiny",
    "vit/tiny",
    "swin/tiny",
    "convnext/tiny",
    "efficientnet/tiny",
    "googlenet/tiny",
    "mixer/tiny",
    "lenet/5",
)

OWN_KIND = ("rfcn/tiny",)  # wants a last stage that is dilated, which no variant has by itself


def detectors() -> list[str]:
    """The small variant of every detector that is built on a part called backbone."""
    found: list[str] = []
    for stem in zoo.paper_files():
        module = zoo.paper(stem)
        if module.TASK == "detect" and isinstance(getattr(module.VARIANTS.get("tiny"), "backbone", None), Part):
            found.append(f"{stem}/tiny")
    return found


def looked(detector: str, backbone: str, picture: torch.Tensor) -> Any:
    """What the detector finds on the picture, or the error of opticus that says why it cannot."""
    try:
        model: Any = opticus.create(detector, backbone=backbone)
        return model.predict(picture)[0].result
    except Error as error:
        return error


@pytest.mark.parametrize("detector", detectors())
def test_a_backbone_works_or_says_why_not(detector: str) -> None:
    picture = torch.randint(0, 255, (90, 128, 3), dtype=torch.uint8)
    worked: list[str] = []
    for name in BACKBONES:
        torch.manual_seed(0)
        found = looked(detector, name, picture)
        if isinstance(found, Error):
            assert isinstance(found, CapabilityError | UsageError) and len(str(found).splitlines()) == 1, f"{name}: {found}"
        else:
            assert isinstance(found, Instances)
            worked.append(name)
    assert worked or detector in OWN_KIND, f"{detector} took none of {BACKBONES}"
