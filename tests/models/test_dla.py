"""Deep layer aggregation: what a root joins, odd sizes, published projections that nothing uses."""

from __future__ import annotations

import pytest
import torch
from papers import new, on_meta

from opticus import zoo
from opticus.models.backbones.dla import DLA, Config, Tree
from opticus.structures import UsageError


def test_roots_join_what_figure_3_draws() -> None:
    """A tree of three levels that passes its input on: its last root joins two blocks, the input, and every earlier subtree."""
    config = Config(block="basic")
    tree = Tree(config, 3, 8, 16, stride=2, passes=True)
    widths = {name: m.conv.in_channels for name, m in tree.named_modules() if type(m).__name__ == "Root"}
    assert widths == {
        "tree1.tree1.root": 2 * 16,
        "tree1.tree2.root": 2 * 16 + 16,
        "tree2.tree1.root": 2 * 16,
        "tree2.tree2.root": 2 * 16 + 8 + 16 + 16,
    }
    assert {name.rpartition("project")[0] for name, _ in tree.named_parameters() if "project" in name} == {"tree1.tree1."}


def test_thirty_four_layers() -> None:
    """DLA-34: stem and two stages, twelve blocks of two convolutions, six roots, the classifier."""
    kinds = [type(m).__name__ for m in on_meta("dla/34").modules()]
    assert (kinds.count("Basic"), kinds.count("Root")) == (12, 6) and 3 + 2 * 12 + 6 + 1 == 34


@pytest.mark.parametrize("size", [(33, 47), (64, 50)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    network = new("dla/34", classes=0).eval()
    assert isinstance(network, DLA)
    with torch.no_grad():
        maps = network.features(torch.randn(1, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in (1, 2, 4, 8, 16, 32)]


@pytest.mark.parametrize("changes", [{"levels": (1, 1)}, {"levels": (1, 1, 1, 2, 0, 1)}, {"widths": (8, 8)}])
def test_settings_that_are_no_tree(changes: dict[str, object]) -> None:
    with pytest.raises(
        UsageError, match="expected as many levels as widths, at least three, all of depth 1 or more, found levels="
    ):
        zoo.build("dla/34", Config(**changes))  # type: ignore[arg-type]
