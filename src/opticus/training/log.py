"""The run's figures: results.csv (TensorBoard too when installed) and the progress bar on stderr."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from opticus.structures.files import write_text


class Log:
    """Rows of figures. New columns rewrite the header; on resume, rows after the resumed step are dropped."""

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        self.path = folder / "results.csv"
        self.columns: list[str] = []
        if resume_step is not None and self.path.is_file():
            rows = [row for row in self._read() if int(float(row["step"])) <= resume_step]
            self.columns = list(rows[0]) if rows else []
            self._rewrite(rows)
        else:
            self.path.unlink(missing_ok=True)
        self.board = _board(folder)

    def write(self, values: Mapping[str, float | int]) -> None:
        """Append one row; columns that this row lacks stay empty."""
        if any(key not in self.columns for key in values):
            rows = self._read() if self.path.is_file() else []
            self.columns += [key for key in values if key not in self.columns]
            self._rewrite([*rows, {k: _text(v) for k, v in values.items()}])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow({k: _text(v) for k, v in values.items()})
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(key, value, int(values["step"]))

    def close(self) -> None:
        """Flush what is open."""
        if self.board is not None:
            self.board.close()

    def _read(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\r\n")
        if self.columns:
            writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


class Bar:
    """A progress bar on stderr with loss, images per second and the time that is left."""

    def __init__(self, steps: int, done: int, quiet: bool) -> None:
        self.bar: Any = tqdm(
            total=steps,
            initial=done,
            unit="step",
            file=sys.stderr,
            disable=quiet,
            dynamic_ncols=True,
            mininterval=0.5,
            smoothing=0.05,
        )

    def step(self, loss: float, rate: float, figures: Mapping[str, str]) -> None:
        """Advance by one step; `rate` in images per second, `figures` are shown as they are."""
        if not self.bar.disable:
            self.bar.set_postfix({"loss": f"{loss:.3f}", "images/s": f"{rate:.0f}", **figures}, refresh=False)
        self.bar.update(1)

    def tell(self, sentence: str) -> None:
        """A line above the bar, on stderr; also where the bar itself is off, since it is a warning."""
        tqdm.write(sentence, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def _text(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.8g}"


def _board(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # an optional extra, and slow to import

    return SummaryWriter(str(folder / "tensorboard"))
