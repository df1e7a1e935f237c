"""Views of the embedded pictures of 32 pixels, alike for all methods that learn without labels, so that these can be compared."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.transforms.views import Views, multi_crop, two_views

SIGMA = (0.1, 0.8)  # of the blur, in pixels


def handed(data: Dataset) -> bool:
    """Whether a mirrored picture would be of another class: digits and letters."""
    return all(len(name) == 1 for name in data.names)


def pair(data: Dataset, strength: float = 1.0) -> Views:
    """Two views; what has a handedness is not mirrored, and is seen nearly whole. `strength` multiplies the colour jitter."""
    jitter = (0.4 * strength, 0.4 * strength, 0.4 * strength, 0.1 * strength)
    whole = handed(data)
    return two_views(32, scale=(0.4 if whole else 0.2, 1.0), jitter=jitter, sigma=SIGMA, flip=0.0 if whole else 0.5)


def crops(data: Dataset, locals: int = 4) -> Views:
    """Two global views of 32 pixels and local ones of 16."""
    whole = handed(data)
    scale, small = ((0.5, 1.0), (0.2, 0.5)) if whole else ((0.3, 1.0), (0.1, 0.3))
    return multi_crop(32, 16, locals, scale=scale, small_scale=small, sigma=SIGMA, flip=0.0 if whole else 0.5)
