"""`opticus sample` and `opticus reconstruct`: pictures that a system draws, and pictures through a code and back."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class Sample:
    """Draw new pictures: opticus sample runs/generate/ddpm-tiny n=64 seed=1 steps=50 --grid; other keys go to the sampler."""

    model: str = field(metadata={"word": True})
    weights: str | None = None
    n: int = 16
    seed: int = 0
    first: int = 0  # number of the first picture; picture i of a seed is always the same
    steps: int | None = None  # of an iterative sampler
    condition: tuple[str, ...] | None = None  # class names or numbers: one, or one per picture (condition=3,3,7)
    between: int | None = None  # walk from each starting point to the next in so many pictures
    batch: int = 64
    device: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    out: str = "runs/sample"
    grid: bool = False  # one sheet, grid.png, instead of a file for each picture
    quiet: bool = False
    json: bool = False
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def run(self) -> int:
        """Write the pictures and say where they are."""
        import opticus

        model = opticus.load(self.model, self.weights)
        condition: Any = None if self.condition is None else list(self.condition)
        made = opticus.sample(
            model, self.n, seed=self.seed, first=self.first, steps=self.steps, condition=condition, between=self.between,
            batch=self.batch, device=self.device, precision=self.precision, quiet=self.quiet, **self.more,
        )  # fmt: skip
        folder = Path(self.out)
        path = made.save(folder / "grid.png" if self.grid or self.between is not None else folder)
        record: dict[str, Any] = {
            "model": self.model,
            "seed": self.seed,
            "first": self.first,
            "pictures": len(made),
            "path": str(path),
        }
        if made.labels is not None:
            record["labels"] = made.labels.tolist()
        print(json.dumps(record) if self.json else f"{len(made)} pictures in {path}")
        return 0


@dataclass
class Reconstruct:
    """Pictures through a code and back: opticus reconstruct vae/tiny:digits photos/ out=sheet.png; the worst ones come first."""

    model: str = field(metadata={"word": True})
    source: str = field(metadata={"word": True})
    weights: str | None = None
    out: str | None = None  # a picture file: the first 64 pictures above what comes back
    batch: int = 16
    device: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    json: bool = False

    def run(self) -> int:
        """Print the PSNR of every picture, lowest first."""
        import opticus
        from opticus.structures.errors import DataError
        from opticus.verbs.reconstruct import reconstruction_sheet

        model = opticus.load(self.model, self.weights)
        shown: list[Any] = []
        rows: list[tuple[str, float]] = []
        for one in opticus.reconstruct(model, self.source, batch=self.batch, device=self.device, precision=self.precision):
            rows.append((one.id, one.psnr))
            if self.out is not None and len(shown) < 64:
                shown.append(one)
        if not rows:
            raise DataError(f"{self.source}: nothing to look at")
        rows.sort(key=lambda row: row[1])
        if self.out is not None:
            print(f"sheet: {reconstruction_sheet(shown, self.out)}", file=sys.stderr)
        if self.json:
            print(json.dumps([{"id": id, "PSNR": round(value, 4)} for id, value in rows]))
        else:
            print("\n".join(f"{value:7.2f} dB  {id}" for id, value in rows))
        return 0
