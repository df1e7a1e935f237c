"""DeiT: its two tokens and heads, and what of it equals the vision transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import opticus
from opticus import zoo
from opticus.models.backbones.deit import DeiT, DeiTOut
from opticus.parity.fill import fill_module
from opticus.structures import Batch, CapabilityError, Classes, DataError, Images, Picture, Progress, UsageError
from opticus.verbs.tokens import token_cosine

SMALL = {"size": 32, "patch": 8, "width": 24, "depth": 3, "heads": 2, "classes": 5}


def small(**changes: Any) -> DeiT:
    torch.manual_seed(0)
    network = zoo.create("deit/b_distilled", **{**SMALL, **changes})
    assert isinstance(network, DeiT)
    return network


def pixels(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_the_joint_classifier_is_the_mean_of_both_heads_in_training_and_inference() -> None:
    network = small()
    with torch.no_grad():
        trained, used = network.train()(pixels()), network.eval()(pixels())
        tokens = network.tokens(pixels())[0]
    assert isinstance(trained, DeiTOut) and isinstance(used, DeiTOut)
    assert used.class_logits is None and used.distilled is None
    torch.testing.assert_close(trained.class_logits, network.head(tokens[:, 0]))
    torch.testing.assert_close(trained.distilled, network.head_dist(tokens[:, 1]))
    torch.testing.assert_close(used.logits, (trained.class_logits + trained.distilled) / 2)
    torch.testing.assert_close(used.logits, trained.logits)


def test_the_joint_logits_are_a_function_of_the_embedding() -> None:
    network = small().eval()
    with torch.no_grad():
        vectors = network.embed(pixels())
        assert vectors.shape == (2, 48)
        weight = torch.cat([network.head.weight, network.head_dist.weight], 1) / 2
        bias = (network.head.bias + network.head_dist.bias) / 2
        torch.testing.assert_close(network(pixels()).logits, F.linear(vectors, weight, bias))


def test_undistilled_it_is_the_vision_transformer() -> None:
    network = small(distilled=False).eval()
    twin = zoo.create("vit/b16", **SMALL).eval()
    assert twin.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels()).logits, twin(pixels()))
        torch.testing.assert_close(network.train()(pixels()).logits, twin(pixels()))
    assert network(pixels()).class_logits is None


def test_tokens_per_layer_are_those_that_the_blocks_return() -> None:
    network = small().eval()
    seen: list[torch.Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out[:, :2]))
    with torch.no_grad():
        layers = network.token_layers(pixels())
        count = len(seen)
        out = network(pixels()).logits
    assert count == 3 and layers.shape == (5, 2, 2, 24)
    for i, expected in enumerate(seen[:3]):
        torch.testing.assert_close(layers[i + 1], expected)
    learned = torch.cat([network.cls_token, network.dist_token], 1) + network.pos_embed[:, :2]
    torch.testing.assert_close(layers[0], learned.expand(2, -1, -1))
    torch.testing.assert_close((network.head(layers[-1][:, 0]) + network.head_dist(layers[-1][:, 1])) / 2, out)
    with pytest.raises(CapabilityError, match="no distillation token"):
        small(distilled=False).token_layers(pixels())


def test_without_a_teacher_the_second_token_learns_the_label_too() -> None:
    network = small().train()
    batch = Batch(
        Images(pixels(), None, torch.eye(3).expand(2, 3, 3), ((32, 32),) * 2), (Classes(torch.tensor([1])),) * 2, ("a", "b")
    )
    terms = zoo.paper("deit").objective(network).forward(batch, Progress(0, 0, 1, 1))
    out = network(pixels())
    label = torch.tensor([1, 1])
    torch.testing.assert_close(terms["classify"], F.cross_entropy(out.class_logits, label) / 2)
    torch.testing.assert_close(terms["distilled"], F.cross_entropy(out.distilled, label) / 2)


def test_two_equal_tokens_stay_equal() -> None:
    """The cosine is measured, not assumed: one token twice has cosine 1 in every layer, its opposite -1 where nothing mixes."""
    network = small().eval()
    with torch.no_grad():
        network.dist_token.copy_(network.cls_token)
        network.pos_embed[:, 1] = network.pos_embed[:, 0]
        rows = token_cosine(network, [Picture(torch.full((32, 32, 3), 90, dtype=torch.uint8))])
        assert [row.layer for row in rows] == ["tokens", "input", "block 1", "block 2", "block 3", "output"]
        assert all(row.cosine == pytest.approx(1, abs=1e-6) for row in rows)
        network.dist_token.neg_()
        network.pos_embed[:, :2] = 0
        rows = token_cosine(network, [Picture(torch.full((32, 32, 3), 90, dtype=torch.uint8))])
    assert rows[0].cosine == pytest.approx(-1) and rows[1].cosine == pytest.approx(-1) and rows[2].cosine > -0.999


def test_cosine_is_the_mean_over_pictures_and_leaves_the_model_as_it_was() -> None:
    model = opticus.create("deit/tiny", depth=2)
    fill_module(model)
    model.train()
    draw = torch.Generator().manual_seed(0)
    pictures = [Picture(torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=draw)) for _ in range(5)]
    rows = opticus.token_cosine(model, pictures, batch=2)
    assert model.training
    each = [opticus.token_cosine(model, [picture]) for picture in pictures]
    for i, row in enumerate(rows):
        values = torch.tensor([one[i].cosine for one in each], dtype=torch.float64)
        assert row.cosine == pytest.approx(float(values.mean()), rel=1e-5)
        assert row.spread == pytest.approx(float(values.std(correction=0)), rel=1e-3, abs=1e-6)
    assert opticus.token_cosine(model, pictures, limit=1) == each[0]


def test_cosine_of_what_has_no_two_tokens_is_refused() -> None:
    for model in (opticus.create("vit/tiny"), opticus.create("deit/tiny", distilled=False)):
        with pytest.raises(CapabilityError, match="no distillation token"):
            token_cosine(model, "crops")
    with pytest.raises(DataError, match="no picture"):
        token_cosine(opticus.create("deit/tiny"), [])
    with pytest.raises(UsageError, match="limit must be at least 1"):
        token_cosine(opticus.create("deit/tiny"), "crops", limit=0)


def test_positions_follow_the_grid_with_one_and_two_tokens_before_them(tmp_path: Path) -> None:
    """A file at 32 px opens at 48 px: the tokens' own positions stay, the others are interpolated."""
    for name, distilled in (("deit/b", False), ("deit/b_distilled", True)):
        network = small(distilled=distilled)
        torch.save({"model": network.state_dict()}, tmp_path / f"{distilled}.pth")
        changes = {key: value for key, value in SMALL.items() if key != "size"}
        larger = opticus.load(name, tmp_path / f"{distilled}.pth", size=48, quiet=True, **changes)
        prefix = 2 if distilled else 1
        assert larger.pos_embed.shape == (1, prefix + 36, 24)
        torch.testing.assert_close(larger.pos_embed[:, :prefix], network.pos_embed[:, :prefix])


