"""The verbs of two classical detectors: a given patch by correlation, and a library's cascade."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from opticus.structures.errors import UsageError


@dataclass
class Match:
    """Find a patch by normalised correlation: opticus match patch.png street.jpg; or box=10,20,50,60 out of the first picture."""

    template: str = field(default="", metadata={"word": True})  # a picture file
    source: str = field(default="", metadata={"word": True})  # a picture, folder or video
    box: tuple[int, int, int, int] | None = None  # x0,y0,x1,y1 of TEMPLATE to look for, all of it if not given
    threshold: float = 0.8
    scales: tuple[float, float] = (0.5, 2.0)  # smallest and largest size looked for, in sizes of the template
    step: float = 1.1
    limit: int = 20
    out: str | None = None  # folder for one figure a picture
    json: bool = False

    def run(self) -> int:
        """Print every place with its correlation, and the highest one of all; with out= draw them."""
        from opticus.verbs.match import crop, matches
        from opticus.verbs.predict import pictures

        if not self.template or not self.source:
            raise UsageError("opticus match needs TEMPLATE and SOURCE, such as: opticus match patch.png street.jpg out=found")
        patch = next(pictures(self.template)).picture
        patch = patch if self.box is None else crop(patch, self.box)
        stream = matches(patch, self.source, threshold=self.threshold, scales=self.scales, step=self.step, limit=self.limit)
        for found in stream:
            record = found.to_json()
            places = "; ".join(f"{o['score']:.3f} [{', '.join(f'{v:.0f}' for v in o['box'])}]" for o in record["objects"])
            print(json.dumps(record) if self.json else f"{record['id']}: {places or 'nothing'}; highest r {record['best']:.3f}")
            if self.out is not None:
                path = found.save(_place(self.out, record["id"]))
                print(path, file=sys.stderr)
        return 0


@dataclass
class Cascade:
    """Find faces by a Viola-Jones cascade: opticus cascade group.jpg out=found; file= is another cascade (OpenCV's XML)."""

    source: str = field(default="", metadata={"word": True})
    file: str | None = None  # scikit-image's cascade for frontal faces if not given
    scale: float = 1.1
    stride: float = 1.0
    smallest: int = 0  # pixels; 0: the cascade's own window
    largest: int = 0  # pixels; 0: the whole picture
    support: int = 3  # windows that must agree on an object
    out: str | None = None  # folder for one picture each
    json: bool = False

    def run(self) -> int:
        """Print what is found in every picture; with out= draw it."""
        from opticus.models.classical._viola_jones import ViolaJones
        from opticus.verbs.match import detections

        if not self.source:
            raise UsageError("opticus cascade needs SOURCE, such as: opticus cascade group.jpg out=found")
        detector = ViolaJones(
            self.file, scale=self.scale, stride=self.stride, smallest=self.smallest, largest=self.largest, support=self.support
        )
        stream = detections(detector, self.source)
        for found in stream:
            record = found.to_json()
            objects = [f"{o['name']} {o['score']:.2f} [{', '.join(f'{v:.0f}' for v in o['box'])}]" for o in record["objects"]]
            print(json.dumps(record) if self.json else f"{record['id']}: {'; '.join(objects) or 'nothing'}")
            if self.out is not None:
                print(found.save(_place(self.out, found.id)), file=sys.stderr)
        return 0


def _place(folder: str, id: str) -> Path:
    return Path(folder) / f"{id.replace('/', '_')}.png"
