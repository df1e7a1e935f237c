"""From transformed samples to a batch: one place, the same normalisation as `prepare`, padding only where sizes differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opticus.structures import Batch, DataError, Images, Picture, Prepare, Sample
from opticus.structures.targets import Input
from opticus.transforms.pixels import channelled
from opticus.transforms.prepare import normalised, padded_size, valid_mask


def collate(samples: Sequence[Sample], rule: Prepare) -> Batch:
    """Stack already transformed samples; only channels, scale, mean, std, order and stride of `rule` act here.

    Pictures (h, w, C) uint8 become (B, C, H, W) float32, padded with zeros at the right and bottom to the largest size rounded up
    to `rule.stride`; `valid` exists only if there is padding. `to_input` is each sample's own matrix, `sizes` the original sizes.
    Inputs other than "image" are kept as tuples by name; `weights` exists unless all are 1. The i-th views of all samples become the
    i-th of the batch's `views`. Raises DataError for no samples, or when only some of them have a picture or their views differ in role.
    """
    if not samples:
        raise DataError("a batch needs at least one sample, found none")
    with_picture = [isinstance(sample.inputs.get("image"), Picture) for sample in samples]
    images = _images(samples, rule) if all(with_picture) else None
    if images is None and any(with_picture):
        raise DataError(f"{samples[with_picture.index(False)].id}: the sample has no picture but others of its batch have one")
    weights = [sample.weight for sample in samples]
    roles = _roles(samples)
    return Batch(
        images=images,
        targets=tuple(sample.target for sample in samples),
        ids=tuple(sample.id for sample in samples),
        views=tuple(_images([sample.views[i][1] for sample in samples], rule) for i in range(len(roles))),
        roles=roles,
        inputs=_others(samples),
        weights=None if all(weight == 1.0 for weight in weights) else torch.tensor(weights, dtype=torch.float32),
    )


def _images(samples: Sequence[Sample], rule: Prepare) -> Images:
    pixels = [channelled(sample.picture.pixels, rule.channels, sample.id) for sample in samples]
    size = padded_size(pixels, rule.stride)
    valid = valid_mask([(0, 0, int(p.shape[0]), int(p.shape[1])) for p in pixels], size)
    matrices = torch.stack([sample.matrix for sample in samples])
    return Images(normalised(pixels, rule, size), valid, matrices, tuple(sample.original or sample.size for sample in samples))


def _roles(samples: Sequence[Sample]) -> tuple[str, ...]:
    roles = tuple(role for role, _ in samples[0].views)
    for sample in samples:
        found = tuple(role for role, _ in sample.views)
        if found != roles:
            raise DataError(f"{sample.id}: the sample's views are {found or 'none'}, those of its batch {roles or 'none'}")
    return roles


def _others(samples: Sequence[Sample]) -> dict[str, Input | tuple[Input, ...]]:
    names = [name for name in samples[0].inputs if name != "image"]
    for sample in samples:
        missing = next((name for name in names if name not in sample.inputs), None)
        if missing is not None:
            raise DataError(f"{sample.id}: the sample has no input {missing!r} but others of its batch have it")
    return {name: tuple(sample.inputs[name] for sample in samples) for name in names}
