"""Pictures as points: t-SNE of the vectors that a network describes them by, and the nearest neighbours of test pictures.

van der Maaten and Hinton, JMLR 9, 2008 (t-SNE, scikit-learn's).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opticus.plot.colours import colour
from opticus.plot.panels import Panel, panels, plane
from opticus.structures import DataError, Prepare, Sample, UsageError
from opticus.transforms.pixels import channelled, resize
from opticus.transforms.prepare import place
from opticus.verbs.explain_request import Answer, Request, Values, at_least, label_of, name_of, need, one_of, rounded, vectors

RIGHT, WRONG = (0, 130, 80), (204, 60, 20)
Norm = Literal["l1", "l2", "cosine"]
FRAMES: int = 24  # classes that still get a colour of their own in a legend


def tsne(request: Request, *, limit: int = 500, perplexity: float = 30.0) -> Answer:
    """t-SNE of the `embed` vectors of a data set or a folder of pictures: thumbnails in a plane, framed in their class colours.

    Pictures without a class or identity have grey frames and no legend.
    """
    need(request.model, "embed", request.kind, "for the vectors that are laid out")
    samples = _shown(request, limit)
    if len(samples) < 5:
        raise UsageError(f"t-SNE needs at least 5 pictures, found {len(samples)}")
    if not 1 <= perplexity < len(samples):
        raise UsageError(f"perplexity must be at least 1 and below the {len(samples)} pictures, found {perplexity}")
    points = vectors(request.model, samples)
    if not bool(torch.isfinite(points).all()):
        bad = samples[int((~torch.isfinite(points).all(1)).nonzero()[0])]
        raise DataError(f"{bad.id}: the network's vector of this picture holds values that are not finite numbers")
    layout, divergence = laid_out(points, perplexity, request.seed)
    labels = [label_of(sample) for sample in samples]
    names = request.dataset().names if request.data is not None else ()
    near, flat = agreement(points, labels), agreement(torch.from_numpy(layout), labels)
    fills = [colour(label) if label is not None else (150, 150, 156) for label in labels]
    known = sorted({label for label in labels if label is not None})[:FRAMES]
    legend = [(f"{name_of(names, label)}  ({labels.count(label)})", colour(label)) for label in known]
    order = request.generator().permutation(len(samples))  # no class lies on top of the others
    thumb = int(np.clip(1000 / np.sqrt(len(samples)) * 0.62, 18, 64))
    picture = plane(
        layout[order], [samples[i].picture for i in order], [fills[i] for i in order], legend,
        f"{request.title}: t-SNE of {len(samples)} pictures" + (f" ({request.split} split)" if request.data is not None else ""), thumb,
    )  # fmt: skip
    rows = [{"id": s.id, "label": name_of(names, label), "x": rounded(float(x)), "y": rounded(float(y))}
            for s, label, (x, y) in zip(samples, labels, layout)]  # fmt: skip
    said = (
        ""
        if near is None
        else f" {100 * near:.1f} % of the 10 nearest neighbours share the class, {100 * (flat or 0):.1f} % in the plane."
    )
    return Answer(
        picture,
        "Distances between near pictures mean something, those between far groups do not.",
        {"dimensions": points.shape[1], "perplexity": perplexity, "divergence": rounded(divergence),
         "same_class_in_space": near, "same_class_in_plane": flat, "points": rows},
        [f"Vectors of embed(): {points.shape[1]} numbers a picture; perplexity {perplexity:g}, started from the principal components."
         + said],
    )  # fmt: skip


def _shown(request: Request, limit: int) -> list[Sample]:
    """The data's samples, or the pictures of a source without data."""
    if request.source is None or request.data is not None:
        return request.samples(limit)
    return [Sample.of(item.picture.pixels, None, item.id) for item in request.items(limit)]


def laid_out(points: Tensor, perplexity: float, seed: int) -> tuple[Values, float]:
    """(N, 2) positions and their Kullback-Leibler divergence, from scikit-learn's t-SNE started at the principal components."""
    from sklearn.manifold import TSNE

    values = points.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = TSNE(2, perplexity=perplexity, init="pca" if values.shape[1] >= 2 else "random", random_state=seed)
        positions: Any = engine.fit_transform(values)
    return np.asarray(positions, float), float(engine.kl_divergence_)


def agreement(points: Tensor, labels: Sequence[int | None], k: int = 10) -> float | None:
    """Share of each point's `k` nearest others with its class, averaged; None without labels."""
    if any(label is None for label in labels) or len(labels) <= k:
        return None
    distances = torch.cdist(points.double(), points.double())
    distances.fill_diagonal_(float("inf"))
    truth = torch.tensor([-1 if label is None else label for label in labels])
    near = distances.topk(k, largest=False).indices
    return float((truth[near] == truth[:, None]).double().mean())


