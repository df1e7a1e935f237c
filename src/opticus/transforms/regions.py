"""The transform that gives a sample the regions which a detector with outside proposals looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opticus.matching.regions import Search, keeping, propose
from opticus.structures import Sample
from opticus.transforms.draw import Draw


@dataclass(frozen=True, slots=True)
class Propose:
    """Selective search on the picture as it is (so first of a chain), looked up where it was done before: the input "regions".

    Geometric transforms that follow move the regions like boxes. Nothing is drawn.
    """

    limit: int = 2000
    scales: tuple[float, ...] = (50.0, 100.0)
    spaces: tuple[str, ...] = ("hsv", "lab")

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        with keeping():
            found = propose(sample.picture.pixels, Search(self.limit, self.scales, self.spaces))
        return replace(sample, inputs={**sample.inputs, "regions": found})
