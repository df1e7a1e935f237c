"""MLP-Mixer: equation 1, the sizes of table 1, the authors' files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.mixer import Mixer
from opticus.parity.fill import fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.structures import UsageError
from opticus.verbs.info import receptive_field
from opticus.verbs.models import load

SMALL = {"size": 32, "patch": 8, "width": 24, "depth": 2, "tokens": 12, "hidden": 72, "classes": 5}


def small(**changes: object) -> Mixer:
    network = zoo.create("mixer/b16", **{**SMALL, **changes})
    assert isinstance(network, Mixer)
    return network


def test_equation_1() -> None:
    """U = X + W2 gelu(W1 norm(X)) for every column, Y = U + W4 gelu(W3 norm(U)) for every row."""
    layer = small().blocks[0].double()
    x = torch.randn(1, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        (w1, b1), (w2, b2) = ((fc.weight, fc.bias) for fc in (layer.token_mixing.fc1, layer.token_mixing.fc2))
        u, normed = x.clone(), layer.norm1(x)
        for i in range(24):
            u[0, :, i] += w2 @ F.gelu(w1 @ normed[0, :, i] + b1) + b2
        (w3, b3), (w4, b4) = ((fc.weight, fc.bias) for fc in (layer.channel_mixing.fc1, layer.channel_mixing.fc2))
        y, normed = u.clone(), layer.norm2(u)
        for j in range(16):
            y[0, j] += w4 @ F.gelu(w3 @ normed[0, j] + b3) + b4
        torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize(
    ("variant", "layers", "sequence", "width", "hidden", "tokens", "millions"),
    [
        ("s32", 8, 49, 512, 2048, 256, 19),
        ("s16", 8, 196, 512, 2048, 256, 18),
        ("b32", 12, 49, 768, 3072, 384, 60),
        ("b16", 12, 196, 768, 3072, 384, 59),
        ("l32", 24, 49, 1024, 4096, 512, 206),
        ("l16", 24, 196, 1024, 4096, 512, 207),
        ("h14", 32, 256, 1280, 5120, 640, 431),
    ],
)
def test_table_1(variant: str, layers: int, sequence: int, width: int, hidden: int, tokens: int, millions: int) -> None:
    network = zoo.meta(f"mixer/{variant}")
    config = zoo.config_of(f"mixer/{variant}")
    assert isinstance(network, Mixer)
    assert (len(network.blocks), network.stem.tokens, config.width) == (layers, sequence, width)
    assert (config.hidden, config.tokens) == (hidden, tokens)
    assert abs(sum(p.numel() for p in network.parameters()) / 1e6 - millions) < 1.5


def test_other_sizes_are_refused() -> None:
    network = small().eval()
    for call in (network, network.embed, network.features):
        with pytest.raises(UsageError, match=r"must be 32x32 pixels.*found 32x40"):
            call(torch.zeros(1, 3, 32, 40))
    assert receptive_field(network) is None  # it sees the whole picture, whatever that is


def test_stochastic_depth_grows_from_the_first_mlp_to_the_last() -> None:
    network = small(drop_path=0.3)
    rates = [rate for block in network.blocks for rate in (block.drop_tokens.rate, block.drop_channels.rate)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("classes", [5, 7])
def test_a_google_file_loads_by_name(tmp_path: Path, classes: int) -> None:
    """Dense kernels are (in, out) and convolutions (H, W, in, out) there; heads of any width are read (ImageNet-21k has 21,843)."""
    shapes = unfold(next(case for case in record("mixer")["tiny"] if case["format"] == "google")["state"])
    shapes |= {"head/kernel": (24, classes), "head/bias": (classes,)}
    values = fill_state(shapes, torch.float32)
    np.savez(tmp_path / "mixer.npz", **{key: value.numpy() for key, value in values.items()})
    network = load("mixer/b16", tmp_path / "mixer.npz", **{**SMALL, "classes": classes})
    state = network.state_dict()
    assert torch.equal(state["blocks.1.token_mixing.fc1.weight"], values["MixerBlock_1/token_mixing/Dense_0/kernel"].T)
    assert torch.equal(state["blocks.0.norm2.weight"], values["MixerBlock_0/LayerNorm_1/scale"])
    assert torch.equal(state["stem.proj.weight"][3, 1], values["stem/kernel"][:, :, 1, 3])
