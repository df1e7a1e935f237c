from __future__ import annotations

import hashlib
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from opticus.parity.compare import agree, difference, named_tensors, summarise
from opticus.parity.fill import fill, fill_module, fill_state, picture, pixels_of
from opticus.structures import Instances


def test_the_formula_is_fixed() -> None:
    # recorded once; a change would invalidate every parity file
    values = fill("layer1.0.conv1.weight", (2, 2))
    digest = hashlib.sha256(fill("layer1.0.conv1.weight", (7, 5, 3, 3)).numpy().tobytes()).hexdigest()[:16]
    assert values.flatten().tolist() == pytest.approx(VALUES, rel=0, abs=0)
    assert digest == DIGEST
    assert hashlib.sha256(picture(9, 7, 3).tobytes()).hexdigest()[:16] == PICTURE


VALUES = [-0.3341457795307105, 0.646858013572911, -0.6497474320029346, -0.05853792244653279]
DIGEST = "c633f1497a936c17"
PICTURE = "754fe9bfe40c33e7"


@pytest.mark.parametrize(
    ("key", "shape", "low", "high"),
    [
        ("bn1.running_var", (500,), 0.5, 1.5),
        ("bn1.running_mean", (500,), -0.1, 0.1),
        ("bn1.weight", (500,), 0.8, 1.2),
        ("layers.0.norm.weight", (50, 10), 0.8, 1.2),
        ("Transformer/encoder_norm/scale", (500,), 0.8, 1.2),
        ("blocks.0.ls1.gamma", (500,), 0.8, 1.2),
        ("fc.bias", (500,), -0.1, 0.1),
        ("attn.in_proj_bias", (500,), -0.1, 0.1),
        ("a/MultiHeadDotProductAttention_1/query/bias", (10, 50), -0.1, 0.1),
        ("pos_embed", (1, 50, 10), -0.35, 0.35),
        ("encoder.pos_embedding", (1, 50, 10), -0.35, 0.35),
        ("class_token", (1, 1, 500), -0.35, 0.35),
        ("cls", (1, 1, 500), -0.35, 0.35),
        ("query_embed.weight", (100, 5), -0.35, 0.35),
        ("model.query_position_embeddings.weight", (100, 5), -0.35, 0.35),
    ],
)
def test_vectors_and_tables_lie_in_their_range(key: str, shape: tuple[int, ...], low: float, high: float) -> None:
    values = fill(key, shape)
    spread = high - low
    assert values.dtype == torch.float64 and values.shape == shape
    assert low <= values.min() < low + 0.05 * spread and high - 0.05 * spread < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 0.1 * spread
    assert (values != 0).all()


@pytest.mark.parametrize(
    ("key", "shape", "fan"),
    [
        ("conv.weight", (64, 32, 3, 3), 288),
        ("fc.weight", (100, 200), 200),
        ("patch_embed.proj.weight", (96, 3, 16, 16), 768),
        ("class_embed.weight", (91, 256), 256),
        ("attn.pos_proj.weight", (100, 200), 200),
        ("embedding/kernel", (16, 16, 3, 96), 768),
        ("x/MlpBlock_3/Dense_0/kernel", (64, 256), 64),
        ("x/MultiHeadDotProductAttention_1/query/kernel", (128, 4, 32), 128),
        ("x/MultiHeadDotProductAttention_1/out/kernel", (4, 32, 128), 128),
    ],
)
def test_matrices_have_unit_gain(key: str, shape: tuple[int, ...], fan: int) -> None:
    assert float(fill(key, shape).std()) == pytest.approx(1 / math.sqrt(fan), rel=0.03)


def test_counters_types_and_independence() -> None:
    counter = fill("bn1.num_batches_tracked", ())
    assert counter.dtype == torch.int64 and counter.shape == () and int(counter) == 0
    assert fill("w", (3,), torch.float32).dtype == torch.float32
    a, b = fill("a.weight", (400, 400)).flatten(), fill("b.weight", (400, 400)).flatten()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([a[:-1], a[1:]]))[0, 1])) < 0.02
    assert len(torch.unique(a)) > 0.99 * len(a)
    assert fill_state({"a": (2,), "b": (3, 4)}).keys() == {"a", "b"}


