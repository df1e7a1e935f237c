"""What a detector learns from a batch's targets, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opticus.structures import DataError, Instances, Target


class Objects(NamedTuple):
    """The objects to learn in one picture: `boxes` (N,4) xyxy in network-input pixels and `labels` (N,)."""

    boxes: Tensor
    labels: Tensor


def objects_of(targets: Sequence[Target | None], classes: int, ids: Sequence[str] = ()) -> list[Objects]:
    """The objects of every picture; crowd regions and boxes without area are left out, pictures without objects are legal.

    Raises:
        DataError: a target is not `Instances`, or a label is outside 0..classes-1; the message names the sample.
    """
    names = tuple(ids) or tuple(f"sample {i}" for i in range(len(targets)))
    found: list[Objects] = []
    for name, target in zip(names, targets, strict=True):
        if not isinstance(target, Instances):
            kind = "none" if target is None else type(target).__name__
            raise DataError(f"{name}: detection needs a target of type Instances, found {kind}")
        if len(target) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < classes:
            raise DataError(f"{name}: labels must be in 0..{classes - 1}, found {target.labels.unique().tolist()}")
        usable = (target.boxes[:, 2:] > target.boxes[:, :2]).all(1)
        if target.crowd is not None:
            usable &= ~target.crowd.bool()
        found.append(Objects(target.boxes[usable], target.labels[usable]))
    return found


class Truth(NamedTuple):
    """What one picture says: `boxes` (N,4) and `labels` (N,) of its objects, and `ignored` (M,4), where nothing is right or wrong."""

    boxes: Tensor
    labels: Tensor
    ignored: Tensor


def truth_of(targets: Sequence[Target | None], classes: int, ids: Sequence[str], like: Tensor) -> list[Truth]:
    """The objects and crowd regions of every picture in `like`'s type; raises as `objects_of`."""
    known = zip(objects_of(targets, classes, ids), ignored_of(targets), strict=True)
    return [Truth(t.boxes.to(like), t.labels, ignored.to(like)) for t, ignored in known]


def ignored_of(targets: Sequence[Target | None]) -> list[Tensor]:
    """The crowd regions of every picture, (M, 4) xyxy: what lies in them is no background; pictures may have none."""
    found: list[Tensor] = []
    for target in targets:
        boxes = target.boxes if isinstance(target, Instances) else torch.zeros(0, 4)
        crowd = target.crowd if isinstance(target, Instances) and target.crowd is not None else boxes.new_zeros(len(boxes))
        found.append(boxes[crowd.bool() & (boxes[:, 2:] > boxes[:, :2]).all(1)])
    return found
