"""The verb that scores object proposals."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from opticus.structures.errors import UsageError


@dataclass
class Proposals:
    """Recall of class-free boxes on a data set: opticus proposals scenes method=selective-search pictures=50."""

    data: str = field(default="", metadata={"word": True})
    method: Literal["selective-search", "edge-boxes", "sliding-windows"] = "selective-search"
    limit: int = 2000
    pictures: int | None = None  # the first so many; None = all
    split: str = "test"
    seed: int = 0
    file: str | None = None  # edge-boxes: OpenCV's edge model (model.yml.gz)
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Print recall at several numbers of boxes and the mean average best overlap."""
        from opticus.verbs.proposals import proposals

        if not self.data:
            raise UsageError("opticus proposals needs a data set, such as: opticus proposals scenes pictures=50")
        found = proposals(
            self.data,
            method=self.method,
            limit=self.limit,
            pictures=self.pictures,
            split=self.split,
            seed=self.seed,
            file=self.file,
            quiet=self.quiet,
        )
        print(json.dumps(found.to_json(), indent=1) if self.json else found.table())
        return 0
