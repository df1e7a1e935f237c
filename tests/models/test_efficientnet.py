"""EfficientNet: compound scaling, padding as TensorFlow's, squeeze and excitation, stochastic depth, files that look alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from opticus import zoo
from opticus.models.backbones.efficientnet import FORMATS, VARIANTS, Config, EfficientNet, MBConv, SamePad, SqueezeExcite
from opticus.parity.fill import fill_module, fill_state
from opticus.parity.manifests import read as record
from opticus.parity.manifests import unfold
from opticus.structures import UsageError
from opticus.verbs.models import identify, load
from opticus.verbs.optimize import optimize

SMALL = {"width": 0.3, "classes": 5, "size": 64}


def small(variant: str = "b0", **changes: object) -> EfficientNet:
    network = zoo.create(f"efficientnet/{variant}", **{**SMALL, **changes})
    assert isinstance(network, EfficientNet)
    return network


def test_compound_scaling() -> None:
    """Equation 3 on table 1: depths are rounded up, widths to the nearest multiple of 8 but not by more than a tenth down."""
    b0, b7 = VARIANTS["b0"], VARIANTS["b7"]
    assert b0.depths() == (1, 2, 2, 3, 3, 4, 1) and b7.depths() == (4, 7, 7, 10, 10, 13, 4)
    assert [b0.widths(stage[3]) for stage in b0.stages] == [16, 24, 40, 80, 112, 192, 320]
    assert [b7.widths(stage[3]) for stage in b7.stages] == [32, 48, 80, 160, 224, 384, 640]
    assert Config(width=1.1).widths(32) == 32  # 35.2, nearest 32, less than a tenth down
    assert Config(width=1.15).widths(32) == 40  # 36.8, nearest 40
    assert Config(width=0.3).widths(32) == 16  # 9.6, nearest 8 would be more than a tenth down
    assert [VARIANTS[f"b{i}"].size for i in range(8)] == [224, 240, 260, 300, 380, 456, 528, 600]


@pytest.mark.parametrize(
    ("side", "kernel", "before", "after"), [(8, 3, 0, 1), (7, 3, 1, 1), (8, 5, 1, 2), (7, 5, 2, 2), (2, 5, 1, 2)]
)
def test_padding_of_tensorflow(side: int, kernel: int, before: int, after: int) -> None:
    x = torch.randn(1, 2, side, side + 4)
    padded = SamePad(kernel, 2)(x)
    assert torch.equal(padded, F.pad(x, (before, after, before, after)))
    out = F.conv2d(padded, torch.randn(3, 2, kernel, kernel), stride=2)
    assert tuple(out.shape[2:]) == (-(-side // 2), -(-(side + 4) // 2))


def test_tensorflow_padding_changes_strided_convolutions_only() -> None:
    """On odd inputs both paddings are the same; on even ones the map is shifted by half a step."""
    plain, same = small(norm=(1e-3, 0.01)).eval(), small("tf_b0").eval()
    fill_module(plain)
    same.load_state_dict(plain.state_dict())
    odd, even = torch.randn(1, 3, 65, 65), torch.randn(1, 3, 64, 64)  # 65, 33, 17, 9, 5, 3
    with torch.no_grad():
        torch.testing.assert_close(plain(odd), same(odd))
        one, other = plain.stem(even), same.stem(even)
        assert one.shape == other.shape and float((one - other).square().mean()) > 0.1 * float(one.square().mean())
        # the same windows start one pixel further right and down
        shifted = plain.stem(F.pad(even, (-1, 1, -1, 1)))
        torch.testing.assert_close(shifted[:, :, 1:, 1:], other[:, :, 1:, 1:])


def test_squeeze_and_excitation_equals_its_equation() -> None:
    layer, x = SqueezeExcite(6, 2).double(), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        mean = x.mean((2, 3), keepdim=True)
        hidden = F.silu(F.conv2d(mean, layer.reduce.weight[:, :, None, None], layer.reduce.bias))
        gate = torch.sigmoid(F.conv2d(hidden, layer.expand.weight[:, :, None, None], layer.expand.bias))
        torch.testing.assert_close(layer(x), x * gate)


def test_shortcut_where_shapes_agree_and_squeeze_of_the_input() -> None:
    blocks = [block for block in zoo.meta("efficientnet/b1").modules() if isinstance(block, MBConv)]
    firsts = {sum(VARIANTS["b1"].depths()[:i]) for i in range(7)}
    assert [i for i, block in enumerate(blocks) if not block.residual] == sorted(firsts)
    # a quarter of the block's input, not of its expansion
    assert [blocks[i].squeeze.reduce.out_features for i in (0, 2, 5)] == [8, 4, 6]


def test_stochastic_depth_grows_with_depth_and_acts_in_training_only() -> None:
    blocks = [block for block in small(drop_connect=0.2).modules() if isinstance(block, MBConv)]
    rates = [getattr(block.drop_connect, "rate", 0.0) for block in blocks]
    assert rates == pytest.approx([0.2 * i / 16 for i in range(16)])
    torch.manual_seed(0)
    network, x = small(drop_connect=0.5, dropout=0.0), torch.randn(8, 3, 64, 64)
    plain = small(drop_connect=0.0, dropout=0.0)
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network.train()(x))
        plain.load_state_dict(network.state_dict())  # with the statistics that training has moved
        torch.testing.assert_close(network.eval()(x), plain.eval()(x))


def test_maps_for_efficientdet() -> None:
    """P1 to P5 with the widths that EfficientDet-D0 expects; the last is what the top convolution takes."""
    network = zoo.meta("efficientnet/tf_b0")
    assert network.strides == (2, 4, 8, 16, 32) and network.widths == (16, 24, 40, 112, 320)
    network = small().eval()
    x = torch.randn(1, 3, 96, 65)
    with torch.no_grad():
        maps = network.features(x)
        torch.testing.assert_close(network.top(maps[-1]).mean((2, 3)), network.embed(x))


def test_initialisation_is_the_authors() -> None:
    """Variance 2 / fan-out; for a depthwise kernel the fan-out of one group, k x k, else k x k x outputs."""
    torch.manual_seed(0)
    network = zoo.create("efficientnet/b0")
    block = network.stages[5][1]
    for weight, fan in ((block.depthwise.conv.weight, 25), (block.expand.conv.weight, 1152), (block.project.conv.weight, 192)):
        assert float(weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.05)


def test_files_of_both_paddings_look_alike(tmp_path: Path) -> None:
    """timm's own and the authors' networks have the same keys: a file fits both, and identify says so."""
    shapes = unfold(record("efficientnet")["manifests"]["timm"]["tf_b0"]["keys"])
    save_file(fill_state(shapes, torch.float32), tmp_path / "b0.safetensors")
    found = identify(tmp_path / "b0.safetensors")
    assert found.exact and {found.name, *(text.split(" ")[0] for text in found.others)} == {"efficientnet/b0", "efficientnet/tf_b0"}
    one, other = (load(f"efficientnet/{variant}", tmp_path / "b0.safetensors") for variant in ("b0", "tf_b0"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert one.config.norm[0] == 1e-5 and other.config.norm[0] == 1e-3 and other.config.padding == "same"


def test_blocks_are_numbered_through_in_transformers() -> None:
    names = FORMATS["huggingface_b7"]
    state = {f"efficientnet.encoder.blocks.{i}.projection.project_conv.weight": torch.zeros(1) for i in (0, 3, 4, 54)}
    assert list(names.apply(state).state) == [
        "stages.0.0.project.conv.weight", "stages.0.3.project.conv.weight", "stages.1.0.project.conv.weight", "stages.6.3.project.conv.weight",
    ]  # fmt: skip


def test_optimized_network_agrees() -> None:
    fast = optimize(small("tf_b0").eval())
    assert fast.error < 1e-4 and fast.fused >= 3 * 16


def test_a_bad_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="padding"):
        small(padding="valid")
