"""What a weights file holds - keys and shapes - read without loading a tensor and without executing anything in the file.

The pickle inside a `.pth` is walked opcode by opcode with the standard library's disassembler: classes and functions that it
names stay names, so that a hostile file is an odd list of words and nothing more.
"""

from __future__ import annotations

import ast
import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from opticus.structures import WeightsError
from opticus.weights.darknet import CFG, cfg_beside, is_darknet, read_head, shapes_by
from opticus.weights.pickles import ARRAYS, Held, walk

LARGEST_HEADER = 64 << 20  # bytes of a safetensors header or of the pickle inside a .pth
BOMB_SIZE, BOMB_RATIO = 256 << 20, 50  # an archive larger than this that was packed tighter than this is refused
ITEMSIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before torch 1.6
_YOLOV5 = "AGPL-3.0 code of ultralytics/yolov5 or of a relative that uses its module names (YOLOv7: GPL-3.0)"
_COPYLEFT = {
    "ultralytics.": "AGPL-3.0 code of ultralytics",
    **dict.fromkeys(("models.yolo.", "models.common.", "models.experimental."), _YOLOV5),
}
_NOT_WEIGHTS = {
    b"\x89HDF": "an HDF5 file (Keras); only .pth, safetensors and npz are read",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for; fetch it with git lfs pull",
    b"<": "a web page or XML, not weights; the download probably needs another address",
}


class Header(NamedTuple):
    """The outside of a file: its `kind` ("pth" | "legacy" | "safetensors" | "npz" | "pickle" | "darknet"), its nested keys, metadata.

    `tree` maps keys to `Held` (a shape), to further mappings, or to anything else that is no tensor. `names` are the classes and
    functions that a pickle refers to. A darknet file has no keys of its own: its tree is empty unless its cfg lies beside it.
    """

    kind: str
    tree: Mapping[Any, Any]
    metadata: Mapping[str, str]
    names: tuple[str, ...] = ()


def read_header(path: Path) -> Header:
    """Keys and shapes of a `.pth`/`.pt`/`.bin`, safetensors, npz or darknet `.weights` file or a pickle of arrays, told apart by content.

    WeightsError names the file and what is wrong: unknown, truncated, corrupt, a decompression bomb, or a TorchScript programme.
    """
    kind = kind_of(path)
    try:
        if kind == "darknet":
            return _darknet(path)
        with path.open("rb") as file:
            if kind == "safetensors":
                return _safetensors(path, file)
            if kind == "legacy":
                return _legacy(path, file)
            if kind == "pickle":
                return read_pickle(path, file, "shapes")
            with zipfile.ZipFile(file) as archive:
                return _npz(path, archive) if kind == "npz" else _pth(path, archive)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path}: the archive is truncated or corrupt ({error})") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error


def kind_of(path: Path) -> str:
    """The kind of a file by its first bytes; WeightsError if it is none that is read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not size:
        raise WeightsError(f"{path}: the file is empty")
    if start.startswith(b"PK"):
        return _zip_kind(path)
    if start.startswith(b"\x80") and start[2:].startswith(_LEGACY):
        return "legacy"
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 40:
        return "safetensors"
    if start[257:262] == b"ustar":
        raise WeightsError(
            f"{path}: a tar archive (torch before 0.2, or a packed folder) cannot be read safely; unpack it or save it again"
        )
    if start.startswith(b"\x80"):
        return "pickle"
    for magic, what in _NOT_WEIGHTS.items():
        if start.lstrip().startswith(magic):
            raise WeightsError(f"{path}: this is {what}")
    if is_darknet(path, start):
        return "darknet"
    raise WeightsError(f"{path}: not a weights file that is known (.pth, safetensors, npz, .weights); it starts with {start[:8]!r}")


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise WeightsError(f"{path}: the archive is truncated or corrupt ({error})") from error
    if any(name.split("/", 1)[-1] in ("constants.pkl", "code/") or "/code/" in name for name in names):
        raise WeightsError(f"{path}: a TorchScript programme, not a state dict; save module.state_dict() and load that")
    if any(name.endswith("/data.pkl") for name in names):
        return "pth"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise WeightsError(
        f"{path}: a zip archive that is neither a PyTorch file (data.pkl) nor an npz, it holds {', '.join(names[:3]) or 'nothing'}"
    )


def _darknet(path: Path) -> Header:
    cfg = cfg_beside(path)
    if cfg is None:
        read_head(path)
        return Header("darknet", {}, {})
    return Header("darknet", {key: Held(shape, "F32") for key, shape in shapes_by(cfg, path).items()}, {CFG: cfg.to_json()})


# --- safetensors -------------------------------------------------------------------------------------------------------


def _safetensors(path: Path, file: IO[bytes]) -> Header:
    size = path.stat().st_size
    length = struct.unpack("<Q", file.read(8))[0]
    if length > min(LARGEST_HEADER, size - 8):
        raise WeightsError(f"{path}: the safetensors header claims {length} bytes, the file has {size}: truncated or corrupt")
    try:
        entries = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the safetensors header is corrupt ({error})") from error
    if not isinstance(entries, dict):
        raise WeightsError(f"{path}: the safetensors header is corrupt (not an object)")
    table = cast(dict[str, Any], entries)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in cast(dict[str, Any], metadata).values()):
        raise WeightsError(f"{path}: the safetensors header is corrupt (metadata that is not text)")
    tree = {key: _entry(path, key, entry, size - 8 - length) for key, entry in table.items()}
    return Header("safetensors", tree, cast(dict[str, str], metadata))


def _entry(path: Path, key: str, entry: Any, available: int) -> Held:
    try:
        shape = tuple(int(n) for n in entry["shape"])
        start, end = entry["data_offsets"]
        expected = math.prod(shape) * ITEMSIZE[entry["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the header entry of {key!r} is corrupt ({error!r})") from error
    if min(shape, default=0) < 0 or end - start != expected or start < 0:
        raise WeightsError(f"{path}: {key} of shape {shape} needs {expected} bytes, its entry names {start}..{end}")
    if end > available:
        raise WeightsError(f"{path}: truncated: {key} ends at byte {end} of the data, the file holds {available}")
    return Held(shape, entry["dtype"])


# --- npz ---------------------------------------------------------------------------------------------------------------


def _npz(path: Path, archive: zipfile.ZipFile) -> Header:
    check_bomb(path, archive)
    tree: dict[str, Held] = {}
    for info in archive.infolist():
        with archive.open(info) as member:
            tree[info.filename.removesuffix(".npy")] = _npy(path, info, member)
    return Header("npz", tree, {})


def _npy(path: Path, info: zipfile.ZipInfo, member: IO[bytes]) -> Held:
    where = f"{path}: {info.filename}"
    start = member.read(8)
    if len(start) < 8 or not start.startswith(b"\x93NUMPY"):
        raise WeightsError(f"{where} is not a numpy array")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(member.read(width), "little")
    if length > 1 << 16:
        raise WeightsError(f"{where} has a header of {length} bytes: corrupt")
    try:
        fields = ast.literal_eval(member.read(length).decode("latin-1"))
        shape, dtype = tuple(int(n) for n in fields["shape"]), str(fields["descr"])
        numeric = dtype[1:2] in "fiub" or dtype[1:] == "V2"  # V2 is how bfloat16 is written
        itemsize = int(dtype[2:]) if numeric else 0
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise WeightsError(f"{where} has a corrupt header or holds no numbers ({error})") from error
    if not numeric:
        raise WeightsError(f"{where} has type {dtype!r}, which is not numeric; objects can run code and are not read")
    expected = math.prod(shape) * itemsize
    if min(shape, default=0) < 0 or info.file_size != 8 + width + length + expected:
        raise WeightsError(
            f"{where} of shape {shape} needs {expected} bytes, the member holds {info.file_size - 8 - width - length}"
        )
    return Held(shape, dtype)


def check_bomb(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would grow beyond reason, before anything is unpacked."""
    packed = sum(info.compress_size for info in archive.infolist())
    unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > BOMB_SIZE and unpacked > BOMB_RATIO * max(packed, 1):
        raise WeightsError(f"{path}: {packed} bytes that unpack to {unpacked}: a decompression bomb, not weights")


