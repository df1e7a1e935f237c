"""probe: how good are frozen features? Weighted nearest neighbours, a linear classifier and a support vector machine on top of them."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.data.splits import canonical
from opticus.data.subset import Subset
from opticus.metrics.classify import Accuracy
from opticus.metrics.passport import Passport
from opticus.structures import Classes, DataError, Dataset, Sample, UnknownNameError, UsageError
from opticus.structures.files import write_text
from opticus.verbs.attention_masks import AttentionMasks
from opticus.verbs.features import Features, extract
from opticus.verbs.models import Card
from opticus.verbs.probe_dense import probe_dense
from opticus.verbs.propagate import Propagation

METHODS = ("knn", "linear", "svm")
DENSE = ("propagation", "attention-mask")  # methods on places of pictures: each in its own file, one at a time
SWEEP = {  # inverse regularisation strengths (scikit-learn's C) that a classifier is tried with
    "linear": (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2),
    "svm": (1e-4, 1e-3, 1e-2, 1e-1),
}
PIXELS = "pixels"  # the baseline: the same classifiers on the pictures' raw pixels
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Probed(NamedTuple):
    """One classifier on one kind of features: its figures on the scored split and the protocol that they were measured by."""

    features: str  # the model's name, or "pixels"
    method: str
    values: dict[str, float]
    metric: Accuracy
    protocol: dict[str, Any]


@dataclass
class Probe:
    """The rows of a probe, the model's own first."""

    rows: list[Probed] = field(default_factory=list[Probed])

    def __getitem__(self, method: str) -> float:
        """Top-1 accuracy of one method on the model's features: `found["knn"]`."""
        return next(row.values["top1"] for row in self.rows if row.method == method)

    def to_json(self) -> list[dict[str, Any]]:
        """JSON-ready rows with their protocols."""
        return [{"features": r.features, "method": r.method, "values": r.values, "protocol": r.protocol} for r in self.rows]

    def table(self) -> str:
        """A line per row."""
        lines = [f"{'features':<28}{'method':<10}{'top1':>8}{'balanced':>10}  settings"]
        for row in self.rows:
            settings = ", ".join(
                f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.protocol["probe"].items() if k != "method"
            )
            lines.append(f"{row.features:<28}{row.method:<10}{row.values['top1']:>8.4f}{row.values['balanced']:>10.4f}  {settings}")
        return "\n".join(lines)


