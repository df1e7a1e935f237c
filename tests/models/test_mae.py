"""What is particular to MAE: positions, loss, what the encoder sees, files without a decoder, informed masks, bad masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from papers import at, batch_for, images_of, new, objective_of, record
from torch import Tensor

import opticus
from opticus import zoo
from opticus.matching.masking import RandomMask, RegionMask
from opticus.models.selfsup.mae import DECODER, grid_positions
from opticus.parity.case import network_input, state_of
from opticus.structures import Batch, Images, UsageError, WeightsError
from opticus.weights.load import load_into


def half(patches: int, count: int = 2) -> Tensor:
    """The first half of the patches hidden."""
    return (torch.arange(patches) < patches // 2).expand(count, -1)


def test_positions_are_the_published_ones() -> None:
    """Place (row 1, column 2) of the reference: four frequencies of the column, then of the row."""
    rates = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    expected = torch.cat([(2 * rates).sin(), (2 * rates).cos(), rates.sin(), rates.cos()])
    found = grid_positions(16, 3, 3)
    torch.testing.assert_close(found[5], expected, rtol=0, atol=1e-12)
    assert float(found.sum()) == pytest.approx(73.0874602627631, abs=1e-10)  # of the reference's whole table
    network: Any = new("mae/tiny")
    assert torch.equal(network.backbone.pos_embed[0, 0], torch.zeros(96)) and not network.backbone.pos_embed.requires_grad


@pytest.mark.parametrize(("normalise", "expected"), [(False, 2.2485196517969825), (True, 1.9139355936147353)])
def test_the_loss_is_the_reference_s(normalise: bool, expected: float) -> None:
    """The reference's own loss on the recorded case (tools/references/mae.py, `loss`)."""
    case = record("mae")["tiny"][0]
    config = zoo.config_from_json("mae/tiny", {**case["config"], "normalise": normalise})
    network = zoo.build("mae/tiny", config).double().eval()
    load_into(network, state_of(case), zoo.paper("mae").FORMATS["mae"])
    pixels = network_input(case["pictures"], network.prepare)[0]  # type: ignore[arg-type]
    images = Images(pixels, None, torch.eye(3).double().expand(2, 3, 3), ((24, 24),) * 2)
    hidden = torch.tensor(case["inputs"]["mask"]).bool()
    objective = zoo.paper("mae").objective(network, mask=lambda batch, rows, columns, generator=None: hidden)
    terms = objective(Batch(images, (None, None), ("a", "b")), at(0, 1))
    assert float(terms["reconstruction"].detach()) == pytest.approx(expected, rel=1e-12)


def test_the_encoder_sees_visible_patches_alone_and_the_loss_hidden_ones_alone() -> None:
    network: Any = new("mae/tiny").eval()
    pixels = torch.randn(2, 3, 32, 32)
    hidden = half(64)
    other = pixels.clone()
    other[:, :, :16] += 5.0
    with torch.no_grad():
        a, b = (network.encode(one, hidden)[0] for one in (pixels, other))
        assert a.shape == (2, 33, 96) and torch.equal(a, b)
        assert not torch.allclose(network.embed(pixels), network.embed(other))
        full = network.backbone.tokens(pixels)[0]
        torch.testing.assert_close(network.embed(pixels), full[:, 0])
    images = Images(pixels, None, torch.eye(3).double().expand(2, 3, 3), ((32, 32),) * 2)
    objective = zoo.paper("mae").objective(network, mask=lambda batch, rows, columns, generator=None: hidden)
    seen: list[Tensor] = []
    network.decoder_pred.register_full_backward_hook(lambda module, before, after: seen.append(after[0]))
    sum(objective(Batch(images, (None,) * 2, ("a", "b")), at(0, 1)).values()).backward()
    gradient = seen[0][:, 1:].abs().sum(2)
    assert bool((gradient[:, :32] > 0).all()) and bool((gradient[:, 32:] == 0).all())


def test_patches_come_back_as_the_picture_and_a_right_prediction_is_the_picture() -> None:
    network: Any = new("mae/tiny").eval()
    pixels = torch.randn(2, 3, 16, 48)
    patches = network.patches_of(pixels)
    assert patches.shape == (2, 48, 48)
    assert torch.equal(patches[1, 13].reshape(4, 4, 3).permute(2, 0, 1), pixels[1, :, 4:8, 4:8])
    assert torch.equal(network.picture_of(patches, 4, 12), pixels)
    target = network.target(pixels)
    torch.testing.assert_close(target.mean(2), torch.zeros(2, 48), rtol=0, atol=1e-5)
    torch.testing.assert_close(target.var(2), torch.ones(2, 48), rtol=0, atol=1e-4)
    network.decode = lambda latent, order, grid: target
    torch.testing.assert_close(network.reconstruct(pixels, half(48)), pixels, rtol=0, atol=1e-5)