# --- PyTorch -----------------------------------------------------------------------------------------------------------


def _pth(path: Path, archive: zipfile.ZipFile) -> Header:
    packed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(f"{path}: {packed[0].filename} is compressed, which torch.save never does; the file was altered")
    entry = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
    if entry.file_size > LARGEST_HEADER:
        raise WeightsError(f"{path}: its pickle has {entry.file_size} bytes, more than {LARGEST_HEADER}: not a state dict")
    with archive.open(entry) as file:
        return _header_of_pickle(path, "pth", next(walk(path, file, 1)))


def _legacy(path: Path, file: IO[bytes]) -> Header:
    *_, (value, names) = walk(path, file, 4)  # magic number, protocol, machine, then the object; the data follow
    return _header_of_pickle(path, "legacy", (value, names))


def read_pickle(path: Path, file: IO[bytes], arrays: Literal["shapes", "values"]) -> Header:
    """A pickle of NumPy arrays in plain containers, as Detectron2's model zoo has them; the values only if they are asked for.

    WeightsError for a pickle that names anything but what NumPy writes an array with; nothing in it is imported or called.
    """
    value, names = next(walk(path, file, 1, arrays=arrays))
    foreign = [name for name in names if name not in ARRAYS and name != "collections.OrderedDict"]
    if foreign:
        raise WeightsError(
            f"{path}: a plain pickle that holds more than arrays (it refers to {', '.join(foreign[:3])}); refused, and nothing in it "
            "was executed"
        )
    found = _header_of_pickle(path, "pickle", (value, names))
    if isinstance(found.tree.get("blobs"), dict):
        raise WeightsError(
            f"{path}: a Caffe2 file (a table 'blobs'), whose names no format here knows; use one written by Detectron2"
        )
    return found


def _header_of_pickle(path: Path, kind: str, found: tuple[Any, tuple[str, ...]]) -> Header:
    value, names = found
    for name in names:
        code = next((what for prefix, what in _COPYLEFT.items() if name.startswith(prefix)), None)
        if code is not None:
            raise WeightsError(
                f"{path}: holds pickled classes of {code} ({name}), not a state dict; such a file runs that code when it is opened, "
                "so it is not read, and nothing in it was executed"
            )
    if isinstance(value, Held):
        value = {"tensor": value}
    if not isinstance(value, dict):
        what = f"an object of {value.name}" if hasattr(value, "name") else f"a {type(value).__name__}"
        raise WeightsError(f"{path}: holds {what}, not a state dict; save module.state_dict() and load that")
    return Header(kind, cast(dict[Any, Any], value), {}, names)


def own_metadata(path: Path, found: Header, key: str) -> dict[str, Any]:
    """A JSON object that opticus keeps in a file's text metadata; {} where there is none, WeightsError if it is corrupt."""
    try:
        value = json.loads(found.metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its metadata {key!r} is corrupt ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: its metadata {key!r} is corrupt (not an object)")
    return cast(dict[str, Any], value)


def tensors(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Held]]:
    """The tensors directly inside a mapping, by key."""
    for key, value in tree.items():
        if isinstance(value, Held) and isinstance(key, str):
            yield key, value
