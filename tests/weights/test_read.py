from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from opticus.structures import WeightsError
from opticus.weights import read as reading
from opticus.weights.pickles import walk
from opticus.weights.read import header, layouts, read

STATE = {
    "conv.weight": torch.randn(4, 3, 3, 3),
    "conv.bias": torch.randn(4),
    "half": torch.randn(2, 2).to(torch.bfloat16),
    "count": torch.tensor(5),
    "empty": torch.zeros(0, 3),
}
SHAPES = {key: tuple(value.shape) for key, value in STATE.items()}


def write(path: Path, kind: str) -> Path:
    if kind == "safetensors":
        save_file(STATE, path)
    elif kind == "npz":
        arrays = {k: v.view(torch.int16).numpy().view("V2") if v.dtype == torch.bfloat16 else v.numpy() for k, v in STATE.items()}
        np.savez(path, **arrays)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize(("kind", "suffix"), [("zip", "pth"), ("legacy", "pth"), ("safetensors", "safetensors"), ("npz", "npz")])
def test_every_format_gives_the_same_tensors_and_header(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(tmp_path / f"x.{suffix}", kind)
    renamed = path.rename(tmp_path / "no_suffix")  # formats are told by content
    assert header(renamed) == SHAPES
    found = read(renamed)
    assert found.state.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(found.state[key], value) and found.state[key].dtype == value.dtype, key


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints_are_unwrapped(tmp_path: Path, zipped: bool) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = OrderedDict((f"module.{key}", value) for key, value in network.state_dict().items())
    state["module.0.weight"] = nn.Parameter(network[0].weight.detach().clone())
    checkpoint = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, path=None, sizes=[1, 2], nested=argparse.Namespace(a=1)),
        "best": np.float64(0.5),
        "optimizer": optimizer.state_dict(),
        "model": state,
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    first = layouts(path)[0]
    assert (first.container, first.prefix) == (("model",), "module.")
    assert first.shapes == {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = read(path)
    assert all(torch.equal(found.state[key], value) for key, value in network.state_dict().items())
    assert str(found.layout) == "the table 'model' without the prefix 'module.'"


def test_newer_pickle_protocols_can_be_looked_at_but_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "protocol4.pth"
    torch.save({"args": argparse.Namespace(a=1), "model": OrderedDict(STATE)}, path, pickle_protocol=4)
    assert header(path) == SHAPES
    with pytest.raises(WeightsError, match="safe loading says: Unsupported operand"):
        read(path)


def test_averaged_weights_come_first_and_all_tables_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    teacher = {"backbone.w": torch.ones(2), "head.w": torch.ones(3)}
    torch.save({"student": {f"module.{k}": v * 2 for k, v in teacher.items()}, "teacher": teacher, "epoch": 1}, path)
    found = layouts(path)
    assert found[0].container == ("teacher",) and found[0].prefix == ""
    inner = next(layout for layout in found if layout.container == ("teacher",) and layout.prefix == "backbone.")
    assert inner.shapes == {"w": (2,)} and inner.left == 1
    assert torch.equal(read(path, inner).state["w"], torch.ones(2))
    student = next(layout for layout in found if layout.container == ("student",) and layout.prefix == "module.backbone.")
    assert torch.equal(read(path, student).state["w"], torch.full((2,), 2.0))


def test_shards_are_merged_and_must_lie_beside_their_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert header(index) == {"a": (2,), "b": (3,)}
    assert set(read(index).state) == {"a", "b"}
    assert header(tmp_path) == {"a": (2,), "b": (3,)}
    for name in ("../secret", "/etc/passwd", "..", "sub/model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WeightsError, match="not a file beside it"):
            read(index)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(WeightsError, match=r"shard gone\.safetensors is missing"):
        read(index)
    for text in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(WeightsError, match=r"(index|no shard)"):
            read(index)


# --- hostile and broken files --------------------------------------------------------------------------------------------


class Attack:
    """What it would leave behind says whether anything ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def attacks(mark: Path) -> dict[str, object]:
    return {
        "alone": Attack(mark),
        "beside tensors": {"w": torch.ones(2), "x": Attack(mark)},
        "as a key's value inside": {"model": {"w": torch.ones(2)}, "extra": [Attack(mark)]},
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", list(attacks(Path())))
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, where: str, zipped: bool) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "evil.pth"
    torch.save(attacks(mark)[where], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError) as error:
        read(path)
    assert str(path) in str(error.value) and "mkdir" in str(error.value)
    if where == "alone":
        with pytest.raises(WeightsError, match="mkdir"):
            header(path)
    else:
        assert (2,) in header(path).values()  # looking at it is harmless
    assert not mark.exists()


def test_every_opcode_that_calls_is_inert(tmp_path: Path) -> None:
    target = str(tmp_path / "executed")
    call = {
        "inst": b"(S'%s'\nios\nmkdir\n." % target.encode(),
        "obj": b"(cos\nmkdir\nS'%s'\no." % target.encode(),
        "newobj": b"cos\nmkdir\n(S'%s'\nt\x81." % target.encode(),
        "build": b"}cos\nmkdir\n(S'%s'\ntRb." % target.encode(),
        "global": b"cos\nmkdir\n(S'%s'\ntR." % target.encode(),
        "stack_global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(S'%s'\ntR." % target.encode(),
    }
    for name, code in call.items():
        _, names = next(walk(tmp_path / name, io.BytesIO(code), 1))
        assert names == ("os.mkdir",), name
        path = tmp_path / f"{name}.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", code)
            archive.writestr("archive/version", "3\n")
        with pytest.raises(WeightsError):
            read(path)
    assert not Path(target).exists()


def test_odd_pickles_end_in_a_sentence(tmp_path: Path) -> None:
    laughs = b"(lp0\n" + b"".join(b"(g%d\ng%d\ntp%d\n" % (i, i, i + 1) for i in range(60)) + b"\x93."
    huge_memo = b"}r\xff\xff\xff\x7f."
    for i, code in enumerate(
        (b"", b".", b"t.", b"\x85.", b"0.", b"}K\x01.", b"g7\n.", laughs, b"\x80\x04\x95", b"\x82\x01.", b"(((((u.")
    ):
        with pytest.raises(WeightsError, match="truncated or corrupt"):
            list(walk(tmp_path / str(i), io.BytesIO(code), 1)) and next(walk(tmp_path / "x", io.BytesIO(b""), 1))
    value, _ = next(walk(tmp_path / "memo", io.BytesIO(huge_memo), 1))
    assert value == {}


def test_whole_models_programmes_and_foreign_files_are_refused(tmp_path: Path) -> None:
    def refused(name: str, data: bytes | None, match: str) -> None:
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        for function in (header, read):
            with pytest.raises(WeightsError, match=match) as error:
                function(path)
            assert str(path) in str(error.value)

    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    refused("model.pth", None, r"holds an object of torch\.nn\.modules\.linear\.Linear, not a state dict")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/code/__torch__.py", "script/constants.pkl"):
            archive.writestr(name, b"x")
    refused("script.pt", None, "TorchScript")
    fake = type("DetectionModel", (), {"__module__": "ultralytics.nn.tasks"})
    yolo = b"\x80\x02}X\x05\x00\x00\x00modelcultralytics.nn.tasks\nDetectionModel\n)\x81s."
    assert fake.__module__.startswith("ultralytics")
    with zipfile.ZipFile(tmp_path / "yolo.pt", "w") as archive:
        archive.writestr("yolo/data.pkl", yolo)
    refused("yolo.pt", None, r"pickled classes of AGPL-3\.0 code of ultralytics \(ultralytics\.nn\.tasks\.DetectionModel\)")
    with zipfile.ZipFile(tmp_path / "yolov5.pt", "w") as archive:
        archive.writestr("yolo/data.pkl", yolo.replace(b"ultralytics.nn.tasks\n", b"models.yolo\n"))
    refused("yolov5.pt", None, r"pickled classes of AGPL-3\.0 code of ultralytics/yolov5 .*\(models\.yolo\.DetectionModel\)")
    refused("object.pkl", pickle.dumps({"w": Path("x")}), "a plain pickle that holds more than arrays .it refers to pathlib")
    refused("page.pth", b"<!DOCTYPE html><html>not found</html>", "a web page")
    refused("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer")
    refused("keras.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5")
    refused("empty.pth", b"", "the file is empty")
    refused("noise.bin", bytes(range(7, 200)), "not a weights file that is known")
    refused("gone.pth", None, "no such file")
    refused(".", None, "a folder without")
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        archive.add(tmp_path / "noise.bin", "noise.bin")
    refused("old.tar", None, "a tar archive")
    with zipfile.ZipFile(tmp_path / "words.zip", "w") as archive:
        archive.writestr("readme.txt", b"x")
    refused("words.zip", None, "neither a PyTorch file")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    refused("list.pth", None, "holds a list, not a state dict")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    refused("none.pth", None, "holds no tensors")


@pytest.mark.parametrize(("kind", "suffix"), [("zip", "pth"), ("legacy", "pth"), ("safetensors", "safetensors"), ("npz", "npz")])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str, suffix: str) -> None:
    whole = write(tmp_path / f"whole.{suffix}", kind).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for share in (0.02, 0.2, 0.5, 0.8, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(WeightsError, match=r"cut\."):
            read(path)


@pytest.mark.parametrize(("kind", "suffix"), [("zip", "pth"), ("legacy", "pth"), ("safetensors", "safetensors"), ("npz", "npz")])
def test_flipped_bytes_give_tensors_or_a_sentence_never_a_traceback(tmp_path: Path, kind: str, suffix: str) -> None:
    whole = write(tmp_path / f"whole.{suffix}", kind).read_bytes()
    path = tmp_path / f"flipped.{suffix}"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        data[int(rng.integers(0, min(len(data), 900)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        for function in (header, read):
            try:
                function(path)
            except WeightsError:
                refused += 1
    assert refused > 20


def test_safetensors_headers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def refused(entries: object, match: str, length: int | None = None) -> None:
        text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(8))
        with pytest.raises(WeightsError, match=match):
            header(path)

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    refused({"w": good}, "claims 4096 bytes", 4096)
    refused(b"{ not json", "header is corrupt")
    refused({"w": {**good, "data_offsets": [0, 4]}}, "needs 8 bytes")
    refused({"w": {**good, "data_offsets": [8, 16]}}, "truncated: w ends at byte 16")
    refused({"w": {**good, "shape": [-2]}}, "needs")
    refused({"w": {**good, "dtype": "F33"}}, "entry of 'w' is corrupt")
    refused({"w": 3}, "entry of 'w' is corrupt")
    refused({"w": {**good, "shape": 2}}, "entry of 'w' is corrupt")
    path.write_bytes(b"\xff" * 8 + b"{" + bytes(600))
    with pytest.raises(WeightsError, match="not a weights file"):
        header(path)


def test_npz_bombs_and_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("w.npy", "w", force_zip64=True) as member:
        member.write(
            b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (75000000,), }".ljust(117) + b"\n"
        )
        for _ in range(300):
            member.write(bytes(1_000_000))
    assert path.stat().st_size < 400_000
    for function in (header, read):
        with pytest.raises(WeightsError, match="decompression bomb"):
            function(path)
    np.savez(tmp_path / "objects.npz", w=np.array([{"a": 1}], dtype=object))
    with pytest.raises(WeightsError, match="objects can run code"):
        read(tmp_path / "objects.npz")
    np.savez(tmp_path / "text.npz", w=np.array(["a", "b"]))
    with pytest.raises(WeightsError, match="not numeric"):
        read(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr(
            "w.npy",
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }".ljust(117)
            + b"\n1234",
        )
    with pytest.raises(WeightsError, match="needs 399999999996 bytes"):
        read(tmp_path / "lies.npz")


def test_a_compressed_pth_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "plain.pth", "zip")
    with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(WeightsError, match="is compressed"):
        read(tmp_path / "packed.pth")


def test_stride_tricks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.pth"
    torch.save({"w": torch.ones(1).expand(10_000_000_000)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(WeightsError, match="stored in only 4 bytes"):
        read(path)


def test_fortran_and_big_endian_arrays(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "x.npz", a=np.asfortranarray(value), b=value.astype(">f4"), c=value.astype(np.float16))
    state = read(tmp_path / "x.npz").state
    assert all(torch.equal(state[key].float(), torch.from_numpy(value)) for key in "abc")


# --- plain pickles of arrays (Detectron2's model zoo) ------------------------------------------------------------------------

ARRAYS = {
    "backbone.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "half": np.ones(40, np.float16),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


def zoo_file(path: Path, protocol: int = 3) -> Path:
    path.write_bytes(
        pickle.dumps({"model": ARRAYS, "__author__": "Detectron2 Model Zoo", "matching": {"a": [1, (2, None)]}}, protocol)
    )
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_arrays_give_the_same_tensors_and_header(tmp_path: Path, protocol: int) -> None:
    path = zoo_file(tmp_path / "model_final.pkl", protocol)
    assert header(path) == {key: value.shape for key, value in ARRAYS.items()}
    found = read(path)
    assert found.kind == "pickle" and found.layout.container == ("model",)
    for key, value in ARRAYS.items():
        assert torch.equal(
            found.state[key], torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("="))).reshape(value.shape)
        )


def test_arrays_pickled_by_python_2(tmp_path: Path) -> None:
    """Byte strings, as the oldest files have them: dict(w=array([1, 2], "<f4"))."""
    data = np.array([1, 2], np.float32).tobytes()
    code = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Rq\x01"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08" + data + b"tbsU\x01vh\x01s."
    )
    (tmp_path / "old.pkl").write_bytes(code)
    state = read(tmp_path / "old.pkl").state
    assert set(state) == {"w", "v"} and torch.equal(state["w"], torch.tensor([1.0, 2.0])) and torch.equal(state["v"], state["w"])


@pytest.mark.parametrize("where", list(attacks(Path())))
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_malicious_plain_pickle_is_refused_and_runs_nothing(tmp_path: Path, where: str, protocol: int) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "evil.pkl"
    body = attacks(mark)[where]
    path.write_bytes(pickle.dumps({"model": ARRAYS, "x": body} if where == "alone" else body, protocol))
    for function in (header, read):
        with pytest.raises(
            WeightsError, match=r"evil\.pkl: a plain pickle that holds more than arrays .*mkdir.*nothing in it was executed"
        ):
            function(path)
    assert not mark.exists()


def test_odd_plain_pickles_end_in_a_sentence(tmp_path: Path) -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    kind = b"cnumpy\ndtype\nX\x02\x00\x00\x00%sK\x00K\x01\x87R"
    laughs = b"\x80\x03]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(90)) + b"0}X\x01\x00\x00\x00ah\x5as."
    tables = (
        b"\x80\x03}q\x00"
        + b"".join(b"}(" + b"".join(b"X\x02\x00\x00\x00%02dh%c" % (j, i) for j in range(90)) + b"uq%c" % (i + 1) for i in range(8))
        + b"."
    )
    bad = {
        "objects": (b"\x80\x03}X\x01\x00\x00\x00w" + array + b"(K\x01K\x01\x85" + kind % b"O8" + b"\x89]tbs.", "expected plain numbers"),
        "long": (b"\x80\x03}X\x01\x00\x00\x00w" + array + b"(K\x01J\xff\xff\xff\x7f\x85" + kind % b"f8" + b"\x89C\x04abcdtbs.", "it has 4"),
        "negative": (b"\x80\x03}X\x01\x00\x00\x00w" + array + b"(K\x01J\xff\xff\xff\xff\x85" + kind % b"f8" + b"\x89C\x04abcdtbs.", "tuple of sizes"),
        "claims": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated or corrupt"),
        "half an array": (b"\x80\x03}X\x01\x00\x00\x00w" + array + b"s.", "holds no tensors"),
        "laughs": (laughs, "holds no tensors"),
        "tables in tables": (tables, "holds no tensors"),
        "a list": (pickle.dumps([1, 2]), "holds a list"),
        "caffe2": (pickle.dumps({"blobs": {"conv1_w": np.ones(3)}}), "a Caffe2 file"),
        "unknown": (pickle.dumps({"w": np.ones(2), "when": Path("x")}), "it refers to pathlib"),
        "dates": (pickle.dumps({"w": np.ones(2), "when": np.zeros(2, "M8[s]")}), "expected plain numbers"),
        "call": (b"\x80\x03cnumpy\nndarray\nK\x05\x85R.", "used in an unknown way"),
    }  # fmt: skip
    for name, (code, match) in bad.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(code)
        for function in (header, read):
            with pytest.raises(WeightsError, match=match) as error:
                function(path)
            assert str(path) in str(error.value), name


def test_a_plain_pickle_cut_or_changed_gives_tensors_or_a_sentence(tmp_path: Path) -> None:
    whole = zoo_file(tmp_path / "whole.pkl").read_bytes()
    path = tmp_path / "cut.pkl"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.pkl"):
            read(path)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        for function in (header, read):
            try:
                function(path)
            except WeightsError:
                refused += 1
    assert refused > 60


def test_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.pth", "zip")
    monkeypatch.setattr(reading.torch, "__version__", "2.9.1+cpu")
    with pytest.raises(WeightsError, match=r"torch >= 2\.10 only .* 2\.9\.1"):
        read(path)


def test_settings_of_a_known_training_script_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch_GAN_zoo keeps an object of plain attributes in its files; a stand-in takes its place, the class itself is not needed."""
    module = types.ModuleType("models.utils.config")
    made = type("BaseConfig", (), {"__module__": "models.utils.config", "__qualname__": "BaseConfig"})
    module.BaseConfig = made  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name, part in (
            ("models", types.ModuleType("models")),
            ("models.utils", types.ModuleType("models.utils")),
            ("models.utils.config", module),
        ):
            patch.setitem(sys.modules, name, part)
        config = made()
        config.depth, config.nested = 3, made()
        torch.save({"config": config, "avgG": OrderedDict(STATE)}, tmp_path / "zoo.pth")
    found = read(tmp_path / "zoo.pth")
    assert set(found.state) == set(STATE)
