"""Passports: every number of a run with the protocol it was measured by, and the paired comparison of two runs.

A run folder holds `passport.json` (numbers and protocols) and `passport.safetensors` (what each sample contributed, so that two
runs can be compared sample by sample without running them again).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from opticus.metrics.classify import Accuracy
from opticus.metrics.detect import CocoDetection
from opticus.metrics.lvis import LvisDetection
from opticus.metrics.masks import BestMask
from opticus.metrics.masks import resampled as resampled_masks
from opticus.metrics.multilabel import TagPrecision, resampled
from opticus.metrics.pictures import Restoration
from opticus.metrics.pictures import resampled as resampled_pictures
from opticus.metrics.retrieval import Copies, Retrieval, figures
from opticus.metrics.tables import POINTS, Matches, average_precision
from opticus.metrics.video import VideoSegmentation
from opticus.metrics.video import resampled as resampled_videos
from opticus.metrics.voc import VocDetection
from opticus.structures import MetricError
from opticus.structures.files import write_bytes

Array = npt.NDArray[Any]
FORMAT = 1


class Number(NamedTuple):
    """One published number: its value and everything that must be equal for another one to be comparable."""

    value: float
    protocol: Mapping[str, Any]


Scored = (
    Accuracy
    | TagPrecision
    | Retrieval
    | Copies
    | CocoDetection
    | LvisDetection
    | VocDetection
    | VideoSegmentation
    | BestMask
    | Restoration
)


class Passport(NamedTuple):
    """The numbers of one run, the ids of its samples and, per measure, the flat arrays that each sample contributed."""

    numbers: Mapping[str, Number]
    ids: tuple[str, ...] = ()
    arrays: Mapping[str, Array] = {}

    @staticmethod
    def of(
        metric: Scored,
        extra: Mapping[str, Any] | None = None,
    ) -> Passport:
        """The passport of a finished metric; `extra` protocol fields (input size, threshold) are added to every number."""
        protocol = {**metric.protocol, **(extra or {})}
        numbers = {name: Number(value, protocol) for name, value in metric.compute().items()}
        if isinstance(metric, Accuracy):
            arrays: dict[str, Array] = {f"accuracy/{key}": value for key, value in metric.samples().items()}
        elif isinstance(metric, TagPrecision):
            arrays = {f"tags/{key}": value for key, value in metric.samples().items()}
        elif isinstance(metric, VideoSegmentation):
            arrays = {f"video/{key}": value for key, value in metric.samples().items()}
        elif isinstance(metric, Restoration):
            arrays = {f"pictures/{key}": value for key, value in metric.samples().items()}
        elif isinstance(metric, BestMask):
            arrays = {f"best mask/{key}": value for key, value in metric.samples().items()}
        elif isinstance(metric, (Retrieval, Copies)):
            kind = "retrieval" if isinstance(metric, Retrieval) else "copies"
            arrays = {f"{kind}/{key}": value for key, value in metric.samples().items()}
        elif isinstance(metric, VocDetection):
            arrays = {f"{metric.rule}/{key}": value for key, value in metric.matches().to_arrays().items()}
        else:
            kinds = {"bbox": "boxes", "segm": "masks"} if metric.masks else {"bbox": "boxes"}
            arrays = {
                f"{name}/{key}": value
                for kind, name in kinds.items()
                for key, value in metric.matches("segm" if kind == "segm" else "bbox").to_arrays().items()
            }
        return Passport(numbers, tuple(metric.ids), arrays)

    def write(self, folder: str | Path) -> Path:
        """Write `passport.json` and `passport.safetensors` into `folder`, each whole or not at all; returns the JSON's path."""
        from safetensors.numpy import save

        where = Path(folder)
        arrays = {key: np.ascontiguousarray(value) for key, value in self.arrays.items()}
        write_bytes(where / "passport.safetensors", save(arrays, {"ids": json.dumps(self.ids)}))
        protocols: list[Mapping[str, Any]] = []
        for number in self.numbers.values():
            if number.protocol not in protocols:
                protocols.append(number.protocol)
        numbers = {key: {"value": n.value, "protocol": protocols.index(n.protocol)} for key, n in self.numbers.items()}
        text = json.dumps({"format": FORMAT, "numbers": numbers, "protocols": protocols}, indent=1, ensure_ascii=False)
        write_bytes(where / "passport.json", text.encode())
        return where / "passport.json"

    @staticmethod
    def read(folder: str | Path) -> Passport:
        """The passport in a run folder. Raises MetricError naming the file if it is absent or not a passport."""
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / "passport.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            protocols = content["protocols"]
            numbers = {key: Number(float(n["value"]), protocols[n["protocol"]]) for key, n in content["numbers"].items()}
            with safe_open(path.with_suffix(".safetensors"), "np") as file:
                arrays: dict[str, Array] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
                ids = tuple(json.loads((file.metadata() or {})["ids"]))
        except OSError as error:
            raise MetricError(f"{path}: expected a run with passport.json and passport.safetensors, found {error}") from error
        except (ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
            raise MetricError(
                f"{path}: expected a passport of format {FORMAT}, found a file that cannot be read: {error}"
            ) from error
        return Passport(numbers, ids, arrays)


class Difference(NamedTuple):
    """Number `name` of runs a and b: b - a with its 95 % interval; `better` is the share of resamples in which b is ahead."""

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    better: float
    resamples: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not self.resamples:
            return f"{self.name}: {self.a:.4f} -> {self.b:.4f}, difference {self.difference:+.4f} (of whole sets: no interval)"
        verdict = "" if self.significant else " (not distinguishable)"
        interval = f"95 % interval [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.name}: {self.a:.4f} -> {self.b:.4f}, difference {self.difference:+.4f}, {interval}{verdict}"


def compare(a: str | Path, b: str | Path, *, resamples: int = 1000, seed: int = 0) -> list[Difference]:
    """Differences b - a of the runs in two folders, with 95 % intervals of a paired bootstrap over samples.

    Both runs are resampled with the same draws (Efron & Tibshirani 1993, percentile interval). Raises MetricError naming the first
    protocol field that differs, or if there is no number in common.
    """
    first, second = Passport.read(a), Passport.read(b)
    shared = [name for name in first.numbers if name in second.numbers]
    if not shared:
        raise MetricError(f"{a} and {b} have no number in common: {sorted(first.numbers)} and {sorted(second.numbers)}")
    for name in shared:
        _same_protocol(f"{a} and {b}", name, first.numbers[name].protocol, second.numbers[name].protocol)
    if first.ids != second.ids:
        odd = sorted(set(first.ids) ^ set(second.ids))
        raise MetricError(f"{a} and {b}: both must score the same samples, found {len(odd)} in one run only, such as {odd[:3]}")
    if not first.ids:  # figures of a whole set of pictures, such as FID: there is nothing to resample
        gaps = {name: (first.numbers[name].value, second.numbers[name].value) for name in shared}
        return [Difference(name, x, y, y - x, np.nan, np.nan, np.nan, 0) for name, (x, y) in gaps.items()]
    rng = np.random.Generator(np.random.Philox(seed))
    draws = rng.multinomial(len(first.ids), np.full(len(first.ids), 1 / len(first.ids)), resamples).astype(np.float64)
    one, other = _resampled(first.arrays, draws), _resampled(second.arrays, draws)
    rows: list[Difference] = []
    for name in (name for name in shared if name in one and name in other):
        gaps = (other[name] - one[name])[np.isfinite(other[name] - one[name])]
        before, after = first.numbers[name].value, second.numbers[name].value
        low, high = np.percentile(gaps, [2.5, 97.5]) if gaps.size else (np.nan, np.nan)
        ahead = float((gaps > 0).mean()) if gaps.size else float("nan")
        rows.append(Difference(name, before, after, after - before, float(low), float(high), ahead, resamples))
    return rows


def resampled_numbers(passport: Passport, name: str, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of one number over bootstrap resamples of its samples; (NaN, NaN) where nothing was kept to resample."""
    rng = np.random.Generator(np.random.Philox(seed))
    count = len(passport.ids)
    draws = rng.multinomial(count, np.full(count, 1 / max(count, 1)), resamples).astype(np.float64)
    values = _resampled(passport.arrays, draws).get(name) if count else None
    if values is None:
        return float("nan"), float("nan")
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return float(low), float(high)


def _same_protocol(runs: str, name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for field in [*a, *(key for key in b if key not in a)]:
        if a.get(field) != b.get(field):
            raise MetricError(f"{runs}: {name} was measured by unlike protocols: {field} is {a.get(field)!r} and {b.get(field)!r}")


def _resampled(arrays: Mapping[str, Array], draws: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Every number that can be resampled, each (R,)."""
    groups: dict[str, dict[str, Array]] = {}
    for key, value in arrays.items():
        measure, _, field = key.partition("/")
        groups.setdefault(measure, {})[field] = value
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    for measure, group in groups.items():
        if measure == "accuracy":
            numbers |= _accuracies(group, draws)
            continue
        if measure == "tags":
            numbers |= resampled(group, draws)
            continue
        if measure == "video":
            numbers |= resampled_videos(group, draws)
            continue
        if measure == "pictures":
            numbers |= resampled_pictures(group, draws)
            continue
        if measure == "best mask":
            numbers |= resampled_masks(group, draws)
            continue
        if measure == "retrieval":
            numbers |= figures(group, draws)
            continue
        if measure == "copies":
            numbers["mAP"] = draws @ group["ap"] / draws.sum(1)
            continue
        if measure in POINTS:
            values = average_precision(Matches.from_arrays(group), draws, measure)
            numbers["mAP"] = _mean_known(values[:, :, 0])
            continue
        prefix = "mask_" if measure == "masks" else ""
        values = average_precision(Matches.from_arrays(group), draws)  # R, K, T
        for name, part in {"AP": values, "AP50": values[:, :, :1], "AP75": values[:, :, 5:6]}.items():
            numbers[prefix + name] = _mean_known(part.reshape(len(draws), -1))
    return numbers


def _accuracies(group: Mapping[str, Array], draws: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    rank, truth = group["rank"], group["truth"]
    numbers = {f"top{k}": draws @ (rank < k) / draws.sum(1) for k in (1, 5)}
    belongs = (truth[:, None] == np.unique(truth)[None]).astype(np.float64)
    counts, right = draws @ belongs, draws @ (belongs * (rank < 1)[:, None])
    recalls = np.divide(right, counts, out=np.full_like(right, np.nan), where=counts > 0)
    return numbers | {"balanced": _mean_known(recalls)}


def _mean_known(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(1), known.sum(1)
    return cast("npt.NDArray[np.float64]", np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))
