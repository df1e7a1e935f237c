"""`opticus lab`: the lectures' claims, checked by small trainings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Lab:
    """Check a claim of the lectures by a small experiment: opticus lab degradation; without a name: list them."""

    name: str = field(default="", metadata={"word": True})
    out: str | None = None  # default: runs/labs/NAME
    seeds: int | None = None  # repetitions; default: the lab's own number
    scale: float = 1.0  # factor of the number of training steps
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Print the claim, the checked numbers with their uncertainty, and the verdict; exit code 1 if the claim does not hold here."""
        from opticus.recipes import lab

        if not self.name:
            found = lab.claims()
            print(json.dumps(found, indent=1) if self.json else "\n".join(f"{name:<16}{claim}" for name, claim in found.items()))
            return 0
        out = None if self.out is None else Path(self.out)
        finding = lab.run(self.name, out, seeds=self.seeds, scale=self.scale, quiet=self.quiet)
        print(json.dumps(finding.to_json(), indent=1) if self.json else finding.text())
        return 0 if finding.holds else 1
