"""What losses over pictures need: the pictures of a batch, its target pictures as network pixels, and weighted means."""

from __future__ import annotations

import torch
from torch import Tensor

from opticus.structures import Batch, CapabilityError, DataError, Images, Picture, Prepare


def pixels_of(batch: Batch) -> Tensor:
    """The batch's pictures (B, C, H, W), normalised; CapabilityError naming the batch if there are none."""
    return _images(batch).pixels


def _images(batch: Batch) -> Images:
    if batch.images is None:
        raise CapabilityError(f"this system is trained on pictures, but batch {batch.ids[:1]} has none")
    return batch.images


def view_of(batch: Batch, role: str) -> Tensor:
    """The pictures (B, C, H, W) of one role, such as the domains "a" and "b" of unpaired data; DataError naming what there is."""
    if role not in batch.roles:
        found = ", ".join(batch.roles) or "none"
        raise DataError(f"batch {batch.ids[:1]} has no pictures of the role {role!r} (roles: {found}); is the data of two domains?")
    return batch.views[batch.roles.index(role)].pixels


def targets_of(batch: Batch, rule: Prepare) -> Tensor:
    """The batch's target pictures (B, C, H, W), normalised by `rule`'s numbers, not resized; DataError names a sample without one."""
    like = pixels_of(batch)
    rows: list[Tensor] = []
    for target, name in zip(batch.targets, batch.ids):
        if not isinstance(target, Picture):
            raise DataError(f"{name}: a target picture is needed, found {type(target).__name__}")
        if rows and target.pixels.shape != rows[0].shape:
            raise DataError(f"{name}: target picture of shape {tuple(target.pixels.shape)}, others have {tuple(rows[0].shape)}")
        rows.append(target.pixels)
    return normal(torch.stack(rows).to(like.device), rule).to(like.dtype)


def normal(pixels: Tensor, rule: Prepare) -> Tensor:
    """(B, C, H, W) float32 from uint8 (B, H, W, C): (pixel * scale - mean) / std in `rule.order`."""
    planes = pixels.permute(0, 3, 1, 2).float()
    if rule.order == "bgr" and rule.channels == 3:
        planes = planes.flip(1)
    mean, std = (planes.new_tensor(values)[:, None, None] for values in (rule.mean, rule.std))
    return (planes * rule.scale - mean) / std


def pictures(pixels: Tensor, rule: Prepare) -> list[Picture]:
    """Pictures from network pixels (B, C, H, W) normalised by `rule`: rounded and clipped to 0..255, RGB."""
    values = pixels.detach().float()
    mean, std = (values.new_tensor(numbers)[:, None, None] for numbers in (rule.mean, rule.std))
    levels = ((values * std + mean) / rule.scale).round().clamp(0, 255).to(torch.uint8)
    if rule.order == "bgr" and rule.channels == 3:
        levels = levels.flip(1)
    return [Picture(one.permute(1, 2, 0).contiguous()) for one in levels.cpu()]


def mean(values: Tensor, batch: Batch) -> Tensor:
    """The mean over the batch of one value per picture (B,), times the samples' weights where there are any."""
    return (values if batch.weights is None else values * batch.weights.to(values)).mean()
