"""What a geometric transform does to a target: boxes, masks, keypoints and label maps through the same 3x3 matrix as the pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from opticus.ops.masks import decode, encode
from opticus.structures import (
    RLE,
    Classes,
    Embedding,
    Instances,
    LabelMap,
    Panoptic,
    Picture,
    Sample,
    Several,
    Target,
    Text,
    UsageError,
)
from opticus.transforms.pixels import warp_nearest

KEEP = 0.1  # an object stays in a cropped picture while at least this share of its box is visible


def moved_sample(
    sample: Sample, matrix: Tensor, size: tuple[int, int], move: Callable[[Tensor], Tensor], keep: float | None
) -> Sample:
    """`sample` seen through `matrix` (3, 3) in a frame `size` (H, W); `move` maps pixels (H, W, C) accordingly.

    `keep` None: the transform loses nothing (resize, flip, pad), boxes are not clipped; else see `moved_instances`.
    """

    def move_alike(pixels: Tensor) -> Tensor:
        found = (int(pixels.shape[0]), int(pixels.shape[1]))
        if found != sample.size:
            raise UsageError(f"{sample.id}: the target picture is {found}, the input {sample.size}; only equal sizes move together")
        return move(pixels)

    target = moved_target(sample.target, matrix, size, keep, move_alike)
    moved = sample.with_picture(move(sample.picture.pixels), target, matrix)
    moved.sources = tuple((id, matrix.to(torch.float64) @ source) for id, source in sample.sources)
    regions = sample.inputs.get("regions")
    if isinstance(regions, Tensor):
        moved.inputs["regions"] = moved_regions(regions, matrix, size, keep)
    return moved


def moved_regions(regions: Tensor, matrix: Tensor, size: tuple[int, int], keep: float | None = KEEP) -> Tensor:
    """Proposed boxes (N, 4) seen through `matrix` in the frame `size`, in their order; with `keep` as in `moved_instances`."""
    boxes = warped_boxes(regions, matrix)
    if keep is None:
        return boxes
    clipped = clip(boxes, size)
    return clipped[visible_share(boxes, clipped) >= max(keep, 1e-9)]


def moved_target(
    target: Target | None, matrix: Tensor, size: tuple[int, int], keep: float | None, move: Callable[[Tensor], Tensor]
) -> Target | None:
    """The target in the frame `size` after `matrix`; image-level targets stay as they are, pictures move like the input."""
    if target is None or isinstance(target, Classes | Embedding | Text):
        return target
    if isinstance(target, Instances):
        return moved_instances(target, matrix, size, keep)
    if isinstance(target, LabelMap):
        probs = None if target.probs is None else warp_nearest(target.probs, matrix, size, 0)
        return LabelMap(warp_nearest(target.labels, matrix, size, target.ignore), target.ignore, probs)
    if isinstance(target, Panoptic):
        return _moved_panoptic(target, matrix, size)
    if isinstance(target, Picture):
        return Picture(move(target.pixels))
    if isinstance(target, Several):
        parts = {name: moved_target(part, matrix, size, keep, move) for name, part in target.parts.items()}
        return Several({name: part for name, part in parts.items() if part is not None})
    raise UsageError(f"a geometric transform moves pictures, boxes, masks, keypoints and label maps, not a {type(target).__name__}")


def moved_instances(target: Instances, matrix: Tensor, size: tuple[int, int], keep: float | None = KEEP) -> Instances:
    """Instances seen through `matrix` in the frame `size` (H, W).

    A box becomes the axis-aligned hull of its four warped corners (not the box of its warped mask: a rotated hull is wider). With
    `keep`, boxes are clipped to the frame and instances whose clipped box has less than `keep` of the hull's area are dropped, in
    every field alike. Masks are resampled to nearest. Keypoints outside the frame get visibility 0, and absent ones x = y = 0, as
    in COCO. Areas are multiplied by |det| and by the visible share of the box.
    """
    boxes = warped_boxes(target.boxes, matrix)
    areas, seen = target.areas, None
    if areas is not None:
        areas = areas * float(torch.linalg.det(matrix[:2, :2].double()).abs())
    if keep is not None:
        clipped = clip(boxes, size)
        share = visible_share(boxes, clipped)
        seen, boxes = share >= max(keep, 1e-9), clipped
        areas = None if areas is None else areas * share
    target = replace(target, boxes=boxes, areas=areas, size=size)
    if seen is not None and not bool(seen.all()):
        target = target[seen]
    return replace(
        target,
        masks=None if target.masks is None else warped_masks(target.masks, matrix, size),
        keypoints=None if target.keypoints is None else warped_keypoints(target.keypoints, matrix, size),
    )


def warped_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Points (..., 2) through an affine `matrix` (3, 3), computed in float64, in the dtype of `points`."""
    m = matrix.to(torch.float64)
    return (points.to(torch.float64) @ m[:2, :2].T + m[:2, 2]).to(points.dtype)


