from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opticus.parity.manifests import all_manifests, digest, fold, manifest_entry, manifests_of, pack, papers, read, unfold, unpack
from opticus.structures import WeightsError

words = st.one_of(st.integers(0, 30).map(str), st.sampled_from(["layer1", "conv", "weight", "bias", "bn", "01", "q", "k"]))
shapes = st.dictionaries(
    st.lists(words, min_size=1, max_size=4).map(lambda parts: ".".join([*parts, "leaf"])),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    min_size=1,
    max_size=40,
)


@given(shapes)
def test_folding_loses_nothing(table: dict[str, tuple[int, ...]]) -> None:
    assert unfold(fold(table)) == table


def test_equal_branches_are_stored_once() -> None:
    table = {f"layers.{i}.{part}.{leaf}": (8,) for i in range(12) for part in "qkv" for leaf in ("weight", "bias")}
    assert fold(table) == {"": ".", "layers": {"0-11": {"k|q|v": {"bias|weight": "8"}}}}
    slashes = {f"a/block_{i}/kernel": (2, 3) for i in range(2)} | {"cls": ()}
    assert unfold(fold(slashes)) == slashes


@given(st.lists(shapes, min_size=1, max_size=4), shapes)
def test_packing_loses_nothing(tables: list[dict[str, tuple[int, ...]]], state: dict[str, tuple[int, ...]]) -> None:
    entries = {f"v{i}": manifest_entry(table) for i, table in enumerate([*tables, tables[0]])}
    record = {"tiny": [{"name": "a", "state": fold(state)}, {"name": "prepared", "state": {}}], "manifests": {"theirs": entries}}
    assert unpack(pack(record)) == record == unpack(record)


def test_a_block_is_written_once_for_all_widths() -> None:
    def network(width: int) -> dict[str, tuple[int, ...]]:
        return {f"{i}.{leaf}": (width * i, 3)[:rank] for i in (1, 2) for leaf, rank in (("w", 2), ("b", 1), ("n", 0))}

    entries = {f"v{width}": manifest_entry(network(width)) for width in (8, 16)}
    packed = pack({"tiny": [], "manifests": {"theirs": {**entries, "again": entries["v8"]}}})
    assert packed["blocks"] == [{"b": 0, "n": "", "w": 1}]
    keys = {variant: entry["keys"] for variant, entry in packed["manifests"]["theirs"].items()}
    assert keys["v16"] == {"": ".", "1": "@0 16 16x3", "2": "@0 32 32x3"} and keys["again"] == {"": 0}
    assert unfold(unpack(packed)["manifests"]["theirs"]["again"]["keys"]) == network(8)


@pytest.mark.parametrize("table", [{"a.b": (), "a": ()}, {"a": (), "a.b": ()}, {"a..b": ()}, {"a|b": ()}, {"a.1-2.c": ()}])
def test_what_cannot_be_folded_is_an_error(table: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(WeightsError, match="manifest key"):
        fold(table)


def test_the_hash_is_over_sorted_lines() -> None:
    assert digest({"b": (), "a.w": (2, 3)}) == hashlib.sha256(b"a.w 2x3\nb ").hexdigest()
    entry = manifest_entry({"bn.weight": (4,), "bn.num_batches_tracked": ()})
    assert entry["bare"] == digest({"bn.weight": (4,)}) and entry["count"] == 2
    assert "bare" not in manifest_entry({"weight": (4,)})


def test_records_are_found_by_looking_at_the_package() -> None:
    assert set(papers()) >= {"resnet", "vit", "detr"}
    assert {m.paper for m in all_manifests()} == set(papers())
    for paper in papers():
        for manifest in manifests_of(read(paper)):
            assert digest(manifest.keys) == manifest.sha256, f"{manifest.name} {manifest.format}"
            assert manifest.name == f"{paper}/{manifest.variant}"
    with pytest.raises(WeightsError, match="no parity record"):
        read("unknown_paper")
