"""Training at several input sizes: every few updates the whole batch is resampled to another one (YOLOv2, 1612.08242, section 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.losses.supervised import Supervised
from opticus.ops.boxes import map_boxes
from opticus.structures import Batch, CapabilityError, Instances, Progress, UsageError


class MultiScale(nn.Module):
    """A supervised objective whose square batches come at one of `sizes` (pixels), another one every `every` updates.

    The size is a function of the update's number, so that processes agree and a resumed run goes on as it would have. The last tenth
    of the run keeps the batch's own size, which results are for. UsageError if there are no sizes.
    """

    def __init__(self, supervised: Supervised, sizes: tuple[int, ...], every: int = 10) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1 or every < 1:
            raise UsageError(f"multi-scale training needs sizes and a number of updates, found sizes={sizes}, every={every}")
        self.supervised = supervised
        self.sizes, self.every = sizes, every

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        return self.supervised.network

    def phases(self, step: int) -> tuple[str, ...]:
        """Those of the supervised objective."""
        return self.supervised.phases(step)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """Those of the supervised objective."""
        return self.supervised.parameters_of(phase)

    def size_at(self, at: Progress) -> int | None:
        """The input size of an update, None for the batch's own."""
        if at.fraction >= 0.9:
            return None
        generator = torch.Generator().manual_seed(at.step // self.every)
        return self.sizes[int(torch.randint(len(self.sizes), (1,), generator=generator))]

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The supervised terms of the resampled batch; CapabilityError if it has no images."""
        size = self.size_at(at)
        return self.supervised(batch if size is None else resampled(batch, size), at)

    def before_update(self, at: Progress) -> None:
        """That of the supervised objective."""
        self.supervised.before_update(at)

    def after_step(self, at: Progress) -> None:
        """That of the supervised objective."""
        self.supervised.after_step(at)


def resampled(batch: Batch, size: int) -> Batch:
    """A detection batch whose longer side is `size` pixels, boxes and all."""
    images = batch.images
    if images is None:
        raise CapabilityError(f"multi-scale training is on images, but batch {batch.ids[:1]} has none")
    height, width = images.pixels.shape[-2:]
    h, w = (round(side * size / max(height, width)) for side in (height, width))
    scale = torch.tensor([[w / width, 0, 0], [0, h / height, 0], [0, 0, 1]], dtype=torch.float64)
    pixels = F.interpolate(images.pixels, (h, w), mode="bilinear", antialias=True)
    valid = None if images.valid is None else F.interpolate(images.valid[:, None].to(pixels), (h, w))[:, 0] > 0.5
    targets = tuple(
        replace(target, boxes=map_boxes(target.boxes, scale), size=(h, w), masks=None, keypoints=None)
        if isinstance(target, Instances)
        else target
        for target in batch.targets
    )
    return replace(batch, images=images._replace(pixels=pixels, valid=valid, to_input=scale @ images.to_input), targets=targets)
