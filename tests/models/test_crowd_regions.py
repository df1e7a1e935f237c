"""Crowd regions are no background to the one-stage detectors: nothing is learned inside, everything else as without."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

import opticus
from opticus.structures import Batch, Images, Instances

DETECTORS = (
    "centernet", "cornernet", "efficientdet", "extremenet", "fcos", "retinanet", "ssd",
    "yolov1", "yolov2", "yolov3", "yolov4", "yolov5", "yolov8",
)  # fmt: skip
OBJECT = [74.0, 30.0, 112.0, 92.0]


def batch_of(rows: list[list[float]], crowd: list[bool] | None) -> Batch:
    """One picture of 128 x 128 with `rows` as objects of class 3 or crowds."""
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor(rows).reshape(-1, 4)
    marks = None if crowd is None else torch.tensor(crowd)
    target = Instances(boxes, torch.full((len(boxes),), 3), (128, 128), crowd=marks)
    return Batch(images=Images(pixels, None, torch.eye(3)[None], ((128, 128),)), targets=(target,), ids=("a",))


def learned(name: str, batch: Batch) -> tuple[float, list[Tensor]]:
    """The loss of an untrained network's answers, and its gradient with respect to every one of them."""
    torch.manual_seed(0)
    network = opticus.create(f"{name}/tiny").double().train()  # untrained, statistics of its own keep a network's boxes sensible
    objective = importlib.import_module(f"opticus.models.detection.{name}").objective(network)
    assert batch.images is not None
    out = network(batch.images.pixels.double())
    parts = [part for part in out if isinstance(part, Tensor)]
    loss = torch.stack(list(objective.criterion(out, batch).values())).sum()
    gradients = torch.autograd.grad(loss, parts, allow_unused=True) if loss.requires_grad else [None] * len(parts)
    return loss.item(), [torch.zeros_like(p) if g is None else g for p, g in zip(parts, gradients, strict=True)]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_picture_that_is_all_crowd_teaches_nothing(name: str) -> None:
    loss, gradients = learned(name, batch_of([[-1e6, -1e6, 1e6, 1e6]], [True]))
    assert loss == 0 and all(not bool(g.any()) for g in gradients)
    loss, gradients = learned(name, batch_of([], None))  # while a picture of nothing is all background
    assert name == "ssd" or (loss > 0 and any(bool(g.any()) for g in gradients))  # ssd: no objects, no hard negatives


@pytest.mark.parametrize("name", DETECTORS)
def test_answers_inside_a_crowd_are_left_alone_and_all_others_learn_as_ever(name: str) -> None:
    plain, before = learned(name, batch_of([OBJECT], None))
    unmarked, same = learned(name, batch_of([OBJECT], [False]))
    assert plain == unmarked and all(torch.equal(a, b) for a, b in zip(before, same, strict=True))
    ignoring, after = learned(name, batch_of([OBJECT, [-1e6, -1e6, 48, 1e6]], [False, True]))
    if name == "ssd":  # other hard negatives take the place of those inside
        assert ignoring < plain
        return
    changed = [(a != b) for a, b in zip(before, after, strict=True)]
    assert all(not bool(b[c].any()) for b, c in zip(after, changed, strict=True))  # what is not as before is not learned at all
    count, learning = (sum(int(part.sum()) for part in parts) for parts in (changed, [a != 0 for a in after]))
    assert count > 0 and learning > 0 and ignoring < plain


@pytest.mark.parametrize("name", DETECTORS)
def test_an_object_inside_a_crowd_is_learned(name: str) -> None:
    _, before = learned(name, batch_of([OBJECT], None))
    _, after = learned(name, batch_of([OBJECT, [-1e6, -1e6, 1e6, 1e6]], [False, True]))
    kept = [b != 0 for b in after]
    assert sum(int(k.sum()) for k in kept) > 0
    assert all(torch.equal(a[k], b[k]) for a, b, k in zip(before, after, kept, strict=True))


def test_ssd_takes_its_hard_negatives_outside_crowds() -> None:
    _, gradients = learned("ssd", batch_of([OBJECT, [-1e6, -1e6, 64, 1e6]], [False, True]))
    network = opticus.create("ssd/tiny").double()
    priors = network.default_boxes((128, 128), torch.zeros(0).double())
    touched = gradients[0][0].any(1)
    assert bool(touched.any()) and bool((priors[touched][:, 2] > 64).all())
