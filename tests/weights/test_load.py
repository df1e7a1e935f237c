from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from opticus.structures import UsageError, WeightsError
from opticus.weights.load import load_into, match
from opticus.weights.names import Names, drop, keep, rename
from opticus.weights.positions import resize_positions


def network(classes: int = 3) -> nn.Module:
    return nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "head": nn.Linear(4, classes)})


def meta(classes: int = 3) -> nn.Module:
    with torch.device("meta"):
        return network(classes)


@pytest.mark.parametrize("make", [network, meta])
def test_values_arrive_in_the_networks_type(make) -> None:
    source = network().double()
    for tensor in source.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(7))
    target = make()
    loaded = load_into(target, source.state_dict())
    assert loaded == ((), (), ())
    assert all(tensor.dtype == torch.float32 for tensor in target.parameters())
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key].to(tensor.dtype)), key
    assert target["head"].weight.requires_grad and isinstance(target["head"].weight, nn.Parameter)


def test_a_meta_network_does_not_share_writable_memory_by_surprise() -> None:
    source = network().state_dict()
    target = meta()
    target.requires_grad_(False)
    load_into(target, source)
    assert not target["head"].weight.requires_grad


def test_the_four_groups_are_named_and_nothing_changes() -> None:
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = {key: value for key, value in network().state_dict().items() if key != "body.0.bias"}
    state |= {"stranger": torch.ones(1), "old.extra": torch.ones(1), "body.0.weight": torch.ones(4, 3, 5, 5)}
    names = Names(rename(r"old\.(.*)", r"new.\1"), keep(r"(body|head)\..*"))
    with pytest.raises(WeightsError) as error:
        load_into(target, state, names, file="x.pth")
    text = str(error.value)
    assert text.startswith("x.pth does not fit the network: 4 keys differ")
    assert "1 unmatched (in the file, no rule knows them): stranger" in text
    assert "1 missing (in the network, not in the file): body.0.bias" in text
    assert "1 extra (renamed, but not in the network): new.extra" in text
    assert "1 misshapen: body.0.weight (4, 3, 5, 5) in the file, (4, 3, 3, 3) in the network" in text
    assert "fresh=" not in text
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_long_groups_are_counted() -> None:
    with pytest.raises(WeightsError, match=r"12 unmatched .*: k0, k1, k2, k3, k4, \.\.\. 7 more"):
        load_into(network(), {f"k{i}": torch.ones(1) for i in range(12)}, Names(keep("body.*")))


def test_another_number_of_classes_says_what_to_do() -> None:
    state = network(10).state_dict()
    with pytest.raises(WeightsError) as error:
        load_into(network(3), state, classes=3)
    text = str(error.value)
    assert "the head has 10 outputs in the file and 3 in the network (classes=3)" in text
    assert "pass classes=10" in text and r'fresh=r"head\..*"' in text
    target = network(3)
    old = target["head"].weight.clone()
    loaded = load_into(target, state, fresh=r"head\..*")
    assert loaded.fresh == ("head.weight", "head.bias")
    assert torch.equal(target["head"].weight, old)
    assert torch.equal(target["body"][0].weight, state["body.0.weight"])


def test_a_file_without_a_head_says_what_to_do() -> None:
    state = {key: value for key, value in network().state_dict().items() if not key.startswith("head")}
    with pytest.raises(WeightsError, match=r'start head anew, pass fresh=r"head\\\.\.\*"'):
        load_into(network(), state)
    assert load_into(network(), state, fresh=r"head\..*").fresh == ("head.weight", "head.bias")


def test_fresh_must_match_something() -> None:
    with pytest.raises(UsageError, match="matches none of the network's 9 keys"):
        load_into(network(), network().state_dict(), fresh="fc.*")
    with pytest.raises(UsageError, match="not a regular expression"):
        load_into(network(), network().state_dict(), fresh="(")


def test_ignore_lets_a_headless_network_take_a_whole_file() -> None:
    state = network().state_dict()
    body = nn.ModuleDict({"body": network()["body"]})
    with pytest.raises(WeightsError, match="2 extra"):
        load_into(body, state)
    load_into(body, state, ignore=r"head\..*")
    assert torch.equal(body["body"][0].weight, state["body.0.weight"])


