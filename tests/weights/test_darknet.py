"""darknet's cfg and weights files: order, header, mapping by cfg, refusal of what does not fit."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import opticus
from opticus.structures import WeightsError
from opticus.weights.cfg import cfg_shapes, parse_cfg
from opticus.weights.darknet import CFG, fitting, in_file_order, numbers_of, read_head
from opticus.weights.read import header, layouts, read

TEXT = """
[net]
# comments begin with # or ;
; like this one
height = 8
width=8
channels=3

[convolutional]
batch_normalize=1
filters=4
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[conv]
filters=6
size=1
groups=2
activation=linear

[shortcut]
from=-1

[route]
layers=-1, 1

[reorg]
stride=2

[upsample]
stride=2

[local]
size=3
pad=1
filters=2

[connected]
output= 5
"""
KEYS = {
    "0.bn.bias": (4,),
    "0.bn.weight": (4,),
    "0.bn.running_mean": (4,),
    "0.bn.running_var": (4,),
    "0.conv.weight": (4, 3, 3, 3),
    "2.conv.bias": (6,),
    "2.conv.weight": (6, 2, 1, 1),
    "7.local.bias": (32,),
    "7.local.weight": (16, 2, 360),
    "8.connected.bias": (5,),
    "8.connected.weight": (5, 32),
}
NUMBERS = sum(int(np.prod(shape)) for shape in KEYS.values())


def write(path: Path, numbers: int = NUMBERS, version: tuple[int, int, int] = (0, 2, 0), extra: bytes = b"") -> Path:
    wide = version[0] * 10 + version[1] >= 2 and version[1] < 1000
    head = struct.pack("<3i", *version) + struct.pack("<q" if wide else "<i", 32_013_312)
    path.write_bytes(head + np.arange(numbers, dtype="<f4").tobytes() + extra)
    return path


def with_cfg(tmp_path: Path, text: str = TEXT) -> Path:
    (tmp_path / "net.cfg").write_text(text)
    return tmp_path / "net.weights"


def test_a_cfg_gives_keys_shapes_and_the_order_of_the_file() -> None:
    shapes = cfg_shapes(parse_cfg(TEXT))
    assert shapes == KEYS and list(shapes) == list(KEYS)
    assert list(in_file_order(dict(sorted(KEYS.items())))) == list(KEYS)  # the order is in the keys themselves


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 5)])
def test_numbers_follow_a_header_of_either_length(tmp_path: Path, version: tuple[int, int, int]) -> None:
    path = write(with_cfg(tmp_path, TEXT), version=version)
    head = read_head(path)
    assert head == (version, 32_013_312, 16 if version[1] == 1 else 20, NUMBERS, False)
    found = read(path)
    assert found.kind == "darknet" and list(found.state) == list(KEYS) and header(path) == KEYS
    assert torch.equal(torch.cat([value.flatten() for value in found.state.values()]), torch.arange(NUMBERS).float())
    assert {key: tuple(value.shape) for key, value in found.state.items()} == KEYS
    assert json.loads(found.metadata[CFG])[0][1]["height"] == "8"


def test_kernels_of_the_oldest_files_are_transposed(tmp_path: Path) -> None:
    path = write(with_cfg(tmp_path, "[net]\nheight=1\nwidth=1\nchannels=3\n[connected]\noutput=2\n"), 8, (0, 1001, 0))
    assert read_head(path).transposed and read_head(path).length == 16
    assert torch.equal(read(path).state["0.connected.weight"], torch.tensor([[2.0, 4.0, 6.0], [3.0, 5.0, 7.0]]))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "begins with nothing"),
        ("[convolutional]\nfilters=1\n[net]", r"begins with \[convolutional\]"),
        ("height=1", "line 1: expected"),
        ("[net]\nheight=8\nwidth=8\nchannels=3\n[gru]\noutput=3", r"line 5: \[gru\]: sections whose arrays are not known"),
        ("[net]\nheight=8\nwidth=8\nchannels=3\n[batchnorm]", r"\[batchnorm\]"),
        ("[net]\nheight=8\nwidth=8\nchannels=3\n[route]\nlayers=-1", "no layer -1 before it"),
        ("[net]\nheight=8\nwidth=8\nchannels=3\n[convolutional]\nfilters=many", "found 'many'"),
        ("[net]\nheight=8\nwidth=8\nchannels=3\n[convolutional]\nfilters=0", "filters must be at least 1"),
        ("[net]\nheight=8\nwidth=8\nchannels=3\n[convolutional]\nfilters=3\ndontload=1", "leaves arrays out"),
        ("[net]\nheight=8\nwidth=8\nchannels=3\n[convolutional]\nfilters=3\ngroups=2", "do not divide 3 channels"),
        ("[net]\nwidth=8\nchannels=3\n[convolutional]\nfilters=3\nsize=3", "its output would be"),
        (TEXT.replace("layers=-1, 1", "layers=-1, 0"), "do not fit side by side"),
    ],
)
def test_a_cfg_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, what: str) -> None:
    path = write(with_cfg(tmp_path, text))
    with pytest.raises(WeightsError, match=what) as error:
        read(path)
    assert "net.cfg" in str(error.value)


@pytest.mark.parametrize(
    ("numbers", "extra", "what"),
    [
        (NUMBERS - 1, b"", r"ends in 8\.connected\.weight: truncated"),
        (70, b"", r"ends in 0\.conv\.weight"),
        (NUMBERS + 3, b"", "3 too many"),
        (NUMBERS, b"x", "truncated or corrupt"),
        (0, b"", "ends in 0.bn.bias"),
    ],
)
def test_files_of_another_length_than_their_cfg_are_refused(tmp_path: Path, numbers: int, extra: bytes, what: str) -> None:
    path = write(with_cfg(tmp_path, TEXT), numbers, extra=extra)
    with pytest.raises(WeightsError, match=what) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_file_without_cfg_is_known_by_its_number_of_numbers_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "unknown.weights")
    with pytest.raises(WeightsError, match=r"a darknet file \(version 0\.2\.0\) of \d+ numbers; .*cfg beside it as unknown\.cfg"):
        opticus.identify(path)
    assert layouts(path, lambda: [KEYS, {"0.conv.weight": (3, 1, 1, 1)}])[0].shapes == KEYS
    with pytest.raises(WeightsError, match="the network asks for 3 numbers"):
        fitting(path, [{"0.conv.weight": (3, 1, 1, 1)}])
    renamed = path.rename(tmp_path / "no_suffix")
    assert read_head(renamed).numbers == numbers_of(KEYS)
    with pytest.raises(WeightsError, match="a darknet file"):
        header(renamed)


def test_a_file_that_is_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.weights"
    for data in (b"\0" * 3, struct.pack("<3i", 0, 2, 0), struct.pack("<4i", 0, 2, 0, 0)):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"short\.weights"):
            read(path)