def test_pictures_of_another_size_get_resized_positions_on_both_sides() -> None:
    network: Any = new("mae/tiny").eval()
    out = network(torch.randn(2, 3, 40, 24), mask=half(60))
    assert out.prediction.shape == (2, 60, 48) and out.embedding.shape == (2, 96)


def test_files_of_the_encoder_alone(tmp_path: Path) -> None:
    """As published: nested under "model", the encoder's keys only. MAE wants its decoder fresh by name, the ViT takes the file."""
    network: Any = new("mae/tiny")
    state = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    file = tmp_path / "mae_pretrain_vit_tiny.pth"
    torch.save({"model": state}, file)
    with pytest.raises(WeightsError, match="decoder"):
        opticus.load("mae/tiny", file)
    again: Any = opticus.load("mae/tiny", file, fresh=DECODER, quiet=True)
    vit: Any = opticus.load("vit/tiny", file, classes=0)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = network.eval().embed(pixels)
        torch.testing.assert_close(again.embed(pixels), expected)
        torch.testing.assert_close(vit.embed(pixels), expected)
    torch.save({"model": {k.removeprefix("backbone."): v for k, v in network.state_dict().items()}}, tmp_path / "visualize.pth")
    whole: Any = opticus.load("mae/tiny", tmp_path / "visualize.pth")
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in network.state_dict().items())


def test_published_names_are_identified(tmp_path: Path) -> None:
    shapes = zoo.meta("mae/b16").state_dict()
    keys = {k.removeprefix("backbone."): torch.zeros(1).expand(v.shape) for k, v in shapes.items()}
    torch.save({"model": keys}, tmp_path / "mae_visualize_vit_base.pth")
    found = opticus.identify(tmp_path / "mae_visualize_vit_base.pth")
    assert found.name == "mae/b16"


def test_boxes_are_hidden_while_training_on_scenes(tmp_path: Path) -> None:
    hidden: list[tuple[Tensor, Batch]] = []
    sampler = RegionMask(0.75)

    def watched(batch: Batch, rows: int, columns: int, generator: Any = None) -> Tensor:
        mask = sampler(batch, rows, columns, generator)
        hidden.append((mask, batch))
        return mask

    opticus.train(
        "mae/tiny", data="scenes", out=tmp_path / "run", steps=1, batch=4, options={"mask": watched}, quiet=True, test=False
    )
    mask, batch = hidden[0]
    for row, target in zip(mask.reshape(-1, 8, 8), batch.targets, strict=True):
        boxes: Tensor = target.boxes  # type: ignore[union-attr]
        covered = torch.zeros(8, 8, dtype=torch.bool)
        for x1, y1, x2, y2 in (boxes / 4).tolist():
            covered[int(y1) : int(-(-y2 // 1)), int(x1) : int(-(-x2 // 1))] = True
        if covered.sum() <= 48:
            assert bool(row[covered].all())


def test_bad_masks_pictures_and_parts() -> None:
    network: Any = new("mae/tiny")
    pixels = torch.randn(2, 3, 32, 32)
    with pytest.raises(UsageError, match="keep some, found 0 of 64 visible"):
        network(pixels, mask=torch.ones(2, 64, dtype=torch.bool))
    with pytest.raises(UsageError, match="found 64 of 64 visible"):
        network(pixels, mask=torch.zeros(2, 64, dtype=torch.bool))
    uneven = half(64).clone()
    uneven[0, 0] = False
    with pytest.raises(UsageError, match="same number of visible patches, found 32 and 33"):
        network(pixels, mask=uneven)
    with pytest.raises(UsageError, match="64 places for 8x8 patches, found"):
        network(pixels, mask=half(49))
    with pytest.raises(UsageError, match="multiples of the patch 4, found 3 channels and 30x32"):
        network(pixels[:, :, :30], mask=half(64))
    with pytest.raises(UsageError, match="found 1 channels"):
        network(pixels[:, :1], mask=half(64))
    with pytest.raises(UsageError, match=r"resnet/tiny has no patches\(\)"):
        opticus.create("mae/tiny", backbone="resnet/tiny")
    with pytest.raises(UsageError, match="multiple of its heads"):
        opticus.create("mae/tiny", heads=5)
    with pytest.raises(UsageError, match="multiple of 4"):
        opticus.create("mae/tiny", width=18, heads=2)
    with pytest.raises(UsageError, match="callable"):
        zoo.paper("mae").objective(network, mask=0.75)
    batch = batch_for(network, "embed", 2)
    padded = images_of(batch)._replace(valid=torch.zeros(2, 32, 32, dtype=torch.bool))
    with pytest.raises(UsageError, match="padded"):
        objective_of("mae", network).forward(Batch(padded, batch.targets, batch.ids), at(0, 1))
    with pytest.raises(UsageError, match="leaves 0 of 64"):
        zoo.paper("mae").objective(network, mask=RandomMask(0.999)).forward(batch, at(0, 1))