@pytest.mark.parametrize("make", [network, meta])
def test_batch_counters_are_neither_required_nor_refused(make) -> None:
    state = network().state_dict()
    del state["body.1.num_batches_tracked"]
    state["elsewhere.num_batches_tracked"] = torch.tensor(3)
    target = make()
    load_into(target, state)
    assert int(target["body"][1].num_batches_tracked) == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_parameters_need_one_value_and_stay_tied(device: str) -> None:
    with torch.device(device):
        target = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        target["b"].weight = target["a"].weight
    state = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "b.bias": torch.ones(2)}
    load_into(target, state)
    assert target["a"].weight is target["b"].weight
    assert torch.equal(target["b"].weight, torch.ones(2, 2))


def test_match_maps_a_manifest_on_the_meta_device() -> None:
    shapes = {key: torch.empty(value.shape, device="meta") for key, value in network().state_dict().items()}
    found = match(meta(), shapes)
    assert found.exact and len(found.state) == 9
    assert match(meta(5), shapes).misshapen == (("head.weight", (3, 4), (5, 4)), ("head.bias", (3,), (5,)))


def test_a_table_that_contradicts_itself_matches_nothing() -> None:
    state = network().state_dict()
    names = Names(rename(r"(.*)\.(weight|bias)", r"\1.weight"), keep(".*"))
    assert not match(network(), state, names).exact
    with pytest.raises(WeightsError, match=r"10 unmatched .*'body\.0\.weight' and 'body\.0\.bias' are both renamed"):
        load_into(network(), state, names)


def test_dropped_keys_are_reported() -> None:
    state = {**network().state_dict(), "aux.weight": torch.ones(2)}
    names = Names(drop(r"aux\..*"), keep(".*"))
    assert load_into(network(), state, names).dropped == ("aux.weight",)


def test_non_finite_values_are_refused_when_asked() -> None:
    state = network().state_dict()
    state["head.bias"][1] = math.nan
    load_into(network(), state)
    with pytest.raises(WeightsError, match=r"head\.bias holds 1 values that are not finite"):
        load_into(network(), state, finite=True)


def test_meta_tensors_without_values_are_an_error() -> None:
    target = meta()
    target.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(WeightsError, match="no storage after loading"):
        load_into(target, network().state_dict())


class Tokens(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, count, 8))


def test_positions_are_resized_on_request() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    grid = (rows + 10 * columns).reshape(1, 16, 1).expand(1, 16, 8)
    state = {"pos_embed": torch.cat([torch.full((1, 1, 8), -5.0), grid], 1)}
    with pytest.raises(WeightsError, match="misshapen: pos_embed"):
        load_into(Tokens(65), state)
    target = Tokens(65)
    assert load_into(target, state, positions={"pos_embed": 1}).resized == ("pos_embed",)
    new = target.pos_embed[0].detach()
    assert torch.equal(new[0], torch.full((8,), -5.0))
    square = new[1:, 0].reshape(8, 8)
    # a ramp stays a ramp inside: centre (i + 0.5) / 2 - 0.5 of the old grid
    inner = (torch.arange(8.0) + 0.5) / 2 - 0.5
    expected = inner[:, None] + 10 * inner[None]
    assert torch.allclose(square[3:5, 3:5], expected[3:5, 3:5], atol=1e-4)
    assert (square[1:] > square[:-1]).all() and (square[:, 1:] > square[:, :-1]).all()


def test_positions_on_other_grids() -> None:
    table = torch.randn(1, 17, 8)
    assert torch.equal(resize_positions(table, (1, 17, 8), 1), table)
    assert resize_positions(table, (1, 1 + 15, 8), 1, (3, 5)).shape == (1, 16, 8)
    assert resize_positions(table[0].half(), (26, 8), 1).dtype == torch.float16
    with pytest.raises(WeightsError, match="cannot be resized"):
        resize_positions(table, (1, 16, 8), 1)
    with pytest.raises(WeightsError, match="2 prefix tokens"):
        resize_positions(table, (1, 27, 8), 2)
