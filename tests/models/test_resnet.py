"""ResNet: what the variants and settings change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.layers.norm import FrozenBatchNorm
from opticus.parity.fill import fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.structures import Embedding, Images, WeightsError
from opticus.verbs.models import load

SMALL = {"layers": (1, 1, 1, 1), "width": 8, "classes": 5}


def file_of(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("changes", "strides"),
    [
        ({}, (4, 8, 16, 32)),
        ({"dilate": (4,)}, (4, 8, 16, 16)),
        ({"dilate": (3, 4)}, (4, 8, 8, 8)),
        ({"stem": "small"}, (1, 2, 4, 8)),
    ],
)
def test_dilation_replaces_strides(changes: dict[str, object], strides: tuple[int, ...]) -> None:
    network = zoo.create("resnet/50", **SMALL, **changes).eval()
    assert network.strides == strides and network.widths == (32, 64, 128, 256)
    with torch.no_grad():
        maps = network.features(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(64 // s, 96 // s) for s in strides]


def test_dilation_keeps_the_weights() -> None:
    """DC5 has the same tensors: weights of a strided network fit it."""
    plain, dilated = zoo.create("resnet/50", **SMALL), zoo.create("resnet/50", **SMALL, dilate=(4,))
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = plain.eval().features(x), dilated.eval().features(x)
    torch.testing.assert_close(ours[2], theirs[2])
    assert theirs[3].shape[-1] == 2 * ours[3].shape[-1]


def test_frozen_norm_equals_batch_norm_in_eval_and_never_moves(tmp_path: Path) -> None:
    plain = zoo.create("resnet/50", **SMALL)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    frozen = load("resnet/50", file_of(plain, tmp_path / "r50.pth"), norm="frozen", **SMALL)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert sum(isinstance(module, FrozenBatchNorm) for module in frozen.modules()) == 1 + 4 * 4
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(frozen.train()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen.train()(x).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


def test_without_a_head(tmp_path: Path) -> None:
    """classes=0 has no head parameters, takes a classifier's file, and answers with embeddings."""
    plain = zoo.create("resnet/50", **SMALL).eval()
    headless = load("resnet/50", file_of(plain, tmp_path / "r50.pth"), **{**SMALL, "classes": 0})
    assert not [name for name, _ in headless.named_parameters() if name.startswith("fc")]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        vectors = headless(x)
        torch.testing.assert_close(plain.fc(vectors), plain(x))
    images = Images(x, None, torch.eye(3).expand(2, 3, 3), ((64, 64),) * 2)
    assert all(isinstance(r, Embedding) and r.vector.shape == (256,) for r in headless.results(vectors, images))


def test_a_deep_stem_is_refused(tmp_path: Path) -> None:
    """timm's "d" networks have three stem convolutions: near, but not this network."""
    state = zoo.create("resnet/50", **SMALL).state_dict()
    state["conv1.0.weight"] = state.pop("conv1.weight")
    torch.save(state, tmp_path / "resnet50d.pth")
    with pytest.raises(WeightsError, match=r"conv1\.weight") as error:
        load("resnet/50", tmp_path / "resnet50d.pth", **SMALL)
    assert "conv1.0.weight" in str(error.value)


def test_files_without_batch_counters_load(tmp_path: Path) -> None:
    """torchvision's oldest files have no num_batches_tracked."""
    state = zoo.create("resnet/50", **SMALL).state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    again = load("resnet/50", tmp_path / "old.pth", **SMALL)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items() if v.is_floating_point())


def test_published_formats_give_the_same_network(tmp_path: Path) -> None:
    """The hub's names of ResNet-18 carry the same numbers to the same places as torchvision's."""
    manifests = record("resnet")["manifests"]
    hub = fill_state(unfold(manifests["huggingface"]["18"]["keys"]), torch.float32)
    module, network = zoo.paper("resnet"), zoo.create("resnet/18")
    renamed = module.FORMATS["huggingface"].apply(hub)
    assert set(renamed.state) == set(network.state_dict()) == set(unfold(manifests["torchvision"]["18"]["keys"]))
    stage = "resnet.encoder.stages.1.layers.0."
    assert torch.equal(renamed.state["layer2.0.downsample.0.weight"], hub[stage + "shortcut.convolution.weight"])
    assert torch.equal(renamed.state["layer2.0.bn2.running_var"], hub[stage + "layer.1.normalization.running_var"])


