"""Retrieval numbers: mean average precision and precision at k with easy, hard and junk pictures, and copy detection.

Revisited Oxford and Paris (Radenovic et al., CVPR 2018) and Copydays (Douze et al., CIVR 2009) as DINO reports them. Average precision is
the area under the line that joins the precisions before and after every positive (trapezoids), as in the Oxford and Holidays
protocols. Reference: facebookresearch/dino, Apache-2.0 (`compute_map`, `eval_copy_detection`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.structures import MetricError, Relevant

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LEVELS = ("easy", "medium", "hard")
KAPPAS = (1, 5, 10)  # k of precision at k
DEPTH = 20  # pictures that the published copy detection retrieves for a query; later positives count as not found


class Level(NamedTuple):
    """Figures of one query at one level of difficulty; NaN where it has no positive picture there."""

    ap: float
    precisions: tuple[float, ...]  # one for each of KAPPAS


def ranking(scores: npt.NDArray[Any], id: str) -> Ints:
    """Positions in the database, most similar first; equal scores stay in the database's order. MetricError for NaN."""
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise MetricError(f"{id}: a query needs one score for every picture of the database, found shape {values.shape}")
    if np.isnan(values).any():
        raise MetricError(f"{id}: {int(np.isnan(values).sum())} of {values.size} similarities are not a number")
    return np.argsort(-values, kind="stable").astype(np.int64)


def average_precision(ranks: Ints, positives: int) -> float:
    """Area under precision over recall by trapezoids: `ranks` (0-based, rising) of the positives found, of `positives` in all."""
    found = np.arange(len(ranks), dtype=np.float64)
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * positives))


def positive_ranks(order: Ints, positives: Ints, junk: Ints) -> Ints:
    """0-based ranks of the positives in `order` once the junk pictures are taken out of it."""
    kind = np.zeros(len(order), np.int8)
    kind[junk] |= 2
    kind[positives] |= 1
    ranked = kind[order]
    ahead = np.cumsum(ranked & 2) // 2 - (ranked & 2) // 2  # junk before each place
    places = np.flatnonzero(ranked & 1)
    return (places - ahead[places]).astype(np.int64)


class Retrieval:
    """mAP and mP@k of queries at the levels easy (hard pictures are junk), medium (easy and hard are found) and hard (easy are junk).

    A query without a positive picture at a level is left out of that level's mean. `data` identifies what was scored, `database` is the
    number of pictures searched.
    """

    def __init__(self, database: int, *, data: str = "", split: str = "query") -> None:
        if database < 1:
            raise MetricError(f"retrieval: the database must hold a picture, found {database}")
        self.database = database
        self.data = data
        self.split = split
        self._rows: dict[str, npt.NDArray[np.float64]] = {}  # id -> (levels, 1 + kappas)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two figures to be comparable."""
        return {
            "metric": "mean average precision",
            "task": "retrieval",
            "area": "trapezoids",
            "junk": "removed from the ranking",
            "levels": list(LEVELS),
            "k": list(KAPPAS),
            "data": self.data,
            "split": self.split,
            "samples": len(self._rows),
            "database": self.database,
        }

    @property
    def ids(self) -> list[str]:
        """The ids of the scored queries, sorted."""
        return sorted(self._rows)

    def update(self, scores: npt.NDArray[Any], target: Any, id: str) -> None:
        """Score one query by its similarities (database,) to all pictures; a repeated `id` counts once.

        Raises MetricError for NaN, a wrong number of scores, or a target that is not `Relevant` in this database.
        """
        easy, hard, junk = _indices(target, self.database, id)
        order = ranking(scores, id)
        if len(order) != self.database:
            raise MetricError(f"{id}: {len(order)} scores for a database of {self.database} pictures")
        if id in self._rows:
            return
        sides = {
            "easy": (easy, np.concatenate([junk, hard])),
            "medium": (np.concatenate([easy, hard]), junk),
            "hard": (hard, np.concatenate([junk, easy])),
        }
        levels = [_level(order, *sides[level]) for level in LEVELS]
        self._rows[id] = np.asarray([(level.ap, *level.precisions) for level in levels], np.float64)

    def samples(self) -> dict[str, npt.NDArray[Any]]:
        """(queries, 3 levels, AP and the precisions at k), in the order of `ids`; NaN where a query is left out."""
        return {"figures": np.stack([self._rows[key] for key in self.ids])}

    def compute(self) -> dict[str, float]:
        """`mAP_medium`, `mAP_hard`, `mAP_easy`, `mP@k_<level>`, in [0, 1]; MetricError if no query has a positive picture."""
        values = figures({"figures": self.samples()["figures"]}, np.ones((1, len(self)))) if self._rows else {}
        known = {name: float(value[0]) for name, value in values.items() if np.isfinite(value[0])}
        if not known:
            raise MetricError(f"retrieval: none of the {len(self)} queries has a positive picture in the database")
        return known

    def state(self) -> dict[str, Any]:
        """What another process needs to `merge`."""
        return {"ids": self.ids, **(self.samples() if self._rows else {})}

    def merge(self, state: dict[str, Any]) -> None:
        """Add another process's `state`; ids already present are left alone."""
        for place, key in enumerate(state["ids"]):
            self._rows.setdefault(key, state["figures"][place])


