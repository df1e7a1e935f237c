"""probe: how good are frozen features? Weighted nearest neighbours and linear classifiers on top of them; retrieval and copy detection."""

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
from opticus.metrics.retrieval import Copies, Retrieval
from opticus.structures import CapabilityError, Classes, DataError, Dataset, Sample, UnknownNameError, UsageError
from opticus.structures.files import write_text
from opticus.verbs.attention_masks import AttentionMasks
from opticus.verbs.features import Features, Taken, extract
from opticus.verbs.models import Card
from opticus.verbs.probe_dense import probe_dense
from opticus.verbs.probe_linear import sgd_scores
from opticus.verbs.probe_retrieval import METHODS as RETRIEVAL
from opticus.verbs.probe_retrieval import is_retrieval, protocol_of, searched, sides
from opticus.verbs.propagate import Propagation
from opticus.verbs.search import SEARCHES, Search, nearest

METHODS = ("knn", "linear", "sgd-linear", "svm", "retrieval", "copy")
DENSE = ("propagation", "attention-mask")  # methods on places of pictures: each in its own file, one at a time
HEADLINES = ("top1", "mAP_strong", "mAP_medium", "mAP")
SHOWN = ("top1", "balanced", "mAP_medium", "mAP_hard", "mAP_easy", "mP@10_medium", "mP@10_hard")
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
    metric: Accuracy | Retrieval | Copies
    protocol: dict[str, Any]

    @property
    def headline(self) -> float:
        """The figure that papers quote: top-1, mAP at the medium level, mAP of Copydays's strong distortions."""
        first = next((name for name in HEADLINES if name in self.values), next(iter(self.values)))
        return self.values[first]


@dataclass
class Probe:
    """The rows of a probe, the model's own first."""

    rows: list[Probed] = field(default_factory=list[Probed])

    def __getitem__(self, method: str) -> float:
        """The headline of one method on the model's features: `found["knn"]` is its top-1 accuracy."""
        return next(row.headline for row in self.rows if row.method == method)

    def to_json(self) -> list[dict[str, Any]]:
        """JSON-ready rows with their protocols."""
        return [{"features": r.features, "method": r.method, "values": r.values, "protocol": r.protocol} for r in self.rows]

    def table(self) -> str:
        """A line per row."""
        lines = [f"{'features':<28}{'method':<11}figures"]
        for row in self.rows:
            settings = ", ".join(
                f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.protocol["probe"].items() if k != "method"
            )
            shown = [name for name in row.values if name in SHOWN] or list(row.values)
            figures = "  ".join(f"{name} {row.values[name]:.4f}" for name in shown)
            lines.append(f"{row.features:<28}{row.method:<11}{figures}  {settings}")
        return "\n".join(lines)


def probe(
    model: nn.Module,
    data: str | Path | Source | Iterable[Sample],
    *,
    methods: Sequence[str] | None = None,
    k: int = 20,
    temperature: float = 0.07,
    search: Search = "exact",
    scales: Sequence[float] = (1.0,),
    layers: int = 1,
    average: bool = False,
    gem: float = 0.0,
    longest: int | None = None,
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
    """What the frozen features of `model` are worth: classifiers fitted on the training split and scored on `split`, or retrieval.

    "knn": votes of the `k` nearest training pictures by cosine, weighted exp(cosine / temperature) (Wu et al. 2018; Caron et al.
    2021), found exactly or by `search` "faiss" or "faiss-hnsw". "linear": multinomial logistic regression on standardised features;
    "svm": one linear machine per class; both from scikit-learn, their regularisation chosen from SWEEP on the validation split (a
    fifth of the training split where there is none). "sgd-linear": the papers' linear layer, its learning rate chosen in the same way
    (`verbs.probe_linear`). On data with queries and a database ("views", "copies", revisited Oxford and Paris, Copydays, or a pair of
    data sets): "retrieval" (mAP and mP@k, easy, medium and hard) and "copy" (mAP of each distortion, micro AP). `methods` defaults to
    what the data is for.

    `scales`, `layers`, `average`, `gem` and `longest` say which vector is taken (`verbs.features.Taken`). With `baseline` the same
    methods see raw pixels, where all pictures have one size. The protocol of every number is part of the result and, with `out`, of a
    passport per row. ("propagation",) is `opticus.propagate` and ("attention-mask",) `opticus.attention_masks`, whose further `options`
    are given here too (`size`, `limit`, ...). Raises UsageError, DataError, CapabilityError or MissingPackageError.
    """
    if set(methods or ()) & set(DENSE):
        return probe_dense(
            model, data, methods or (), split=split, baseline=baseline, device=device, out=out, quiet=quiet, **options
        )
    for name in methods or ():
        if name not in METHODS:
            raise UnknownNameError("probe method", name, (*METHODS, *DENSE))
    if options:
        raise UnknownNameError("option of probe", next(iter(options)), inspect.signature(probe).parameters)
    if k < 1 or not temperature > 0:
        raise UsageError(f"k must be at least 1 and temperature above 0, found k={k}, temperature={temperature}")
    if search not in SEARCHES:
        raise UnknownNameError("search", search, SEARCHES)
    taken = Taken(tuple(float(scale) for scale in scales), layers, average, gem, longest).check()
    view: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "batch": batch,
        "cache": cache,
        "quiet": quiet,
        "taken": taken,
    }
    if not methods or set(methods) & set(RETRIEVAL):
        if is_retrieval(data):
            return _retrieval(model, data, methods, view, baseline, out)
        if methods:
            raise CapabilityError(f"{methods[0]} needs queries and a database, such as views or copies; found {_named(data)}")
    result = _classified(model, data, methods or ("knn", "linear"), split, view, baseline, Vote(k, temperature, search))
    if out is not None:
        keep(result, Path(out))
    return result


