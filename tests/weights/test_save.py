from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from opticus.structures import WeightsError
from opticus.weights.identify import identify_file
from opticus.weights.labels import label_tables, labels
from opticus.weights.load import load_into
from opticus.weights.read import read
from opticus.weights.save import read_meta, save

META = {
    "model": "net/s",
    "names": ["a", "ü"],
    "prepare": {"mean": [0.1, 1 / 3]},
    "license": "Apache-2.0",
    "version": "0.1.0",
    "trained": None,
}


def network() -> nn.Module:
    made = nn.ModuleDict({"a": nn.Linear(3, 2), "n": nn.BatchNorm1d(3), "b": nn.Linear(3, 2, bias=False)})
    made["b"].weight = made["a"].weight
    made.register_buffer("view", torch.randn(4, 4).t())
    made.register_buffer("whole", torch.arange(6.0))
    made.register_buffer("part", made.whole[2:4])
    return made


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    source = network()
    path = save(source, tmp_path / "deep" / "x.safetensors", meta=META)
    assert read_meta(path) == META
    state = read(path).state
    for key, value in source.state_dict().items():
        assert torch.equal(state[key], value), key
    target = network()
    load_into(target, state)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_the_bytes_do_not_depend_on_chance(tmp_path: Path) -> None:
    source = network()
    first = save(source, tmp_path / "1", meta=META).read_bytes()
    again = save(source, tmp_path / "2", meta=dict(reversed(META.items()))).read_bytes()
    assert first == again


def test_other_libraries_read_the_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = save(network(), tmp_path / "x.safetensors", meta=META)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert "b.weight" not in file.keys() and "a.weight" in file.keys()  # noqa: SIM118 - not a dictionary


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(network(), tmp_path / "x.safetensors", meta=META)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WeightsError, match=r"x\.safetensors: cannot be written \(No space left on device\)"):
        save(network(), path, meta=META)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        save(network(), tmp_path / "file" / "x", meta=META)
    with pytest.raises(WeightsError, match="cannot be written as JSON"):
        save(network(), tmp_path / "x", meta={"a": object()})
    with pytest.raises(WeightsError, match="cannot be written as JSON"):
        save(network(), tmp_path / "x", meta={"a": float("nan")})
    with pytest.raises(WeightsError, match="meta device"), torch.device("meta"):
        save(nn.Linear(2, 2), tmp_path / "x", meta=META)
    torch.save({"w": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match="not written by opticus"):
        read_meta(tmp_path / "foreign.pth")
    assert not os.path.exists(tmp_path / "x")


def test_corrupt_metadata_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    for metadata, function in (
        ({"opticus": "{"}, read_meta),
        ({"opticus": "[1]"}, read_meta),
        ({"opticus": "{"}, identify_file),
        ({"opticus.shared": "{"}, read),
        ({"opticus.shared": '{"v": "gone"}'}, read),
        ({"opticus.shared": '{"v": ["w"]}'}, read),
        ({"opticus.shared": '{"w": "w"}'}, read),
    ):
        save_file({"w": torch.ones(2)}, path, metadata=metadata)
        with pytest.raises(WeightsError, match=r"x\.safetensors: "):
            function(path)


def test_label_tables_have_their_published_lengths() -> None:
    assert set(label_tables()) >= {"imagenet1k", "coco91", "coco80"}
    names = labels("imagenet1k")
    assert len(names) == len(set(names)) == 1000 and names[0] == "tench" and names[281] == "tabby" and names[999] == "toilet tissue"
    coco = labels("coco91")
    assert len(coco) == 91 and coco[1] == "person" and coco[90] == "toothbrush" and coco[18] == "dog"
    assert [i for i, name in enumerate(coco) if name == "N/A"] == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert labels("coco80") == tuple(name for name in coco if name != "N/A")
    with pytest.raises(KeyError, match="imagenet1k"):
        labels("imagenet")
