"""Viola-Jones: a boosted cascade in a window that slides over all places and sizes (Viola & Jones, IJCV 57(2), 2004).

A classical system, not a paper of the zoo: the cascade is a maintained library's, read and run as it is. scikit-image's `Cascade` runs
cascades of local binary patterns (Liao et al. 2007), and ships OpenCV's for frontal faces; those of Haar features, the paper's own,
need an OpenCV with `CascadeClassifier`: any of version 4, of version 5 only the contrib package (it moved to xobjdetect).

*Differs*: overlapping detections are put together as in the paper's section 5.6 (disjoint sets of overlapping windows, their corners
averaged), but two windows overlap if their IoU is above 0.3, so that neighbouring faces stay apart; a set's score says how many
windows support it.
"""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as tree
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from opticus.ops.iou import iou
from opticus.ops.pyramid import luminance
from opticus.structures import DataError, Instances, Picture, UsageError

TOGETHER = 0.3  # IoU above which two windows belong to one object
Boxes = npt.NDArray[np.float32]


class ViolaJones:
    """A cascade read from `file` (OpenCV's XML; None: scikit-image's for frontal faces), and how its window moves.

    The window grows by `scale` from `smallest` to `largest` pixels (0: the cascade's own size, the whole picture) and moves by `stride`
    pixels of the cascade's own frame (at least 1: every place). `support` windows must agree on an object.
    """

    def __init__(
        self,
        file: str | Path | None = None,
        *,
        scale: float = 1.1,
        stride: float = 1.0,
        smallest: int = 0,
        largest: int = 0,
        support: int = 3,
    ) -> None:
        if not (1.01 <= scale < np.inf and 1 <= stride < np.inf and smallest >= 0 and largest >= 0 and support >= 1):
            raise UsageError(
                "cascade: expected scale of at least 1.01, stride of at least 1, sizes of at least 0 and support of at least 1, "
                f"found {scale}, {stride}, {smallest}, {largest} and {support}"
            )
        self.file = _shipped() if file is None else Path(file).expanduser()
        self.names = ("face",) if file is None else (self.file.stem,)
        self.kind, self.window = _described(self.file)
        self.scale, self.stride, self.smallest, self.largest, self.support = scale, stride, smallest, largest, support
        self._run = _haar(self.file, self.kind) if self.kind != "LBP" else None

    def detect(self, picture: Picture) -> Instances:
        """Objects with label 0, best first; the score is n / (n + support) for n agreeing windows."""
        height, width = picture.size
        if min(height, width) < max(self.window):
            return Instances.empty((height, width), scored=True)
        windows = self._lbp(picture) if self._run is None else self._opencv(picture, self._run)
        return self._together(torch.from_numpy(windows), (height, width))

    def _lbp(self, picture: Picture) -> Boxes:
        """Every window that passes all stages, unmerged."""
        from skimage.feature import Cascade

        pixels = (luminance(picture) * 255).round().astype(np.uint8)
        low, high = self._sizes(picture.size)
        found = Cascade(str(self.file)).detect_multi_scale(
            img=pixels,
            scale_factor=self.scale,
            step_ratio=self.stride,
            min_size=(low, low),
            max_size=(high, high),
            min_neighbor_number=1,
            intersection_score_threshold=2.0,  # a share that no pair reaches: nothing is merged there
        )
        rows = [(one["c"], one["r"], one["c"] + one["width"], one["r"] + one["height"]) for one in found]
        return np.array(rows, np.float32).reshape(-1, 4)

    def _opencv(self, picture: Picture, classifier: Any) -> Boxes:
        pixels = (luminance(picture) * 255).round().astype(np.uint8)
        low, high = self._sizes(picture.size)
        found = classifier.detectMultiScale(
            pixels, scaleFactor=self.scale, minNeighbors=0, minSize=(low, low), maxSize=(high, high)
        )
        rows = np.array(found, np.float32).reshape(-1, 4)
        rows[:, 2:] += rows[:, :2]
        return rows

    def _sizes(self, size: tuple[int, int]) -> tuple[int, int]:
        high = min(self.largest or min(size), *size)
        return min(max(self.smallest, *self.window), high), high

    def _together(self, windows: torch.Tensor, size: tuple[int, int]) -> Instances:
        from scipy.sparse.csgraph import connected_components

        if not len(windows):
            return Instances.empty(size, scored=True)
        count, group = connected_components((iou(windows, windows) > TOGETHER).numpy(), directed=False)
        groups = torch.from_numpy(group.astype(np.int64))
        support = torch.bincount(groups, minlength=count).float()
        boxes = torch.zeros(count, 4).index_add_(0, groups, windows) / support[:, None]
        order = support.sort(descending=True, stable=True).indices
        order = order[support[order] >= self.support]
        boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
        labels = torch.zeros(len(order), dtype=torch.int64)
        return Instances(boxes[order], labels, size, support[order] / (support[order] + self.support))


def _shipped() -> Path:
    from skimage.data import lbp_frontal_face_cascade_filename

    return Path(lbp_frontal_face_cascade_filename())


def _described(file: Path) -> tuple[str, tuple[int, int]]:
    """Kind of features ("LBP", "HAAR", ...) and the window (width, height) of a cascade; DataError if it is none."""
    try:
        top = tree.fromstring(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tree.ParseError) as error:
        raise DataError(f"{file}: the cascade cannot be read ({error})") from error
    cascade = top.find("cascade")
    kind = None if cascade is None else cascade.findtext("featureType")
    if cascade is None or kind is None:
        raise DataError(f"{file}: not a cascade as OpenCV 2.4 and later write it (expected opencv_storage/cascade/featureType)")
    try:
        return kind.strip(), (int(cascade.findtext("width", "")), int(cascade.findtext("height", "")))
    except ValueError as error:
        raise DataError(f"{file}: the cascade states no whole width and height of its window") from error


def _haar(file: Path, kind: str) -> Any:
    """OpenCV's classifier for cascades that scikit-image does not run."""
    needed = f"{file}: a cascade of {kind} features needs OpenCV's CascadeClassifier (opencv-contrib-python-headless)"
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise UsageError(f"{needed}, which is not installed") from error
    maker = getattr(cv2, "CascadeClassifier", None) or getattr(getattr(cv2, "xobjdetect", None), "CascadeClassifier", None)
    if maker is None:
        raise UsageError(f"{needed}, the installed OpenCV {_opencv_version()} has none")
    classifier: Any = maker(str(file))
    if classifier.empty():
        raise DataError(f"{file}: OpenCV cannot read the cascade")
    return classifier


def _opencv_version() -> str:
    for name in ("opencv-python-headless", "opencv-contrib-python-headless", "opencv-python", "opencv-contrib-python"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
