"""Swin: shifted windows are the partition of figure 2, relative positions, shapes of the paper, files for another window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from opticus import zoo
from opticus.models.backbones.swin import FORMATS, POSITIONS, WEIGHTS, Block, Config, Swin, WindowAttention
from opticus.parity.fill import fill_module, fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.structures import UsageError, WeightsError
from opticus.verbs.models import load
from opticus.weights.load import load_into

SMALL = {"size": 64, "width": 12, "depths": (2, 2), "heads": (2, 3), "window": 4, "classes": 5}


def small(**changes: object) -> Swin:
    network = zoo.create("swin/t", **{**SMALL, **changes})
    assert isinstance(network, Swin)
    return network


def test_relative_positions_are_the_offsets_of_section_3_2() -> None:
    """B is taken from a (2M - 1) x (2M - 1) table by the offset of the query from the key."""
    window = 3
    attn = WindowAttention(8, 2, window)
    table = torch.nn.init.normal_(attn.relative_position_bias_table)  # the network initialises it, the part alone does not
    bias = attn.bias().reshape(2, window, window, window, window)
    for y in range(window):
        for x in range(window):
            for v in range(window):
                for u in range(window):
                    entry = (y - v + window - 1) * (2 * window - 1) + (x - u + window - 1)
                    assert torch.equal(bias[:, y, x, v, u], table[entry])


def literal(block: Block, x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Eq. 4 over the whole map, position by position, where a window is what figure 2 draws: pieces at the borders included."""
    attn, window = block.attn, block.window
    _, height, width, channels = x.shape
    q, k, v = attn.qkv(x[0]).reshape(height, width, 3, attn.heads, -1).unbind(2)
    out = torch.zeros(height, width, channels, dtype=x.dtype)
    for y in range(height):
        for c in range(width):
            mine = ((y - shift[0]) // window, (c - shift[1]) // window)
            near = [
                (r, s) for r in range(height) for s in range(width) if ((r - shift[0]) // window, (s - shift[1]) // window) == mine
            ]
            heads: list[Tensor] = []
            for h in range(attn.heads):
                row = [(y - r + window - 1) * (2 * window - 1) + (c - s + window - 1) for r, s in near]
                scores = torch.stack([q[y, c, h] @ k[r, s, h] for r, s in near]) / q.shape[-1] ** 0.5
                weights = torch.softmax(scores + attn.relative_position_bias_table[row, h], 0)
                heads.append(weights @ torch.stack([v[r, s, h] for r, s in near]))
            out[y, c] = torch.cat(heads)
    return attn.proj(out)[None]


@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (0, 2)])
def test_cyclic_shift_with_its_mask_is_the_shifted_partition(shift: tuple[int, int]) -> None:
    network = small().double()
    fill_module(network)
    stage = network.layers[0]
    x = torch.randn(1, 8, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        mask = stage.mask(x, (8, 12), shift) if any(shift) else None
        torch.testing.assert_close(stage.blocks[0].attend(x, shift, mask), literal(stage.blocks[0], x, shift))


def test_windows_are_shifted_in_every_other_block_only() -> None:
    """Eq. 3: W-MSA, then SW-MSA. Without the shift nothing crosses from one window into its neighbour."""
    stage = small(depths=(2,), heads=(2,)).double().eval().layers[0]
    x = torch.randn(1, 8, 8, 12, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(stage.blocks[0](x)[0, 0, 0].sum(), x)
    assert bool((seen[0, :4, :4] != 0).any(-1).all())
    assert not seen[0, 4:].any() and not seen[0, :, 4:].any()
    (seen,) = torch.autograd.grad(stage(x)[0][0, 3, 3].sum(), x)
    assert bool((seen != 0).any(-1).all()), "two blocks connect four windows"


def test_one_window_is_not_shifted() -> None:
    """A map that one window covers along an axis stays in place there; the table still serves maps smaller than a window."""
    network = small().double().eval()
    stage = network.layers[0]
    for size in ((4, 4), (3, 4), (2, 2)):
        x = torch.randn(1, *size, 12, dtype=torch.float64)
        with torch.no_grad():
            plain = stage.blocks[1](stage.blocks[0](x))
            torch.testing.assert_close(stage(x)[0], plain)


@pytest.mark.parametrize(("variant", "width"), [("t", 96), ("s", 96), ("b", 128), ("l", 192)])
def test_stages_have_the_shapes_of_table_7(variant: str, width: int) -> None:
    network = zoo.meta(f"swin/{variant}")
    assert isinstance(network, Swin)
    assert (network.strides, network.widths) == ((4, 8, 16, 32), (width, 2 * width, 4 * width, 8 * width))
    maps = network.features(torch.empty(1, 3, 224, 224, device="meta"))
    assert [tuple(x.shape) for x in maps] == [(1, width << i, 56 >> i, 56 >> i) for i in range(4)]


def test_padding_does_not_move_what_needs_none() -> None:
    """A picture that fills whole windows gives the same whether its size is the network's or not."""
    network = small().eval()
    other = small(size=96).eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x))
        assert network(torch.randn(1, 3, 37, 50)).shape == (1, 5)