class Vote(NamedTuple):
    """How neighbours vote."""

    k: int
    temperature: float
    search: Search = "exact"


def _classified(
    model: nn.Module, data: Any, methods: Sequence[str], split: str, view: dict[str, Any], baseline: bool, vote: Vote
) -> Probe:
    train, val, test = _splits(data, split)
    if train.names != test.names:
        raise DataError(f"the splits have unlike classes: {', '.join(train.names[:5])} and {', '.join(test.names[:5])}")
    spaces = _spaces(model, view, _one_size(train, test) if baseline else None, labelled=True)
    result = Probe()
    for space, take in spaces:
        fitted, chosen, scored = take(train, train.split), take(val, f"{val.split} (selection)"), take(test, test.split)
        for method in methods:
            votes, settings = _classify(method, fitted, chosen, scored, len(train.names), vote)
            metric = Accuracy(test.names, data=test.hash, split=canonical(split))
            for id, row, truth in zip(scored.ids, votes, scored.labels, strict=True):
                metric.update(_ranked(row), Classes(torch.tensor([int(truth)])), id)
            extra = {"probe": settings, "fitted on": train.hash, "features": space, **_vector(space, view)}
            result.rows.append(Probed(space, method, metric.compute(), metric, {**metric.protocol, **extra}))
    return result


def _retrieval(
    model: nn.Module, data: Any, methods: Sequence[str] | None, view: dict[str, Any], baseline: bool, out: str | Path | None
) -> Probe:
    database, queries = sides(data)
    methods = methods or [name for name, protocol in RETRIEVAL.items() if protocol == (protocol_of(queries) or "revisited")]
    for name in methods:
        if name not in RETRIEVAL:
            raise CapabilityError(f"{name} needs data with one label per picture; {_named(data)} has queries and a database")
    spaces = _spaces(model, view, _one_size(database, queries) if baseline else None, labelled=False)
    result = Probe()
    for space, take in spaces:
        for method in methods:
            metric = searched(method, database, queries, take)
            rule: dict[str, Any] = {"prepare": cast(Any, model).prepare.to_json()} if space != PIXELS else {}
            settings = {"method": method, "distance": "cosine"}
            extra = {"probe": settings, "features": space, **_vector(space, view), **rule}
            result.rows.append(Probed(space, method, metric.compute(), metric, {**metric.protocol, **extra}))
    if out is not None:
        keep(result, Path(out))
    return result


def _spaces(
    model: nn.Module, view: dict[str, Any], size: tuple[int, ...] | None, *, labelled: bool
) -> list[tuple[str, Callable[[Dataset, str], Features]]]:
    """The model's features and, where pictures have one `size`, raw pixels: a name and what computes them."""
    card: Card = cast(Any, model).card
    spaces: list[tuple[str, Callable[[Dataset, str], Features]]] = [
        (card.name, lambda d, s: extract(model, d, s, labelled=labelled, **view))
    ]
    if size is not None:
        spaces.append((PIXELS, lambda d, s: pixels(d, size, labelled)))
    return spaces


