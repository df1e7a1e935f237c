"""The verb that finds anchors for a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from opticus.structures.errors import UsageError


@dataclass
class Anchors:
    """Box sizes that stand best for a data set, by k-means on IoU: opticus anchors DATA count=9 side=416."""

    data: str = field(default="", metadata={"word": True})
    count: int = 9
    side: int | None = None  # longer side of the pictures as the network sees them; None = boxes as annotated
    split: str = "train"
    seed: int = 0
    json: bool = False

    def run(self) -> int:
        """Print one anchor a line and how well they cover the boxes."""
        from opticus.verbs.anchors import anchors

        if not self.data:
            raise UsageError("opticus anchors needs a data set, such as: opticus anchors scenes count=9")
        found = anchors(self.data, count=self.count, side=self.side, split=self.split, seed=self.seed)
        print(json.dumps(found.to_json(), indent=1) if self.json else found.table())
        return 0