def test_modules_are_filled_in_place_and_describe_themselves() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module.register_buffer("index", torch.arange(5))
    module.register_buffer("anchors", torch.arange(3.0))
    shapes = fill_module(module, rename=lambda key: f"net.{key}", skip=r"net\.anchors")
    assert shapes["net.0.weight"] == (4, 3, 3, 3) and shapes["net.1.num_batches_tracked"] == () and shapes["net.index"] == (5,)
    assert torch.equal(module[0].weight, fill("net.0.weight", (4, 3, 3, 3), torch.float32))
    assert torch.equal(module.index, torch.arange(5)) and torch.equal(module.anchors, torch.arange(3.0))
    assert module[0].weight.requires_grad


def test_a_deep_network_stays_near_unit_scale() -> None:
    x = pixels_of((4, 32, 8, 8))
    start = float(x.square().mean().sqrt())
    assert start == pytest.approx(1, abs=0.05)
    with torch.no_grad():
        for i in range(33):  # the residual blocks of ResNet-101
            layers = [
                nn.Conv2d(32, 32, 1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
            ]
            block = nn.Sequential(*layers, nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)).double().eval()
            fill_module(block, rename=lambda key, i=i: f"layer.{i}.{key}")
            x = (x + block(x)).relu()
    assert 0.05 < float(x.square().mean().sqrt()) < 50


def test_filling_is_fast() -> None:
    start = time.perf_counter()
    for i in range(12):
        fill(f"blocks.{i}.weight", (768, 3072), torch.float32)
    assert time.perf_counter() - start < 5  # 28 M values; a third of ViT-B


def test_pictures_differ_and_use_the_range() -> None:
    one, two = picture(64, 48, 1), picture(64, 48, 2)
    assert one.shape == (64, 48, 3) and one.dtype == np.uint8
    assert one.std() > 30 and one.min() < 20 and one.max() > 190
    assert np.abs(one.astype(int) - two.astype(int)).mean() > 10
    assert picture(5, 4, 0, channels=1).shape == (5, 4, 1)


# --- comparison ----------------------------------------------------------------------------------------------------------


def test_equal_tensors_agree_and_small_errors_are_measured() -> None:
    x = pixels_of((3, 40, 50))
    summary = summarise(x)
    assert difference(summary, x) == 0 and agree(summary, x)
    assert len(summary["slice"]) == 24 and summary["shape"] == [3, 40, 50]
    assert difference(summary, x * (1 + 1e-6)) == pytest.approx(1e-6, rel=2)
    assert not agree(summary, x * (1 + 1e-6)) and agree(summary, x * (1 + 1e-6), 1e-5)


def test_whatever_rms_and_slice_miss_is_seen() -> None:
    x = pixels_of((1000,))
    summary = summarise(x)
    swapped = x.clone()
    swapped[100:108] = swapped[100:108].flip(0)
    flipped = x.reshape(10, 100).T.reshape(-1)
    one = x.clone()
    one[333] += 1e-3
    for other in (swapped, flipped, one, -x):
        assert not agree(summary, other)
    assert difference(summary, x.reshape(10, 100)) == math.inf
    x[5] = math.nan
    assert difference(summary, x) == math.inf


def test_odd_tensors_can_be_summarised() -> None:
    for tensor in (torch.zeros(0, 4), torch.tensor(3), torch.tensor([True, False]), torch.zeros(5), torch.arange(7)):
        assert agree(summarise(tensor), tensor)
    assert not agree(summarise(torch.zeros(5)), torch.full((5,), 1e-3))


def test_tensors_are_found_by_name() -> None:
    boxes = Instances(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), (3, 4))
    found = named_tensors({"a": torch.ones(1), "list": [torch.ones(2), (torch.ones(3), None)], "boxes": boxes, "text": "x"}, "out")
    assert set(found) == {"out.a", "out.list.0", "out.list.1.0", "out.boxes.boxes", "out.boxes.labels"}
