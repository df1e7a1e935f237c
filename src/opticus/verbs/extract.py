"""extract: a frozen network's vectors of a whole data set in a memory-mapped file at a path of the user's: FILE.npy, ids and protocol beside it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch import nn

from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.structures import Classes, DataError, UsageError
from opticus.structures.files import FileWriteError, sync_folder, write_atomic, write_text
from opticus.verbs import features
from opticus.verbs.features import Taken, key_of

SAVE_EVERY = 10.0  # seconds of work that a kill may cost
Kind = Literal["float32", "float16"]


class Extracted(NamedTuple):
    """`vectors` (N, D), mapped into memory; the files; how many rows an earlier, killed extraction had left (N: all were there)."""

    vectors: npt.NDArray[Any]
    file: Path
    ids: Path
    resumed: int

    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) the class of each row, -1 where the data has no single label."""
        return np.load(_beside(self.file, ".labels.npy"), mmap_mode="r")

    def names(self) -> list[str]:
        """The ids of the rows."""
        return [json.loads(line) for line in self.ids.read_text(encoding="utf-8").splitlines()]


def extract(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    split: str = "train",
    dtype: Kind = "float32",
    taken: Taken | None = None,
    batch: int = 64,
    device: str | None = None,
    precision: str = "fp32",
    overwrite: bool = False,
    quiet: bool = False,
) -> Extracted:
    """Write the vectors of `data`'s `split` to `out` (.npy, `dtype` float32 or float16), in memory that does not grow with the data.

    Beside `x.npy`: `x.ids.jsonl` (a JSON string a line), `x.labels.npy` and `x.json` (model, data, preparation). A killed call is gone on
    with by the next one of the same model, data and settings, at most SAVE_EVERY seconds of work behind; a finished file is read.
    Raises UsageError for another suffix or a file that holds other vectors (unless `overwrite`), DataError for vectors that are not
    finite or do not fit into float16, FileWriteError.
    """
    file = Path(out)
    if file.suffix != ".npy":
        raise UsageError(f"{file}: features are written to a file that ends in .npy")
    if dtype not in ("float32", "float16"):
        raise UsageError(f"dtype must be float32 or float16, found {dtype!r}")
    taken = (taken or Taken()).check()
    source = cast(Source, data if hasattr(data, "target_of") else open_data(data, split))
    if len(source) == 0:
        raise DataError(f"{data}: the {split} split has no pictures")
    key = key_of(model, source, split, precision, taken) + f" {dtype}"
    if file.exists() and not overwrite:
        if _meta(_beside(file, ".json")).get("key") == key:
            return Extracted(np.load(file, mmap_mode="r"), file, _beside(file, ".ids.jsonl"), len(source))
        raise UsageError(f"{file}: exists and holds other vectors; give another path or overwrite=true")
    start = _started(file, key)
    rows = features.rows_of(model, source, split, batch, device, precision, quiet, taken, start)
    try:
        _filled(file, key, source, rows, start, np.dtype(dtype))
        _described(file, key, model, source, split, dtype, taken, precision)
        os.replace(_part(file), file)
        _beside(_part(file), ".json").unlink(missing_ok=True)
        sync_folder(file.parent)
    except OSError as error:
        raise FileWriteError(f"{file}: cannot be written ({error.strerror or error})") from error
    return Extracted(np.load(file, mmap_mode="r"), file, _beside(file, ".ids.jsonl"), start)


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name.removesuffix(".npy") + ending)


def _part(file: Path) -> Path:
    return file.with_name(f".{file.stem}.part.npy")


def _meta(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _started(file: Path, key: str) -> int:
    """Rows that an earlier call of the same kind has written for certain."""
    state = _meta(_beside(_part(file), ".json"))
    if state.get("key") != key or not _part(file).is_file():
        return 0
    with contextlib.suppress(ValueError, OSError):
        table = np.load(_part(file), mmap_mode="r")
        done = int(state.get("done", 0))
        return done if 0 <= done <= len(table) and list(table.shape) == state.get("shape") else 0
    return 0


def _filled(
    file: Path, key: str, source: Source, rows: Iterator[npt.NDArray[np.float32]], start: int, dtype: np.dtype[Any]
) -> None:
    """Write `rows` from row `start` on into the part file, noting now and then how many are certain."""
    part = _part(file)
    part.parent.mkdir(parents=True, exist_ok=True)
    table: Any = np.lib.format.open_memmap(part, mode="r+") if start else None
    done, noted = start, time.monotonic()
    for row in rows:
        if table is None:
            table = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=(len(source), row.shape[1]))
        with np.errstate(over="ignore"):  # said below, with the picture's name
            values = row.astype(dtype)
        if not np.isfinite(values).all():
            worst = int(np.argmin(np.isfinite(values).all(1)))
            raise DataError(
                f"{source.id_of(done + worst)}: its vector does not fit into {dtype} (largest {np.abs(row[worst]).max():g})"
            )
        table[done : done + len(row)] = values
        done += len(row)
        if time.monotonic() - noted >= SAVE_EVERY:
            table.flush()
            write_text(_beside(part, ".json"), json.dumps({"key": key, "done": done, "shape": list(table.shape)}))
            noted = time.monotonic()
    if table is not None:
        table.flush()
    with part.open("rb+") as handle:
        os.fsync(handle.fileno())


def _described(
    file: Path, key: str, model: nn.Module, source: Source, split: str, dtype: Kind, taken: Taken, precision: str
) -> None:
    """Ids, labels and protocol."""

    def ids(path: Path) -> None:
        with path.open("w", encoding="utf-8") as stream:
            for i in range(len(source)):
                stream.write(json.dumps(source.id_of(i)) + "\n")

    def labels(path: Path) -> None:
        values = np.full(len(source), -1, np.int64)
        for i in range(len(source)):
            target = source.target_of(i)
            if isinstance(target, Classes) and len(target) == 1:
                values[i] = int(target.labels[0])
        with path.open("wb") as stream:
            np.save(stream, values)

    network = cast(Any, model)
    write_atomic(_beside(file, ".ids.jsonl"), ids)
    write_atomic(_beside(file, ".labels.npy"), labels)
    record = {"key": key, "model": network.card.name, "data": source.hash, "split": split, "rows": len(source), "dtype": dtype,
              "precision": precision, "prepare": network.prepare.to_json(), "vector": taken.settings(),
              "names": list(source.names)}  # fmt: skip
    write_text(_beside(file, ".json"), json.dumps(record, indent=1))


__all__ = ["Extracted", "extract"]
