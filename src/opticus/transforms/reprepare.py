"""A batch that was prepared for one network, as another network wants it: a teacher looks at its student's pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from opticus.structures import Prepare, UsageError
from opticus.transforms.prepare import resized_size

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def reprepare(pixels: Tensor, valid: Tensor | None, source: Prepare, target: Prepare) -> Tensor:
    """Pixels (B, C, H, W) normalised under `source`, under `target`: its channels and their order, size, mean and deviation.

    The augmented frame is kept whole: it is scaled to the size that enters the target network (its crop where it has one, else its
    size; "shortest" keeps the shape), never cropped a second time. Where `valid` (B, H, W) is False the target's zeros stand.
    UsageError for channels that cannot be converted (only 1 <-> 3).
    """
    size = input_size((int(pixels.shape[2]), int(pixels.shape[3])), target)
    same_view = (source.channels, source.order, source.scale) == (target.channels, target.order, target.scale)
    if same_view and (source.mean, source.std) == (target.mean, target.std) and size == tuple(pixels.shape[2:]):
        return _strided(pixels, target.stride)
    grey = _channels(pixels * _row(source.std, pixels) + _row(source.mean, pixels), source, target)  # units of source.scale
    levels = grey / source.scale
    mean, std = _row(target.mean, levels), _row(target.std, levels)
    if valid is not None:
        levels = torch.where(valid[:, None], levels, mean / target.scale)
    if size != tuple(levels.shape[2:]):
        mode = target.interpolation if target.interpolation != "nearest" else "nearest-exact"
        smooth = {} if mode == "nearest-exact" else {"antialias": target.antialias, "align_corners": False}
        levels = F.interpolate(levels, size, mode=mode, **smooth).clamp(0, 255)
    return _strided((levels * target.scale - mean) / std, target.stride)


def input_size(size: tuple[int, int], rule: Prepare) -> tuple[int, int]:
    """(h, w) at which a picture that is (H, W) now enters the network of `rule`."""
    if rule.crop is not None:
        return rule.crop
    if rule.resize == "none":
        return size
    return resized_size(size, rule) if rule.resize in ("shortest", "scaled", "rounded") else rule.size


def _channels(pixels: Tensor, source: Prepare, target: Prepare) -> Tensor:
    if source.channels == 3 and source.order == "bgr":
        pixels = pixels.flip(1)
    if (source.channels, target.channels) == (1, 3):
        pixels = pixels.expand(-1, 3, -1, -1)
    elif (source.channels, target.channels) == (3, 1):
        pixels = (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    elif source.channels != target.channels:
        raise UsageError(
            f"pictures prepared with {source.channels} channels cannot be shown to a network that takes {target.channels}; "
            "only 1 <-> 3 is converted"
        )
    return pixels.flip(1) if target.channels == 3 and target.order == "bgr" else pixels


def _row(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


def _strided(pixels: Tensor, stride: int) -> Tensor:
    bottom, right = -pixels.shape[2] % stride, -pixels.shape[3] % stride
    return F.pad(pixels, (0, right, 0, bottom)) if bottom or right else pixels
