"""From the dense answers of a one-stage detector to the boxes of a picture: thresholds, the best of each level, suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from opticus.ops.boxes import clip, map_boxes
from opticus.ops.nms import nms_per_class
from opticus.structures import Backbone, CapabilityError, Images, Instances


class Candidates(NamedTuple):
    """The best answers of one level of one picture, best first: `places` (M,) in the level, `labels` (M,), `scores` (M,)."""

    places: Tensor
    labels: Tensor
    scores: Tensor


def pyramid_maps(backbone: Backbone, finest: int, paper: str) -> tuple[int, ...]:
    """Which of a backbone's maps carry a pyramid: the last one of every stride >= `finest`, fine to coarse.

    Raises:
        CapabilityError: there is none; the message names `paper` and the strides found.
    """
    last = {stride: i for i, stride in enumerate(backbone.strides) if stride >= finest}
    if not last:
        raise CapabilityError(f"{paper}: expected a backbone with a map of stride {finest} or coarser, found {backbone.strides}")
    return tuple(last[stride] for stride in sorted(last))


def level_sizes(size: tuple[int, int], strides: Sequence[int], coarser: int) -> tuple[tuple[int, int], ...]:
    """(h, w) of every level for an input of `size`: the backbone's maps at `strides`, then `coarser` more, each half of the last."""
    sizes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
    for _ in range(coarser):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return tuple(sizes)


def windows(images: Images, like: Tensor) -> Float[Tensor, "B 4"]:
    """The part of each input that is picture, xyxy pixels of the network's frame, in `like`'s type: the rest is padding."""
    height, width = images.pixels.shape[-2:]
    if images.valid is None:
        return like.new_tensor([[0, 0, width, height]]).expand(len(images.pixels), -1)
    ends: list[Tensor] = []
    for axis in (1, 2):
        lines = images.valid.any(axis).to(torch.uint8)
        first = lines.argmax(1)
        ends += [first, first + lines.sum(1)]
    left, right, top, bottom = ends
    return torch.stack([left, top, right, bottom], 1).to(like)


def best_of(scores: Float[Tensor, "N K"], threshold: float, count: int) -> Candidates:
    """The `count` highest scores above `threshold` of all places and classes; one place may answer with several classes."""
    flat = scores.flatten()
    above = (flat > threshold).nonzero()[:, 0]
    best, order = flat[above].topk(min(count, len(above)))
    places = above[order]
    return Candidates(places // scores.shape[1], places % scores.shape[1], best)


def cut(boxes: Float[Tensor, "M 4"], window: Float[Tensor, "4"]) -> Float[Tensor, "M 4"]:
    """Boxes cut to `window`, xyxy of one frame; what lies wholly outside gets a side that is not positive."""
    return torch.cat([boxes[:, :2].maximum(window[:2]), boxes[:, 2:].minimum(window[2:])], 1)


def suppressed(
    boxes: Float[Tensor, "M 4"], labels: Tensor, scores: Tensor, window: Float[Tensor, "4"], *, overlap: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and scores of the `count` best survivors of suppression per class, best first.

    `boxes` are in the network's frame and are first cut to `window`, as torchvision does; those that keep no area are left out.
    """
    boxes = cut(boxes, window)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, labels, scores = boxes[inside], labels[inside], scores[inside]
    kept = nms_per_class(boxes, scores, labels, overlap)[:count]
    return boxes[kept], labels[kept], scores[kept]


def in_original(boxes: Float[Tensor, "M 4"], labels: Tensor, scores: Tensor, images: Images, i: int) -> Instances:
    """Boxes of the network's frame as results of picture `i`, in its own pixels and inside it; float32."""
    size = images.sizes[i]
    moved = clip(map_boxes(boxes, images.to_input[i].inverse()), size)
    return Instances(moved.float(), labels, size, scores.float())
