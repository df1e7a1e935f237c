"""Nearest neighbours by cosine among many vectors: exact in PyTorch, or through the library faiss (extra `search`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opticus.structures import DataError, MissingPackageError, UnknownNameError

Search = Literal["exact", "faiss", "faiss-hnsw"]
SEARCHES: tuple[Search, ...] = ("exact", "faiss", "faiss-hnsw")
LINKS, BREADTH = 32, 256  # of the HNSW graph: neighbours of a vector, and candidates that are kept while building and searching
Floats = npt.NDArray[np.float32]
Found = Iterator[tuple[Tensor, Tensor]]


def unit(vectors: Any) -> Tensor:
    """Rows of length 1, float32. DataError if a row holds values that are not finite."""
    rows = torch.from_numpy(np.asarray(vectors, np.float32).copy())
    fine = torch.isfinite(rows).all(1)
    if not bool(fine.all()):
        raise DataError(f"vector {int((~fine).nonzero()[0])} of {len(rows)} holds values that are not finite numbers")
    return torch.nn.functional.normalize(rows, dim=1)


def nearest(bank: Any, queries: Any, k: int, search: Search = "exact", block: int = 1024) -> Found:
    """Blocks of cosines and positions (b, k) of the `k` rows of `bank` (N, D) nearest to each of `queries`, nearest first.

    "exact" compares all pairs in PyTorch; "faiss" does the same in that library (several times faster on many cores);
    "faiss-hnsw" walks a graph (Malkov and Yashunin 2018) and may miss some. Raises MissingPackageError without faiss.
    """
    if search not in SEARCHES:
        raise UnknownNameError("search", search, SEARCHES)
    rows = unit(bank)
    k = min(k, len(rows))
    look = (lambda part: (part @ rows.T).topk(k, dim=1)) if search == "exact" else _index(rows, k, search)
    for first in range(0, len(queries), block):
        near, where = look(unit(queries[first : first + block]))
        yield near, where


def _index(rows: Tensor, k: int, search: Search) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError as error:
        raise MissingPackageError("faiss-cpu", "search", f"search={search}") from error
    width = int(rows.shape[1])
    if search == "faiss":
        index = faiss.IndexFlatIP(width)
    else:
        index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BREADTH
        index.hnsw.efSearch = max(BREADTH, k)
    index.add(rows.numpy())

    def look(part: Tensor) -> tuple[Tensor, Tensor]:
        near, where = index.search(part.numpy(), k)
        found = torch.from_numpy(where)
        return torch.from_numpy(near).masked_fill(found < 0, -1.0), found.clamp(min=0)  # a graph may find fewer than k

    return look
