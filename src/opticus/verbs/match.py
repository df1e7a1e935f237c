"""match and cascade: two classical detectors that need no training, one given a patch to find, one a library's cascade."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opticus.models.classical._correlation import Found, search
from opticus.models.classical._viola_jones import ViolaJones
from opticus.structures import DataError, Picture
from opticus.structures.files import write_atomic
from opticus.verbs.predict import pictures
from opticus.verbs.results import Prediction

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Match:
    """Where a template was found in one picture: `prediction` (label 0, score = correlation), and the map behind it."""

    prediction: Prediction
    template: Picture
    found: Found
    threshold: float

    @property
    def best(self) -> float:
        """The highest correlation anywhere, whether or not it reaches the threshold."""
        return float(self.found.response.max())

    def figure(self) -> Image:
        """The template, the picture with the places that were found, and the correlation map of the best level."""
        from opticus.plot.panels import Panel, heat, panels

        response = self.found.response
        count = len(self.prediction)
        parts = [
            Panel(self.template.pixels.numpy(), "template"),
            Panel(self.prediction.plot(), f"{count} place{'' if count == 1 else 's'} with r >= {self.threshold:g}"),
            Panel(heat((response + 1) / 2), f"r at size x {self.found.scale:.2f}, highest {self.best:.3f}"),
        ]
        return panels([parts], cell=384, title="Normalised cross-correlation", bar=("-1", "1"))

    def save(self, path: str | Path) -> Path:
        """Write the figure as PNG."""
        return write_atomic(Path(path), lambda part: self.figure().save(part, "PNG"))

    def to_json(self) -> dict[str, Any]:
        """The places as plain values, and the highest correlation."""
        return {**self.prediction.to_json(), "best": round(self.best, 6), "scale": round(self.found.scale, 4)}


def match(
    template: Any,
    source: Any,
    *,
    threshold: float = 0.8,
    scales: tuple[float, float] = (0.5, 2.0),
    step: float = 1.1,
    limit: int = 20,
) -> list[Match]:
    """Find `template` in every picture of `source` (both: a path, PIL picture, uint8 array or tensor) by normalised correlation.

    Scores reach 1 on an exact copy, at any brightness and contrast. Raises UsageError for settings that cannot work, for a flat template
    and for one larger than the picture; DataError if `template` is not one picture.
    """
    return list(matches(template, source, threshold=threshold, scales=scales, step=step, limit=limit))


def matches(
    template: Any, source: Any, *, threshold: float, scales: tuple[float, float], step: float, limit: int
) -> Iterator[Match]:
    """`match` one picture at a time, in flat memory."""
    patches = list(pictures(template))
    if len(patches) != 1:
        raise DataError(f"match: the template must be one picture, found {len(patches)}")
    patch = patches[0].picture
    for item in pictures(source):
        found = search(item.picture, patch, threshold=threshold, scales=scales, step=step, limit=limit)
        yield Match(Prediction(found.instances, item.id, ("template",), None, item.again), patch, found, threshold)


def cascade(
    source: Any,
    file: str | Path | None = None,
    *,
    scale: float = 1.1,
    stride: float = 1.0,
    smallest: int = 0,
    largest: int = 0,
    support: int = 3,
) -> list[Prediction]:
    """Run a boosted cascade (Viola-Jones) over every picture of `source`; without `file` scikit-image's for frontal faces.

    `file` is OpenCV's XML: local binary patterns run by scikit-image, Haar features by an OpenCV that has CascadeClassifier. The window
    grows by `scale` from `smallest` to `largest` pixels (0: as small and as large as possible) and moves by `stride`; `support` windows
    must agree. Raises DataError for a file that is no cascade, UsageError for settings that cannot work or a missing OpenCV.
    """
    detector = ViolaJones(file, scale=scale, stride=stride, smallest=smallest, largest=largest, support=support)
    return list(detections(detector, source))


def detections(detector: ViolaJones, source: Any) -> Iterator[Prediction]:
    """What `detector` finds, one picture at a time, in flat memory."""
    for item in pictures(source):
        yield Prediction(detector.detect(item.picture), item.id, detector.names, None, item.again)


def crop(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    """The part x0, y0, x1, y1 of a picture, to be used as a template; DataError if it is empty or leaves the picture."""
    x0, y0, x1, y1 = box
    height, width = picture.size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise DataError(f"the box {x0},{y0},{x1},{y1} is empty or leaves the picture of {width}x{height} pixels")
    return Picture(picture.pixels[y0:y1, x0:x1].contiguous())
