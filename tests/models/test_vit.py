"""ViT: position embeddings at other sizes, published formats, regularisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.vit import FORMATS, ViT
from opticus.parity.fill import fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.structures import UsageError, WeightsError
from opticus.verbs.models import load

SMALL = {"size": 32, "patch": 8, "width": 24, "depth": 2, "heads": 2, "classes": 5}


def small(**changes: object) -> ViT:
    network = zoo.create("vit/b16", **{**SMALL, **changes})
    assert isinstance(network, ViT)
    return network


def test_a_file_for_one_size_loads_at_another(tmp_path: Path) -> None:
    """Section 3.2: the class token's position stays, the grid is interpolated; everything else is untouched."""
    before = small()
    torch.save(before.state_dict(), tmp_path / "vit.pth")
    after = load("vit/b16", tmp_path / "vit.pth", **{**SMALL, "size": 64})
    ours, theirs = before.state_dict(), after.state_dict()
    assert theirs["pos_embed"].shape == (1, 65, 24)
    assert torch.equal(theirs["pos_embed"][:, 0], ours["pos_embed"][:, 0])
    grid = ours["pos_embed"][:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = (
        F.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True, align_corners=False).permute(0, 2, 3, 1).reshape(1, 64, 24)
    )
    torch.testing.assert_close(theirs["pos_embed"][:, 1:], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items() if k != "pos_embed")
    assert after.prepare.crop == (64, 64) or after.prepare.size == (64, 64)


def test_224_to_384_on_the_published_shapes() -> None:
    """ViT-Ti/16: 1 + 14x14 positions become 1 + 24x24, on the meta device and with values."""
    from opticus.weights.load import load_into

    shapes = unfold(record("vit")["manifests"]["timm"]["ti16"]["keys"])
    network = zoo.meta("vit/ti16_384")
    done = load_into(network, fill_state(shapes, torch.float32), FORMATS["timm"], positions=zoo.paper("vit").POSITIONS)
    assert done.resized == ("pos_embed",) and network.pos_embed.shape == (1, 577, 192)
    with pytest.raises(WeightsError, match="pos_embed"):
        load_into(zoo.meta("vit/ti16_384"), fill_state(shapes, torch.float32), FORMATS["timm"])


def test_pixels_of_another_size_use_resized_positions() -> None:
    network = small().eval()
    larger = small(size=64).eval()
    state = {k: v for k, v in network.state_dict().items() if k != "pos_embed"}
    larger.load_state_dict(state, strict=False)
    from opticus.weights.positions import resize_positions

    with torch.no_grad():
        larger.pos_embed.copy_(resize_positions(network.pos_embed, (1, 65, 24), 1))
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(network(x), larger(x))
        # sides that are no multiple of the patch are padded with zeros at the right and bottom
        odd = torch.randn(1, 3, 37, 50)
        (map_,) = network.features(odd)
        (padded,) = network.features(F.pad(odd, (0, 6, 0, 3)))
    assert map_.shape == (1, 24, 5, 7)
    torch.testing.assert_close(map_, padded)


def test_bad_geometry_is_refused() -> None:
    with pytest.raises(UsageError, match="size 30 must be a multiple of patch 8"):
        small(size=30)
    with pytest.raises(UsageError, match="width 24 a multiple of heads 5"):
        small(heads=5)


def test_google_file_with_its_old_prefix(tmp_path: Path) -> None:
    """npz files, also those whose keys start with opt/target/, load by name; query, key and value are joined in this order."""
    shapes = unfold(next(case for case in record("vit")["tiny"] if case["format"] == "google")["state"])
    values = fill_state(shapes, torch.float32)
    np.savez(tmp_path / "plain.npz", **{k: v.numpy() for k, v in values.items()})
    np.savez(tmp_path / "old.npz", **{f"opt/target/{k}": v.numpy() for k, v in values.items()})
    plain, old = (load("vit/b16", tmp_path / f"{name}.npz", **SMALL) for name in ("plain", "old"))
    assert all(torch.equal(v, old.state_dict()[k]) for k, v in plain.state_dict().items())
    first = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/"
    query, key, value = plain.state_dict()["blocks.0.attn.qkv.weight"].chunk(3)
    assert torch.equal(query, values[first + "query/kernel"].flatten(1).T)
    assert torch.equal(key, values[first + "key/kernel"].flatten(1).T)
    assert torch.equal(value, values[first + "value/kernel"].flatten(1).T)


def test_dino_checkpoint_keys_lose_their_prefix_and_projection_head() -> None:
    """Full checkpoints of DINO prefix the backbone and add a projection head that belongs to the method."""
    state = small(classes=0).state_dict()
    full = {f"module.backbone.{k}": v for k, v in state.items()}
    full |= {"module.head.mlp.0.weight": torch.zeros(3, 24), "module.head.last_layer.weight_v": torch.zeros(3, 3)}
    renamed = FORMATS["dino"].apply(full)
    assert set(renamed.state) == set(state) and len(renamed.dropped) == 2 and not renamed.unmatched


def test_drop_path_and_dropout_act_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    for changes in ({"drop_path": 0.5}, {"dropout": 0.3}):
        network = small(**changes)
        plain = small()
        plain.load_state_dict(network.state_dict())
        with torch.no_grad():
            assert not torch.equal(network.train()(x), network.train()(x))
            torch.testing.assert_close(network.eval()(x), plain.eval()(x))
    rates = [getattr(block.drop_path, "rate", 0.0) for block in small(drop_path=0.5, depth=3).blocks]
    assert rates == [0.0, 0.25, 0.5]


def test_representation_layer() -> None:
    network = small(representation=16).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        token = network.tokens(x)[0][:, 0]
        torch.testing.assert_close(network(x), network.head(torch.tanh(network.pre_logits.fc(token))))


def test_attention_equals_the_equation() -> None:
    """Appendix A, literally: one head after another."""
    attention = small().blocks[0].attn.double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = attention.qkv(x).chunk(3, dim=-1)
        heads = [
            torch.softmax(q[..., s] @ k[..., s].transpose(1, 2) / 12**0.5, -1) @ v[..., s] for s in (slice(0, 12), slice(12, 24))
        ]
        torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))
