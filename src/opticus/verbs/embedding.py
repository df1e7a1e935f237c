"""The validation figure of networks that describe pictures by vectors: nearest neighbours on labelled data."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from opticus.data.records import Source
from opticus.data.splits import canonical
from opticus.data.subset import Subset
from opticus.metrics.classify import Accuracy
from opticus.structures import CapabilityError, Classes
from opticus.verbs.evaluate import Evaluation
from opticus.verbs.features import Features, extract
from opticus.verbs.probe import neighbours, pixels

K, TEMPERATURE = 20, 0.07  # Wu et al. 2018, Caron et al. 2021


def labelled(data: Source | None) -> bool:
    """Whether every picture has one label, as far as its first one tells."""
    if data is None or len(data) == 0:
        return False
    target = data.target_of(0)
    return isinstance(target, Classes) and len(target) == 1


def neighbour_accuracy(
    model: nn.Module,
    bank: Source,
    data: Source,
    split: str,
    *,
    limit: tuple[int, int] | None = None,
    **view: Any,
) -> Evaluation:
    """Top-1 and top-5 of the weighted votes of the 20 nearest pictures of `bank` (cosine, temperature 0.07) on `data`.

    `limit` takes at most so many evenly spaced pictures of the bank and of the data; `view` are options of `features.extract`.
    Raises CapabilityError where pictures have no label or the network no vector.
    """
    if not (labelled(bank) and labelled(data)):
        name = cast(Any, model).card.name
        raise CapabilityError(f"{name} describes pictures by vectors: it is scored on data with one label a picture")
    if limit is not None:
        bank, data = _some(bank, limit[0]), _some(data, limit[1])
    known = extract(model, bank, bank.split, **view)
    return voted(known, extract(model, data, data.split, **view), bank, data, split)


def pixel_accuracy(bank: Source, data: Source, split: str) -> Evaluation:
    """The same votes on raw pixels, which must all have one size: what a network has to be better than."""
    size = tuple(bank[0].picture.pixels.shape)
    return voted(pixels(bank, size), pixels(data, size), bank, data, split)


def voted(known: Features, asked: Features, bank: Source, data: Source, split: str) -> Evaluation:
    """The accuracy of the votes of `known` vectors (of `bank`) about `asked` ones (of `data`)."""
    k = min(K, len(known.labels))
    votes = torch.from_numpy(neighbours(known, asked.vectors, len(bank.names), k, TEMPERATURE))
    metric = Accuracy(data.names, data=data.hash, split=canonical(split))
    scores, order = votes.sort(dim=1, descending=True, stable=True)
    done = Evaluation({}, metric, {}, "top1")
    for row, id in enumerate(asked.ids):
        done.results[id] = Classes(order[row], scores[row], votes[row])
        metric.update(done.results[id], Classes(torch.tensor([int(asked.labels[row])])), id)
    rule = {"method": "knn", "k": k, "temperature": TEMPERATURE, "distance": "cosine"}
    done.values, done.protocol = metric.compute(), {**metric.protocol, "probe": rule, "fitted on": bank.hash}
    return done


def _some(data: Source, count: int) -> Source:
    if len(data) <= count:
        return data
    return Subset(data, np.linspace(0, len(data) - 1, count).round().astype(np.int64))
