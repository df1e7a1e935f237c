"""How well the best of several masks covers an object: the measure of masks that attention gives (Caron et al. 2021, figure 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opticus.structures import MetricError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
NAMES = ("jaccard", "jaccard_head_mean")
VOID = 255


class BestMask:
    """Jaccard index of the best of M proposed masks, and their mean, averaged over a picture's regions and then over pictures.

    "jaccard": the truth chooses the mask ("best head"), so that it is an upper bound of what any rule could choose;
    "jaccard_head_mean": no choice. `regions` "each": every label of the map is a region of its own; "foreground": all labels are one
    region. Pixels of id 255 count for nothing; pictures that show no region are left out.
    """

    def __init__(self, data: str = "", split: str = "", *, regions: str = "each") -> None:
        self.regions = regions
        self.protocol: dict[str, Any] = {
            "measure": "Jaccard index of the best mask",
            "regions": regions,
            "void": "left out",
            "data": data,
            "split": split,
        }
        self._rows: dict[str, tuple[float, float]] = {}
        self.empty: list[str] = []

    @property
    def ids(self) -> list[str]:
        """The scored pictures, sorted."""
        return sorted(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def update(self, prediction: Bools, target: npt.NDArray[Any], id: str) -> npt.NDArray[np.float64]:
        """Score masks (M, H, W) of picture `id` against region ids (H, W), 0 background; returns the Jaccard index (regions, M).

        MetricError for unlike sizes.
        """
        table = overlaps(prediction, target, id, foreground=self.regions == "foreground")
        if len(table) == 0:
            if id not in self.empty:
                self.empty.append(id)
        elif id not in self._rows:
            self._rows[id] = (float(table.max(1).mean()), float(table.mean()))
        return table

    def compute(self) -> dict[str, float]:
        """Both numbers, in [0, 1]; MetricError if no picture shows a region."""
        if not self._rows:
            raise MetricError("jaccard: no picture with a region was scored, expected at least one")
        values = self.samples()["values"]
        return dict(zip(NAMES, values.mean(0).tolist(), strict=True))

    def samples(self) -> dict[str, npt.NDArray[Any]]:
        """(N, 2) numbers of the pictures in the order of `ids`."""
        return {"values": np.asarray([self._rows[key] for key in self.ids], np.float64).reshape(-1, 2)}

    def state(self) -> dict[str, Any]:
        """What another process needs to `merge`."""
        return dict(self._rows)

    def merge(self, state: dict[str, Any]) -> None:
        """Add another process's `state`; pictures already present are left alone."""
        for key, value in state.items():
            self._rows.setdefault(key, value)


def overlaps(masks: Bools, ids: npt.NDArray[Any], name: str = "masks", *, foreground: bool = False) -> Floats:
    """Jaccard index (R, M) of each of M masks (M, H, W) with each region of a map (H, W): one matrix product of pixels."""
    if masks.shape[1:] != ids.shape:
        raise MetricError(
            f"{name}: expected masks of {ids.shape[1]}x{ids.shape[0]} pixels, found {masks.shape[2]}x{masks.shape[1]}"
        )
    seen = (ids != VOID).reshape(-1)
    flat, proposed = ids.reshape(-1)[seen], masks.reshape(len(masks), -1)[:, seen].astype(np.float32)
    labels = np.unique(flat[flat > 0])
    if foreground and len(labels):
        flat, labels = (flat > 0).astype(np.int64), np.ones(1, np.int64)
    regions = (flat[None] == labels[:, None]).astype(np.float32)
    both = (regions @ proposed.T).astype(np.float64)
    either = regions.sum(1, dtype=np.float64)[:, None] + proposed.sum(1, dtype=np.float64)[None] - both
    return both / np.maximum(either, 1)


def resampled(group: dict[str, npt.NDArray[Any]], draws: Floats) -> dict[str, Floats]:
    """Both numbers for R weightings (R, N) of the pictures."""
    means = draws @ group["values"] / draws.sum(1, keepdims=True)
    return {name: means[:, i] for i, name in enumerate(NAMES)}


__all__ = ["NAMES", "BestMask", "overlaps", "resampled"]
