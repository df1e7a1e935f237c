"""Greedy non-maximum suppression, exact and vectorised, and its soft form (`soft_nms`), which lowers scores instead.

The rule: visit boxes by falling score, equal scores by rising index; keep a box unless its IoU with a kept one exceeds the
threshold. It runs in blocks of leaders: the next boxes decide among themselves, then the kept ones strike out the rest at once.
IoU is computed in float32 (float64 for float64 boxes) as in `opticus.ops.iou` and compared with the exact threshold.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from opticus.ops.iou import iou
from opticus.structures import DataError, UnknownNameError, UsageError

LEADERS = 256  # at most; 32 for small sets
COLUMNS = 1024  # so that a block's work areas stay in a core's cache


class Suppression(NamedTuple):
    """One call of `nms_per_class`: what went in, and the indices of what came out."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor | None
    threshold: float
    kept: Tensor


_WATCHED: ContextVar[list[Suppression] | None] = ContextVar("_WATCHED", default=None)


@contextmanager
def watched() -> Generator[list[Suppression]]:
    """A list that every suppression inside the context is written to: for figures of boxes before and after."""
    calls: list[Suppression] = []
    token = _WATCHED.set(calls)
    try:
        yield calls
    finally:
        _WATCHED.reset(token)


def nms(boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N"], threshold: float) -> Int[Tensor, "K"]:
    """Indices of the boxes that survive, best score first.

    `boxes` xyxy in any finite unit; a pair at exactly the threshold survives. DataError for non-finite boxes or NaN scores, UsageError
    for a threshold outside [0, 1].
    """
    return nms_per_class(boxes, scores, None, threshold)


def nms_per_class(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N"], labels: Int[Tensor, "N"] | None, threshold: float
) -> Int[Tensor, "K"]:
    """`nms` where only boxes of the same label suppress each other; indices of all survivors, best score first.

    Classes are kept apart by comparing labels, not by shifting coordinates, which would round them. Raises as `nms`.
    """
    boxes, scores = boxes.detach(), scores.detach()
    kept = (nms_on_device if boxes.is_cuda else _nms_on_host)(boxes, scores, labels, threshold)
    calls = _WATCHED.get()
    if calls is not None:
        calls.append(Suppression(boxes, scores, labels, threshold, kept))
    return kept


def _nms_on_host(boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float) -> Tensor:
    _refuse(boxes, scores, threshold)
    order = np.argsort(-_array(scores), kind="stable")
    corners = _corners(_array(boxes)[order])
    classes = None if labels is None else labels.cpu().numpy()[order]
    kept = np.flatnonzero(_survivors(corners, classes, threshold))
    return torch.from_numpy(order[kept]).to(boxes.device)


def nms_on_device(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N"], labels: Int[Tensor, "N"] | None, threshold: float, leaders: int = 2048
) -> Int[Tensor, "K"]:
    """The same result by torch operations only, for tensors that live on an accelerator.

    Within a block, "kept = not struck by a kept better one" is iterated to its fixed point, which is the greedy answer: the verdict
    on the i-th box is right after at most i rounds, in practice after as many as the longest chain of mutual strikes.
    """
    _refuse(boxes, scores, threshold)
    order = scores.sort(descending=True, stable=True).indices
    ranked, classes = boxes[order], None if labels is None else labels[order]
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for begin in range(0, len(order), leaders):
        block = slice(begin, begin + leaders)
        strikes = _strikes(ranked[block], ranked[begin:], threshold)
        if classes is not None:
            strikes &= classes[block, None] == classes[None, begin:]
        mutual = strikes[:, : strikes.shape[0]].triu(1)
        kept, before = alive[block].clone(), None
        while before is None or not torch.equal(kept, before):
            before = kept
            kept = alive[block] & ~(mutual & before[:, None]).any(0)
        alive[begin + strikes.shape[0] :] &= ~(strikes[:, strikes.shape[0] :] & kept[:, None]).any(0)
        alive[block] = kept
    return order[alive]


class Softened(NamedTuple):
    """What `soft_nms` keeps: `indices` (K,) and their lowered `scores` (K,), best first."""

    indices: Int[Tensor, "K"]
    scores: Float[Tensor, "K"]


def soft_nms(
    boxes: Float[Tensor, "N 4"],
    scores: Float[Tensor, "N"],
    labels: Int[Tensor, "N"] | None = None,
    *,
    method: str = "linear",
    threshold: float = 0.3,
    sigma: float = 0.5,
    floor: float = 0.001,
) -> Softened:
    """Soft-NMS (Bodla et al., ICCV 2017, arXiv:1704.04503): neighbours of a pick lose score instead of their lives.

    Among the boxes of one label the best of those left is picked (equal scores: the lower index); each of the others is multiplied by
    1 - IoU where IoU > `threshold` ("linear"), or by exp(-IoU^2 / sigma) ("gaussian"), and dropped once its score is below `floor`;
    then the next best by the lowered scores is picked. The defaults are the authors' (bharatsingh430/soft-nms, MIT), whose boxes
    are one pixel larger and whose first pick survives below the floor. Runs on the CPU, whatever the device. Raises as `nms`.
    """
    if method not in ("linear", "gaussian"):
        raise UnknownNameError("soft-NMS method", method, ("linear", "gaussian"))
    if not (sigma > 0 and floor >= 0):
        raise UsageError(f"soft_nms: expected sigma above 0 and a floor of at least 0, found {sigma} and {floor}")
    boxes, scores = boxes.detach(), scores.detach()
    _refuse(boxes, scores, threshold)
    corners, lowered = _corners(_array(boxes)), _array(scores).copy()
    kinds = np.zeros(len(lowered), np.int64) if labels is None else labels.cpu().numpy()
    alive = lowered >= floor
    kept: list[int] = []
    for kind in np.unique(kinds[alive]):
        members = np.flatnonzero(alive & (kinds == kind))
        picks, lowered[members] = _soften(corners[:, members], lowered[members], method, threshold, sigma, floor)
        kept += members[picks].tolist()
    found = np.sort(np.asarray(kept, np.int64))
    found = found[np.argsort(-lowered[found], kind="stable")]
    values = torch.from_numpy(lowered[found]).to(scores.device, scores.dtype)
    return Softened(torch.from_numpy(found).to(boxes.device), values)


def _soften(
    corners: NDArray[Any], scores: NDArray[Any], method: str, threshold: float, sigma: float, floor: float
) -> tuple[list[int], NDArray[Any]]:
    """The picks among boxes of one label in their order, and everybody's last score."""
    area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    final, limit = scores.copy(), _limit(threshold, corners.dtype)
    places, table, left = np.arange(len(scores)), np.concatenate([corners, area[None]]), scores.copy()
    picks: list[int] = []
    while len(left):
        best = int(left.argmax())
        picks.append(int(places[best]))
        final[places[best]] = left[best]
        x0, y0, x1, y1, size = table[:, best].tolist()
        width = np.minimum(table[2], x1) - np.maximum(table[0], x0)
        inter = np.maximum(width, 0) * np.maximum(np.minimum(table[3], y1) - np.maximum(table[1], y0), 0)
        union = table[4] + size - inter
        overlap = inter / np.where(union > 0, union, 1)
        left *= np.exp(-(overlap * overlap) / sigma) if method == "gaussian" else np.where(overlap > limit, 1 - overlap, 1)
        keep = left >= floor
        keep[best] = False
        places, table, left = places[keep], table[:, keep], left[keep]
    return picks, final


class _Scratch:
    """Three reusable work areas: fresh memory for every block would cost more than the arithmetic."""

    def __init__(self, rows: int, dtype: Any) -> None:
        self.flat = np.empty((3, rows * max(COLUMNS, rows)), dtype)

    def take(self, rows: int, columns: int) -> NDArray[Any]:
        return self.flat[:, : rows * columns].reshape(3, rows, columns)


def _survivors(corners: NDArray[Any], classes: NDArray[Any] | None, threshold: float) -> NDArray[np.bool_]:
    """(N,) True where the box of that rank is kept; `corners` (4, N) in rank order.

    The boxes still in play are held in spatial order, classes apart, so that a stretch of COLUMNS of them meets few of the leaders.
    """
    area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    alive = area <= 0  # a box of no area overlaps nothing: it stays and strikes nobody
    ranks = np.flatnonzero(~alive)
    kinds = (
        np.zeros(len(area), corners.dtype) if classes is None else np.unique(classes, return_inverse=True)[1].astype(corners.dtype)
    )
    table = np.concatenate([corners, area[None], kinds[None]])[:, ranks]
    if len(ranks) > COLUMNS:
        order = _spatial(table)
        ranks, table = ranks[order], table[:, order]
    limit, leaders = _limit(threshold, corners.dtype), min(max(len(ranks) // 64, 32), LEADERS)
    scratch = _Scratch(leaders, corners.dtype)
    while len(ranks):
        first = ranks.argpartition(leaders - 1)[:leaders] if len(ranks) > leaders else np.arange(len(ranks))
        first = first[ranks[first].argsort()]
        settled = table[:, first]
        strikes = np.zeros((len(first), len(first)), np.bool_)
        strikes[_struck(settled, settled, limit, scratch)] = True
        kept = _settle(strikes)
        alive[ranks[first[kept]]] = True
        left = np.ones(len(ranks), np.bool_)
        left[first] = False
        best = settled[:, kept]
        for begin in range(0, len(ranks), COLUMNS):
            part = table[:, begin : begin + COLUMNS]
            near = best[:, _touching(best, part)]
            if near.shape[1]:
                left[begin + _struck(near, part, limit, scratch)[1]] = False
        ranks, table = ranks[left], table[:, left]
    return alive


def _spatial(table: NDArray[Any]) -> NDArray[np.int64]:
    """An order that keeps classes together and, inside a class, horizontal strips of about COLUMNS boxes."""
    strips = max(1, round((table.shape[1] / COLUMNS) ** 0.5))
    middle = table[1] + table[3]
    low, high = middle.min(), middle.max()
    strip = np.floor((middle - low) * (strips / max(float(high - low), 1e-30))).astype(np.int64)
    return np.lexsort((table[0], strip, table[5]))


def _touching(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Which boxes of `a` (6, K) can overlap any of `b` (6, M): they meet the hull of b in x, y and class."""
    low, high = b[[0, 1, 5]].min(1), b[[2, 3, 5]].max(1)
    meets = (a[2] > low[0]) & (a[0] < high[0]) & (a[3] > low[1]) & (a[1] < high[1])
    return meets & (a[5] >= low[2]) & (a[5] <= high[2])


def _struck(a: NDArray[Any], b: NDArray[Any], limit: float, scratch: _Scratch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index pairs (i, j) of equal class with IoU(a[:, i], b[:, j]) > limit, all boxes of positive area.

    IoU > t says inter > t / (1 + t) (area_a + area_b). That test, loosened beyond its rounding, needs no division and leaves few pairs;
    the quotient decides on those.
    """
    inter, other, high = scratch.take(a.shape[1], b.shape[1])
    np.minimum(a[2][:, None], b[2], out=inter)
    inter -= np.maximum(a[0][:, None], b[0], out=other)
    np.maximum(inter, 0, out=inter)
    np.minimum(a[3][:, None], b[3], out=high)
    high -= np.maximum(a[1][:, None], b[1], out=other)
    inter *= high
    share = limit / (1 + limit) * (1 - 1e-5)
    # numbers below the normal range round coarsely: hence the tiny absolute allowance
    np.add((a[4] * share - 4 * np.finfo(inter.dtype).tiny)[:, None], b[4] * share, out=other)
    rows, columns = np.divmod(np.flatnonzero(inter > other), b.shape[1])
    x, y = a[:, rows], b[:, columns]
    sure = np.maximum(np.minimum(x[2], y[2]) - np.maximum(x[0], y[0]), 0) * np.maximum(
        np.minimum(x[3], y[3]) - np.maximum(x[1], y[1]), 0
    )
    hits = (sure / (x[4] + y[4] - sure) > limit) & (x[5] == y[5])
    return rows[hits], columns[hits]


def _settle(strikes: NDArray[np.bool_]) -> list[int]:
    """The greedy rule inside one block: row i of `strikes` are the boxes that i removes if it is itself kept."""
    rows = np.packbits(strikes, axis=1, bitorder="little")
    kept: list[int] = []
    gone = 0
    for index, row in enumerate(rows):
        if not gone >> index & 1:
            kept.append(index)
            gone |= int.from_bytes(row.tobytes(), "little")
    return kept


def _corners(boxes: NDArray[Any]) -> NDArray[Any]:
    """(N, 4) -> (4, N) contiguous, reversed boxes shrunk to nothing, scaled by a power of two as in `opticus.ops.iou`."""
    corners = boxes.T.copy(order="C")  # a copy always: of one box the transposed view is contiguous already
    if corners.size:
        exponent = np.frexp(max(float(np.abs(corners).max()), 1e-30))[1] - 1
        corners *= corners.dtype.type(2.0 ** -min(int(exponent), 126))
    np.maximum(corners[:2], corners[2:], out=corners[2:])
    return corners


def _array(value: Tensor) -> NDArray[Any]:
    return value.to(torch.promote_types(value.dtype, torch.float32)).cpu().numpy()


def _limit(threshold: float, dtype: Any) -> float:
    """The largest number of `dtype` that is <= threshold: comparing with it is comparing with the threshold itself."""
    limit = np.asarray(threshold, dtype)
    return float(limit if float(limit) <= threshold else np.nextafter(limit, np.asarray(-np.inf, dtype)))


def _strikes(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    overlap = iou(a, b)
    return overlap > _limit(threshold, np.float64 if overlap.dtype == torch.float64 else np.float32)


def _refuse(boxes: Tensor, scores: Tensor, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"nms: expected an IoU threshold in [0, 1], found {threshold}")
    if bool(scores.isnan().any() | ~boxes.isfinite().all()):
        raise DataError("nms: expected finite boxes and scores without NaN, found others")
