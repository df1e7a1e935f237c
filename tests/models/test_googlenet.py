"""GoogLeNet: table 1, the inception module, auxiliary classifiers and their loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from opticus import zoo
from opticus.models.backbones.googlenet import TABLE, Deep, GoogLeNet, Inception, Out, objective
from opticus.parity.fill import fill_module
from opticus.structures import Batch, Classes, Images, Progress, UsageError
from opticus.verbs.models import create, load

NARROW = {"width": 0.125, "classes": 5}


def small(**changes: Any) -> GoogLeNet:
    torch.manual_seed(0)
    network = zoo.create("googlenet/22", **{**NARROW, **changes})
    assert isinstance(network, GoogLeNet)
    return network


def batch_of(pixels: torch.Tensor, labels: list[int]) -> Batch:
    count = len(labels)
    images = Images(pixels, None, torch.eye(3).expand(count, 3, 3), ((pixels.shape[2], pixels.shape[3]),) * count)
    return Batch(images, tuple(Classes(torch.tensor([k])) for k in labels), tuple(f"sample {i}" for i in range(count)))


def test_table_1() -> None:
    """Output sizes of every row at 224 pixels, and 22 layers with parameters along the longest path."""
    network = zoo.meta("googlenet/22")
    assert isinstance(network, GoogLeNet)
    maps = network._maps(torch.empty(1, 3, 224, 224, device="meta"), lambda x, k=3: F.max_pool2d(x, k, 2, ceil_mode=True))
    found = {name: tuple(m.shape[1:]) for name, m in maps.items()}
    assert found == {
        "2": (192, 56, 56), "3a": (256, 28, 28), "3b": (480, 28, 28), "4a": (512, 14, 14), "4b": (512, 14, 14), "4c": (512, 14, 14),
        "4d": (528, 14, 14), "4e": (832, 14, 14), "5a": (832, 7, 7), "5b": (1024, 7, 7),
    }  # fmt: skip
    assert 3 + 2 * len(TABLE) + 1 == 22
    assert network.embed(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1024)


def test_count_without_side_heads_is_torchvision_s() -> None:
    """6,624,904, as stated in the meta data of its weights."""
    assert (
        sum(p.numel() for p in zoo.meta("googlenet/22", zoo.config_of("googlenet/22", {"auxiliary": False})).parameters())
        == 6624904
    )


def test_inception_concatenates_four_branches() -> None:
    module = Inception(8, (3, 4, 5, 2, 6, 7), 5).eval()
    x = torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        parts = module(x).split((3, 5, 6, 7), 1)
        pooled = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 1)
        torch.testing.assert_close(parts[3], module.branch4[1](pooled))
        torch.testing.assert_close(parts[2], module.branch3(x))
    assert module.branch3[1].conv.kernel_size == (5, 5) and module.branch3[1].conv.padding == (2, 2)


def test_auxiliary_heads_speak_in_training_only() -> None:
    network = small(dropout_auxiliary=0.0, dropout=0.0)
    fill_module(network)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = network.eval()(x)
        assert isinstance(out, Out) and out.aux1 is None and out.aux2 is None
        out = network.train()(x)
    assert out.aux1 is not None and out.aux2 is not None and out.aux1.shape == out.aux2.shape == (2, 5)
    assert small(auxiliary=False).train()(x).aux1 is None
    assert small(classes=0).train()(x).shape == (2, 128)


def test_auxiliary_head_is_section_5() -> None:
    """Average pooling to 4x4 (at 224 pixels as the paper's 5x5 windows three apart leave 4x4), 1x1 convolution, fc, ReLU, fc."""
    network = small(dropout_auxiliary=0.0).eval()
    head = network.aux1
    assert head is not None
    x = torch.randn(2, 64, 14, 14)
    with torch.no_grad():
        pooled = F.adaptive_avg_pool2d(x, 4)
        hidden = head.fc1(head.conv(pooled).flatten(1)).relu()
        torch.testing.assert_close(head(x), head.fc2(hidden))
    assert head.fc1.in_features == 16 * 16 and F.avg_pool2d(x, 5, 3).shape[2:] == (4, 4)


def test_loss_is_main_plus_three_tenths_of_each() -> None:
    torch.manual_seed(0)
    logits, aux1, aux2 = torch.randn(3, 4, 5)
    labels = [0, 3, 4, 1]
    batch = batch_of(torch.zeros(4, 3, 8, 8), labels)
    terms = Deep()(Out(logits, aux1, aux2), batch)
    each = [float(F.cross_entropy(x, torch.tensor(labels))) for x in (logits, aux1, aux2)]
    assert list(terms) == ["classify", "aux1", "aux2"]
    assert [float(t) for t in terms.values()] == pytest.approx([each[0], 0.3 * each[1], 0.3 * each[2]], rel=1e-5)
    assert list(Deep()(Out(logits), batch)) == ["classify"]
    half = objective(small(), weight=0.5, smoothing=0.1)
    found = half.criterion(Out(logits, aux1, None), batch)
    smooth = F.cross_entropy(aux1, torch.tensor(labels), label_smoothing=0.1)
    assert float(found["aux1"]) == pytest.approx(0.5 * float(smooth), rel=1e-5)


def test_objective_trains_all_three_heads() -> None:
    network = small().train()
    run = objective(network)
    terms = run.forward(batch_of(torch.randn(4, 3, 64, 64), [0, 1, 2, 3]), Progress(0, 0, 1, 1))
    assert list(terms) == ["classify", "aux1", "aux2"]


def test_a_file_with_side_heads_loads_without_them(tmp_path: Any) -> None:
    network = create("googlenet/tiny")
    torch.save(network.state_dict(), tmp_path / "googlenet.pth")
    for changes in ({"auxiliary": False}, {"classes": 0}):
        again = load("googlenet/tiny", tmp_path / "googlenet.pth", quiet=True, **changes)
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
        assert not any(key.startswith("aux") for key in again.state_dict())


def test_modules_are_rows_of_table_1_in_their_order() -> None:
    for modules in (("3b", "3a", "4a", "4d", "5a"), ("3a", "4a", "5a"), ("3a", "4a", "4d"), ("3a", "4a", "4d", "5c"), ()):
        with pytest.raises(UsageError, match="modules must be some of 3a, 3b"):
            small(modules=modules)
    network = small(modules=("3a", "4b", "5b"), auxiliary=False).eval()
    with torch.no_grad():
        assert [m.shape[1] for m in network.features(torch.zeros(1, 3, 64, 64))] == list(network.widths) == [24, 32, 64, 128]
