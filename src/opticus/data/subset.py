"""Parts of data sets: a choice of records, and Python iterables of samples in the dress of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opticus.data.records import Boxes, Source, digest
from opticus.structures import Classes, DataError, Instances, LabelMap, Panoptic, Sample, Target, Task, UsageError


class Subset:
    """The records `indices` of a data set; `quarantined` maps the ids that were left out as bad to the reason."""

    boxes: Boxes | None = None

    def __init__(self, base: Source, indices: Iterable[int], quarantined: Mapping[str, str] | None = None) -> None:
        self.base = base
        self.indices = np.asarray(list(indices), np.int64)
        self.quarantined = dict(quarantined or {})
        self.task: Task = base.task
        self.names: tuple[str, ...] = base.names
        self.label_ids: tuple[int, ...] = base.label_ids
        self.split: str = base.split
        self.splits: tuple[str, ...] = base.splits
        self.multi = bool(getattr(base, "multi", False))
        self.federation: Any = getattr(base, "federation", None)  # by id, so it serves the subset as it is
        self.hash: str = digest(base.hash, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.base[int(self.indices[index])]

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The id of record `index`."""
        return self.base.id_of(int(self.indices[index]))

    def target_of(self, index: int) -> Target | None:
        """The target of record `index` alone."""
        return self.base.target_of(int(self.indices[index]))

    @property
    def sequential(self) -> bool:
        """Whether the records are cheap to read only one after the other (`data.stream`)."""
        return bool(getattr(self.base, "sequential", False))

    @property
    def shard_of(self) -> npt.NDArray[np.int32]:
        """(records,) the shard of every record; of sequential data only."""
        return cast(Any, self.base).shard_of[self.indices]

    def raw_of(self, index: int, reads: Any = None) -> Any:
        """The undecoded bytes of record `index` of data in shards."""
        return cast(Any, self.base).raw_of(int(self.indices[index]), reads)

    def sample_of(self, index: int, raw: Any) -> Sample:
        """Record `index` of data in shards from its bytes."""
        return cast(Any, self.base).sample_of(int(self.indices[index]), raw)

    def file_of(self, index: int) -> Path | None:
        """The picture's file, where there is one."""
        return self.base.file_of(int(self.indices[index]))


def few(base: Source, per_class: int, seed: int = 0) -> Subset:
    """`per_class` records of every class of single-label data, chosen by `seed` and in the data's order: a low-data setting.

    UsageError for per_class < 1; DataError if a record has no single label, or a class fewer records.
    """
    if per_class < 1:
        raise UsageError(f"per_class must be at least 1, found {per_class}")
    chosen: dict[int, list[int]] = {label: [] for label in range(len(base.names))}
    missing = per_class * len(chosen)
    for index in np.random.Generator(np.random.Philox(seed)).permutation(len(base)).tolist():
        target = base.target_of(index)
        if not isinstance(target, Classes) or len(target) != 1:
            raise DataError(f"{base.id_of(index)}: a choice by class needs records with one label each")
        found = chosen[int(target.labels[0])]
        if len(found) < per_class:
            found.append(index)
            missing -= 1
        if missing == 0:
            return Subset(base, sorted(index for found in chosen.values() for index in found))
    short = next(label for label, found in chosen.items() if len(found) < per_class)
    raise DataError(
        f"the {base.split} split has {len(chosen[short])} records of class {base.names[short]!r}, fewer than {per_class}"
    )


class Samples:
    """Samples held in memory, from any Python iterable; ids that are missing become the sample's number."""

    splits: tuple[str, ...] = ("train",)

    def __init__(self, samples: Iterable[Any], split: str = "train", names: Seq[str] | None = None) -> None:
        self.samples: list[Sample] = list(samples)
        self.split = split
        for number, sample in enumerate[Any](self.samples):
            if not isinstance(sample, Sample):
                raise DataError(f"element {number} of the data is a {type(sample).__name__}, expected an opticus Sample")
        self.task: Task = _task_of([sample.target for sample in self.samples])
        highest = max((_highest(sample.target) for sample in self.samples), default=-1)
        if names is not None and highest >= len(names):
            raise DataError(f"the data has {len(names)} class names but a label {highest}")
        self.names: tuple[str, ...] = tuple(names) if names is not None else tuple(str(i) for i in range(highest + 1))
        self.label_ids: tuple[int, ...] = tuple(range(len(self.names)))
        self.multi = any(isinstance(s.target, Classes) and s.target.scores is None and len(s.target) != 1 for s in self.samples)
        self.boxes, self.sizes = _flat([sample.target for sample in self.samples])
        self.hash: str = digest("samples", *(part for i in range(len(self.samples)) for part in self._content(i)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        return sample if sample.id else replace(sample, id=f"{index:06d}")

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def id_of(self, index: int) -> str:
        """The sample's id, or its number when it has none."""
        return self.samples[index].id or f"{index:06d}"

    def target_of(self, index: int) -> Target | None:
        """The sample's target."""
        return self.samples[index].target

    def file_of(self, index: int) -> Path | None:
        """None: the samples are in memory."""
        return None

    def _content(self, index: int) -> tuple[bytes, ...]:
        sample = self.samples[index]
        inputs = [part for name in sorted(sample.inputs) for part in (name.encode(), _bytes_of(sample.inputs[name]))]
        return (sample.id.encode(), repr(sample.weight).encode(), *inputs, _bytes_of(sample.target))


def _bytes_of(value: Any) -> bytes:
    """The content of inputs and targets: tensors byte by byte, dataclasses field by field, the rest by its text."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        return f"{plain.dtype} {tuple(plain.shape)}".encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    if is_dataclass(value):
        return b"".join(f.name.encode() + b"=" + _bytes_of(getattr(value, f.name)) + b";" for f in fields(value))
    if isinstance(value, Mapping):
        return b"".join(f"{key!r}:".encode() + _bytes_of(inner) + b"," for key, inner in value.items())
    return repr(value).encode()


def _flat(targets: list[Target | None]) -> tuple[Boxes | None, npt.NDArray[np.int32]]:
    """The boxes of all samples in flat arrays, for the vectorised checks, and the frames' sizes; None without any boxes."""
    found = [target if isinstance(target, Instances) else None for target in targets]
    if not any(found_one is not None for found_one in found):
        return None, np.zeros((0, 2), np.int32)
    sizes = np.asarray([(0, 0) if target is None else target.size for target in found], np.int32)
    starts = np.concatenate([[0], np.cumsum([0 if target is None else len(target) for target in found])])
    held = [target for target in found if target is not None]
    boxes = torch.cat([target.boxes.reshape(-1, 4) for target in held]).float().cpu().numpy()
    labels = torch.cat([target.labels for target in held]).cpu().numpy().astype(np.int16)
    return Boxes(starts.astype(np.int64), boxes, labels), sizes


def _task_of(targets: list[Target | None]) -> Task:
    kinds: dict[type, Task] = {Classes: "classify", Instances: "detect", LabelMap: "segment", Panoptic: "panoptic"}
    for target in targets:
        if target is not None:
            return kinds.get(type(target), "embed")
    return "classify"


def _highest(target: Target | None) -> int:
    if isinstance(target, (Classes, Instances)) and len(target):
        return int(target.labels.max())
    return -1
