"""The verb that trains several systems under one protocol: compare-models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from opticus.structures.errors import UsageError


@dataclass
class CompareModels:
    """Train several systems alike, one table and one page: opticus compare-models data=digits models=lenet/5,vit/tiny seconds=60."""

    data: str | None = None
    task: str | None = None  # what the data must be for, such as detect
    models: tuple[str, ...] = ()  # none: every small system of the data's task
    seconds: float = 150.0  # of training, at most, for each system
    slow: tuple[str, ...] = ()  # systems that get slow_seconds instead
    slow_seconds: float = 1200.0
    steps: int | None = None  # instead of each recipe's own number
    seed: int = 0
    baselines: bool = True
    out: str | None = None
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Train what is missing, score all, and print the table."""
        from opticus.recipes.compare_models import compare_models

        if self.data is None:
            raise UsageError(
                "opticus compare-models needs data=, such as: opticus compare-models data=digits models=lenet/5,vit/tiny"
            )
        found = compare_models(
            self.data, self.models, None if self.out is None else Path(self.out), task=self.task,
            seconds=self.seconds, slow=self.slow, slow_seconds=self.slow_seconds, steps=self.steps,
            seed=self.seed, baselines=self.baselines, quiet=self.quiet,
        )  # fmt: skip
        print(json.dumps(found.to_json(), indent=1) if self.json else found.table())
        return 0