def probe(
    model: nn.Module,
    data: str | Path | Source | Iterable[Sample],
    *,
    methods: Sequence[str] = ("knn", "linear"),
    k: int = 20,
    temperature: float = 0.07,
    baseline: bool = True,
    split: str = "test",
    batch: int = 64,
    device: str | None = None,
    precision: str = "fp32",
    cache: bool = True,
    out: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Probe | Propagation | AttentionMasks:
    """Accuracy of simple classifiers on the frozen features of `model`, fitted on the training split and scored on `split`.

    "knn": votes of the `k` nearest training pictures by cosine, weighted exp(cosine / temperature) (Wu et al. 2018; Caron et al.
    2021). "linear": multinomial logistic regression on standardised features; "svm": one linear machine per class; both from
    scikit-learn, their regularisation chosen from SWEEP on the validation split (a fifth of the training split where there is
    none). With `baseline` the same methods see raw pixels, where all pictures have one size. The protocol of every number is part
    of the result and, with `out`, of a passport per row. ("propagation",) is `opticus.propagate` and ("attention-mask",)
    `opticus.attention_masks`, whose further `options` are given here too (`size`, `limit`, ...). Raises UsageError, DataError or CapabilityError.
    """
    if set(methods) & set(DENSE):
        return probe_dense(model, data, methods, split=split, baseline=baseline, device=device, out=out, quiet=quiet, **options)
    for name in methods:
        if name not in METHODS:
            raise UnknownNameError("probe method", name, (*METHODS, *DENSE))
    if options:
        raise UnknownNameError("option of probe", next(iter(options)), inspect.signature(probe).parameters)
    if k < 1 or not temperature > 0:
        raise UsageError(f"k must be at least 1 and temperature above 0, found k={k}, temperature={temperature}")
    train, val, test = _splits(data, split)
    if train.names != test.names:
        raise DataError(f"the splits have unlike classes: {', '.join(train.names[:5])} and {', '.join(test.names[:5])}")
    card: Card = cast(Any, model).card
    view: dict[str, Any] = {"device": device, "precision": precision, "batch": batch, "cache": cache, "quiet": quiet}
    spaces: list[tuple[str, Callable[[Dataset, str], Features]]] = [(card.name, lambda d, s: extract(model, d, s, **view))]
    if baseline and (size := _one_size(train, test)) is not None:
        spaces.append((PIXELS, lambda d, s: pixels(d, size)))
    result = Probe()
    for space, take in spaces:
        fitted, chosen, scored = take(train, train.split), take(val, f"{val.split} (selection)"), take(test, test.split)
        for method in methods:
            votes, settings = _classify(method, fitted, chosen, scored, len(train.names), k, temperature)
            metric = Accuracy(test.names, data=test.hash, split=canonical(split))
            for id, row, truth in zip(scored.ids, votes, scored.labels, strict=True):
                metric.update(_ranked(row), Classes(torch.tensor([int(truth)])), id)
            extra = {"probe": settings, "fitted on": train.hash, "features": space}
            result.rows.append(Probed(space, method, metric.compute(), metric, {**metric.protocol, **extra}))
    if out is not None:
        keep(result, Path(out))
    return result


def keep(result: Probe, folder: Path) -> None:
    """Write probe.json and, in a folder per row, a passport that `compare` reads."""
    write_text(folder / "probe.json", json.dumps(result.to_json(), indent=1))
    for row in result.rows:
        shared = {key: value for key, value in row.protocol.items() if key not in ("features", *row.metric.protocol)}
        shared["probe"] = {key: value for key, value in shared["probe"].items() if key != "regularisation"}  # found, not set
        Passport.of(row.metric, shared).write(folder / f"{row.features.replace('/', '-').replace(':', '-')}-{row.method}")


# --- data ------------------------------------------------------------------------------------------------------------------


def _splits(data: Any, split: str) -> tuple[Source, Source, Source]:
    """What classifiers are fitted on, chosen by, and scored on; the three share no sample."""
    first = cast(Source, data if hasattr(data, "target_of") else open_data(data, "train"))
    there = {canonical(name): name for name in first.splits}
    if canonical(split) not in there or canonical(split) == "train":
        known = ", ".join(name for name in first.splits if canonical(name) != "train") or "no other split"
        raise UsageError(f"the probe is scored on split {split!r}, which the data does not have beside train; it has {known}")
    test = open_data(data, there[canonical(split)])
    if "val" in there and canonical(split) != "val":
        return first, open_data(data, there["val"]), test
    order = np.random.Generator(np.random.Philox(0)).permutation(len(first))
    fifth = max(len(first) // 5, 1)
    return Subset(first, np.sort(order[fifth:])), Subset(first, np.sort(order[:fifth])), test


def _one_size(*sets: Source) -> tuple[int, ...] | None:
    sizes = {tuple(data[i].picture.pixels.shape) for data in sets for i in (0, len(data) // 2, len(data) - 1)}
    return sizes.pop() if len(sizes) == 1 and np.prod(next(iter(sizes))) <= 64 * 64 * 3 else None


def pixels(data: Dataset, size: tuple[int, ...]) -> Features:
    """The pictures themselves as vectors in [0, 1]; DataError for one of another size (H, W, C) than `size`."""
    rows = np.empty((len(data), int(np.prod(size))), np.float32)
    labels = np.empty(len(data), np.int64)
    for i in range(len(data)):
        sample = data[i]
        pixels = sample.picture.pixels
        if tuple(pixels.shape) != size:
            raise DataError(
                f"{sample.id}: raw pixels need pictures of one size, expected {size}, found {tuple(pixels.shape)}; use baseline=false"
            )
        rows[i] = pixels.numpy().reshape(-1) / np.float32(255)
        labels[i] = int(cast(Classes, sample.target).labels[0])
    return Features(rows, labels, tuple(data.id_of(i) for i in range(len(data))))


# --- classifiers -------------------------------------------------------------------------------------------------------------


def _classify(
    method: str, train: Features, val: Features, test: Features, classes: int, k: int, temperature: float
) -> tuple[Floats, dict[str, Any]]:
    """Scores (N, K) of the scored samples, and the settings that belong to the protocol."""
    if method == "knn":
        k = min(k, len(train.labels))
        return neighbours(train, test.vectors, classes, k, temperature), {
            "method": "knn",
            "k": k,
            "temperature": temperature,
            "distance": "cosine",
        }
    best: tuple[float, float, Any] | None = None
    for strength in SWEEP[method]:
        machine = _machine(method, strength)
        with warnings.catch_warnings(action="ignore"):  # of steps that did not suffice at an extreme strength: it is not chosen
            machine.fit(train.vectors, train.labels)
        accuracy = float((machine.predict(val.vectors) == val.labels).mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, machine)
    assert best is not None
    machine = best[2]
    raw = np.asarray(machine.decision_function(test.vectors), np.float32)
    if raw.ndim == 1:
        raw = np.stack([-raw, raw], 1)
    scores = np.full((len(raw), classes), -np.inf, np.float32)
    scores[:, machine.classes_] = raw
    shift = scores - scores.max(1, keepdims=True)
    probs = np.exp(shift) / np.exp(shift).sum(1, keepdims=True)
    settings = {
        "method": "logistic regression" if method == "linear" else "linear SVM",
        "sweep": list(SWEEP[method]),
        "regularisation": best[1],
    }
    return probs.astype(np.float32), settings


def _machine(method: str, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    kind = LogisticRegression(C=strength, max_iter=300) if method == "linear" else LinearSVC(C=strength, random_state=0)
    return make_pipeline(StandardScaler(), kind)


def neighbours(
    train: Features, queries: npt.NDArray[np.float32], classes: int, k: int, temperature: float, block: int = 1024
) -> Floats:
    """Shares of the votes (N, K): each of the k nearest training vectors by cosine votes for its label with exp(cosine / temperature).

    Exact; queries are compared in blocks, so that memory is block x training samples.
    """
    bank = torch.nn.functional.normalize(torch.tensor(train.vectors), dim=1)
    labels = torch.tensor(train.labels)
    found: list[Tensor] = []
    for first in range(0, len(queries), block):
        part = torch.nn.functional.normalize(torch.tensor(queries[first : first + block]), dim=1)
        near, index = (part @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[index], ((near - 1) / temperature).exp())
        found.append(votes / votes.sum(1, keepdim=True).clamp(min=1e-30))
    return torch.cat(found).numpy()


def _ranked(row: Floats) -> Classes:
    probs = torch.from_numpy(np.ascontiguousarray(row))
    scores, labels = probs.sort(descending=True, stable=True)
    return Classes(labels, scores, probs)


__all__ = ["METHODS", "Probe", "Probed", "keep", "neighbours", "probe"]