def test_channels_and_determinism_of_gradients() -> None:
    network = zoo.create("resnet/tiny", channels=1)
    x = torch.randn(2, 1, 32, 32)
    grads = []
    for _ in range(2):
        network.zero_grad()
        network(x).square().sum().backward()
        grads.append(network.conv1.weight.grad.clone())
    assert torch.equal(*grads)


@pytest.mark.parametrize(("variant", "layers"), [("plain18", 18), ("plain34", 34), ("plain20", 20), ("plain56", 56)])
def test_plain_networks_have_their_name_in_layers_and_no_shortcut(variant: str, layers: int) -> None:
    network = zoo.meta(f"resnet/{variant}")
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers
    assert not any("downsample" in name for name, _ in network.named_parameters())


def test_a_plain_block_forgets_its_input_and_a_residual_one_keeps_it() -> None:
    """With its last norm at zero a residual block is the identity (of what is positive), a plain one gives zeros."""
    for residual in (True, False):
        network = zoo.create("resnet/20", layers=(1, 1), residual=residual).eval()
        block = network.layer1[0]
        nn.init.zeros_(block.bn2.weight)
        x = torch.randn(2, 16, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(block(x), x.relu() if residual else torch.zeros_like(x))


# table 6 of the paper: millions of parameters; the projections of two shortcuts are extra here
@pytest.mark.parametrize(("depth", "millions"), [("20", 0.27), ("32", 0.46), ("44", 0.66), ("56", 0.85), ("110", 1.7)])
def test_small_networks_have_the_papers_parameters(depth: str, millions: float) -> None:
    network = zoo.meta(f"resnet/{depth}")
    extra = sum(p.numel() for name, p in network.named_parameters() if "downsample" in name)
    count = sum(p.numel() for p in network.parameters()) - extra
    assert extra < 3000 and round(count / 1e6, 2 if millions < 1 else 1) == millions
    if f"plain{depth}" in zoo.paper("resnet").VARIANTS:
        assert sum(p.numel() for p in zoo.meta(f"resnet/plain{depth}").parameters()) == count


# SwAV's README: 94, 375, 586 M; SimCLR's table: 93 and 375 M for widths 2 and 4; BYOL's: 250 M for ResNet-200 (2x)
@pytest.mark.parametrize(("variant", "millions"), [("50w2", 93.9), ("50w4", 375.4), ("50w5", 586.5), ("200w2", 250.1)])
def test_wide_encoders_have_the_published_parameters(variant: str, millions: float) -> None:
    network = zoo.meta(f"resnet/{variant}")
    assert network.fc is None
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_swav_file_is_a_wide_encoder(tmp_path: Path) -> None:
    """The published files hold the parallel wrapper's names, a projection head and prototypes."""
    encoder = zoo.create("resnet/50w2", layers=(1, 1, 1, 1), width=16)
    state = {f"module.{k}": v for k, v in encoder.state_dict().items()}
    state |= {"module.projection_head.0.weight": torch.zeros(8, 512), "module.prototypes.weight": torch.zeros(3, 8)}
    torch.save(state, tmp_path / "swav.pth.tar")
    again = load("resnet/50w2", tmp_path / "swav.pth.tar", layers=(1, 1, 1, 1), width=16)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("variant", ["20", "50"])
def test_without_norms_every_convolution_has_a_bias(variant: str) -> None:
    network = zoo.create(f"resnet/{variant}", layers=(1, 1), width=16, norm="none")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert all(m.bias is not None and not m.bias.any() for m in network.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        assert torch.equal(network.train()(x := torch.randn(2, 3, 32, 32)), network.eval()(x))
