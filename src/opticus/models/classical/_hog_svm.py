"""HOG + linear SVM: a sliding window over an image pyramid, with hard negatives mined once and boxes refined by ridge regression.

A yardstick for the learned detectors, not a paper of the zoo: Dalal & Triggs, "Histograms of oriented gradients for human detection"
(CVPR 2005); box regression as in Felzenszwalb et al. (TPAMI 2010). Gradients are unsigned, so dark and bright objects look alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opticus.ops.pyramid import luminance, resized, survivors
from opticus.structures import DataError, Instances, Picture, Sample

Array = npt.NDArray[np.float32]
_CELL, _WINDOW, _BINS = 4, 7, 9  # pixels; cells per window side; orientations
_BLOCKS = _WINDOW - 1
_INSIDE = 22.0  # pixels of the window that the object's longer side fills


class _Windows(NamedTuple):
    """All windows of one picture: features (M, F), square frames (M, 3) as centre x, centre y, longer side in picture pixels."""

    features: Array
    frames: Array


class HogSvm:
    """One-against-rest linear SVMs on HOG windows; `long` is the range of objects' longer sides in pixels, `step` the pyramid's ratio."""

    def __init__(self, *, long: tuple[float, float] = (16.0, 112.0), step: float = 1.25, cost: float = 0.1, seed: int = 0) -> None:
        self.long = long
        self.step = step
        self.cost = cost
        self.seed = seed
        self.weights: Array = np.zeros((0, 0), np.float32)  # (F, classes)
        self.bias: Array = np.zeros(0, np.float32)
        self.shift: Array = np.zeros((0, 0), np.float32)  # (F + 1, 4): centre x, y in longer sides, log width, log height

    def fit(self, samples: Iterable[Sample], classes: int, *, limit: int = 250) -> HogSvm:
        """Train on the first `limit` samples: random negatives first, then the false alarms of that first detector."""
        from sklearn.linear_model import Ridge

        rng = np.random.default_rng(self.seed)
        positives: list[Array] = []
        labels: list[int] = []
        offsets: list[list[float]] = []
        negatives: list[Array] = []
        pictures: list[tuple[Array, Array]] = []  # luminance and boxes
        for _, sample in zip(range(limit), samples, strict=False):
            gray = luminance(sample.picture)
            windows = self._windows(gray)
            if not isinstance(sample.target, Instances):
                raise DataError(f"{sample.id}: HOG + SVM needs Instances as target, found {type(sample.target).__name__}")
            boxes = sample.target.boxes.numpy().astype(np.float32)
            for box, label in zip(boxes, sample.target.labels.tolist(), strict=True):
                for index in _close(windows.frames, box, self.step):
                    positives.append(windows.features[index])
                    labels.append(label)
                    offsets.append(_offset(windows.frames[index], box))
            far = np.flatnonzero(_farness(windows.frames, boxes))
            picks = rng.choice(far, min(12, len(far)), replace=False)
            negatives.append(windows.features[picks])
            pictures.append((gray, boxes))
        if set(labels) != set(range(classes)):
            missing = sorted(set(range(classes)) - set(labels))
            raise DataError(f"HOG + SVM: expected objects of every class, found none of {missing}")
        found = np.stack(positives)
        self.shift = _stacked(Ridge(30.0).fit(found, np.array(offsets)))
        self._train(found, labels, np.concatenate(negatives), classes)
        mined = [self._alarms(gray, boxes) for gray, boxes in pictures]
        self._train(found, labels, np.concatenate([*negatives, *mined]), classes)
        return self

    def _alarms(self, gray: Array, boxes: Array, count: int = 16) -> Array:
        """The windows away from all boxes that the present detector believes in most."""
        features, frames = self._windows(gray)
        far = np.flatnonzero(_farness(frames, boxes))
        beliefs = (features[far] @ self.weights + self.bias).max(1)
        return features[far[np.argsort(-beliefs)[:count]]]

    def _train(self, positives: Array, labels: list[int], negatives: Array, classes: int) -> None:
        from sklearn.svm import LinearSVC

        features = np.concatenate([positives, negatives])
        truth = np.concatenate([np.array(labels), np.full(len(negatives), classes)])
        machine: Any = LinearSVC(C=self.cost, tol=1e-2, max_iter=300, random_state=self.seed).fit(features, truth)
        self.weights = np.asarray(machine.coef_[:classes].T, np.float32)
        self.bias = np.asarray(machine.intercept_[:classes], np.float32)

    def detect(self, picture: Picture, *, limit: int = 100, floor: float = -0.9) -> Instances:
        """The best `limit` windows whose SVM margin is at least `floor`; the score is the logistic of twice the margin."""
        if not self.weights.size:
            raise DataError("HOG + SVM: call fit before detect")
        features, frames = self._windows(luminance(picture))
        margins = features @ self.weights + self.bias
        best = np.argsort(-margins.max(1), kind="stable")[:300]
        best = best[margins[best].max(1) >= floor]
        moved = features[best] @ self.shift[:-1] + self.shift[-1]
        x, y = frames[best, 0] + moved[:, 0] * frames[best, 2], frames[best, 1] + moved[:, 1] * frames[best, 2]
        width, height = frames[best, 2] * np.exp(moved[:, 2]) / 2, frames[best, 2] * np.exp(moved[:, 3]) / 2
        boxes = np.stack([x - width, y - height, x + width, y + height], 1)
        scores = 1 / (1 + np.exp(-2 * margins[best].max(1)))
        return survivors(boxes.astype(np.float32), margins[best].argmax(1), scores, picture.size, limit)

    def _windows(self, gray: Array) -> _Windows:
        from numpy.lib.stride_tricks import sliding_window_view

        features: list[Array] = []
        frames: list[Array] = []
        side = self.long[0]
        while side <= self.long[1] * 1.01:
            scale = _INSIDE / side
            level = resized(gray, (round(gray.shape[0] * scale), round(gray.shape[1] * scale)))
            edge = (_WINDOW * _CELL - int(_INSIDE)) // 2 + 1  # so that objects at the border get a window
            level = np.pad(level, edge, mode="edge")
            side *= self.step
            if min(level.shape) < _WINDOW * _CELL:
                continue
            views = sliding_window_view(hog(level), (_BLOCKS, _BLOCKS), axis=(0, 1))
            rows, columns = views.shape[:2]
            features.append(views.reshape(rows * columns, -1))
            y, x = np.mgrid[:rows, :columns].reshape(2, -1) * _CELL + _WINDOW * _CELL / 2 - edge
            ones = np.full(rows * columns, _INSIDE / scale)
            frames.append(np.stack([x / scale, y / scale, ones], 1).astype(np.float32))
        return _Windows(np.concatenate(features), np.concatenate(frames))


def hog(gray: Array) -> Array:
    """Blocks (rows - 1, columns - 1, 36) of 2x2 cells of 4x4 pixels, 9 unsigned orientations, L2-Hys; equal to scikit-image's `hog`."""
    rows, columns = gray.shape[0] // _CELL, gray.shape[1] // _CELL
    down, right = np.zeros_like(gray), np.zeros_like(gray)
    down[1:-1], right[:, 1:-1] = gray[2:] - gray[:-2], gray[:, 2:] - gray[:, :-2]
    down, right = down[: rows * _CELL, : columns * _CELL], right[: rows * _CELL, : columns * _CELL]
    angle = np.rad2deg(np.arctan2(down, right)) % 180
    bins = np.minimum((angle * (_BINS / 180)).astype(np.int64), _BINS - 1)
    cells = np.arange(rows * _CELL)[:, None] // _CELL * columns + np.arange(columns * _CELL)[None] // _CELL
    sums = np.bincount((cells * _BINS + bins).reshape(-1), np.hypot(down, right).reshape(-1), rows * columns * _BINS)
    table = (sums / _CELL**2).reshape(rows, columns, _BINS)
    blocks = np.concatenate([table[:-1, :-1], table[:-1, 1:], table[1:, :-1], table[1:, 1:]], 2)
    for ceiling in (0.2, np.inf):
        blocks = np.minimum(blocks / np.sqrt((blocks**2).sum(2, keepdims=True) + 1e-10), ceiling)
    return blocks.astype(np.float32)


