"""A literal loop of task-aligned assignment, object by object and place by place, as TOOD (2108.07755) states it."""

from __future__ import annotations

from collections.abc import Sequence


def task_aligned(
    scores: Sequence[Sequence[float]],
    overlaps: Sequence[Sequence[float]],
    inside: Sequence[Sequence[bool]],
    places: int,
    count: int,
    alpha: float,
    beta: float,
) -> tuple[list[int], list[float]]:
    """The object of each of `places` places (-1 for none) and its soft target; rows of the tables are objects."""
    t = [[s**alpha * u**beta if i else 0.0 for s, u, i in zip(*rows, strict=True)] for rows in zip(scores, overlaps, inside)]
    wishes: list[set[int]] = []
    for row in t:
        ranked = sorted(range(places), key=lambda n: (-row[n], n))
        wishes.append({n for n in ranked[:count] if row[n] > 0})
    owners = [-1] * places
    for n in range(places):
        for m, wish in enumerate(wishes):
            if n in wish and (owners[n] < 0 or overlaps[m][n] > overlaps[owners[n]][n]):
                owners[n] = m
    quality = [0.0] * places
    for n, m in enumerate(owners):
        if m >= 0:
            own = [k for k in range(places) if owners[k] == m]
            quality[n] = t[m][n] / max(t[m][k] for k in own) * max(overlaps[m][k] for k in own)
    return owners, quality