def warped_boxes(boxes: Tensor, matrix: Tensor) -> Tensor:
    """The axis-aligned hulls (N, 4) of boxes (N, 4) xyxy whose corners went through `matrix`."""
    corners = warped_points(boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2), matrix)
    return torch.cat((corners.amin(1), corners.amax(1)), 1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) xyxy limited to the frame `size` (H, W)."""
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def visible_share(boxes: Tensor, clipped: Tensor) -> Tensor:
    """(N,) share of each box that `clipped` keeps, in [0, 1]; a side without length counts fully if it lies inside."""
    whole, part = (b[:, 2:].double() - b[:, :2].double() for b in (boxes, clipped))
    inside = (boxes == clipped).reshape(-1, 2, 2).all(1)
    ratio = torch.where(whole > 0, part / whole.clamp(min=1e-12), inside.double())
    return ratio.prod(1).to(boxes.dtype)


def warped_keypoints(keypoints: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Keypoints (N, K, 3) x, y, visibility through `matrix`; outside the frame `size` they become absent (0, 0, 0)."""
    points = warped_points(keypoints[..., :2], matrix)
    limit = torch.tensor([size[1], size[0]], dtype=points.dtype)
    there = ((points >= 0) & (points <= limit)).all(-1, keepdim=True) & (keypoints[..., 2:] > 0)
    return torch.where(there, torch.cat((points, keypoints[..., 2:]), -1), torch.zeros_like(keypoints))


def warped_masks(masks: Tensor | RLE, matrix: Tensor, size: tuple[int, int]) -> Tensor | RLE:
    """Masks (N, H, W) bool or RLE through `matrix`, nearest; the encoding stays what it was."""
    if isinstance(masks, Tensor):
        return warp_nearest(masks, matrix, size, 0)
    return encode(warp_nearest(decode(masks), matrix, size, 0))


def permuted_keypoints(target: Target | None, swap: Sequence[tuple[int, int]]) -> Target | None:
    """The target with each pair of keypoint indices in `swap` exchanged: a mirrored left wrist is a right wrist."""
    if isinstance(target, Several):
        return Several({name: permuted_keypoints(part, swap) or part for name, part in target.parts.items()})
    if not isinstance(target, Instances) or target.keypoints is None or not swap:
        return target
    count = int(target.keypoints.shape[1])
    order = list(range(count))
    for a, b in swap:
        if not (0 <= a < count and 0 <= b < count):
            raise UsageError(f"flip: cannot swap keypoints {a} and {b}, the data set has {count}")
        order[a], order[b] = b, a
    return replace(target, keypoints=target.keypoints[:, order])


def joined(parts: Sequence[Instances], size: tuple[int, int]) -> Instances:
    """All instances of several targets in one frame `size`; a field survives if every non-empty part has it, else it is an error.

    Raises:
        UsageError: some parts have masks, keypoints, ... and others lack them.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return Instances.empty(size)
    joint = Instances(torch.cat([p.boxes for p in parts]), torch.cat([p.labels for p in parts]), size)
    for name in ("scores", "masks", "keypoints", "tracks", "crowd", "areas"):
        values = [getattr(p, name) for p in parts]
        lacking = sum(v is None for v in values)
        if lacking == len(values):
            continue
        if lacking:
            raise UsageError(f"cannot mix samples of which {len(values) - lacking} have {name} and {lacking} have none")
        if any(isinstance(v, RLE) for v in values):
            codes = [v if isinstance(v, RLE) else encode(v) for v in values]
            setattr(joint, name, RLE(tuple(c for code in codes for c in code.counts), size))
        else:
            setattr(joint, name, torch.cat(values))
    return joint


def _moved_panoptic(target: Panoptic, matrix: Tensor, size: tuple[int, int]) -> Panoptic:
    segments = warp_nearest(target.segments, matrix, size, 0)
    seen = torch.isin(target.ids, segments.unique())
    scores = None if target.scores is None else target.scores[seen]
    return Panoptic(segments, target.ids[seen], target.labels[seen], target.things[seen], scores)