def _offset(frame: Array, box: Array) -> list[float]:
    x, y, side = (float(value) for value in frame)
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    centre = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    return [(centre[0] - x) / side, (centre[1] - y) / side, float(np.log(width / side)), float(np.log(height / side))]


def _close(frames: Array, box: Array, step: float) -> npt.NDArray[np.intp]:
    """Windows that fit the box: within half a cell and half a pyramid step, with some slack; at least the nearest one."""
    long = max(float(box[2] - box[0]), float(box[3] - box[1]))
    near = np.maximum(np.abs(frames[:, 0] - (box[0] + box[2]) / 2), np.abs(frames[:, 1] - (box[1] + box[3]) / 2)) / frames[:, 2]
    size = np.abs(np.log(frames[:, 2] / long)) / np.log(step)
    fits = np.flatnonzero((near <= 0.62 * _CELL / _INSIDE) & (size <= 0.62))
    return fits if len(fits) else np.array([np.argmin(near * _INSIDE / _CELL + size)])


def _farness(frames: Array, boxes: Array) -> npt.NDArray[np.bool_]:
    """Windows whose frame overlaps no box by more than IoU 0.3."""
    far = np.ones(len(frames), bool)
    half = frames[:, 2] / 2
    for box in boxes:
        width = np.minimum(frames[:, 0] + half, box[2]) - np.maximum(frames[:, 0] - half, box[0])
        height = np.minimum(frames[:, 1] + half, box[3]) - np.maximum(frames[:, 1] - half, box[1])
        shared = np.clip(width, 0, None) * np.clip(height, 0, None)
        far &= shared <= 0.3 * (frames[:, 2] ** 2 + (box[2] - box[0]) * (box[3] - box[1]) - shared)
    return far


def _stacked(machine: Any) -> Array:
    return np.concatenate([machine.coef_.T, machine.intercept_[None]]).astype(np.float32)
