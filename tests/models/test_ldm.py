"""Latent diffusion: codes and their scale, conditions of every kind, whole checkpoints, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from opticus import zoo
from opticus.models.generative.ldm import Config
from opticus.parity.fill import fill
from opticus.structures import Noise, Part, UsageError
from opticus.verbs.models import load

SMALL: dict[str, Any] = {"width": 16, "multiples": (1, 2), "attention": (2,), "latent": (1, 8, 8)}


def small(**changes: Any) -> Any:
    torch.manual_seed(0)
    network: Any = zoo.create("ldm/tiny-unconditional", **{**SMALL, **changes})
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.05)
    return network.eval()


def test_codes_are_scaled_and_their_scale_is_measured_once() -> None:
    torch.manual_seed(0)
    network: Any = zoo.create("ldm/tiny").eval()
    pixels = torch.rand(16, 1, 16, 16) * 2 - 1
    assert float(network.scale_factor) == 0 and network.encoded(pixels[:1]).shape == (1, 1, 4, 4)
    codes = network.encoded(pixels, learn=True)
    assert float(codes.std()) == pytest.approx(1, abs=1e-4)
    factor = float(network.scale_factor)
    network.encoded(pixels[:3] * 0.1, learn=True)
    assert float(network.scale_factor) == factor and "scale_factor" in network.state_dict()
    plain = network.autoencoder.decode(codes / factor)
    assert torch.allclose(network.decoded(codes), plain, atol=1e-6)
    assert not any(p.requires_grad for p in network.autoencoder.parameters())


def test_the_published_scale_is_kept() -> None:
    network = zoo.meta("ldm/sd1", zoo.config_of("ldm/sd1", {"autoencoder": "kl/f8"}))
    assert network.prepare.size == (512, 512) and network.prepare.channels == 3  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="latent has 2 channels"):
        zoo.create("ldm/tiny", latent=(2, 4, 4))


def test_a_context_of_any_length() -> None:
    network = small(context=6)
    noise, context = Noise(0, 2), torch.randn(2, 5, 6)
    torch.nn.init.normal_(network.unet.mid_block.attentions[0].proj_out.weight, std=0.5)
    one = network.sample(Noise(0, 2), condition=context, steps=2)
    assert one.shape == (2, 1, 8, 8)
    assert not torch.allclose(one, network.sample(Noise(0, 2), condition=context + 1, steps=2), atol=1e-4)
    assert network.sample(noise, condition=context[:, :1], steps=2, guidance=3.0, without=torch.zeros(1, 6)).shape == one.shape
    with pytest.raises(UsageError, match=r"needs a context \(B, M, 6\)"):
        network.sample(Noise(0, 2), steps=2)
    with pytest.raises(UsageError, match="without="):
        network.sample(Noise(0, 2), condition=context, steps=2, guidance=3.0)
    with pytest.raises(UsageError, match="comes from outside"):
        zoo.paper("ldm").objective(network)


def test_classes_without_context_are_refused() -> None:
    with pytest.raises(UsageError, match="need context"):
        Config(classes=3, context=0)
    with pytest.raises(UsageError, match="multiples of 8"):
        Config(latent=(4, 12, 12))


def test_a_whole_training_file_loads(tmp_path: Path) -> None:
    """The authors' files hold first stage, text encoder, averages and schedules too: all of them are left out by name."""
    record = zoo.paper("ldm").FORMATS["ldm"]
    from opticus.parity.manifests import read, unfold

    case = read("ldm")["tiny"][0]
    shapes = unfold(case["state"])
    state = {key: fill(key, shape, torch.float32) for key, shape in shapes.items()}
    state |= {
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(4),
        "sqrt_recipm1_alphas_cumprod": torch.ones(3),
    }
    torch.save({"state_dict": state, "global_step": 1}, tmp_path / "model.ckpt")
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in case["config"].items()}
    network: Any = load("ldm/tiny-pixels", tmp_path / "model.ckpt", quiet=True, **changes)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(network.unet.conv_in.weight, state[key]) and record.find("first_stage_model.x") is not None


def test_the_part_is_a_choice() -> None:
    assert zoo.config_of("ldm/tiny").autoencoder == Part("kl/tiny") and zoo.config_of("ldm/sd1").autoencoder is None
