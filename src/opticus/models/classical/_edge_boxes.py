"""Edge Boxes: proposals by the number of contours that a box encloses whole (Zitnick & Dollar, ECCV 2014).

A classical system, not a paper of the zoo: OpenCV's contrib modules hold it, and its structured edge detector (Dollar & Zitnick, ICCV
2013) reads a trained model, which no package ships: opencv_extra's testdata/cv/ximgproc/model.yml.gz.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opticus.structures import DataError, Picture, UsageError

NEEDS = (
    "edge-boxes needs OpenCV's contrib modules (the package opencv-contrib-python-headless in place of opencv-python-headless) and a "
    "trained edge model (file=model.yml.gz, from opencv_extra's testdata/cv/ximgproc)"
)


def edge_boxes(picture: Picture, *, limit: int = 2000, seed: int = 0, file: str | Path | None = None) -> npt.NDArray[np.float32]:
    """(N, 4) xyxy boxes, best first, at most `limit`; `file` is the edge model. Nothing is drawn at random.

    UsageError without opencv-contrib or a model, DataError for a model that is not there.
    """
    ximgproc = _contrib()
    if file is None:
        raise UsageError(f"{NEEDS}; found no file=")
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such edge model")
    colours = np.ascontiguousarray(picture.pixels.numpy().astype(np.float32) / 255)
    colours = colours.repeat(3, 2) if colours.shape[2] == 1 else colours
    detector = ximgproc.createStructuredEdgeDetection(str(path))
    edges = detector.detectEdges(colours)
    orientation = detector.computeOrientation(edges)
    finder = ximgproc.createEdgeBoxes()
    finder.setMaxBoxes(limit)
    found = finder.getBoundingBoxes(detector.edgesNms(edges, orientation), orientation)
    boxes = found[0] if isinstance(found, tuple) else found  # OpenCV from 4.1 on returns scores too
    rows = np.array(boxes, np.float32).reshape(-1, 4)[:limit]
    rows[:, 2:] += rows[:, :2]
    return rows


def _contrib() -> Any:
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise UsageError(f"{NEEDS}; found no OpenCV") from error
    module = getattr(cv2, "ximgproc", None)
    if module is None:
        raise UsageError(f"{NEEDS}; the installed OpenCV has no contrib modules")
    return module