def nearest(queries: Tensor, points: Tensor, k: int, norm: str = "l2") -> tuple[Tensor, Tensor]:
    """Distances and indices (Q, k) of the nearest of `points` (N, D), nearest first, under "l1", "l2" or "cosine" (1 - cosine)."""
    distances: list[Tensor] = []
    indices: list[Tensor] = []
    p = 1.0 if norm == "l1" else 2.0
    if norm == "cosine":
        queries, points = (torch.nn.functional.normalize(x, dim=1) for x in (queries, points))
    for part in queries.split(64):
        found = (
            1 - part @ points.T if norm == "cosine" else torch.cdist(part, points, p=p, compute_mode="donot_use_mm_for_euclid_dist")
        )
        best = found.sort(dim=1, stable=True)
        distances.append(best.values[:, :k])
        indices.append(best.indices[:, :k])
    return torch.cat(distances), torch.cat(indices)


def neighbours(
    request: Request,
    *,
    by: str | None = None,
    norm: Norm = "l2",
    queries: int = 10,
    k: int = 10,
    limit: int = 5000,
) -> Answer:
    """Test pictures, each with its `k` nearest pictures of the train set, by raw pixels or by the network's `embed` vectors.

    `limit` train pictures are searched; `norm` is "l1", "l2" or "cosine".
    """
    at_least("k", k, 1)
    at_least("queries", queries, 1)
    one_of("norm", norm, ("l1", "l2", "cosine"))
    by = one_of("space of neighbours", by or ("embed" if request.models else "pixels"), ("pixels", "embed"))
    asked = (
        [Sample.of(item.picture.pixels, None, item.id) for item in request.items(queries)] if request.source is not None else None
    )
    asked = asked or _queries(request, queries)
    train = request.samples(limit, "train")
    if len(train) < k:
        raise UsageError(f"k={k} neighbours were asked for among {len(train)} pictures")
    if by == "embed":
        need(request.model, "embed", request.kind, "to compare pictures by it; by=pixels compares them as they are")
        spaces = [vectors(request.model, part) for part in (asked, train)]
    else:
        spaces = _pixels(asked, train, request.model.prepare if request.models else None)
    distances, indices = nearest(spaces[0], spaces[1], k, norm)
    names = request.dataset("train").names
    rows: list[list[Panel | None]] = []
    numbers: list[dict[str, Any]] = []
    votes = 0
    for sample, row, where in zip(asked, distances, indices):
        truth = label_of(sample)
        found = [train[int(i)] for i in where]
        labels = [label_of(one) for one in found]
        line: list[Panel | None] = [Panel(sample.picture, f"{name_of(names, truth) or sample.id}\n(test picture)", (60, 62, 70))]
        for one, label, distance in zip(found, labels, row):
            right = None if truth is None or label is None else label == truth
            mark = "" if right is None else " ✓" if right else " ✗"
            line.append(
                Panel(
                    one.picture,
                    f"{name_of(names, label)}{mark}\n{float(distance):.4g}",
                    None if right is None else RIGHT if right else WRONG,
                )
            )
        vote = Counter(label for label in labels if label is not None).most_common(1)
        votes += bool(vote) and vote[0][0] == truth
        rows.append(line)
        numbers.append({"id": sample.id, "label": truth, "neighbours": [
            {"id": one.id, "label": label, "distance": rounded(float(distance))} for one, label, distance in zip(found, labels, row)
        ]})  # fmt: skip
    space = "raw pixels" if by == "pixels" else f"embed vectors ({spaces[0].shape[1]} numbers)"
    labelled = all(label_of(sample) is not None for sample in asked)
    picture = panels(
        rows,
        cell=104,
        title=f"{request.title + ': ' if request.title and by == 'embed' else ''}nearest of {len(train)} train pictures by {space}, {norm}",
        legend=[("same class", RIGHT), ("another class", WRONG)] if labelled else (),
    )
    said = [f"{votes} of {len(asked)} test pictures get their class from the vote of these {k} neighbours."] if labelled else []
    return Answer(
        picture,
        "Left: the test picture; then its nearest train pictures with their classes and distances.",
        {"by": by, "norm": norm, "k": k, "searched": len(train), "right_votes": votes if labelled else None, "queries": numbers},
        said,
    )


def _queries(request: Request, count: int) -> list[Sample]:
    """Test pictures spread over the split."""
    data = request.dataset(request.split)
    if request.split == "train" and not hasattr(request.data, "target_of"):
        raise UsageError("neighbours are looked for in the train split; take the queries from another one, such as split=test")
    step = max(1, len(data) // count)
    return [data[i] for i in range(0, len(data), step)][:count]


def _pixels(asked: Sequence[Sample], train: Sequence[Sample], rule: Prepare | None) -> list[Tensor]:
    """Raw grey levels (N, D) float32 in one common frame: the network's own, else the size of the first train picture."""
    first = train[0].picture.pixels
    size, channels = (int(first.shape[0]), int(first.shape[1])), int(first.shape[2])
    spaces: list[Tensor] = []
    for part in (asked, train):
        lines: list[Tensor] = []
        for sample in part:
            if rule is not None and rule.resize not in ("none", "shortest", "scaled", "rounded"):
                pixels = place(sample.picture.pixels, rule, sample.id).pixels
            else:
                pixels = resize(channelled(sample.picture.pixels, channels, sample.id), size)
            lines.append(pixels.flatten().float())
        spaces.append(torch.stack(lines))
    return spaces
