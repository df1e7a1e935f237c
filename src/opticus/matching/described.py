"""What is known of all regions of a data set: the table from which the last layers of R-CNN and SPP-net are solved, kept on disk.

The table is a folder of flat files that grow picture by picture: `boxes`, `owners`, `own`, `vectors` (one row a region), `pairs`
and `pooled` (one row for each region that a box regressor learns from), `objects`, `labels`, `holders` (one row an object), and
`index`, the number of rows of each after every picture. What the index does not count was being written when the run was killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opticus.matching.objects import Objects
from opticus.ops.iou import iou
from opticus.structures import DataError
from opticus.structures.files import write_text

PAIR = 0.6  # a region that overlaps an object by more teaches its box regressor (R-CNN, appendix C)
# regions, regions that teach boxes, objects: the files of each and the type of their values
_GROUPS: tuple[dict[str, str], ...] = (
    {"boxes": "<f4", "owners": "<i8", "own": "|i1", "vectors": "<f4"},
    {"pairs": "<i8", "nearest": "<i8", "pooled": "<f4"},
    {"objects": "<f4", "labels": "<i8", "holders": "<i8"},
)


class Described(NamedTuple):
    """N regions of all pictures, M of which teach boxes, and T objects; NumPy arrays, the large ones mapped from disk.

    `boxes` (N, 4) xyxy input pixels; `owners` (N,) their pictures' numbers, rising; `own` (N,) 1 for an object's own box, which is
    listed among its picture's regions; `vectors` (N, D) what the SVMs see. `pairs` (M,) rows of regions and `nearest` (M,) rows of
    their objects; `pooled` (M, P) what the box regressors see. `objects` (T, 4), `labels` (T,), `holders` (T,) their pictures.
    """

    boxes: npt.NDArray[np.float32]
    owners: npt.NDArray[np.int64]
    own: npt.NDArray[np.int8]
    vectors: npt.NDArray[np.float32]
    pairs: npt.NDArray[np.int64]
    nearest: npt.NDArray[np.int64]
    pooled: npt.NDArray[np.float32]
    objects: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    holders: npt.NDArray[np.int64]

    def overlaps(self, label: int) -> npt.NDArray[np.float32]:
        """(N,) of each region the largest IoU with an object of class `label` in its picture; 0 where there is none."""
        found = np.zeros(len(self.boxes), np.float32)
        ends = np.searchsorted(self.owners, np.arange(int(self.owners[-1]) + 2 if len(self.owners) else 1))
        chosen = np.flatnonzero(self.labels == label)
        for picture in np.unique(self.holders[chosen]).tolist():
            truth = torch.from_numpy(self.objects[chosen[self.holders[chosen] == picture]])
            rows = slice(int(ends[picture]), int(ends[picture + 1]))
            if rows.stop > rows.start:
                found[rows] = iou(truth, torch.from_numpy(np.array(self.boxes[rows]))).amax(0).numpy()
        return found


class Table:
    """A table that is being written to `folder`, for one `passport` (what decides its content); another one's is thrown away."""

    def __init__(self, folder: Path, passport: Mapping[str, Any]) -> None:
        self.folder = folder
        self.rows = [np.zeros(3, np.int64)]
        self.widths = {"boxes": 4, "objects": 4}
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(passport), sort_keys=True)
        file = folder / "passport.json"
        if not file.is_file() or file.read_text("utf-8") != text:
            for old in (*folder.glob("*.flat"), folder / "widths.json"):
                old.unlink(missing_ok=True)
            write_text(file, text)
        self._resume()

    @property
    def pictures(self) -> int:
        """How many pictures the table has."""
        return len(self.rows) - 1

    def add(self, proposals: Tensor, truth: Objects, vectors: Tensor, pooled: Tensor) -> None:
        """One more picture: its proposals (R, 4) followed by its objects (T, 4) have `vectors` (R + T, D) and `pooled` (R + T, P)."""
        boxes = torch.cat([proposals, truth.boxes])
        overlaps = iou(truth.boxes, proposals)
        best, nearest = overlaps.max(0) if len(truth.boxes) else (proposals.new_zeros(len(proposals)), torch.zeros(len(proposals)))
        teaches = (best > PAIR).nonzero()[:, 0]
        done = self.rows[-1]
        number = self.pictures
        own = np.r_[np.zeros(len(proposals), np.int8), np.ones(len(truth.boxes), np.int8)]
        values: dict[str, Any] = {
            "boxes": boxes, "owners": np.full(len(boxes), number), "own": own, "vectors": vectors,
            "pairs": teaches + int(done[0]), "nearest": nearest[teaches].long() + int(done[2]), "pooled": pooled[teaches],
            "objects": truth.boxes, "labels": truth.labels, "holders": np.full(len(truth.boxes), number),
        }  # fmt: skip
        if not self.pictures:
            self.widths |= {"vectors": int(vectors.shape[1]), "pooled": int(pooled.shape[1])}
            write_text(self.folder / "widths.json", json.dumps(self.widths))
        for kinds in _GROUPS:
            for name, kind in kinds.items():
                value = values[name]
                array = value.detach().cpu().float().numpy() if kind == "<f4" else np.asarray(value)
                self._append(name, array.astype(kind))
        self.rows.append(done + [len(boxes), len(teaches), len(truth.boxes)])
        self._append("index", self.rows[-1])

    def read(self) -> Described:
        """The table as it stands; DataError if it has no region at all."""
        if not self.rows[-1][0]:
            raise DataError(f"{self.folder}: there is no region in {self.pictures} pictures, so there is nothing to learn from")
        arrays: dict[str, Any] = {}
        for count, kinds in zip(self.rows[-1].tolist(), _GROUPS):
            for name, kind in kinds.items():
                shape = (count, self.widths[name]) if name in self.widths else (count,)
                file = self.folder / f"{name}.flat"
                arrays[name] = np.memmap(file, kind, "r", shape=shape) if count else np.zeros(shape, kind)
        return Described(**arrays)

    def _append(self, name: str, array: npt.NDArray[Any]) -> None:
        with (self.folder / f"{name}.flat").open("ab") as file:
            file.write(np.ascontiguousarray(array).tobytes())

    def _resume(self) -> None:
        """Go on after the last picture that the index counts, cutting off what follows it."""
        file = self.folder / "index.flat"
        if not file.is_file():
            for old in self.folder.glob("*.flat"):
                old.unlink()
            return
        known = np.fromfile(file, np.int64)[: file.stat().st_size // 24 * 3].reshape(-1, 3)
        self.rows += list(known)
        self.widths = json.loads((self.folder / "widths.json").read_text("utf-8"))
        for count, kinds in zip(self.rows[-1].tolist(), _GROUPS):
            for name, kind in kinds.items():
                with (self.folder / f"{name}.flat").open("r+b") as flat:
                    flat.truncate(count * self.widths.get(name, 1) * np.dtype(kind).itemsize)
        with file.open("r+b") as flat:
            flat.truncate(len(known) * 24)
