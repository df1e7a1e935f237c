from __future__ import annotations

import pytest
import torch

from opticus.structures import WeightsError
from opticus.weights.names import (
    SAME,
    Names,
    chain,
    conv_kernel,
    copy,
    drop,
    flatten,
    join,
    keep,
    rename,
    reshape,
    split,
    squeeze,
    take,
    transpose,
    unsqueeze,
)


def test_first_matching_rule_decides_and_patterns_match_whole_keys() -> None:
    names = Names(drop(r".*\.counter"), rename(r"old\.(\d+)\.(.*)", r"new.\1.\2"), keep(r"head\..*"))
    a, b, c, d, e = (torch.full((1,), float(i)) for i in range(5))
    found = names.apply({"old.3.weight": a, "head.bias": b, "old.counter": c, "headless": d, "xold.3.weight": e})
    assert found.state == {"new.3.weight": a, "head.bias": b}
    assert found.sources["new.3.weight"] == ("old.3.weight",)
    assert found.dropped == ("old.counter",)
    assert found.unmatched == ("headless", "xold.3.weight")


def test_same_is_the_identity_and_tables_add_up() -> None:
    state = {"a.b": torch.ones(2), "c": torch.zeros(1)}
    assert SAME.apply(state).state == state
    both = Names(keep("a.*")) + Names(rename("c", "d"))
    assert set(both.apply(state).state) == {"a.b", "d"}


def test_template_may_be_a_function() -> None:
    names = Names(rename(r"block(\d+)\.(\w+)", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}"))
    assert set(names.apply({"block1.w": torch.ones(1), "block12.w": torch.ones(1)}).state) == {"stages.0.w", "stages.11.w"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_join_orders_parts_by_index_not_by_arrival(device: str) -> None:
    names = Names(*(join(rf"(\d)/{n}/kernel", r"\1.qkv", i, 3, op=chain(flatten(1), transpose())) for i, n in enumerate("qkv")))
    parts = {n: torch.randn(6, 2, 3) for n in "qkv"}
    state = {f"0/{n}/kernel": parts[n].to(device) for n in "vqk"}
    found = names.apply(state)
    assert found.state["0.qkv"].shape == (18, 6) and found.state["0.qkv"].device.type == device
    assert found.sources["0.qkv"] == ("0/q/kernel", "0/k/kernel", "0/v/kernel")
    if device == "cpu":
        assert torch.equal(found.state["0.qkv"], torch.cat([parts[n].reshape(6, 6).T for n in "qkv"]))


def test_an_absent_part_is_reported() -> None:
    names = Names(join("q", "qkv", 0, 3), join("v", "qkv", 2, 3))
    found = names.apply({"q": torch.ones(1), "v": torch.ones(1)})
    assert found.state == {} and found.incomplete == ("qkv (only 2 of 3 parts)",)


def test_split_and_copy_give_several_tensors() -> None:
    value = torch.arange(12.0).reshape(6, 2)
    state = Names(split(r"(\w+)\.qkv", (r"\1.q", r"\1.k", r"\1.v"))).apply({"a.qkv": value}).state
    assert torch.equal(state["a.k"], value[2:4])
    uneven = Names(split("qkv", ("q", "kv"), sizes=(2, 4))).apply({"qkv": value}).state
    assert torch.equal(uneven["kv"], value[2:])
    tied = Names(copy("emb", ("in.weight", "out.weight"))).apply({"emb": value}).state
    assert tied["in.weight"] is tied["out.weight"]
    with pytest.raises(WeightsError, match="cannot split"):
        Names(split("qkv", ("a", "b", "c", "d"))).apply({"qkv": value})


def test_operations() -> None:
    kernel = torch.randn(5, 4, 3, 2)
    assert torch.equal(conv_kernel()(kernel), kernel.permute(3, 2, 0, 1))
    assert torch.equal(transpose()(kernel), kernel.permute(3, 2, 1, 0))
    assert reshape(20, -1)(kernel).shape == (20, 6)
    assert unsqueeze(0)(kernel).shape == (1, 5, 4, 3, 2)
    assert torch.equal(take(slice(1, None))(kernel), kernel[1:])
    assert squeeze(0)(kernel[None]).shape == kernel.shape
    with pytest.raises(WeightsError, match=r"w: the rename rule 'w' does not fit shape \(2, 3\)"):
        Names(rename("w", "v", op=squeeze(0))).apply({"w": torch.ones(2, 3)})


def test_two_keys_for_one_name_are_an_error() -> None:
    one = torch.ones(1)
    with pytest.raises(WeightsError, match="'a' and 'b' are both renamed to 'c'"):
        Names(rename("a|b", "c")).apply({"a": one, "b": one})
    with pytest.raises(WeightsError, match="both part 0"):
        Names(join("a|b", "c", 0, 2)).apply({"a": one, "b": one})
    with pytest.raises(WeightsError, match="both renamed to 'c'"):
        Names(join("a", "c", 0, 1), rename("b", "c")).apply({"a": one, "b": one})
    with pytest.raises(WeightsError, match="both renamed to 'c'"):
        Names(join("a", "c", 0, 1), rename("b", "c")).apply({"b": one, "a": one})