def figures(arrays: Mapping[str, npt.NDArray[Any]], draws: Floats) -> dict[str, Floats]:
    """Every figure (R,) under `draws` (R, queries): how often each query counts. For the bootstrap as for the figure itself."""
    table = np.asarray(arrays["figures"], np.float64)  # Q, levels, 1 + kappas
    known = np.isfinite(table)
    counts = np.einsum("rq,qlk->rlk", draws, known.astype(np.float64))
    sums = np.einsum("rq,qlk->rlk", draws, np.where(known, table, 0.0))
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    found: dict[str, Floats] = {}
    for column, name in enumerate(("mAP", *(f"mP@{k}" for k in KAPPAS))):
        for level in ("medium", "hard", "easy"):
            found[f"{name}_{level}"] = means[:, LEVELS.index(level), column]
    return found


class Copies:
    """Which original is this a distorted copy of? mAP of each block of queries and their mean, and micro average precision.

    mAP: each query's own ranking, cut at `depth` pictures (the published evaluation retrieves 20). "muAP": all kept pairs of query and
    picture in one ranking by similarity, precision summed at the right pairs and divided by their number (Douze et al. 2021).
    """

    def __init__(self, database: int, *, depth: int = DEPTH, data: str = "", split: str = "query") -> None:
        if database < 1 or depth < 1:
            raise MetricError(f"copy detection: database and depth must be at least 1, found {database} and {depth}")
        self.database = database
        self.depth = depth
        self.data = data
        self.split = split
        self._rows: dict[str, tuple[str, float, int, Floats, npt.NDArray[np.bool_]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two figures to be comparable."""
        return {
            "metric": "mean average precision",
            "task": "copy detection",
            "area": "trapezoids",
            "depth": self.depth,
            "data": self.data,
            "split": self.split,
            "samples": len(self._rows),
            "database": self.database,
        }

    @property
    def ids(self) -> list[str]:
        """The ids of the scored queries, sorted."""
        return sorted(self._rows)

    def update(self, scores: npt.NDArray[Any], target: Any, id: str) -> None:
        """Score one distorted picture by its similarities (database,); the target's easy and hard pictures are its originals."""
        easy, hard, junk = _indices(target, self.database, id)
        order = ranking(scores, id)
        if len(order) != self.database:
            raise MetricError(f"{id}: {len(order)} scores for a database of {self.database} pictures")
        if id in self._rows:
            return
        originals = np.concatenate([easy, hard])
        if len(originals) == 0:
            raise MetricError(f"{id}: the distorted picture has no original in the database")
        top = order[~np.isin(order, junk)][: self.depth]
        hits = np.isin(top, originals)
        ap = average_precision(np.flatnonzero(hits).astype(np.int64), len(originals))
        self._rows[id] = (str(target.group), ap, len(originals), np.asarray(scores, np.float64)[top], hits)

    def groups(self) -> dict[str, float]:
        """mAP of every block of queries."""
        blocks: dict[str, list[float]] = {}
        for key in self.ids:
            blocks.setdefault(self._rows[key][0], []).append(self._rows[key][1])
        return {name: float(np.mean(values)) for name, values in sorted(blocks.items(), key=lambda item: _natural(item[0]))}

    def samples(self) -> dict[str, npt.NDArray[Any]]:
        """Per query, in the order of `ids`: its average precision."""
        return {"ap": np.asarray([self._rows[key][1] for key in self.ids], np.float64)}

    def compute(self) -> dict[str, float]:
        """`mAP` over all queries, `muAP`, and `mAP_<block>` for every block, in [0, 1]; MetricError without queries."""
        if not self._rows:
            raise MetricError("copy detection: no query was scored, expected at least one")
        rows = [self._rows[key] for key in self.ids]
        numbers = {"mAP": float(np.mean([row[1] for row in rows]))}
        hits = np.concatenate([row[4] for row in rows])
        order = np.argsort(-np.concatenate([row[3] for row in rows]), kind="stable")
        right = hits[order].astype(np.float64)
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        numbers["muAP"] = float((precision * right).sum() / sum(row[2] for row in rows))
        blocks = self.groups()
        return numbers | ({f"mAP_{name}": value for name, value in blocks.items()} if set(blocks) != {""} else {})

    def state(self) -> dict[str, Any]:
        """What another process needs to `merge`."""
        return {"rows": dict(self._rows)}

    def merge(self, state: dict[str, Any]) -> None:
        """Add another process's `state`; ids already present are left alone."""
        for key, row in state["rows"].items():
            self._rows.setdefault(key, row)


def _level(order: Ints, positives: Ints, junk: Ints) -> Level:
    if len(positives) == 0:
        return Level(float("nan"), (float("nan"),) * len(KAPPAS))
    ranks = positive_ranks(order, positives, junk)
    last = int(ranks.max()) + 1
    cuts = [min(last, k) for k in KAPPAS]  # no deeper than the last positive, as the reference has it
    return Level(average_precision(ranks, len(positives)), tuple(float((ranks < cut).sum() / cut) for cut in cuts))


def _indices(target: Any, database: int, id: str) -> tuple[Ints, Ints, Ints]:
    if not id:
        raise MetricError("retrieval: a query without an id cannot be told from the others, found ''")
    if not isinstance(target, Relevant):
        raise MetricError(f"{id}: a query needs a Relevant target, found {type(target).__name__}")
    parts: list[Ints] = []
    for name in ("easy", "hard", "junk"):
        part: Ints = getattr(target, name).numpy().astype(np.int64)
        if part.size and (part.min() < 0 or part.max() >= database):
            raise MetricError(f"{id}: its {name} list names picture {int(part.max())} of a database of {database}")
        parts.append(part)
    return parts[0], parts[1], parts[2]


def _natural(name: str) -> list[Any]:
    """ "crops/5" before "crops/10"."""
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in name.replace("-", "/").split("/")]
