"""Retrieval and copy detection with frozen features: queries against a database by cosine, scored by the data's own protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.metrics.retrieval import Copies, Retrieval
from opticus.structures import CapabilityError, DataError, Dataset, Relevant, UsageError
from opticus.verbs.features import Features
from opticus.verbs.search import unit

METHODS = {"retrieval": "revisited", "copy": "copydays"}  # probe method -> the protocol of the data that it is for


def protocol_of(data: Any) -> str | None:
    """ "revisited" or "copydays" for data of queries and a database, else None."""
    return getattr(data, "protocol", None)


def sides(data: Any) -> tuple[Source, Source]:
    """The database and the queries of retrieval data (a name, a path, or the two in a tuple). DataError naming what they lack."""
    if isinstance(data, tuple):
        pair = cast("tuple[Any, ...]", data)
        if len(pair) != 2:
            raise UsageError(f"retrieval data is a pair (database, queries), found {len(pair)} parts")
        database, queries = pair
    else:
        database, queries = open_data(data, "database"), open_data(data, "query")
    if len(database) == 0 or len(queries) == 0:
        raise DataError(f"retrieval needs a database and queries, found {len(database)} pictures and {len(queries)} queries")
    target = queries.target_of(0)
    if not isinstance(target, Relevant):
        raise DataError(f"{queries.id_of(0)}: a query needs a Relevant target (easy, hard, junk), found {type(target).__name__}")
    return database, queries


def is_retrieval(data: Any) -> bool:
    """Whether data has queries and a database; a name or path is opened to find out."""
    if isinstance(data, tuple):
        return True
    if protocol_of(data) is not None:
        return True
    if isinstance(data, (str, Path)):
        try:
            return protocol_of(open_data(data, "query")) is not None
        except DataError:
            return False
    return False


def searched(
    method: str,
    database: Source,
    queries: Source,
    vectors: Callable[[Dataset, str], Features],
    *,
    depth: int | None = None,
) -> Retrieval | Copies:
    """The finished metric of `method` ("retrieval" or "copy"). `vectors` gives a side's vectors.

    Raises CapabilityError when the data is of the other kind, DataError for vectors of unlike widths or not finite.
    """
    kind = protocol_of(queries)
    if kind is not None and kind != METHODS[method]:
        fit = next(name for name, protocol in METHODS.items() if protocol == kind)
        raise CapabilityError(f"{method} was asked of data whose queries are for {fit}; use methods={fit}")
    searched_in, asked = vectors(database, database.split), vectors(queries, queries.split)
    if searched_in.vectors.shape[1] != asked.vectors.shape[1]:
        widths = (searched_in.vectors.shape[1], asked.vectors.shape[1])
        raise DataError(f"queries and database have vectors of unlike widths: {widths[1]} and {widths[0]}")
    data = database.hash + queries.hash
    metric: Retrieval | Copies
    if method == "retrieval":
        metric = Retrieval(len(database), data=data)
    else:
        metric = Copies(len(database), data=data) if depth is None else Copies(len(database), depth=depth, data=data)
    for first, scores in _cosines(searched_in.vectors, asked.vectors):
        for place, row in enumerate(scores, first):
            metric.update(row, queries.target_of(place), queries.id_of(place))
    return metric


def _cosines(bank: npt.NDArray[Any], queries: npt.NDArray[Any], block: int = 64) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    rows = unit(bank)
    with torch.inference_mode():
        for first in range(0, len(queries), block):
            yield first, (unit(queries[first : first + block]) @ rows.T).numpy()
