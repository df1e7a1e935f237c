"""FF-only: which axis is mixed and normalised where, and its positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.ffonly import FFOnly
from opticus.structures import UsageError
from opticus.verbs.models import load

SMALL = {"size": 32, "patch": 8, "width": 24, "depth": 2, "mlp": 2.0, "positions": 4, "classes": 5}


def small(**changes: object) -> FFOnly:
    network = zoo.create("ffonly/b16", **{**SMALL, **changes})
    assert isinstance(network, FFOnly)
    return network


def test_the_block_feeds_features_first_and_tokens_second() -> None:
    """The second layer is normalised along the tokens: adding a constant to one feature of every token leaves its branch alone."""
    torch.manual_seed(0)
    block = small().blocks[0].double()
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.nn.init.zeros_(block.mlp1.fc2.weight)  # the first branch adds nothing
        out = block(x)
        shift = torch.zeros(24, dtype=torch.float64)
        shift[3] = 5.0
        torch.testing.assert_close(block(x + shift), out + shift)
        torch.nn.init.zeros_(block.mlp2.fc2.weight)
        assert torch.equal(block(x), x)


def test_positions_follow_the_grid_of_the_patches() -> None:
    network = small(positions=7)
    with torch.no_grad():
        found = network.pos_encoding(4)
        grid = F.interpolate(network.pos_encoding.pos_embed, size=(4, 4), mode="bilinear", align_corners=False)
    assert found.shape == (1, 17, 24)
    assert torch.equal(found[:, 0], network.pos_encoding.cls_pos_embed[:, 0])
    assert torch.equal(found[:, 1:].transpose(1, 2).reshape(grid.shape), grid)


def test_large_keeps_the_finer_grid_of_positions() -> None:
    network = zoo.meta("ffonly/l32")
    assert isinstance(network, FFOnly)
    assert network.patch_embed.grid == 7 and network.pos_encoding.pos_embed.shape == (1, 1024, 14, 14)


def test_a_training_checkpoint_of_deit_loads(tmp_path: Path) -> None:
    """The published files are DeiT's checkpoints: the network under "model", beside optimiser, epoch and arguments."""
    state = small().state_dict()
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 299}, tmp_path / "linear.pth")
    network = load("ffonly/b16", tmp_path / "linear.pth", **SMALL)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())


def test_other_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"must be 32x32 pixels.*found 40x32"):
        small()(torch.zeros(1, 3, 40, 32))