def test_a_file_for_one_window_loads_at_another(tmp_path: Path) -> None:
    """Section 3.2: the tables are resampled bicubically, everything else is untouched; without being asked for, it is refused."""
    before = small()
    torch.save({"model": before.state_dict()}, tmp_path / "swin.pth")
    after = load("swin/t", tmp_path / "swin.pth", **{**SMALL, "window": 6})
    ours, theirs = before.state_dict(), after.state_dict()
    for key, tensor in ours.items():
        if key.endswith("relative_position_bias_table"):
            assert tensor.shape[0] == 7**2 and theirs[key].shape[0] == 11**2
            grids = [t.reshape(side, side, -1) for t, side in ((tensor, 7), (theirs[key], 11))]
            torch.testing.assert_close(grids[1][5, 5], grids[0][3, 3])  # the offset 0
        else:
            assert torch.equal(tensor, theirs[key])
    with pytest.raises(WeightsError, match="relative_position_bias_table"):
        load_into(small(window=6), ours, FORMATS["microsoft"])


def test_every_table_of_every_variant_can_be_resized() -> None:
    for variant in ("t", "s", "b", "l", "b_384", "l_384"):
        tables = {key for key in zoo.meta(f"swin/{variant}").state_dict() if key.endswith("relative_position_bias_table")}
        assert tables <= set(POSITIONS)


def test_indices_and_masks_in_files_are_dropped_and_never_saved() -> None:
    shapes = unfold(record("swin")["manifests"]["microsoft"]["t"]["keys"])
    stored = {key for key in shapes if key.endswith(("relative_position_index", "attn_mask"))}
    assert len(stored) == 12 + 1 + 1 + 3, "an index for every block, a mask for every shifted one outside the last stage"
    done = load_into(zoo.meta("swin/t"), fill_state(shapes, torch.float32), FORMATS["microsoft"])
    assert set(done.dropped) == stored
    assert not any("index" in key or "mask" in key for key in small().state_dict())


def test_timm_merges_at_the_beginning_of_a_stage() -> None:
    shapes = unfold(record("swin")["manifests"]["timm"]["t"]["keys"])
    renamed = FORMATS["timm"].apply({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert renamed.sources["layers.0.downsample.reduction.weight"] == ("layers.1.downsample.reduction.weight",)
    assert renamed.state["layers.0.downsample.reduction.weight"].shape == (192, 384)


def test_files_for_22k_classes_say_so() -> None:
    rows = {key: row for key, row in WEIGHTS.items() if key.endswith(":in22k")}
    assert len(rows) == 6 and all(row.classes == 21841 and row.url.endswith("22k.pth") for row in rows.values())


def test_drop_path_grows_with_depth_and_acts_in_training_only() -> None:
    torch.manual_seed(0)
    network, plain = small(drop_path=0.6), small()
    rates = [getattr(block.drop_path, "rate", 0.0) for stage in network.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6])
    plain.load_state_dict(network.state_dict())
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network.train()(x))
        torch.testing.assert_close(network.eval()(x), plain.eval()(x))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="width 24 of stage 2 must be a multiple of its 5 heads"):
        small(heads=(2, 5))
    with pytest.raises(UsageError, match="one number for every stage"):
        Swin(Config(depths=(2, 2)))
