"""Retrieval: equal to a literal transcription of the protocol; junk, empty levels, ties and bad scores; copies; the bootstrap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opticus.metrics.passport import Passport, compare
from opticus.metrics.retrieval import Copies, Retrieval
from opticus.structures import Classes, MetricError, Relevant

LEVELS = ("easy", "medium", "hard")


def relevant(easy: Any = (), hard: Any = (), junk: Any = (), group: str = "") -> Relevant:
    return Relevant(*(torch.tensor(list(part), dtype=torch.int64) for part in (easy, hard, junk)), group)


def walked(scores: np.ndarray, positives: set[int], junk: set[int]) -> tuple[float, list[float]]:
    """The protocol read aloud: go down the ranking, skip junk, note precision before and after every positive."""
    seen = found = 0
    area, ranks = 0.0, []
    for picture in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if picture in junk:
            continue
        if picture in positives:
            before = 1.0 if seen == 0 else found / seen
            found += 1
            area += (before + found / (seen + 1)) / 2 / len(positives)
            ranks.append(seen + 1)
        seen += 1
    cuts = [min(ranks[-1], k) for k in (1, 5, 10)]
    return area, [sum(rank <= cut for rank in ranks) / cut for cut in cuts]


def problem(seed: int, queries: int = 12, database: int = 60) -> tuple[np.ndarray, list[Relevant]]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(queries, database))
    truths = []
    for query in range(queries):
        order = rng.permutation(database)
        a, b, c = rng.integers(0, 9, 3) if query else (0, 3, 4)
        truths.append(relevant(order[:a], order[a : a + b], order[a + b : a + b + c]))
    return scores, truths


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_the_protocol_walked_through(seed: int) -> None:
    scores, truths = problem(seed)
    metric = Retrieval(60)
    for i, truth in enumerate(truths):
        metric.update(scores[i], truth, f"q{i:02d}")
    found = metric.compute()
    for level in LEVELS:
        rows = []
        for row, truth in zip(scores, truths):
            easy, hard, junk = (set(part.tolist()) for part in (truth.easy, truth.hard, truth.junk))
            sides = {"easy": (easy, junk | hard), "medium": (easy | hard, junk), "hard": (hard, junk | easy)}[level]
            if sides[0]:
                rows.append(walked(row, *sides))
        assert found[f"mAP_{level}"] == pytest.approx(np.mean([ap for ap, _ in rows]), abs=1e-12)
        for column, k in enumerate((1, 5, 10)):
            assert found[f"mP@{k}_{level}"] == pytest.approx(np.mean([p[column] for _, p in rows]), abs=1e-12)


def test_it_equals_the_reference_program_on_a_recorded_problem() -> None:
    metric = Retrieval(60)
    scores, truths = problem(3)
    for i, truth in enumerate(truths):
        metric.update(scores[i], truth, f"q{i:02d}")
    found = metric.compute()
    for level, values in RECORDED.items():
        mine = [found[f"{name}_{level}"] for name in ("mAP", "mP@1", "mP@5", "mP@10")]
        np.testing.assert_allclose(mine, values, rtol=0, atol=1e-12)


def test_junk_is_taken_out_and_empty_levels_are_left_out() -> None:
    metric = Retrieval(4)
    metric.update(np.asarray([0.9, 0.8, 0.7, 0.1]), relevant(easy=[1], junk=[0]), "a")
    assert metric.compute() == {f"{name}_{level}": 1.0 for name in ("mAP", "mP@1", "mP@5", "mP@10") for level in ("medium", "easy")}
    metric.update(np.asarray([0.9, 0.8, 0.7, 0.1]), relevant(), "nothing to find")
    assert metric.compute()["mAP_medium"] == 1.0 and len(metric) == 2, "a query without positives is left out of the mean"
    alone = Retrieval(1)
    alone.update(np.asarray([0.5]), relevant(hard=[0]), "one picture")
    assert alone.compute()["mAP_hard"] == 1.0
    ties = Retrieval(3)
    ties.update(np.zeros(3), relevant(easy=[2]), "tied")
    assert ties.compute()["mAP_easy"] == pytest.approx((0 + 1 / 3) / 2), "equal scores keep the database's order"


def test_bad_scores_and_targets_are_named() -> None:
    metric = Retrieval(3)
    with pytest.raises(MetricError, match="q: 1 of 3 similarities are not a number"):
        metric.update(np.asarray([0.0, np.nan, 1.0]), relevant(easy=[0]), "q")
    with pytest.raises(MetricError, match="q: 2 scores for a database of 3"):
        metric.update(np.zeros(2), relevant(easy=[0]), "q")
    with pytest.raises(MetricError, match="easy list names picture 3 of a database of 3"):
        metric.update(np.zeros(3), relevant(easy=[3]), "q")
    with pytest.raises(MetricError, match="Relevant target, found Classes"):
        metric.update(np.zeros(3), Classes(torch.tensor([0])), "q")
    with pytest.raises(MetricError, match="without an id"):
        metric.update(np.zeros(3), relevant(easy=[0]), "")
    with pytest.raises(MetricError, match="none of the 0 queries"):
        metric.compute()
    metric.update(np.zeros(3), relevant(), "q")
    with pytest.raises(MetricError, match="none of the 1 queries has a positive"):
        metric.compute()
    with pytest.raises(MetricError, match="hold a picture"):
        Retrieval(0)
    copies = Copies(3)
    with pytest.raises(MetricError, match="no query was scored"):
        copies.compute()
    with pytest.raises(MetricError, match="q: the distorted picture has no original"):
        copies.update(np.zeros(3), relevant(), "q")


def test_copies_have_a_mean_for_every_block_and_one_ranking_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 40))
    metric, all_of_it = Copies(40), Copies(40, depth=40)
    for i, row in enumerate(scores):
        truth = relevant(easy=[i % 10], group="strong" if i < 20 else "crops/10")
        metric.update(row, truth, f"{i:02d}")
        all_of_it.update(row, truth, f"{i:02d}")
    found, whole = metric.compute(), all_of_it.compute()
    ranks = [int((row > row[i % 10]).sum()) for i, row in enumerate(scores)]
    one = [0.0 if r >= 20 else (1.0 if r == 0 else 0.0) / 2 + 1 / (r + 1) / 2 for r in ranks]
    assert found["mAP"] == pytest.approx(np.mean(one)) and found["mAP_strong"] == pytest.approx(np.mean(one[:20]))
    assert found["mAP_crops/10"] == pytest.approx(np.mean(one[20:]))
    from sklearn.metrics import average_precision_score

    truth = np.zeros((30, 40))
    truth[np.arange(30), np.arange(30) % 10] = 1
    assert whole["muAP"] == pytest.approx(average_precision_score(truth.ravel(), scores.ravel()), abs=1e-12)


@pytest.mark.parametrize("kind", [Retrieval, Copies])
def test_processes_merge_and_runs_compare(kind: Any, tmp_path: Path) -> None:
    scores, truths = problem(1, queries=20)
    truths = [truth if len(truth.easy) else relevant(easy=[0]) for truth in truths]
    whole, parts = kind(60), [kind(60), kind(60)]
    for i, truth in enumerate(truths):
        whole.update(scores[i], truth, f"{i:02d}")
        parts[i % 2].update(scores[i], truth, f"{i:02d}")
        parts[0].update(scores[0], truths[0], "00")
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == whole.compute()
    better = kind(60)
    for i, truth in enumerate(truths):
        better.update(scores[i] + 3 * np.isin(np.arange(60), torch.cat([truth.easy, truth.hard]).numpy()), truth, f"{i:02d}")
    Passport.of(whole).write(tmp_path / "a")
    Passport.of(better).write(tmp_path / "b")
    rows = {row.name: row for row in compare(tmp_path / "a", tmp_path / "b", resamples=200)}
    name = "mAP_medium" if kind is Retrieval else "mAP"
    assert rows[name].significant and rows[name].low <= rows[name].difference <= rows[name].high
    assert rows[name].a == whole.compute()[name]


RECORDED = {  # what the authors' own program (filipradenovic/revisitop at be398328, compute_map) gives for problem(3)
    "easy": [0.1432757034982567, 0.09090909090909091, 0.07272727272727274, 0.12727272727272726],
    "medium": [0.1789748550846305, 0.16666666666666666, 0.09999999999999999, 0.15],
    "hard": [0.10628058057714243, 0.1, 0.06000000000000001, 0.0642857142857143],
}