def test_files_without_a_distillation_token_are_said_to_be_vit_first(tmp_path: Path) -> None:
    """The authors' undistilled networks are vision transformers key by key; the answer names both, the ancestor first."""
    torch.save({"model": zoo.create("deit/ti").state_dict()}, tmp_path / "deit.pth")
    found = opticus.identify(tmp_path / "deit.pth")
    assert found.name == "vit/ti16" and "deit/ti (deit)" in found.others
    torch.save({"model": zoo.create("deit/ti_distilled").state_dict()}, tmp_path / "distilled.pth")
    found = opticus.identify(tmp_path / "distilled.pth")
    assert (found.name, found.format, found.exact) == ("deit/ti_distilled", "deit", True)
    model = opticus.load(tmp_path / "distilled.pth", quiet=True)
    assert model.card.name == "deit/ti_distilled" and model.prepare.size == (256, 0) and model.prepare.crop == (224, 224)


def test_bad_geometry_is_refused() -> None:
    with pytest.raises(UsageError, match="size 30 must be a multiple of patch 8"):
        small(size=30)


def test_report_shows_the_tokens(tmp_path: Path) -> None:
    run = opticus.train(
        "deit/tiny", "digits", out=tmp_path / "run", steps=2, evaluate_every=0, depth=1, width=24, heads=2, patch=16, quiet=True
    )
    rows = json.loads((run.out / "token_cosine.json").read_text())
    assert [row["layer"] for row in rows] == ["tokens", "input", "block 1", "output"]
    again = opticus.token_cosine(run.model, "digits")
    assert [row["cosine"] for row in rows] == pytest.approx([row.cosine for row in again])
    page = run.report.read_text()
    assert 'id="tokens"' in page and "Class and distillation token" in page and f"{rows[-1]['cosine']:.3f}" in page
    assert isinstance(run.model, nn.Module)
