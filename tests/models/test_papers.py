"""Every paper file: what it exports, and parity with its reference (DESIGN 7 a-c). Papers are found by looking, none is named here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from papers import PAPERS, on_meta, record
from torch import nn

from opticus import zoo
from opticus.parity.case import build_and_run, differences
from opticus.parity.manifests import COUNTER, digest, unfold
from opticus.structures import Prepare, Task, Weights
from opticus.weights.load import match
from opticus.weights.names import Names

LIMIT = 80_000
CASES = [(paper, i) for paper in PAPERS for i in range(len(record(paper)["tiny"]))]
MANIFESTS = [(p, form, v) for p in PAPERS for form, rows in record(p)["manifests"].items() for v in rows]
COUNTED = [(p, v, n) for p in PAPERS for v, n in record(p)["parameters"].items()]
PUBLISHED = [(p, key) for p in PAPERS for key in zoo.paper(p).WEIGHTS]


def case_id(case: tuple[str, int]) -> str:
    return f"{case[0]}-{record(case[0])['tiny'][case[1]]['name']}"


# --- what a paper file exports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", PAPERS)
def test_paper_exports_the_contract(paper: str) -> None:
    module = zoo.paper(paper)
    assert module.TASK in get_args(Task)
    assert issubclass(module.NETWORK, nn.Module)
    assert isinstance(module.PREPARE, Prepare)
    assert module.VARIANTS and all(type(config) is module.Config for config in module.VARIANTS.values())
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", variant) for variant in module.VARIANTS)
    assert module.Config.__dataclass_params__.frozen and len(fields(module.Config)) <= 12
    assert module.FORMATS and all(isinstance(names, Names) for names in module.FORMATS.values())
    assert set(module.PARAMETERS) <= set(module.VARIANTS)
    assert callable(module.objective)


@pytest.mark.parametrize("paper", PAPERS)
def test_paper_says_what_it_is(paper: str) -> None:
    text = zoo.paper(paper).__doc__ or ""
    lines = text.strip().splitlines()
    assert lines[0].endswith(".") and len(lines[0]) > 10, "the first line is the paper's title"
    assert re.search(r"\b(19|20)\d\d\b", text), "authors, venue and year"
    for part in ("Reference:", "*Differs*", "*Map*"):
        assert part in text, f"the docstring lacks {part}"


@pytest.mark.parametrize(("paper", "key"), PUBLISHED, ids=lambda v: str(v))
def test_published_weights_are_stated_facts(paper: str, key: str) -> None:
    module, row = zoo.paper(paper), zoo.paper(paper).WEIGHTS[key]
    variant, _, tag = key.partition(":")
    assert isinstance(row, Weights) and variant in module.VARIANTS and tag
    assert row.format in module.FORMATS and row.license and row.source
    assert row.url.startswith(("https://", "package:"))
    assert row.digest is None or re.fullmatch(r"[0-9a-f]{8,64}", row.digest)
    assert row.prepare.channels == len(row.prepare.mean) == len(row.prepare.std)


@pytest.mark.parametrize(("paper", "key"), [(p, k) for p, k in PUBLISHED if zoo.paper(p).WEIGHTS[k].url.startswith("https")])
def test_published_weights_have_a_manifest(paper: str, key: str) -> None:
    """What can be fetched can be identified: its layout is recorded, perhaps under a format that has the same table."""
    module, row = zoo.paper(paper), zoo.paper(paper).WEIGHTS[key]
    same = [form for form, names in module.FORMATS.items() if names is module.FORMATS[row.format]]
    manifests = record(paper)["manifests"]
    assert any(key.split(":")[0] in manifests.get(form, {}) for form in same)


# --- (a) tiny parity in float64 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_parity_with_the_reference(case: tuple[str, int]) -> None:
    paper, index = case
    recorded = record(paper)["tiny"][index]
    assert differences(recorded, build_and_run(recorded, paper, zoo)) == []


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_recorded_numbers_are_worth_comparing(case: tuple[str, int]) -> None:
    """Near unit scale, not saturated, and any looser tolerance has its reason."""
    recorded = record(case[0])["tiny"][case[1]]
    assert "why" in recorded or not recorded.get("tolerance")
    for name, summary in recorded["expected"].items():
        if name.startswith("out"):
            assert 1e-3 < summary["rms"] < 1e3, f"{name}: rms {summary['rms']}"
            assert len(set(summary["slice"])) > 1, f"{name} is constant"


@pytest.mark.parametrize("paper", PAPERS)
def test_record_is_small_and_names_its_reference(paper: str) -> None:
    path = Path(zoo.__file__).parent / "parity" / f"{paper}.json"
    assert path.stat().st_size <= LIMIT
    reference = record(paper)["reference"]
    assert reference["kind"] in ("package", "repository", "transcription")
    assert reference["repository"] and reference["license"] and (reference.get("version") or reference.get("commit"))


@pytest.mark.parametrize("paper", PAPERS)
def test_every_format_is_exercised(paper: str) -> None:
    """Each rename table has carried filled weights through a strict load and a forward pass."""
    module = zoo.paper(paper)
    used = {id(module.FORMATS[case["format"]]) for case in record(paper)["tiny"] if "prepared" not in case["expected"]}
    assert not [form for form, names in module.FORMATS.items() if id(names) not in used]


def test_parity_sees_a_wrong_weight() -> None:
    """The comparison can fail: one changed element in one tensor of one case is found."""
    paper, index = next(case for case in CASES if "out" in record(case[0])["tiny"][case[1]]["expected"])
    recorded = record(paper)["tiny"][index]
    found = build_and_run(recorded, paper, zoo)
    found["out"].view(-1)[-1] += 1e-6 * recorded["expected"]["out"]["rms"]
    assert len(differences(recorded, found)) == 1


# --- (b) full-size manifests map strictly, both ways -----------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "form", "variant"), MANIFESTS, ids=lambda v: str(v))
def test_published_keys_map_strictly(paper: str, form: str, variant: str) -> None:
    module, entry = zoo.paper(paper), record(paper)["manifests"][form][variant]
    shapes = unfold(entry["keys"])
    assert (len(shapes), digest(shapes)) == (entry["count"], entry["sha256"])
    network = on_meta(f"{paper}/{variant}")
    found = match(network, _meta(shapes), module.FORMATS[form])
    assert (found.unmatched, found.missing, found.extra, found.misshapen) == ((), (), (), ())
    # every value of the network comes from the file, and no concatenation invents one
    ours = {key: tensor.numel() for key, tensor in network.state_dict().items() if not COUNTER.fullmatch(key)}
    assert {key for key in found.state if not COUNTER.fullmatch(key)} == set(ours)
    used = (shape for key, shape in shapes.items() if key not in found.dropped and not COUNTER.fullmatch(key))
    assert sum(ours.values()) <= sum(math.prod(shape) for shape in used)


@pytest.mark.parametrize("paper", PAPERS)
def test_a_missing_or_added_key_is_noticed(paper: str) -> None:
    _, form, variant = next(row for row in MANIFESTS if row[0] == paper)
    shapes = unfold(record(paper)["manifests"][form][variant]["keys"])
    names, network = zoo.paper(paper).FORMATS[form], on_meta(f"{paper}/{variant}")
    gone = next(key for key in shapes if not COUNTER.fullmatch(key))
    assert match(network, _meta({k: s for k, s in shapes.items() if k != gone}), names).missing
    added = match(network, _meta({**shapes, "surplus.weight": (3,)}), names)
    assert added.unmatched == ("surplus.weight",) or added.extra == ("surplus.weight",)
    assert match(network, _meta({**shapes, gone: (*shapes[gone], 2)}), names).exact is False


def _meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {
        key: torch.empty(shape, dtype=torch.int64 if COUNTER.fullmatch(key) else torch.float32, device="meta")
        for key, shape in shapes.items()
    }


# --- (c) parameter counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "variant", "count"), COUNTED, ids=lambda v: str(v))
def test_parameter_count_is_the_recorded_one(paper: str, variant: str, count: int) -> None:
    network = on_meta(f"{paper}/{variant}")
    frozen = [module for module in network.modules() if type(module).__name__ == "FrozenBatchNorm"]
    learned = sum(parameter.numel() for parameter in network.parameters())
    # references differ in whether frozen norms count: their weight and bias are parameters in one and buffers in another
    with_frozen = learned + sum(tensor.numel() for module in frozen for tensor in (module.weight, module.bias))
    assert count in (learned, with_frozen)


@pytest.mark.parametrize(("paper", "variant"), [(p, v) for p in PAPERS for v in zoo.paper(p).PARAMETERS], ids=lambda v: str(v))
def test_stated_count_is_the_recorded_one(paper: str, variant: str) -> None:
    stated: dict[str, Any] = zoo.paper(paper).PARAMETERS
    assert record(paper)["parameters"].get(variant, stated[variant]) == stated[variant]
    assert sum(parameter.numel() for parameter in on_meta(f"{paper}/{variant}").parameters()) == stated[variant]
