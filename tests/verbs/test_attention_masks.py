"""Attention masks: the reference's threshold, Jaccard of the best head, figures side by side, models without attention named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import opticus
from opticus.cli.main import main
from opticus.metrics.masks import BestMask, overlaps
from opticus.metrics.passport import Passport, compare
from opticus.structures import CapabilityError, MetricError, Picture, UnknownNameError, UsageError
from opticus.verbs.attention_masks import AttentionMasks, masks_of
from opticus.verbs.explain_attention import attentions, mass_masks, sized


def test_a_mask_holds_the_fewest_patches_of_the_mass():
    torch.manual_seed(0)
    rows = torch.rand(5, 40, dtype=torch.float64)
    for mass in (0.3, 0.6, 0.95):
        for row, mask in zip(rows, mass_masks(rows, mass)):
            held, expected = 0.0, np.zeros(40, bool)
            for i in sorted(range(40), key=lambda i: -float(row[i])):
                expected[i] = True
                held += float(row[i] / row.sum())
                if held >= mass:
                    break
            assert np.array_equal(mask.numpy(), expected)
    with pytest.raises(UsageError, match=r"mass must lie between 0 and 1, found 1.5"):
        mass_masks(rows, 1.5)


def test_jaccard_of_the_best_mask():
    ids = np.zeros((6, 8), np.uint8)
    ids[:3, :4], ids[3:, 4:], ids[0, 7] = 1, 2, 255
    masks = np.stack([ids == 1, (ids == 1) | (ids == 255), np.ones_like(ids, bool)])
    table = overlaps(masks, ids)
    np.testing.assert_allclose(table, [[1, 1, 12 / 47], [0, 0, 12 / 47]])
    each, one = BestMask(), BestMask(regions="foreground")
    for metric in (each, one):
        metric.update(masks, ids, "a")
        metric.update(masks, np.zeros_like(ids), "empty")
        assert metric.empty == ["empty"]
    assert each.compute()["jaccard"] == pytest.approx((1 + 12 / 47) / 2)
    assert one.compute()["jaccard"] == pytest.approx(24 / 47)
    with pytest.raises(MetricError, match="expected masks of 8x6 pixels, found 8x5"):
        each.update(masks[:, :5], ids, "b")
    with pytest.raises(MetricError, match="no picture with a region"):
        BestMask().compute()
    other = BestMask()
    other.merge(each.state())
    assert other.compute() == each.compute()


def test_masks_come_from_the_last_layer_of_the_whole_picture():
    torch.manual_seed(0)
    model = opticus.create("vit/tiny").eval()
    picture = Picture(torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8))
    images = sized(model, picture, 48)
    assert images.pixels.shape == (1, 3, 48, 80)
    rows = attentions(model, images.pixels)[-1].weights[0, :, 0, 1:]
    masks = masks_of(model, picture, "blocks.3.attn", 0.6, 48)
    expected = mass_masks(rows).reshape(3, 12, 20).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert np.array_equal(masks, expected.numpy())


def test_one_call_gives_figures_and_passports(tmp_path: Path):
    torch.manual_seed(0)
    model = opticus.create("vit/tiny").train()
    found = opticus.probe(model, "scenes", methods=("attention-mask",), limit=6, size=64, out=tmp_path, quiet=True)
    assert isinstance(found, AttentionMasks) and model.training
    values = found.rows[0].values
    assert 0 < values["jaccard_head_mean"] < values["jaccard"] < 1 and found["whole picture"] > 0
    assert found.rows[0].protocol["layer"] == "blocks.3.attn" and found.rows[0].protocol["size"] == 64
    assert Passport.read(tmp_path / "vit-tiny-attention-mask").numbers["jaccard"].value == values["jaccard"]
    assert json.loads((tmp_path / "attention-masks.json").read_text())[0]["values"] == values
    opticus.attention_masks(opticus.create("vit/tiny"), "scenes", limit=6, size=64, out=tmp_path / "b", quiet=True)
    rows = compare(tmp_path / "vit-tiny-attention-mask", tmp_path / "b" / "vit-tiny-attention-mask")
    assert {row.name for row in rows} == {"jaccard", "jaccard_head_mean"}
    whole = opticus.attention_masks(model, "videos", split="val", limit=2, regions="foreground", baseline=False, quiet=True)
    assert len(whole.rows) == 1 and whole.rows[0].protocol["regions"] == "foreground"


def test_models_without_a_class_token_are_named():
    with pytest.raises(CapabilityError, match=r"resnet/tiny.* has no attention modules"):
        opticus.attention_masks(opticus.create("resnet/tiny"), "scenes", limit=1, quiet=True)
    with pytest.raises(CapabilityError):
        opticus.attention_masks(opticus.create("swin/tiny"), "scenes", limit=1, quiet=True)
    vit = opticus.create("vit/tiny")
    with pytest.raises(UnknownNameError, match=r"blocks.9"):
        opticus.attention_masks(vit, "scenes", layer="blocks.9.attn", limit=1, quiet=True)
    with pytest.raises(CapabilityError, match=r"'blocks.0.mlp' is no attention"):
        opticus.attention_masks(vit, "scenes", layer="blocks.0.mlp", limit=1, quiet=True)
    with pytest.raises(UsageError, match="regions must be"):
        opticus.attention_masks(vit, "scenes", regions="all", quiet=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="size must be at least 4"):
        opticus.attention_masks(vit, "scenes", size=2, quiet=True)


def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ["data=scenes", "index=3", "size=64", f"out={tmp_path}"]
    assert main(["explain", "attention", "vit/tiny", *out, "mass=0.5"]) == 0
    kept = json.loads((tmp_path / "attention.json").read_text())["numbers"]
    assert kept["grid"] == [16, 16] and kept["mass"] == 0.5 and all(0 < n < 256 for n in kept["kept"])
    assert main(["explain", "attention-mask", "vit/tiny", "beside=deit/tiny", *out]) == 0
    models = json.loads((tmp_path / "attention-mask.json").read_text())["numbers"]["models"]
    assert [one["model"].split()[0] for one in models] == ["vit/tiny", "deit/tiny"]
    assert all(max(one["jaccard"]) == one["jaccard"][one["best head"]] == pytest.approx(one["best"], 1e-5) for one in models)
    assert main(["explain", "attention-point", "vit/tiny", *out, "point=90,40"]) == 0
    numbers = json.loads((tmp_path / "attention-point.json").read_text())["numbers"]
    assert numbers["patch"] == [5, 11] and len(numbers["weights"]) == 3
    capsys.readouterr()
    assert main(["explain", "attention-point", "vit/tiny", *out, "point=900,40"]) == 2
    assert "point must be x,y inside the 128x128 pixels of test000003, found 900,40" in capsys.readouterr().err
    assert main(["explain", "attention-mask", "resnet/tiny", *out]) == 2
    assert "has no attention modules" in capsys.readouterr().err


def test_the_point_is_the_row_of_its_patch(tmp_path: Path):
    torch.manual_seed(0)
    model = opticus.create("deit/tiny").eval()
    picture = Picture(torch.randint(0, 256, (40, 64, 3), dtype=torch.uint8))
    found = opticus.explain("attention-point", model, picture.pixels.numpy(), point=(33, 9), size=40, out=tmp_path)
    weights = attentions(model, sized(model, picture, 40).pixels)[-1].weights[0]
    row = weights[:, weights.shape[-1] - 160 + 2 * 16 + 8, -160:]
    np.testing.assert_allclose(np.array(found.numbers["weights"]).reshape(3, 160), row.numpy(), rtol=1e-4)
