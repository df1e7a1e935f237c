"""The state of a run in one safetensors file: tensors as tensors, everything else as JSON in the file's header.

One file, written under a temporary name, fsynced and renamed, is either the old state or the new one, whenever the process dies.
"""

from __future__ import annotations

import json
import os
import platform
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opticus.structures import TrainError
from opticus.structures.files import write_atomic

FILE = "state.safetensors"


def pack(value: Any, tensors: dict[str, Tensor], where: str = "") -> Any:
    """The JSON skeleton of nested dicts, lists, tuples, numbers and tensors; tensors go into `tensors` under their path."""
    if isinstance(value, Tensor):
        tensors[where] = value.detach().cpu().clone().contiguous()
        return {"tensor": where}
    if isinstance(value, np.ndarray):
        return {"array": pack(torch.from_numpy(value.astype(value.dtype.newbyteorder("="))), tensors, where)}
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        return {"items": [[pack(k, tensors, where), pack(v, tensors, f"{where}/{k}")] for k, v in items]}
    if isinstance(value, (list, tuple)):
        parts = [pack(v, tensors, f"{where}/{i}") for i, v in enumerate(cast(list[Any], value))]
        return {"list" if isinstance(value, list) else "tuple": parts}
    if value is None or isinstance(value, (str, int, float, bool)):
        return {"value": value}
    raise TrainError(
        f"cannot store {where or 'the state'}: {type(value).__name__} is neither a tensor nor a number, string or container"
    )


def unpack(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    kind, content = next(iter(skeleton.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return unpack(content, tensors).numpy()
    if kind == "items":
        return {unpack(k, tensors): unpack(v, tensors) for k, v in content}
    if kind in ("list", "tuple"):
        parts = [unpack(v, tensors) for v in content]
        return parts if kind == "list" else tuple(parts)
    return content


def save_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write `state` (nested, with tensors) as the run's state. Raises an opticus.Error if the folder or disk refuses."""
    tensors: dict[str, Tensor] = {}
    header = {"opticus": json.dumps(pack(state, tensors))}

    def write(part: Path) -> None:
        try:
            save_file(tensors, part, metadata=header)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(str(error)) from error

    return write_atomic(folder / "state" / FILE, write)


def load_state(folder: Path) -> dict[str, Any]:
    """The state of the run in `folder`. Raises TrainError naming the file if there is none or it is not readable."""
    path = folder / "state" / FILE
    if not path.is_file():
        raise TrainError(f"{folder}: nothing to resume, {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return unpack(json.loads(header["opticus"]), tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise TrainError(f"{path}: not a readable training state ({error})") from error


def rng_state() -> dict[str, Any]:
    """The states of the global random generators of Python, NumPy and torch (and CUDA where it is in use)."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state())
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def environment(world: int, device: str) -> dict[str, Any]:
    """What must be equal for a resumed run to continue bit by bit."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": world,
        "device": device,
        "machine": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


def check_environment(saved: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Raise TrainError naming the first condition under which the run cannot be continued bit by bit."""
    for key in [*saved, *(key for key in now if key not in saved)]:
        if now.get(key) != saved.get(key):
            raise TrainError(
                f"{run}: was trained with {key}={saved.get(key)}, this process has {key}={now.get(key)}; resume needs them equal"
            )


def process_info() -> dict[str, Any]:
    """Where a run was made, for its record: versions and processor count, no names of users or machines."""
    return {"python": platform.python_version(), "numpy": np.__version__, "system": platform.system(), "cores": os.cpu_count()}
