"""Finding a given patch: normalised cross-correlation over an image pyramid (Lewis, "Fast Normalized Cross-Correlation", 1995).

A classical system, not a paper of the zoo: the template is an input, so there are no weights to train, save, load or identify. The map
is scikit-image's `match_template`: r(p) = sum (f - mean f)(t - mean t) / (n std f std t), 1 where the picture is the template times a
positive number plus any number, and no more than chance where it shows another thing of the same kind.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from opticus.ops.nms import nms
from opticus.ops.pyramid import Array, luminance, resized
from opticus.structures import Instances, Picture, UsageError

FLAT = 1e-3  # standard deviation in [0, 1] below which a template says nothing
SMALLEST = 4  # pixels: the shortest side of a template that is worth comparing


class Found(NamedTuple):
    """`instances` best first (label 0, score = correlation); `response` (H, W) the map of the level that holds the best place.

    `response[y, x]` belongs to the window whose first corner is (x, y) in the picture shrunk by `scale` (as it is below 1).
    """

    instances: Instances
    response: Array
    scale: float


def search(
    picture: Picture,
    template: Picture,
    *,
    threshold: float = 0.8,
    scales: tuple[float, float] = (0.5, 2.0),
    step: float = 1.1,
    limit: int = 20,
    overlap: float = 0.3,
) -> Found:
    """Places where `template` fits `picture` with a correlation of at least `threshold`, at sizes `scales` times its own.

    Sizes are powers of `step`, its own size among them (there nothing is resampled): for larger ones the picture is shrunk, for smaller
    ones the template. Places that overlap a better one by an IoU above
    `overlap` are left out. UsageError for settings that cannot work, a flat template, or one that fits at no size.
    """
    if not (0 < scales[0] <= scales[1] < np.inf and 1.01 <= step < np.inf and -1 <= threshold <= 1 and limit >= 1):
        raise UsageError(
            "match: expected 0 < smallest <= largest scale, step of at least 1.01, threshold in [-1, 1] and limit of at least 1, "
            f"found {scales[0]}, {scales[1]}, {step}, {threshold} and {limit}"
        )
    gray, patch = luminance(picture), luminance(template)
    if float(patch.std()) < FLAT:
        raise UsageError("match: the template is of one brightness, so it correlates with nothing")
    boxes: list[Array] = []
    scores: list[Array] = []
    best: tuple[float, Array, float] | None = None
    for scale in _scales(scales, step):
        small = gray if scale <= 1 else _scaled(gray, 1 / scale)
        mask = patch if scale >= 1 else _scaled(patch, scale)
        if (
            small.shape[0] < mask.shape[0]
            or small.shape[1] < mask.shape[1]
            or min(mask.shape) < SMALLEST
            or float(mask.std()) < FLAT
        ):
            continue
        response = correlate(small, mask)
        if best is None or float(response.max()) > best[0]:
            best = float(response.max()), response, scale
        y, x = _peaks(response, threshold)
        ratio = np.array([gray.shape[1] / small.shape[1], gray.shape[0] / small.shape[0]] * 2, np.float32)
        corners = np.stack([x, y, x + mask.shape[1], y + mask.shape[0]], 1)
        boxes.append((corners * ratio).astype(np.float32))
        scores.append(response[y, x])
    if best is None:
        size, own = f"{gray.shape[1]}x{gray.shape[0]}", f"{patch.shape[1]}x{patch.shape[0]}"
        reach = f"at every scale from {scales[0]:g} to {scales[1]:g}"
        raise UsageError(
            f"match: the template ({own} pixels) is too large for the picture ({size}) or below {SMALLEST} pixels {reach}"
        )
    places, values = torch.from_numpy(np.concatenate(boxes)), torch.from_numpy(np.concatenate(scores))
    kept = nms(places, values, overlap)[:limit]
    found = Instances(places[kept], torch.zeros(len(kept), dtype=torch.int64), picture.size, values[kept])
    return Found(found, best[1], best[2])


def _scaled(values: Array, factor: float) -> Array:
    return resized(values, (round(values.shape[0] * factor), round(values.shape[1] * factor)))


def correlate(image: Array, template: Array) -> Array:
    """(H - h + 1, W - w + 1) correlation coefficients in [-1, 1] of the template (h, w) at every place of the image (H, W)."""
    from skimage.feature import match_template

    # in single precision the coefficient is off by up to 0.05 where the picture is nearly flat
    return np.asarray(match_template(image.astype(np.float64), template.astype(np.float64)), np.float32).clip(-1, 1)


def _scales(limits: tuple[float, float], step: float) -> list[float]:
    """Powers of `step` within the limits, smallest first."""
    low, high = (np.log(limit) / np.log(step) for limit in limits)
    powers = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1)
    return [float(step**power) for power in powers] or [limits[0]]


def _peaks(response: Array, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the values that reach `floor` and that none of their eight neighbours exceeds."""
    from scipy.ndimage import maximum_filter

    y, x = np.nonzero((response >= floor) & (response >= maximum_filter(response, 3)))
    return y, x