def _vector(space: str, view: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = view["taken"].settings() if space != PIXELS else {}
    return {"vector": settings} if settings else {}


def _named(data: Any) -> str:
    return str(data) if isinstance(data, (str, Path)) else f"a {type(data).__name__}"


def keep(result: Probe, folder: Path) -> None:
    """Write probe.json and, in a folder per row, a passport that `compare` reads."""
    write_text(folder / "probe.json", json.dumps(result.to_json(), indent=1))
    for row in result.rows:  # which vector is scored is what runs differ in; how it is scored must be equal
        subject = ("features", "vector", "prepare", *row.metric.protocol)
        shared = {key: value for key, value in row.protocol.items() if key not in subject}
        found = ("regularisation", "rate")  # by the validation split, not set
        shared["probe"] = {key: value for key, value in shared["probe"].items() if key not in found}
        Passport.of(row.metric, shared).write(folder / f"{row.features.replace('/', '-').replace(':', '-')}-{row.method}")


# --- data ------------------------------------------------------------------------------------------------------------------


def _splits(data: Any, split: str) -> tuple[Source, Source, Source]:
    """What classifiers are fitted on, chosen by, and scored on; the three share no sample."""
    first = cast(Source, data if hasattr(data, "target_of") else open_data(data, "train"))
    if protocol_of(first) is not None:
        fit = " or ".join(name for name, protocol in RETRIEVAL.items() if protocol == protocol_of(first))
        raise CapabilityError(f"classifiers need data with one label per picture; {_named(data)} has queries, use methods={fit}")
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


def pixels(data: Dataset, size: tuple[int, ...], labelled: bool = True) -> Features:
    """The pictures themselves as vectors in [0, 1]; DataError for one of another size (H, W, C) than `size`."""
    rows = np.empty((len(data), int(np.prod(size))), np.float32)
    labels = np.full(len(data), -1, np.int64)
    for i in range(len(data)):
        sample = data[i]
        pixels = sample.picture.pixels
        if tuple(pixels.shape) != size:
            raise DataError(
                f"{sample.id}: raw pixels need pictures of one size, expected {size}, found {tuple(pixels.shape)}; use baseline=false"
            )
        rows[i] = pixels.numpy().reshape(-1) / np.float32(255)
        if labelled:
            labels[i] = int(cast(Classes, sample.target).labels[0])
    return Features(rows, labels, tuple(data.id_of(i) for i in range(len(data))))


# --- classifiers -------------------------------------------------------------------------------------------------------------


def _classify(
    method: str, train: Features, val: Features, test: Features, classes: int, vote: Vote
) -> tuple[Floats, dict[str, Any]]:
    """Scores (N, K) of the scored samples, and the settings that belong to the protocol."""
    if method == "knn":
        k = min(vote.k, len(train.labels))
        settings: dict[str, Any] = {"method": "knn", "k": k, "temperature": vote.temperature, "distance": "cosine"}
        settings |= {} if vote.search == "exact" else {"search": vote.search}
        return neighbours(train, test.vectors, classes, k, vote.temperature, search=vote.search), settings
    if method == "sgd-linear":
        return sgd_scores(train, val, test.vectors, classes)
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
    train: Features,
    queries: npt.NDArray[np.float32],
    classes: int,
    k: int,
    temperature: float,
    block: int = 1024,
    search: Search = "exact",
) -> Floats:
    """Shares of the votes (N, K): each of the k nearest training vectors by cosine votes for its label with exp(cosine / temperature).

    Queries are compared in blocks, so that memory is block x training samples.
    """
    labels = torch.tensor(train.labels)
    found: list[Tensor] = []
    for near, index in nearest(train.vectors, queries, k, search, block):
        votes = torch.zeros(len(near), classes).scatter_add_(1, labels[index], ((near - 1) / temperature).exp())
        found.append(votes / votes.sum(1, keepdim=True).clamp(min=1e-30))
    return torch.cat(found).numpy()


def _ranked(row: Floats) -> Classes:
    probs = torch.from_numpy(np.ascontiguousarray(row))
    scores, labels = probs.sort(descending=True, stable=True)
    return Classes(labels, scores, probs)


__all__ = ["METHODS", "Probe", "Probed", "keep", "neighbours", "probe"]
