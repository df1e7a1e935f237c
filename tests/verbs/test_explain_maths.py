"""What `explain` computes, each against its literal definition: projections, Grad-CAM, attention, fields, directions, neighbours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opticus
from opticus.structures import CapabilityError, Classes, Images, Prepare, Sample, UnknownNameError, UsageError
from opticus.verbs.explain_activations import peaks, project, rule_for
from opticus.verbs.explain_attention import attentions, is_attention, rollout, weights_of
from opticus.verbs.explain_field import effective_field
from opticus.verbs.explain_gradcam import gradcam_of, scores_of
from opticus.verbs.explain_layers import as_maps, field_of, grid_of, layer_named, output_of, theoretical_side
from opticus.verbs.explain_pictures import numbers
from opticus.verbs.explain_request import Request, as_pixels, onto_picture
from opticus.verbs.explain_space import agreement, nearest
from opticus.verbs.explain_surface import batches_of, filter_normalised, loss_of, moved
from opticus.verbs.explain_weights import look_of, templates_of

RULES = ("deconvnet", "guided")
SMALL = Prepare(resize="fixed", size=(12, 12), mean=(0.5,) * 3, std=(0.25,) * 3)


def stack(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(*layers).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def pixels(count: int = 2, side: int = 12, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unit(channel: int, row: int, column: int) -> Any:
    return lambda out: out[:, channel, row, column]


# --- projections to pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_projection_of_a_linear_network_is_its_gradient_times_the_activation(rule: Any) -> None:
    network = stack(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, 2))
    x = pixels().requires_grad_(True)
    out = network(x)[:, 2, 1, 3]
    (gradient,) = torch.autograd.grad(out.sum(), x)
    found = project(network, network[2], x, unit(2, 1, 3), rule)
    torch.testing.assert_close(found, gradient * out.detach()[:, None, None, None], rtol=1e-12, atol=1e-12)


class Functional(nn.Module):
    """The same layers with the rectifier written in one of the ways that papers use."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), how
        self.module, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)

    def rectify(self, x: Tensor) -> Tensor:
        if self.how in ("module", "inplace"):
            return getattr(self, self.how)(x)
        ways = {"F.relu": F.relu, "torch.relu": torch.relu, "relu_": torch.relu_, "method": Tensor.relu, "method_": Tensor.relu_}
        return ways[self.how](x)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.rectify(self.first(x)), 2)
        return self.rectify(self.second(x))


@pytest.mark.parametrize("how", ["module", "inplace", "F.relu", "torch.relu", "relu_", "method", "method_"])
def test_the_deconvnet_is_unpooling_rectifying_and_transposed_filters(how: str) -> None:
    """Zeiler and Fergus 2014, section 2.1, step by step; switches are those of the forward pass, the signal is rectified."""
    torch.manual_seed(0)
    network = Functional(how).double().eval()
    x = pixels()
    with torch.no_grad():
        first = F.conv2d(x, network.first.weight, network.first.bias).relu()
        pooled, switches = F.max_pool2d(first, 2, return_indices=True)
        top = F.conv2d(pooled, network.second.weight, network.second.bias).relu()
        channel = int(top.sum((0, 2, 3)).argmax())
        row, column = divmod(int(top[:, channel].sum(0).argmax()), top.shape[3])
        signal = torch.zeros_like(top)
        signal[:, channel, row, column] = top[:, channel, row, column]
        down = F.conv_transpose2d(signal.relu(), network.second.weight)
        down = F.max_unpool2d(down, switches, 2, output_size=first.shape[2:])
        wanted = F.conv_transpose2d(down.relu(), network.first.weight)
        assert float(wanted.abs().max()) > 0
    layer = network
    found = project(nn.Sequential(layer), layer, x, unit(channel, row, column), "deconvnet")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU])
