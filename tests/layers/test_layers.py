"""Layers on one process: norms, averages, perceptrons, stochastic depth, positions."""

import copy
import math

import pytest
import torch
from torch import nn

from opticus.layers.average import Average, ramp
from opticus.layers.drop import DropPath
from opticus.layers.mlp import MLP, FeedForward
from opticus.layers.norm import FrozenBatchNorm, SyncNorm, sync_norms
from opticus.layers.positions import SinePositions
from opticus.structures import UsageError


def shaken(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_norm_is_the_formula_and_has_no_parameters(eps):
    norm = FrozenBatchNorm(4, eps=eps).double()
    with torch.no_grad():
        shaken(norm)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    mean, var, weight, bias = (v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    torch.testing.assert_close(norm.train()(x), (x - mean) / (var + eps).sqrt() * weight + bias)
    assert not list(norm.parameters()) and set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_sync_norm_on_one_process_is_batch_norm(momentum):
    theirs = nn.BatchNorm2d(3, momentum=momentum)
    ours = SyncNorm(3, momentum=momentum)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_norms_are_converted_in_place_with_their_very_parameters():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4, affine=False)), FrozenBatchNorm(4))
    state, weight = copy.deepcopy(net.state_dict()), net[1].weight
    assert sync_norms(net) is net
    assert isinstance(net[1], SyncNorm) and isinstance(net[2][0], SyncNorm) and isinstance(net[3], FrozenBatchNorm)
    assert net[1].weight is weight and net[2][0].weight is None
    assert net.state_dict().keys() == state.keys()
    assert isinstance(sync_norms(nn.BatchNorm3d(2)), SyncNorm)
    with pytest.raises(UsageError, match="running statistics"):
        sync_norms(nn.BatchNorm2d(2, track_running_stats=False))


def test_average_follows_parameters_and_buffers():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(net, decay=0.75)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for value in net.parameters():
            value.add_(4)
        net[1].running_mean.add_(8)
        net[1].num_batches_tracked.add_(5)
    average.update(net)
    after = average.network.state_dict()
    torch.testing.assert_close(after["0.weight"], before["0.weight"] + 1)
    torch.testing.assert_close(after["1.running_mean"], before["1.running_mean"] + 2)
    assert after["1.num_batches_tracked"] == 5 and average.step == 1
    assert not any(p.requires_grad for p in average.parameters())
    other = Average(net, decay=0.75)
    other.load_state_dict(average.state_dict())
    assert other.step == 1 and torch.equal(other(torch.ones(2, 2)), average(torch.ones(2, 2)))


def test_average_with_a_decay_that_rises():
    net = nn.Linear(1, 1)
    average = Average(net, decay=ramp(0.9))
    seen = [ramp(0.9)(step) for step in (0, 10, 1000)]
    assert seen == pytest.approx([0.1, 11 / 20, 0.9])
    start = net.weight.item()
    with torch.no_grad():
        net.weight.add_(1)
    average.update(net)
    assert average.network.weight.item() == pytest.approx(start + 0.9)


def test_perceptrons():
    head = MLP(4, 8, 2, 3)
    assert [tuple(p.shape) for p in head.parameters()] == [(8, 4), (8,), (8, 8), (8,), (2, 8), (2,)]
    assert next(iter(head.state_dict())) == "layers.0.weight" and bool((head(torch.randn(50, 4)) < 0).any())
    block = FeedForward(4, 16)
    x = torch.randn(3, 4)
    torch.testing.assert_close(block(x), block.fc2(nn.functional.gelu(block.fc1(x))))


def test_stochastic_depth_keeps_the_mean_and_drops_whole_samples():
    x = torch.ones(4000, 2, 3)
    out = DropPath(0.25)(x)
    kept = out[:, 0, 0] > 0
    assert bool(((out == 0) | (out == 1 / 0.75)).all()) and bool((out.flatten(1).std(1) == 0).all())
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert DropPath(0.25).eval()(x) is x and DropPath(0.0)(x) is x and DropPath(1.0)(x).sum() == 0


def test_sine_positions_by_hand_and_without_padding():
    valid = torch.ones(1, 2, 3, dtype=torch.bool)
    table = SinePositions(4)(valid, torch.float64)
    assert table.shape == (1, 8, 2, 3)
    y, x = 2 / (2 + 1e-6) * 2 * math.pi, 1 / (3 + 1e-6) * 2 * math.pi
    expected = [f(v / 10000 ** (i / 2)) for v in (y, x) for i in (0, 1) for f in (math.sin, math.cos)]
    torch.testing.assert_close(table[0, :, 1, 0], torch.tensor(expected, dtype=torch.float64))
    padded = torch.nn.functional.pad(valid, (0, 2, 0, 1))
    torch.testing.assert_close(SinePositions(4)(padded)[..., :2, :3], table.float())
    plain = SinePositions(2, normalise=False)(valid)
    torch.testing.assert_close(plain[0, 0, :, 0], torch.tensor([1.0, 2.0]).sin())
