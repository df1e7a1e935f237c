"""reconstruct: pictures, what comes back from their codes, and how far that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from opticus.metrics.pictures import psnr
from opticus.structures import Picture, UsageError
from opticus.structures.files import write_atomic
from opticus.transforms.prepare import place as placed
from opticus.verbs.evaluate_pictures import reconstructions
from opticus.verbs.predict import pictures

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Reconstruction:
    """A picture in the network's frame, what comes back from its code, and their PSNR in dB."""

    id: str
    picture: Picture
    restored: Picture
    psnr: float

    def plot(self) -> Image:
        """Both pictures side by side."""
        from opticus.plot.sheet import sheet

        return sheet([self.picture.pixels.numpy(), self.restored.pixels.numpy()], 2)


def reconstruct(
    model: nn.Module, source: Any, *, batch: int = 16, device: str | None = None, precision: str = "fp32"
) -> Iterator[Reconstruction]:
    """Encode and decode every picture of a source (as `predict` takes it), one batch in memory at a time.

    The mean squared error behind `psnr` is what anomaly detection ranks pictures by: what the network never saw comes back badly.
    Raises CapabilityError for a network without encode and decode.
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1, found {batch}")
    rule, items = cast(Any, model).prepare, pictures(source)
    while chunk := list(islice(items, batch)):
        for item, answer in zip(chunk, reconstructions(model, [item.picture for item in chunk], device, precision)):
            shown = Picture(placed(item.picture.pixels, rule, item.id).pixels)
            gap = shown.pixels.numpy().astype(np.float64) - answer.pixels.numpy()
            yield Reconstruction(item.id, shown, answer, psnr(float(np.square(gap).mean())))


def reconstruction_sheet(found: list[Reconstruction], path: str | Path) -> Path:
    """A sheet of pictures above what came back, eight pairs a row, as a picture file; UsageError for pictures of unlike sizes."""
    from opticus.plot.sheet import sheet
    from opticus.verbs.results import picture_format

    path = Path(path)
    kind, columns = picture_format(path), min(8, len(found))
    tiles: list[Any] = []
    for first in range(0, len(found), columns):
        row = found[first : first + columns]
        blank = np.zeros_like(row[0].picture.pixels.numpy())
        for side in ([one.picture for one in row], [one.restored for one in row]):
            tiles += [picture.pixels.numpy() for picture in side] + [blank] * (columns - len(row))
    image = sheet(tiles, columns)
    return write_atomic(path, lambda part: image.save(part, kind))