def test_guided_backpropagation_masks_by_both_signals(kind: type[nn.Module]) -> None:
    network = stack(nn.Conv2d(3, 4, 3), activation := kind(), nn.Conv2d(4, 5, 3), kind())
    x = pixels()
    hidden = F.conv2d(x, network[0].weight, network[0].bias).requires_grad_(True)
    middle = activation(hidden)
    last = F.conv2d(middle, network[2].weight, network[2].bias).detach().requires_grad_(True)
    top = activation(last)
    signal = torch.zeros_like(top)
    signal[:, 1, 2, 2] = top[:, 1, 2, 2].detach()
    (down,) = torch.autograd.grad(top, last, signal.clamp(min=0))
    down = F.conv_transpose2d(down, network[2].weight)
    (down,) = torch.autograd.grad(middle, hidden, down.clamp(min=0))
    found = project(network, network[3], x, unit(1, 2, 2), "guided")
    torch.testing.assert_close(found, F.conv_transpose2d(down, network[0].weight), rtol=1e-10, atol=1e-12)


def test_the_rule_is_that_of_the_layers_before() -> None:
    network = stack(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    assert [rule_for(network, network[i], pixels(1)) for i in (1, 3)] == ["guided", "deconvnet"]
    for name, rule in (("resnet/18", "deconvnet"), ("resnet/tiny", "guided")):
        model: Any = opticus.create(name).eval()
        assert rule_for(model, model.layer1, torch.zeros(1, 3, 64, 64)) == rule


def test_peaks_equal_a_loop_over_pictures_and_maps() -> None:
    network: Any = stack(nn.Conv2d(3, 3, 3))
    network.prepare = SMALL
    drawn = torch.randint(0, 256, (14, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    samples = [Sample.of(one, None, str(i)) for i, one in enumerate(drawn)]
    found = peaks(network, network[0], samples, None, batch=5)
    maps = network((drawn.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.25).detach()
    for channel in range(3):
        best = sorted(range(14), key=lambda i: -float(maps[i, channel].max()))[:9]
        assert [peak.picture for peak in found[channel]] == best
        for peak in found[channel]:
            value = maps[(peak.picture, channel, *peak.cell)]
            assert float(value) == float(maps[peak.picture, channel].max()) == pytest.approx(peak.value, rel=1e-5)


# --- Grad-CAM --------------------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Global average pooling and a linear head: Grad-CAM has a closed form."""

    strides, widths = (1,), (4,)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def features(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x).relu()]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1].mean((2, 3)))


def test_gradcam_equals_a_hand_computation() -> None:
    """For average pooling and a linear head, weights_k of eq. 1 are the head's weights over the number of cells."""
    torch.manual_seed(0)
    network = Pooled().double().eval()
    x = pixels(1)
    maps = network.features(x)[0].detach()[0]
    for label in (None, 0, 3):
        cam, source = gradcam_of(network, x, label)
        chosen = int(network(x).argmax()) if label is None else label
        weights = network.head.weight.detach()[chosen] / (12 * 12)
        torch.testing.assert_close(cam.weights, weights, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(cam.heat, (weights[:, None, None] * maps).sum(0).relu(), rtol=1e-12, atol=1e-15)
        assert source == "features()" and cam.score == pytest.approx(float(network(x)[0, chosen].detach()), rel=1e-12)
    assert "features" not in vars(network)
    same, _ = gradcam_of(network, x, 3, layer="conv")  # maps before the rectifier: the gradient stops where it cuts
    before = network.conv(x).detach()[0]
    weights = network.head.weight.detach()[3] / 144 * (before > 0).double().mean((1, 2))
    torch.testing.assert_close(same.weights, weights, rtol=1e-12, atol=1e-15)


def test_gradcam_of_a_transformer_takes_the_tokens_before_its_last_attention() -> None:
    torch.manual_seed(0)
    model: Any = opticus.create("vit/tiny").double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    cam, source = gradcam_of(model, x, 4)
    assert source == "the tokens that enter blocks.3.attn" and cam.heat.shape == (8, 8)
    with torch.no_grad():
        early = model.blocks[:3](torch.cat([model.cls_token, model.patch_embed(x).flatten(2).mT], 1) + model.pos_embed)
    tokens = model.blocks[3].norm1(early).detach().requires_grad_(True)
    late = early + model.blocks[3].attn(tokens)
    late = late + model.blocks[3].mlp(model.blocks[3].norm2(late))
    (slope,) = torch.autograd.grad(model.head(model.norm(late)[:, 0])[0, 4], tokens)
    weights = slope[0, 1:].mean(0)
    wanted = (tokens.detach()[0, 1:] @ weights).relu().reshape(8, 8)
    torch.testing.assert_close(cam.heat, wanted, rtol=1e-9, atol=1e-15)


def test_gradcam_refuses_maps_that_the_score_does_not_depend_on() -> None:
    model: Any = opticus.create("vit/tiny").eval()
    with pytest.raises(CapabilityError, match=r"vit/tiny cannot do Grad-CAM: the score does not depend on layer blocks\.3\.mlp"):
        gradcam_of(model, torch.zeros(1, 3, 32, 32), 0, layer="blocks.3.mlp.fc2")  # after it only the class token counts
    with pytest.raises(CapabilityError, match=r"no features\(\) and no attention; name a layer"):
        gradcam_of(opticus.create("lenet/5").eval(), torch.zeros(1, 1, 32, 32))


def test_scores_of_maps_and_queries_are_their_best() -> None:
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(scores_of((maps, None)), maps.flatten(2).max(2).values)
    assert torch.equal(scores_of((maps[:, :, 0],)), maps[:, :, 0].max(1).values)


# --- attention -------------------------------------------------------------------------------------------------------------


def test_attention_rows_sum_to_one_and_reproduce_the_module() -> None:
    torch.manual_seed(0)
    model: Any = opticus.create("vit/tiny").double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    inputs: dict[str, Tensor] = {}
    handles = [
        m.register_forward_hook(lambda m, a, o, n=n: inputs.update({n: a[0].detach(), n + ".out": o.detach()}))
        for n, m in model.named_modules()
        if is_attention(m)
    ]
    before = model(x).detach()
    found = attentions(model, x)
    for handle in handles:
        handle.remove()
    assert [one.name for one in found] == [f"blocks.{i}.attn" for i in range(4)] and found[0].weights.shape == (2, 3, 65, 65)
    for one in found:
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(2, 3, 65, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        assert torch.equal(one.weights, weights_of(one.module, inputs[one.name]).detach())
        module: Any = one.module
        value = module.qkv(inputs[one.name]).reshape(2, 65, 3, 3, 32)[:, :, 2].transpose(1, 2)
        again = module.proj((one.weights @ value).transpose(1, 2).reshape(2, 65, 96))
        torch.testing.assert_close(again.detach(), inputs[one.name + ".out"], rtol=1e-9, atol=1e-12)
    assert torch.equal(model(x).detach(), before) and not any(m._forward_hooks for m in model.modules())


class Biased(nn.Module):
    """Attention that `qkv` and `heads` alone do not explain."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 2, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def test_attention_that_cannot_be_recomputed_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(CapabilityError, match=r"the attention of 0 is more than softmax"):
        attentions(nn.Sequential(Biased()), torch.randn(1, 5, 8))
    with pytest.raises(CapabilityError, match=r"no attention modules"):
        attentions(stack(nn.Conv2d(3, 4, 3)), pixels(1))


def test_rollout_of_identity_attention_is_the_identity() -> None:
    eye = torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6)
    for fusion in ("mean", "max", "min"):
        for step in rollout([eye] * 4, fusion):
            assert torch.equal(step, torch.eye(6, dtype=torch.float64).expand(2, 6, 6))


def test_rollout_is_the_product_of_the_mixed_layers() -> None:
    layers = [torch.randn(1, 3, 5, 5, dtype=torch.float64).softmax(-1) for _ in range(3)]
    found = rollout(layers)
    product = np.eye(5)
    for layer, step in zip(layers, found, strict=True):
        product = (0.5 * layer[0].mean(0).numpy() + 0.5 * np.eye(5)) @ product
        np.testing.assert_allclose(step[0].numpy(), product, rtol=1e-12)
        np.testing.assert_allclose(step[0].sum(-1).numpy(), 1, rtol=1e-12)
    assert not torch.allclose(rollout(layers, "max")[-1], found[-1])


# --- receptive fields --------------------------------------------------------------------------------------------------------

STACKS = [
    ((3, 1, 1), (3, 1, 1), (3, 1, 1)),
    ((5, 2, 1), (3, 1, 2), (3, 2, 1)),
    ((7, 2, 1), (3, 2, 1), (1, 1, 1)),
    ((2, 2, 1), (4, 1, 3)),
]


@pytest.mark.parametrize("layers", STACKS)
@pytest.mark.parametrize("pool", [False, True])
def test_the_theoretical_field_is_the_closed_form(layers: tuple[tuple[int, int, int], ...], pool: bool) -> None:
    """r = 1 + sum (k - 1) d j over the layers, j the product of the strides before (Araujo et al. 2019)."""
    parts: list[nn.Module] = []
    width, reach, jump = 2, 1, 1
    rules = [(kernel, stride, dilation, dilation * (kernel - 1) // 2) for kernel, stride, dilation in layers]
    for kernel, stride, dilation, padding in rules:
        parts += [nn.Conv2d(width, 3, kernel, stride, padding, dilation), nn.ReLU()]
        reach, jump, width = reach + (kernel - 1) * dilation * jump, jump * stride, 3
    if pool:
        parts.append(nn.MaxPool2d(2, 2))
        rules.append((2, 2, 1, 0))
        reach += jump
    network = stack(*parts)
    assert theoretical_side(network, network[-1], torch.zeros(1, 2, 16, 16, dtype=torch.float64)) == (reach, reach)
    x = torch.zeros(1, 2, 96, 64, dtype=torch.float64)
    rows, columns = network(x).shape[2:]
    for cell in ((rows // 2, columns // 2), (0, 0), (rows - 1, 1)):
        field = field_of(network, network[-1], x, cell, None)
        for low, high, at, length in ((field.top, field.bottom, cell[0], 96), (field.left, field.right, cell[1], 64)):
            seen = inputs_of(at, length, rules)
            assert (low, high) == (min(seen), max(seen) + 1)


def inputs_of(unit: int, length: int, rules: list[tuple[int, int, int, int]]) -> set[int]:
    """The input positions that a unit of a stack of (kernel, stride, dilation, padding) sees along one axis, padding left out."""
    lengths = [length]
    for kernel, stride, dilation, padding in rules:
        lengths.append((lengths[-1] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    seen = {unit}
    for (kernel, stride, dilation, padding), size in zip(rules[::-1], lengths[-2::-1], strict=True):
        seen = {p for u in seen for i in range(kernel) if 0 <= (p := u * stride - padding + i * dilation) < size}
    return seen


def test_a_transformers_unit_sees_the_whole_picture_and_its_patch_before_attention() -> None:
    model: Any = opticus.create("vit/tiny").eval()
    x = torch.zeros(1, 3, 32, 32)
    grid = grid_of(model, x)
    assert grid == (8, 8)
    assert field_of(model, model.patch_embed, x, (2, 3), grid) == (12, 8, 16, 12)
    assert field_of(model, model.blocks[0], x, (2, 3), grid) == (0, 0, 32, 32)
    assert theoretical_side(model, model.blocks[0], x) is None
    tokens = output_of(model, model.blocks[0], x)
    maps = as_maps(tokens, grid)
    assert maps is not None and torch.equal(maps[0, :, 2, 3], tokens[0, 1 + 2 * 8 + 3])


def test_the_effective_field_of_one_convolution_is_its_kernel() -> None:
    network = stack(nn.Conv2d(3, 4, 5, padding=2))
    found = effective_field(network, network[0], pixels(3), (6, 4), None, unit=1)
    kernel = network[0].weight.detach()[1].abs().sum(0)
    wanted = torch.zeros(12, 12, dtype=torch.float64)
    wanted[4:9, 2:7] = kernel / kernel.max()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


# --- loss surfaces -------------------------------------------------------------------------------------------------------------


def test_directions_have_the_norms_of_the_filters() -> None:
    network = stack(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))
    direction = filter_normalised(network, torch.Generator().manual_seed(3))
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            assert not direction[name].any()
            continue
        for drawn, own in zip(direction[name], parameter, strict=True):
            assert float(drawn.norm()) == pytest.approx(float(own.detach().norm()), rel=1e-12)
            assert abs(float((drawn * own.detach()).sum())) < 0.9 * float(own.detach().norm()) ** 2
    again = filter_normalised(network, torch.Generator().manual_seed(3))
    other = filter_normalised(network, torch.Generator().manual_seed(4))
    assert all(torch.equal(direction[n], again[n]) for n in direction)
    assert not all(torch.equal(direction[n], other[n]) for n in direction)


def test_moving_the_weights_is_undone_whatever_happens() -> None:
    network = stack(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    first, second = filter_normalised(network, draw), filter_normalised(network, draw)

    def fail() -> None:
        with moved(network) as move:
            move(0.3, first, -0.5, second)
            wanted = before["0.weight"] + 0.3 * first["0.weight"] - 0.5 * second["0.weight"]
            torch.testing.assert_close(network[0].weight.detach(), wanted, rtol=1e-12, atol=0)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_surfaces_loss_is_the_objectives_on_all_records() -> None:
    model: Any = opticus.create("resnet/tiny").eval()
    samples = [opticus.open_data("crops", "test")[i] for i in range(5)]
    objective = __import__("opticus.models.backbones.resnet", fromlist=["objective"]).objective(model).eval()
    found = loss_of(objective, batches_of(model, samples))
    x = torch.stack([sample.picture.pixels for sample in samples]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.prepare.mean, model.prepare.std))
    labels = torch.tensor([int(sample.target.labels[0]) for sample in samples])  # type: ignore[union-attr]
    with torch.no_grad():
        assert found == pytest.approx(float(F.cross_entropy(model((x - mean) / std), labels)), rel=1e-5)


# --- neighbours ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2", "cosine"])
def test_neighbours_equal_brute_force(norm: str) -> None:
    rng = np.random.default_rng(0)
    points, queries = rng.normal(size=(90, 7)), rng.normal(size=(70, 7))
    points[40] = points[3]  # a tie: the earlier one comes first
    distances, indices = nearest(torch.from_numpy(queries), torch.from_numpy(points), 6, norm)
    for i, query in enumerate(queries):
        own = {
            "l1": lambda p, q=query: np.abs(p - q).sum(),
            "l2": lambda p, q=query: math.sqrt(((p - q) ** 2).sum()),
            "cosine": lambda p, q=query: 1 - p @ q / math.sqrt((p @ p) * (q @ q)),
        }[norm]
        loop = [float(own(p)) for p in points]
        order = sorted(range(90), key=lambda j: (round(loop[j], 12), j))[:6]
        assert indices[i].tolist() == order
        np.testing.assert_allclose(distances[i].numpy(), [loop[j] for j in order], rtol=1e-9)


def test_agreement_counts_neighbours_of_the_same_class() -> None:
    rng = np.random.default_rng(1)
    points, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40).tolist()
    total = 0
    for i in range(40):
        others = sorted((float(((points[i] - points[j]) ** 2).sum()), j) for j in range(40) if j != i)
        total += sum(labels[j] == labels[i] for _, j in others[:10])
    assert agreement(torch.from_numpy(points), labels) == pytest.approx(total / 400, rel=1e-12)
    assert agreement(torch.from_numpy(points), [None, *labels[1:]]) is None


# --- weights as pictures ---------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """The one kind of network that has templates."""

    def __init__(self, classes: int = 4, channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.prepare = Prepare(channels=channels, resize="fixed", size=(5, 6), mean=(0.5,) * channels, std=(0.2,) * channels)
        self.head = nn.Linear(30 * channels, classes, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("bias", [True, False])
def test_templates_give_the_networks_scores(bias: bool) -> None:
    network = Linear(bias=bias)
    weights, offset = templates_of(network)
    x = torch.randn(1, 3, 5, 6)
    torch.testing.assert_close((weights * x).sum((1, 2, 3)) + offset, network(x)[0].detach(), rtol=1e-5, atol=1e-5)


def test_networks_without_templates_are_refused_by_what_they_have() -> None:
    with pytest.raises(CapabilityError, match=r"lenet/5 has no class templates: .* it has 7 \(c1, s2, c3, s4, \.\.\.\)"):
        templates_of(opticus.create("lenet/5"))
    wrong: Any = Linear()
    wrong.prepare = Prepare(size=(9, 9))
    with pytest.raises(CapabilityError, match="its layer has 90 inputs, the picture has 3x9x9 values"):
        templates_of(wrong)

    class Squared(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1) ** 2)

    with pytest.raises(CapabilityError, match="not linear in the pixels"):
        templates_of(Squared())


def grating(angle: float, colour: tuple[float, float, float] = (1, 1, 1), side: int = 11) -> np.ndarray:
    """An edge detector whose edges run at `angle` degrees: 0 lies flat, 90 stands."""
    y, x = np.mgrid[:side, :side] - side // 2
    across = x * math.sin(math.radians(angle)) + y * math.cos(math.radians(angle))
    wave = np.sin(across * 2 * math.pi / 6) * np.exp(-(x**2 + y**2) / 18)
    return wave[..., None] * np.array(colour)


@pytest.mark.parametrize("angle", [0, 30, 60, 90, 120, 150])
def test_the_angle_of_an_edge_filter_is_found(angle: float) -> None:
    look = look_of(grating(angle))
    assert look.kind == "edge" and look.angle is not None
    assert abs((look.angle - angle + 90) % 180 - 90) < 6
    assert look.colour_share == pytest.approx(0, abs=1e-9) and look.period == pytest.approx(6, rel=0.15)


def test_colours_brightness_and_spots_are_told_apart() -> None:
    flat = np.ones((7, 7, 1))
    assert look_of(flat * [1, 1, 1]).kind == "brightness"
    assert look_of(flat * [1, -0.5, -0.5]).kind == "colour"
    assert look_of(grating(40, (1, -1, 0))).kind == "colour edge"
    y, x = np.mgrid[:9, :9] - 4
    radius = (x**2 + y**2) / 4
    spot = ((1 - radius) * np.exp(-radius))[..., None]
    assert look_of(spot * [1, 1, 1]).kind == "spot"
    assert look_of(spot * [1, 0, -1]).kind == "colour spot"


# --- frames ------------------------------------------------------------------------------------------------------------------------


def test_a_map_returns_to_the_picture_through_the_crop() -> None:
    """A picture of 40x60 whose central 32x32 the network saw, as 4x4 cells of 8 pixels."""
    matrix = torch.tensor([[1.0, 0, -14], [0, 1, -4], [0, 0, 1]], dtype=torch.float64)[None]
    images = Images(torch.zeros(1, 3, 32, 32), None, matrix, ((40, 60),))
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1
    found = onto_picture(heat, images, 0, (32, 32))
    assert found.shape == (40, 60)
    assert np.isnan(found[:4]).all() and np.isnan(found[:, :14]).all() and np.isnan(found[:, 46:]).all()
    inside = found[4:36, 14:46]
    assert np.isfinite(inside).all()
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    assert 8 <= y < 16 and 16 <= x < 24
    larger = onto_picture(heat, images, 0, (32, 32), (80, 120))
    np.testing.assert_allclose(np.nanmax(larger), 1, atol=0.15)


def test_pixels_come_back_from_the_networks_input() -> None:
    rule = Prepare(resize="none", order="bgr", mean=(0.1, 0.5, 0.9), std=(0.3, 0.2, 0.1))
    from opticus.structures import Picture
    from opticus.transforms.prepare import prepare

    drawn = torch.randint(0, 256, (6, 5, 3), dtype=torch.uint8)
    assert np.array_equal(as_pixels(prepare([Picture(drawn)], rule).pixels[0], rule), drawn.numpy())


def test_numbers_are_the_pictures_own() -> None:
    sample = Sample.of(torch.arange(24, dtype=torch.uint8).reshape(4, 6, 1), Classes(torch.tensor([0])), "ramp")
    answer = numbers(Request("numbers", [], [], sample.picture, None, "test", 0, None))
    assert answer.numbers["values"] == [[6 * y + x for x in range(6)] for y in range(4)]


def test_a_layer_that_does_not_exist_has_near_names() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown layer of resnet/tiny 'layer3\.0\.conv9'; did you mean 'layer3\.0\.conv2' or"
    ):
        layer_named(opticus.create("resnet/tiny"), "layer3.0.conv9")
    with pytest.raises(UsageError, match="needs a picture or data="):
        Request("gradcam", [], [], None, None, "test", 0, None).items(1)
