"""BiT: weight standardisation, TensorFlow's pooling border, published files, the hyper-rule."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.bit import WEIGHTS, BiT, StdConv
from opticus.recipes.bit import default
from opticus.structures import Classes, Picture, Sample, UsageError


def test_kernels_are_standardised() -> None:
    """1903.10520: every output channel's kernel has mean 0 and variance 1, eps inside the root."""
    conv = StdConv(5, 7, 3, 2, eps=1e-3).double()
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    w = conv.weight.detach().numpy()
    centred = w - w.mean(axis=(1, 2, 3), keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=(1, 2, 3), keepdims=True) + 1e-3)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), F.conv2d(x, torch.from_numpy(expected), None, 2, 1))


def test_the_scale_and_offset_of_kernels_do_not_matter() -> None:
    conv = StdConv(5, 7, 3, eps=1e-10).double().train()
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        before = conv(x)
        conv.weight.mul_(torch.rand(7, 1, 1, 1, dtype=torch.float64) + 0.5).add_(3.0)
        torch.testing.assert_close(conv(x), before, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(conv.eval()(x), conv.train()(x), rtol=0, atol=0)


def test_pooling_sees_zeros_around_the_map() -> None:
    """Where all is negative, the maximum at the border is the zero of the padding; PyTorch's own padding would be ignored."""
    root = cast(BiT, zoo.create("bit/50x1", width=32)).root.eval()
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32)
        convolved = root.conv(x)
        out = root(x)
        assert torch.equal(out, F.max_pool2d(F.pad(convolved, (1, 1, 1, 1)), 3, 2))
        assert bool((out[:, :, 0] >= 0).all()) and bool((out[:, :, 1:, 1:] < 0).any())


def test_shortcuts_are_projected_where_the_shape_changes() -> None:
    network = cast(BiT, zoo.meta("bit/50x3"))
    assert (network.strides, network.widths) == ((4, 8, 16, 32), (768, 1536, 3072, 6144))
    projected = [(i, j) for i, block in enumerate(network.blocks) for j, unit in enumerate(block) if unit.downsample is not None]
    assert projected == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [len(cast(Any, block)) for block in network.blocks] == [3, 4, 6, 3]


def test_files_for_21k_classes_say_so() -> None:
    rows = {key: row for key, row in WEIGHTS.items() if key.endswith(":m")}
    assert len(rows) == 6 and all(row.classes == 21843 for row in rows.values())
    assert all(row.classes is None for key, row in WEIGHTS.items() if not key.endswith(":m"))


class Sized:
    """A data set of which only its length and its first picture are looked at."""

    def __init__(self, length: int, side: int) -> None:
        self.length = length
        self.sample = Sample(
            inputs={"image": Picture(torch.zeros(side, side, 3, dtype=torch.uint8))}, target=Classes(torch.tensor([0])), id="first"
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.sample


@pytest.mark.parametrize(
    ("length", "side", "steps", "size", "mixed"),
    [
        (19_999, 32, 500, 128, False),
        (50_000, 32, 10_000, 128, True),
        (20_000, 224, 10_000, 480, True),
        (1_281_167, 96, 20_000, 480, True),
    ],
)
def test_hyper_rule(length: int, side: int, steps: int, size: int, mixed: bool) -> None:
    """Section 2.2: length and mix-up follow from the number of pictures, the resolution from their area."""
    recipe = default("bit/50x1", cast(Any, Sized(length, side)))
    assert recipe.steps == steps and recipe.changes["size"] == size
    assert any(type(t).__name__ == "MixUp" for t in recipe.transforms) is mixed
    assert cast(BiT, zoo.meta("bit/50x1", zoo.config_of("bit/50x1", recipe.changes))).prepare.size == (size, size)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="width 48 must be a multiple of groups 32"):
        zoo.create("bit/50x1", width=48)
