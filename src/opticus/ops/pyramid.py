"""What sliding-window detectors share: luminance, resized levels of a pyramid, and the best of many overlapping places (NumPy)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from opticus.ops.nms import nms
from opticus.structures import Instances, Picture

Array = npt.NDArray[np.float32]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def luminance(picture: Picture) -> Array:
    """(H, W) float32 in [0, 1]."""
    pixels = picture.pixels.cpu().numpy().astype(np.float32) / 255
    return np.asarray(pixels @ _LUMA if pixels.shape[2] == 3 else pixels[:, :, 0], np.float32)


def resized(values: Array, size: tuple[int, int]) -> Array:
    """Bilinear, antialiased, to `size` (H, W)."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((max(1, size[1]), max(1, size[0])), Image.Resampling.BILINEAR))


def survivors(
    boxes: Array, labels: npt.NDArray[Any], scores: Array, size: tuple[int, int], limit: int, iou: float = 0.45
) -> Instances:
    """The best places after suppression across classes (objects overlap little), clipped to the picture."""
    order = np.argsort(-scores, kind="stable")[:2000]
    clipped = np.clip(boxes[order], 0, [size[1], size[0], size[1], size[0]])
    places, values = torch.from_numpy(clipped.astype(np.float32)), torch.from_numpy(scores[order].astype(np.float32))
    kept = nms(places, values, iou)[:limit]
    found = torch.from_numpy(labels[order].astype(np.int64))
    return Instances(places[kept], found[kept], size, values[kept].clamp(0, 1))
