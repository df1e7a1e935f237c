"""Whole pictures for networks of patches: both sides a multiple of the patch, nothing cropped, nothing padded."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, UsageError


def whole(rule: Prepare, size: tuple[int, int], short: int, stride: int, step: int | None = None) -> Prepare:
    """`rule` for pictures of `size` (H, W) that are resampled as a whole, the shorter side to `short` pixels.

    The shorter side is floored to a multiple of `stride`, the longer one to one of `step` (default: of `stride`; DAVIS's usual 64 is
    what facebookresearch/dino has), so that the picture's shape changes a little. UsageError if `short` is below the stride.
    """
    if short < stride:
        raise UsageError(f"size must be at least {stride}, the network's stride, found {short}")
    low, high = min(size), max(size)
    near = short // stride * stride
    far = short * high // low
    unit = stride if step is None or step % stride or far < step else step
    far = max(far // unit * unit, stride)
    inner = (near, far) if size[0] <= size[1] else (far, near)
    return replace(rule, resize="fixed", size=inner, crop=None, stride=1)


def short_side(rule: Prepare) -> int:
    """The shorter side of what enters the network under its own rule."""
    return min(side for side in (rule.crop or rule.size) if side > 0)
