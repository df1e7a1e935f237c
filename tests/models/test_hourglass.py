"""The stacked hourglass: its depth, sizes that levels do not halve without a rest, what the links between stacks carry."""

from __future__ import annotations

import pytest
import torch
from papers import new, on_meta
from torch import nn

from opticus import zoo
from opticus.models.backbones.hourglass import Config, Hourglass, StackedHourglass
from opticus.structures import UsageError


def test_the_longest_way_has_a_hundred_and_four_convolutions() -> None:
    """What gives it its name: stem, down every level, through the middle and up again, in two stacks with the link between them."""
    network = on_meta("hourglass/104")
    assert isinstance(network, StackedHourglass)
    assert network.strides == (4, 4) and network.widths == (256, 256)

    def convolutions(module: nn.Module) -> int:
        kernels = {name: m.kernel_size[0] for name, m in module.named_modules() if isinstance(m, nn.Conv2d)}
        return sum(kernel > 1 and "up1" not in name for name, kernel in kernels.items())  # projections are beside the way

    assert convolutions(network.kps[0]) == 5 * 2 * (2 + 2) + 4 * 2  # two 3x3 a block
    link = convolutions(network.inters) + len(network.cnvs_)  # the link's own 1x1 is on the way
    assert convolutions(network.pre) + convolutions(network.kps) + convolutions(network.cnvs) + link == 104


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (33, 65)])
def test_any_size_keeps_its_maps(size: tuple[int, int]) -> None:
    network = new("hourglass/tiny", classes=0).eval()
    assert isinstance(network, StackedHourglass)
    with torch.no_grad():
        maps = network.features(torch.randn(1, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(1, 64, -(-size[0] // 4), -(-size[1] // 4))] * 2


def test_the_second_stack_sees_the_first() -> None:
    network = new("hourglass/tiny").eval()
    assert isinstance(network, StackedHourglass)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = network.features(x)
        nn.init.zeros_(network.get_parameter("cnvs_.0.0.weight"))
        after = network.features(x)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_the_middle_reaches_everywhere() -> None:
    """A change in one corner of the input reaches the opposite corner of an hourglass's map: its middle is one place wide."""
    hourglass = Hourglass((8, 8, 8, 8), (1, 1, 1, 1)).eval()
    x = torch.randn(1, 8, 16, 16)
    y = x.clone()
    y[..., 0, 0] += 5
    with torch.no_grad():
        assert float((hourglass(x) - hourglass(y))[..., -1, -1].abs().max()) > 0


@pytest.mark.parametrize("changes", [{"widths": (8,), "depths": (1,)}, {"depths": (1, 1)}, {"stacks": 0}])
def test_settings_that_are_no_hourglass(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected at least two widths, as many depths and at least one stack, found widths="):
        zoo.build("hourglass/104", Config(**changes))  # type: ignore[arg-type]
