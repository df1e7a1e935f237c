"""Patches of pictures of one size: their order, and the refusal of other sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opticus.layers.fixed_patches import FixedPatches
from opticus.structures import UsageError


def test_tokens_are_the_patches_row_by_row_and_go_back_to_their_places() -> None:
    patches = FixedPatches(1, 1, patch=2, size=6)
    nn.init.constant_(patches.proj.weight, 0.25)
    nn.init.zeros_(patches.proj.get_parameter("bias"))
    pixels = torch.arange(36.0).reshape(1, 1, 6, 6)
    tokens = patches(pixels)
    means = [float(pixels[0, 0, y : y + 2, x : x + 2].mean()) for y in (0, 2, 4) for x in (0, 2, 4)]
    assert tokens.flatten().tolist() == means and (patches.tokens, patches.grid) == (9, 3)
    assert torch.equal(patches.as_map(tokens), torch.nn.functional.avg_pool2d(pixels, 2))


def test_other_sizes_are_refused_by_name() -> None:
    patches = FixedPatches(3, 4, patch=4, size=8)
    for shape in ((8, 12), (12, 8), (16, 16), (4, 4)):
        with pytest.raises(UsageError, match=f"must be 8x8 pixels.* 4 patches.* found {shape[0]}x{shape[1]}"):
            patches(torch.zeros(1, 3, *shape))
    for size, patch in ((9, 4), (2, 4), (8, 0)):
        with pytest.raises(UsageError, match=f"size {size} must be a positive multiple of patch {patch}"):
            FixedPatches(3, 4, patch=patch, size=size)
