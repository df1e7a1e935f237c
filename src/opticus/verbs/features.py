"""Frozen features of a data set, computed once and kept on disk: what probes, neighbours and retrieval work on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from opticus.structures import Backbone, CapabilityError, Classes, DataError, Dataset, Embedder
from opticus.structures.files import FileWriteError, write_atomic, write_text
from opticus.transforms.prepare import prepare
from opticus.verbs.models import Card
from opticus.verbs.predict import autocast, place
from opticus.weights.cache import cache_folder

FORMAT = 1  # raise when vectors of the same network and data would change


class Features(NamedTuple):
    """`vectors` (N, D) float32, on disk and mapped into memory where that was possible; `labels` (N,) int64; `ids` of the samples."""

    vectors: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ids: tuple[str, ...]


def extract(
    model: nn.Module,
    data: Dataset,
    split: str,
    *,
    batch: int = 64,
    device: str | None = None,
    precision: str = "fp32",
    cache: bool = True,
    quiet: bool = False,
) -> Features:
    """One vector per picture of `data` from the frozen `model`, prepared by the model's own rule, in evaluation mode.

    They are kept in $OPTICUS_HOME/features (or the platform's cache folder) under a key made of the weights, the config, the
    preparation and the data's content, and read from there the next time. Raises CapabilityError if the network neither embeds
    nor has feature maps, DataError for a target that is not one label.
    """
    labels = _labels(data)
    ids = tuple(data.id_of(i) for i in range(len(data)))
    file = _folder() / f"{_key(model, data, split, precision)}.npy" if cache else None
    if file is not None and file.is_file():
        with contextlib.suppress(ValueError, OSError):
            found = np.load(file, mmap_mode="r")
            if found.shape[0] == len(data):
                return Features(found, labels, ids)
    rows = _rows(model, data, split, batch, device, precision, quiet)
    if file is None:
        return Features(np.concatenate(list(rows)), labels, ids)
    try:
        write_atomic(file, lambda part: _write(part, rows, len(data)))
        write_text(file.with_suffix(".json"), json.dumps({"model": cast(Any, model).card.name, "data": data.hash, "split": split}))
    except FileWriteError as error:
        print(f"opticus: features are not kept: {error}", file=sys.stderr)  # noqa: T201 - says why the next run is as slow
        return extract(model, data, split, batch=batch, device=device, precision=precision, cache=False, quiet=quiet)
    return Features(np.load(file, mmap_mode="r"), labels, ids)


def embed(network: nn.Module, pixels: Tensor) -> Tensor:
    """One vector (B, D) per picture: the network's own `embed`, else the average of its last feature map."""
    if isinstance(network, Embedder):
        return network.embed(pixels)
    if isinstance(network, Backbone):
        return network.features(pixels)[-1].mean((2, 3))
    name = getattr(getattr(network, "card", None), "name", type(network).__name__)
    raise CapabilityError(f"{name} has neither embed() nor features(): there is no vector to probe")


def _rows(
    model: nn.Module, data: Dataset, split: str, batch: int, device: str | None, precision: str, quiet: bool
) -> Iterator[npt.NDArray[np.float32]]:
    where = place(model, device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with tqdm(total=len(data), unit="img", desc=f"features {split}", file=sys.stderr, disable=quiet, leave=False) as bar:
            for first in range(0, len(data), batch):
                pictures = [data[i].picture for i in range(first, min(first + batch, len(data)))]
                images = prepare(pictures, cast(Any, model).prepare)
                with torch.inference_mode(), autocast(where, precision):
                    vectors = embed(model, images.pixels.to(where))
                bar.update(len(pictures))
                yield vectors.float().cpu().numpy()
    finally:
        for module, training in modes.items():
            module.training = training


def _write(path: Path, rows: Iterator[npt.NDArray[np.float32]], count: int) -> None:
    first = next(rows)
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, first.shape[1]))
    done = 0
    for row in itertools.chain((first,), rows):
        table[done : done + len(row)] = row
        done += len(row)
    table.flush()


def _labels(data: Dataset) -> npt.NDArray[np.int64]:
    found = np.empty(len(data), np.int64)
    for i in range(len(data)):
        target = data.target_of(i)
        if not isinstance(target, Classes) or len(target) != 1:
            kind = f"{len(target)} labels" if isinstance(target, Classes) else type(target).__name__
            raise DataError(f"{data.id_of(i)}: a probe needs exactly one label per picture, found {kind}")
        found[i] = int(target.labels[0])
    return found


def _folder() -> Path:
    return cache_folder().parent / "features"


def _key(model: nn.Module, data: Dataset, split: str, precision: str) -> str:
    network = cast(Any, model)
    card: Card = network.card
    digest = hashlib.sha256(json.dumps([FORMAT, card.name, repr(network.config), network.prepare.to_json(), data.hash,
                                        split, len(data), precision], default=str).encode())  # fmt: skip
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()[:32]
