"""compare: two runs, one protocol, the difference with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticus.metrics import passport
from opticus.metrics.passport import Difference


@dataclass(frozen=True)
class Comparison:
    """The differences second - first of every shared number, each with its 95 % paired-bootstrap interval."""

    rows: tuple[Difference, ...]

    def __getitem__(self, name: str) -> Difference:
        return next(row for row in self.rows if row.name == name)

    def table(self) -> str:
        """One line per number."""
        return "\n".join(str(row) for row in self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        """JSON-ready rows."""
        return [{**row._asdict(), "significant": row.significant} for row in self.rows]


def compare(first: str | Path, second: str | Path, *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compare two run folders. Raises MetricError naming the field in which their protocols differ."""
    return Comparison(tuple(passport.compare(first, second, resamples=resamples, seed=seed)))
