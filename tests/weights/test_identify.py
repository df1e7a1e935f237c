from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opticus.parity.manifests import Manifest, all_manifests, digest, fold, weights_only
from opticus.structures import WeightsError
from opticus.weights.identify import identify_file
from opticus.weights.load import load_into
from opticus.weights.read import read
from opticus.weights.save import save


def shapes(width: int, blocks: int, classes: int = 10) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"stem.weight": (width, 3, 3, 3)}
    for i in range(blocks):
        found |= {f"blocks.{i}.conv.weight": (width, width, 3, 3)}
        found |= {f"blocks.{i}.bn.{n}": (width,) for n in ("weight", "bias", "running_mean", "running_var")}
        found |= {f"blocks.{i}.bn.num_batches_tracked": ()}
    return {**found, "head.weight": (classes, width), "head.bias": (classes,)}


def manifest(paper: str, variant: str, form: str, keys: dict[str, tuple[int, ...]]) -> Manifest:
    return Manifest(paper, variant, form, len(keys), digest(keys), digest(weights_only(keys)), fold(keys))


KNOWN = (
    manifest("net", "s", "torchvision", shapes(4, 2)),
    manifest("net", "m", "torchvision", shapes(4, 3)),
    manifest("net", "wide", "torchvision", shapes(8, 3)),
    manifest("net", "s", "timm", {f"model/{k}": v for k, v in shapes(4, 2).items()}),
    manifest("other", "s", "theirs", shapes(4, 2)),
)


def state(keys: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.ones(shape) if shape else torch.tensor(1) for key, shape in keys.items()}


def test_exact_files_are_named_whatever_they_are_wrapped_in(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file(state(shapes(4, 3)), path)
    found = identify_file(path, KNOWN)
    assert (found.name, found.format, found.exact, found.kind) == ("net/m", "torchvision", True, "safetensors")
    assert found.size == path.stat().st_size and found.differences == ()
    assert str(found).endswith("safetensors, 21 tensors: net/m (torchvision)")
    wrapped = {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state(shapes(8, 3)).items()}, "optimizer": {"state": {}}}
    torch.save(wrapped, path)
    found = identify_file(path, KNOWN)
    assert (found.name, found.exact, found.layout.container, found.layout.prefix) == ("net/wide", True, ("state_dict",), "module.")
    assert read(path, found.layout).state.keys() == shapes(8, 3).keys()


def test_the_table_that_matches_is_chosen_over_the_preferred_one(tmp_path: Path) -> None:
    torch.save({"ema": {"decay": torch.tensor(0.9)}, "model": state(shapes(4, 3))}, tmp_path / "x")
    found = identify_file(tmp_path / "x", KNOWN)
    assert found.exact and found.layout.container == ("model",)


def test_missing_batch_counters_are_no_difference(tmp_path: Path) -> None:
    save_file(state(weights_only(shapes(4, 3))), tmp_path / "x")
    assert identify_file(tmp_path / "x", KNOWN).exact


def test_the_same_layout_in_two_papers_is_said(tmp_path: Path) -> None:
    save_file(state(shapes(4, 2)), tmp_path / "x")
    found = identify_file(tmp_path / "x", KNOWN)
    assert found.name == "net/s" and found.others == ("other/s (theirs)",)
    assert str(found).endswith("net/s (torchvision); the same keys have other/s (theirs)")


def test_another_head_is_a_near_miss_with_its_number_of_classes(tmp_path: Path) -> None:
    save_file(state(shapes(4, 3, classes=7)), tmp_path / "x")
    found = identify_file(tmp_path / "x", KNOWN)
    assert (found.name, found.exact, found.classes) == ("net/m", False, 7)
    assert found.differences == ("head.bias is (7,) where (10,) is published", "head.weight is (7, 4) where (10, 4) is published")
    assert "near net/m (torchvision), but head.bias is (7,)" in str(found)


def test_added_and_absent_keys_are_listed(tmp_path: Path) -> None:
    keys = shapes(4, 3)
    del keys["head.bias"]
    keys["head.scale"] = (1,)
    save_file(state(keys), tmp_path / "x")
    found = identify_file(tmp_path / "x", KNOWN)
    assert found.name == "net/m" and found.classes is None
    assert found.differences == ("head.bias (10,) is absent", "head.scale (1,) is not in the published file")


def test_a_stranger_has_no_name(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "x")
    found = identify_file(tmp_path / "x", KNOWN)
    assert found.name is None and not found.exact and "matches no known manifest" in str(found)


def test_own_files_say_what_they_are(tmp_path: Path) -> None:
    path = save(state(shapes(4, 3, 7)), tmp_path / "own.safetensors", meta={"model": "net/m", "classes": 7})
    found = identify_file(path, KNOWN)
    assert (found.name, found.format, found.exact, found.classes) == ("net/m", "opticus", True, 7)


def test_a_hostile_file_is_identified_without_harm(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "executed",)

    torch.save({"model": state(shapes(4, 3)), "args": Attack()}, tmp_path / "x")
    assert identify_file(tmp_path / "x", KNOWN).name == "net/m"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_350_megabyte_file_takes_less_than_half_a_second(tmp_path: Path, kind: str) -> None:
    big = {f"layers.{i}.weight": torch.zeros(1100, 1000) for i in range(80)} | {
        f"layers.{i}.bias": torch.zeros(9) for i in range(720)
    }
    path = tmp_path / "big"
    if kind == "pth":
        torch.save({"model": big, "epoch": 1}, path)
    else:
        save_file(big, path)
    assert path.stat().st_size > 350_000_000
    all_manifests()
    start = time.process_time()
    found = identify_file(path)
    seconds = time.process_time() - start
    path.unlink()
    assert found.name is None
    assert seconds < 0.5


@pytest.mark.parametrize("name", [f"{m.name} {m.format}" for m in all_manifests()])
def test_every_recorded_manifest_identifies_itself(name: str, tmp_path: Path) -> None:
    recorded = next(m for m in all_manifests() if f"{m.name} {m.format}" == name)
    assert digest(recorded.keys) == recorded.sha256 and len(recorded.keys) == recorded.size
    # on disk as a sparse file: the header is real, the data are a hole
    import json
    import struct

    entries, offset = {}, 0
    for key, shape in recorded.keys.items():
        size = 4 * torch.Size(shape).numel()
        entries[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    found = identify_file(path)
    assert found.exact
    assert name in {f"{found.name} {found.format}", *(other.replace("(", "").replace(")", "") for other in found.others)}


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        identify_file(tmp_path / "x")


def test_a_near_miss_loads_with_a_fresh_head(tmp_path: Path) -> None:
    save_file(state(shapes(4, 2, classes=7)), tmp_path / "x")
    found = identify_file(tmp_path / "x", KNOWN)
    network = torch.nn.Module()
    network.head = torch.nn.Linear(4, 10)
    part = {key: value for key, value in read(tmp_path / "x", found.layout).state.items() if key.startswith("head")}
    with pytest.raises(WeightsError, match="classes=7"):
        load_into(network, part)
