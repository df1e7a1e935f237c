"""Frozen features of a data set, computed once and kept on disk: what probes, neighbours and retrieval work on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from opticus.structures import Backbone, CapabilityError, Classes, DataError, Dataset, Embedder, Picture, Prepare, UsageError
from opticus.structures.files import FileWriteError, write_atomic, write_text
from opticus.transforms.pixels import resize
from opticus.transforms.prepare import prepare
from opticus.verbs.models import Card
from opticus.verbs.predict import autocast, place
from opticus.weights.cache import cache_folder

FORMAT = 1  # raise when vectors of the same network and data would change


class Taken(NamedTuple):
    """Which vector of a picture is taken.

    `scales`: the average over the network's input resized by each (DINO's retrieval: 1, 1/sqrt 2, 1/2). `layers` and `average`: the
    class tokens of the last blocks side by side, and the mean of the patch tokens (DINO's linear probe: 4 of ViT-S; 1 and the mean of
    ViT-B). `gem`: the last feature map pooled by a generalised mean of this power is added (4 in DINO's copy detection; 0 = none).
    `longest`: whole pictures, shrunk to this longer side and not cropped, one by one (None: the network's own preparation).
    """

    scales: tuple[float, ...] = (1.0,)
    layers: int = 1
    average: bool = False
    gem: float = 0.0
    longest: int | None = None

    def check(self) -> Taken:
        """Itself; UsageError for a value that means nothing."""
        if not self.scales or not all(0 < scale <= 4 for scale in self.scales):
            raise UsageError(f"scales must be above 0 and at most 4, found {list(self.scales)}")
        if self.layers < 1 or not 0 <= self.gem <= 100 or (self.longest is not None and self.longest < 1):
            raise UsageError(f"layers and longest must be at least 1 and gem in 0..100, found {self}")
        return self

    def settings(self) -> dict[str, Any]:
        """What differs from the plain vector, for a protocol."""
        return {key: value for key, value in self._asdict().items() if value != Taken._field_defaults[key]}


PLAIN = Taken()


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
    taken: Taken = PLAIN,
    labelled: bool = True,
) -> Features:
    """One vector per picture of `data` from the frozen `model`, prepared by the model's own rule, in evaluation mode.

    They are kept in $OPTICUS_HOME/features (or the platform's cache folder) under a key made of the weights, the config, the
    preparation and the data's content, and read from there the next time. Raises CapabilityError if the network neither embeds
    nor has feature maps, DataError for a target that is not one label (unless not `labelled`: labels are then -1) or for vectors that
    are not finite.
    """
    labels = _labels(data) if labelled else np.full(len(data), -1, np.int64)
    ids = tuple(data.id_of(i) for i in range(len(data)))
    file = _folder() / f"{key_of(model, data, split, precision, taken)}.npy" if cache else None
    if file is not None and file.is_file():
        with contextlib.suppress(ValueError, OSError):
            found = np.load(file, mmap_mode="r")
            if found.shape[0] == len(data):
                return Features(found, labels, ids)
    rows = rows_of(model, data, split, batch, device, precision, quiet, taken)
    if file is None:
        return Features(np.concatenate(list(rows)), labels, ids)
    try:
        write_atomic(file, lambda part: _write(part, rows, len(data)))
        write_text(file.with_suffix(".json"), json.dumps({"model": cast(Any, model).card.name, "data": data.hash, "split": split}))
    except FileWriteError as error:
        print(f"opticus: features are not kept: {error}", file=sys.stderr)  # noqa: T201 - says why the next run is as slow
        return extract(model, data, split, batch=batch, device=device, precision=precision, cache=False, quiet=quiet,
                       taken=taken, labelled=labelled)  # fmt: skip
    return Features(np.load(file, mmap_mode="r"), labels, ids)


def embed(network: nn.Module, pixels: Tensor) -> Tensor:
    """One vector (B, D) per picture: the network's own `embed`, else the average of its last feature map."""
    if isinstance(network, Embedder):
        return network.embed(pixels)
    if isinstance(network, Backbone):
        return network.features(pixels)[-1].mean((2, 3))
    raise CapabilityError(f"{_name(network)} has neither embed() nor features(): there is no vector to probe")


def rows_of(
    model: nn.Module,
    data: Dataset,
    split: str,
    batch: int,
    device: str | None,
    precision: str,
    quiet: bool,
    taken: Taken = PLAIN,
    start: int = 0,
) -> Iterator[npt.NDArray[np.float32]]:
    """Vectors (b, D) batch after batch, from picture `start` on; DataError naming a picture whose vector is not finite."""
    where = place(model, device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    batch = 1 if taken.longest is not None else batch
    try:
        with tqdm(total=len(data), initial=start, unit="img", desc=f"features {split}", file=sys.stderr, disable=quiet,
                  leave=False) as bar:  # fmt: skip
            for first in range(start, len(data), batch):
                pictures = [data[i].picture for i in range(first, min(first + batch, len(data)))]
                pixels = _prepared(pictures, cast(Any, model).prepare, taken.longest).to(where)
                with torch.inference_mode(), autocast(where, precision):
                    vectors = take(model, pixels, taken)
                rows = vectors.float().cpu().numpy()
                if not (fine := np.isfinite(rows).all(1)).all():
                    name = data.id_of(first + int(np.argmin(fine)))
                    raise DataError(f"{name}: the network's vector of this picture holds values that are not finite numbers")
                bar.update(len(pictures))
                yield rows
    finally:
        for module, training in modes.items():
            module.training = training


def _prepared(pictures: list[Picture], rule: Prepare, longest: int | None) -> Tensor:
    if longest is None:
        return prepare(pictures, rule).pixels
    pixels = pictures[0].pixels
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return prepare([Picture(resize(pixels, size, "bicubic"))], replace(rule, resize="none", crop=None)).pixels


def take(network: nn.Module, pixels: Tensor, taken: Taken) -> Tensor:
    """One vector (B, D) per picture, as `taken` says."""
    total: Tensor | None = None
    for scale in taken.scales:
        scaled = pixels if scale == 1 else F.interpolate(pixels, scale_factor=scale, mode="bilinear", align_corners=False)
        try:
            vector = _vector(network, scaled, taken)
        except (RuntimeError, ValueError) as error:
            if scale == 1:
                raise
            height, width = scaled.shape[-2:]
            raise UsageError(
                f"the network does not take inputs of {height}x{width}, which scale {scale:g} makes: {error}"
            ) from error
        total = vector if total is None else total + vector
    assert total is not None
    return total / len(taken.scales)


def _vector(network: nn.Module, pixels: Tensor, taken: Taken) -> Tensor:
    parts = [embed(network, pixels) if taken.layers == 1 and not taken.average else _tokens(network, pixels, taken)]
    if taken.gem:
        if not isinstance(network, Backbone):
            raise CapabilityError(f"{_name(network)} has no features(): there is no map to pool by gem={taken.gem:g}")
        maps = network.features(pixels)[-1].float().clamp(min=1e-6)
        parts.append(maps.pow(taken.gem).mean((2, 3)).pow(1 / taken.gem))
    return torch.cat(parts, 1)


def _tokens(network: nn.Module, pixels: Tensor, taken: Taken) -> Tensor:
    """The normalised class tokens of the last blocks side by side, oldest first, and the mean of the last patch tokens."""
    whole: Any = getattr(network, "backbone", network)
    blocks, norm = getattr(whole, "blocks", None), getattr(whole, "norm", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or norm is None or not hasattr(whole, "cls_token"):
        raise CapabilityError(
            f"{_name(network)} has no blocks with a class token: layers= and average= are for vision transformers"
        )
    if taken.layers > len(blocks):
        raise UsageError(f"layers={taken.layers} blocks were asked for, {_name(network)} has {len(blocks)}")
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Tensor) -> None:
        seen.append(out)

    last: list[Any] = list(blocks)[-taken.layers :]
    handles = [block.register_forward_hook(keep) for block in last]
    try:
        embed(network, pixels)
    finally:
        for handle in handles:
            handle.remove()
    outputs = [norm(out) for out in seen]
    parts = [out[:, 0] for out in outputs]
    if taken.average:
        prefix = 1 if getattr(whole, "dist_token", None) is None else 2
        parts.append(outputs[-1][:, prefix:].mean(1))
    return torch.cat(parts, 1)


def _name(network: nn.Module) -> str:
    return getattr(getattr(network, "card", None), "name", type(network).__name__)


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


def key_of(model: nn.Module, data: Dataset, split: str, precision: str, taken: Taken = PLAIN) -> str:
    """What the vectors are a function of, as 32 hexadecimal digits: weights, config, preparation, data, and which vector is taken."""
    network = cast(Any, model)
    card: Card = network.card
    digest = hashlib.sha256(json.dumps([FORMAT, card.name, repr(network.config), network.prepare.to_json(), data.hash,
                                        split, len(data), precision, taken.settings()], default=str).encode())  # fmt: skip
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()[:32]
