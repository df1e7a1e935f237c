"""Template matching: normalised cross-correlation with mean templates of every class over an image pyramid.

A yardstick for the learned detectors, not a paper: Lewis, "Fast normalized cross-correlation" (Vision Interface 1995), computed by FFT.
Objects may be darker or brighter than their background, so the absolute correlation counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.ops.pyramid import luminance, resized, survivors
from opticus.structures import DataError, Instances, Picture, Sample

Array = npt.NDArray[np.float32]
_PATCH = 32  # pixels: crops are compared and averaged at this size


class _Template(NamedTuple):
    label: int
    width: int
    height: int
    size: tuple[int, int]  # of the box inside the margin: (height, width)
    values: Array  # (height, width), zero mean, unit norm


class TemplateMatching:
    """`variants` mean templates per class (k-means over shape and proportion), matched at `levels` of a pyramid.

    `short` is the smallest shorter side of an object in pixels, `step` the ratio of neighbouring levels.
    """

    def __init__(
        self, *, variants: int = 4, short: float = 15.0, step: float = 1.25, levels: int = 7, margin: float = 0.12
    ) -> None:
        self.variants = variants
        self.short = short
        self.step = step
        self.levels = levels
        self.margin = margin
        self.templates: list[_Template] = []

    def fit(self, samples: Iterable[Sample], classes: int, *, limit: int = 300) -> TemplateMatching:
        """Average the objects of the first `limit` samples; DataError if a class has no object there."""
        from sklearn.cluster import KMeans

        patches: list[list[Array]] = [[] for _ in range(classes)]
        shapes: list[list[float]] = [[] for _ in range(classes)]
        for _, sample in zip(range(limit), samples, strict=False):
            gray = luminance(sample.picture)
            if isinstance(sample.target, Instances):
                for box, label in zip(sample.target.boxes.tolist(), sample.target.labels.tolist(), strict=True):
                    patches[label].append(_patch(gray, box, self.margin))
                    shapes[label].append(float(np.log((box[2] - box[0]) / (box[3] - box[1]))))
        self.templates = []
        for label, (crops, ratios) in enumerate(zip(patches, shapes, strict=True)):
            if not crops:
                raise DataError(f"template matching: expected objects of every class, found none of class {label}")
            features = np.stack([crop.reshape(-1) for crop in crops])
            together = np.concatenate([features, 0.7 * np.array(ratios)[:, None]], 1)
            groups = KMeans(min(self.variants, len(crops)), random_state=0).fit_predict(together)
            for group in np.unique(groups):
                ratio = float(np.exp(np.array(ratios)[groups == group].mean()))
                self.templates.append(self._template(label, features[groups == group].mean(0).reshape(_PATCH, _PATCH), ratio))
        return self

    def _template(self, label: int, mean: Array, ratio: float) -> _Template:
        height, width = (self.short / ratio, self.short) if ratio < 1 else (self.short, self.short * ratio)
        whole = round(height * (1 + 2 * self.margin)), round(width * (1 + 2 * self.margin))
        values = resized(mean, whole)
        values = values - values.mean()
        size = (round(height), round(width))
        return _Template(label, whole[1], whole[0], size, values / max(float(np.sqrt((values**2).sum())), 1e-6))

    def detect(self, picture: Picture, *, limit: int = 100, floor: float = 0.35) -> Instances:
        """The best `limit` places whose absolute correlation is at least `floor`; the score is that correlation."""
        if not self.templates:
            raise DataError("template matching: call fit before detect")
        gray = luminance(picture)
        boxes: list[Array] = []
        labels: list[npt.NDArray[Any]] = []
        scores: list[Array] = []
        for level in range(self.levels):
            factor = self.step**level
            small = resized(gray, (round(gray.shape[0] / factor), round(gray.shape[1] / factor)))
            usable = [t for t in self.templates if t.height <= small.shape[0] and t.width <= small.shape[1]]
            for template, response in zip(usable, _correlate(small, usable), strict=True):
                y, x = _peaks(response, floor)
                left = (x + (template.width - template.size[1]) / 2) * gray.shape[1] / small.shape[1]
                top = (y + (template.height - template.size[0]) / 2) * gray.shape[0] / small.shape[0]
                boxes.append(
                    np.stack([left, top, left + template.size[1] * factor, top + template.size[0] * factor], 1).astype(np.float32)
                )
                labels.append(np.full(len(x), template.label))
                scores.append(response[y, x])
        return survivors(np.concatenate(boxes), np.concatenate(labels), np.concatenate(scores), picture.size, limit)


def _patch(gray: Array, box: list[float], margin: float) -> Array:
    """The crop around a box at _PATCH x _PATCH, zero mean, unit deviation, bright on dark."""
    from PIL import Image

    x, y = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    area = (box[0] - x + _PATCH, box[1] - y + _PATCH, box[2] + x + _PATCH, box[3] + y + _PATCH)
    edged = np.pad(gray, _PATCH, mode="edge")
    crop = np.asarray(Image.fromarray(edged).resize((_PATCH, _PATCH), Image.Resampling.BILINEAR, box=area))
    rim = np.concatenate([crop[0], crop[-1], crop[:, 0], crop[:, -1]])
    crop = crop - np.median(rim)
    weights = np.abs(crop)
    bright = float((weights * crop).sum()) >= 0
    crop = crop if bright else -crop
    return (crop - crop.mean()) / max(float(crop.std()), 1e-6)


def _correlate(image: Array, templates: list[_Template]) -> list[Array]:
    """|NCC| of every template at every place where it fits."""
    from scipy import fft

    height, width = image.shape
    spectrum: Any = np.asarray(fft.rfft2(image - image.mean()))
    total = np.pad(np.cumsum(np.cumsum(image.astype(np.float64), 0), 1), ((1, 0), (1, 0)))
    squares = np.pad(np.cumsum(np.cumsum(image.astype(np.float64) ** 2, 0), 1), ((1, 0), (1, 0)))
    padded = np.zeros((len(templates), height, width), np.float32)
    for plane, template in zip(padded, templates, strict=True):
        plane[: template.height, : template.width] = template.values
    raw: Any = fft.irfft2(np.asarray(fft.rfft2(padded)).conj() * spectrum, s=(height, width))
    found: list[Array] = []
    for plane, template in zip(raw, templates, strict=True):
        h, w = template.height, template.width
        deviation = _windows(squares, h, w) - _windows(total, h, w) ** 2 / (h * w)
        norm = np.sqrt(np.maximum(deviation, 4e-4 * h * w))  # nearly flat patches correlate with nothing
        found.append((np.abs(plane[: height - h + 1, : width - w + 1]) / norm).astype(np.float32))
    return found


def _windows(table: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Sums over all windows, from a summed-area table."""
    return table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]


def _peaks(response: Array, floor: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places that are at least `floor` and not below any of their eight neighbours."""
    padded = np.pad(response, 1)
    rows, columns = response.shape
    high = response >= floor
    for i in (0, 1, 2):
        for j in (0, 1, 2):
            high &= response >= padded[i : i + rows, j : j + columns]
    y, x = np.nonzero(high)
    return y, x
