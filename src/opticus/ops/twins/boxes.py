"""Literal loops of the overlap measures, greedy and soft suppression and the R-CNN box coder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Number = Any  # a Python float, or a NumPy scalar for arithmetic of another precision
Box = Sequence[Number]


def area(box: Box) -> Number:
    """Square pixels; 0 where a side is not positive."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def iou(a: Box, b: Box) -> Number:
    """Intersection over union; 0 where either has no area."""
    if area(a) == 0 or area(b) == 0:
        return 0.0
    inter = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return inter / (area(a) + area(b) - inter)


def giou(a: Box, b: Box) -> float:
    """IoU - (hull - union) / hull; a reversed box is nothing at its first corner."""
    a, b = ((x[0], x[1], max(x[0], x[2]), max(x[1], x[3])) for x in (a, b))
    inter = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - inter
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    return (inter / union if union > 0 else 0.0) - ((hull - union) / hull if hull > 0 else 0.0)


def nms(boxes: Sequence[Box], scores: Sequence[float], labels: Sequence[int], threshold: float) -> list[int]:
    """Visit by falling score, ties by rising index; keep unless a kept box of the same label overlaps by more than the threshold."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if not any(labels[i] == labels[j] and iou(boxes[j], boxes[i]) > threshold for j in kept):
            kept.append(i)
    return kept


def soft_nms(
    boxes: Sequence[Box],
    scores: Sequence[Number],
    labels: Sequence[int],
    method: str,
    threshold: float,
    sigma: float,
    floor: float,
    exp: Callable[[Number], Number] = math.exp,
) -> list[tuple[int, Number]]:
    """(index, lowered score) of the survivors by falling lowered score, ties by rising index; `exp` of the caller's precision."""
    kept: list[tuple[int, Number]] = []
    for label in set(labels):
        left = {i: scores[i] for i in range(len(boxes)) if labels[i] == label and scores[i] >= floor}
        while left:
            best = min(left, key=lambda i: (-left[i], i))
            kept.append((best, left.pop(best)))
            for i in list(left):
                overlap = iou(boxes[best], boxes[i])
                if method == "linear":
                    left[i] = left[i] * (1 - overlap) if overlap > threshold else left[i]
                else:
                    left[i] = left[i] * exp(-(overlap * overlap) / sigma)
                if left[i] < floor:
                    del left[i]
    return sorted(kept, key=lambda pair: (-pair[1], pair[0]))


def encode(box: Box, anchor: Box, weights: Sequence[float]) -> list[float]:
    """(dx, dy, dw, dh) that carry `anchor` to `box`."""
    deltas: list[float] = []
    for axis in (0, 1):
        side, long = anchor[axis + 2] - anchor[axis], box[axis + 2] - box[axis]
        deltas.append(weights[axis] * ((box[axis] + box[axis + 2]) / 2 - (anchor[axis] + anchor[axis + 2]) / 2) / side)
        deltas.append(weights[axis + 2] * math.log(long / side))
    return [deltas[0], deltas[2], deltas[1], deltas[3]]


def decode(delta: Sequence[float], anchor: Box, weights: Sequence[float]) -> list[float]:
    """The box that `delta` makes of `anchor`; logarithms of sides are cut at log(1000 / 16)."""
    low: list[float] = []
    high: list[float] = []
    for axis in (0, 1):
        side = anchor[axis + 2] - anchor[axis]
        centre = (anchor[axis] + anchor[axis + 2]) / 2 + delta[axis] / weights[axis] * side
        half = side * math.exp(min(delta[axis + 2] / weights[axis + 2], math.log(1000 / 16))) / 2
        low.append(centre - half)
        high.append(centre + half)
    return low + high
