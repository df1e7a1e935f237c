"""ConvMixer: equations 2 and 3, any input size, the authors' numbered keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.convmixer import FORMATS, ConvMixer
from opticus.parity.fill import fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.structures import UsageError
from opticus.verbs.models import load

SMALL = {"width": 24, "depth": 2, "kernel": 5, "patch": 7, "classes": 5}


def small(**changes: object) -> ConvMixer:
    network = zoo.create("convmixer/1536_20", **{**SMALL, **changes})
    assert isinstance(network, ConvMixer)
    return network


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_equations_2_and_3(activation: str) -> None:
    layer = small(activation=activation).blocks[0].double().train()
    z = torch.randn(3, 24, 6, 5, dtype=torch.float64)
    act = {"gelu": F.gelu, "relu": F.relu}[activation]
    with torch.no_grad():
        inner = act(F.conv2d(z, layer.depthwise.weight, layer.depthwise.bias, padding=2, groups=24))
        inner = F.batch_norm(inner, None, None, training=True) + z
        outer = act(torch.einsum("oi,bihw->bohw", layer.pointwise.weight[:, :, 0, 0], inner) + layer.pointwise.bias[:, None, None])
        torch.testing.assert_close(layer(z), F.batch_norm(outer, None, None, training=True))


def test_sides_between_patches_are_padded() -> None:
    network = small().eval()
    pixels = torch.randn(1, 3, 30, 45)
    with torch.no_grad():
        (found,), (padded,) = network.features(pixels), network.features(F.pad(pixels, (0, 4, 0, 5)))
    assert found.shape == (1, 24, 5, 7)
    torch.testing.assert_close(found, padded)


def test_the_authors_numbers_and_timms_names_are_the_same_network(tmp_path: Path) -> None:
    """Layers are 3, 4, ... of the sequence, and the head is the last number, whatever the depth."""
    shapes = unfold(next(case for case in record("convmixer")["tiny"] if case["name"] == "locuslab")["state"])
    values = fill_state(shapes, torch.float32)
    torch.save({"state_dict": values, "epoch": 149, "arch": "convmixer"}, tmp_path / "model.pth.tar")
    state = load("convmixer/1536_20", tmp_path / "model.pth.tar", **SMALL).state_dict()
    assert torch.equal(state["blocks.1.depthwise.weight"], values["4.0.fn.0.weight"])
    assert torch.equal(state["blocks.0.norm2.running_var"], values["3.3.running_var"])
    assert torch.equal(state["head.weight"], values["7.weight"])
    renamed = {
        "stem.0.weight": values["0.weight"],
        "blocks.1.0.fn.0.weight": values["4.0.fn.0.weight"],
        "blocks.0.3.bias": values["3.3.bias"],
        "head.bias": values["7.bias"],
    }
    found = FORMATS["timm"].apply(renamed).state
    assert found.keys() == {"stem.conv.weight", "blocks.1.depthwise.weight", "blocks.0.norm2.bias", "head.bias"}
    assert all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize(("variant", "millions"), [("1536_20", 51.6), ("768_32", 21.1), ("1024_20", 24.4)])
def test_table_1(variant: str, millions: float) -> None:
    assert sum(p.numel() for p in zoo.meta(f"convmixer/{variant}").parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"kernel must be odd.*found 4"):
        small(kernel=4)
