"""Saving: one safetensors file whose header carries everything that is needed to use the weights again, as JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opticus.structures import WeightsError
from opticus.structures.files import FileWriteError, write_bytes
from opticus.weights.header import own_metadata, read_header
from opticus.weights.identify import OURS
from opticus.weights.read import SHARED

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(network: nn.Module | Mapping[str, Tensor], path: str | Path, *, meta: Mapping[str, Any]) -> Path:
    """Write a network's state (or a state) with its `meta` to a safetensors file and return its path.

    `meta` is JSON-ready: model, config, classes, names, prepare, provenance, licence, version, as the caller knows them. Tied
    tensors are stored once. The file appears whole or not at all (temporary name, fsync, rename), with the metadata inside, so
    that the two cannot be parted. Raises WeightsError if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    state = network.state_dict() if isinstance(network, nn.Module) else network
    stored, aliases = _untied(state)
    try:
        metadata = {OURS: json.dumps(meta, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the metadata cannot be written as JSON ({error})") from error
    if aliases:
        metadata[SHARED] = json.dumps(aliases, sort_keys=True)
    write_atomically(path, *_encoded(stored, {"format": "pt", **metadata}))
    return path


def _encoded(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file. Written here because equal contents must give equal bytes: the library shuffles metadata."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    order = sorted(state, key=lambda key: (-state[key].element_size(), key))  # wide types first, so that all are aligned
    offset = 0
    for key in order:
        tensor = state[key]
        if tensor.dtype not in _DTYPES:
            raise WeightsError(f"{key} has type {tensor.dtype}, which safetensors does not have")
        end = offset + tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    for key in order:
        yield state[key].reshape(-1).view(torch.uint8).numpy().data if state[key].numel() else b""


def read_meta(path: str | Path) -> dict[str, Any]:
    """The `meta` of a file written by `save`; WeightsError if another programme wrote it."""
    found = read_header(Path(path))
    if OURS not in found.metadata:
        raise WeightsError(f"{path}: not written by opticus (its header has no {OURS!r} metadata)")
    return own_metadata(Path(path), found, OURS)


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """`structures.files.write_bytes` with a WeightsError if it fails."""
    try:
        write_bytes(path, *parts)
    except FileWriteError as error:
        raise WeightsError(str(error)) from error


def _untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU tensors that share no memory, and which further names stand for which of them."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for key, tensor in state.items():
        view = tensor.detach()
        if view.is_meta:
            raise WeightsError(f"{key} has no values (it is on the meta device) and cannot be saved")
        place = (view.untyped_storage().data_ptr(), view.storage_offset(), view.dtype, tuple(view.shape), view.stride())
        if view.numel() and place in first:
            aliases[key] = first[place]
            continue
        first[place] = key
        overlaps = view.untyped_storage().data_ptr() in storages
        storages.add(view.untyped_storage().data_ptr())
        whole = view.to("cpu", memory_format=torch.contiguous_format).contiguous()
        stored[key] = whole.clone() if overlaps else whole
    return stored, aliases
