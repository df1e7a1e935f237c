"""make bench: every measurement in one go, printed as tables and written to docs/benchmarks.md.

`python bench/run.py [models] [detectors] [selfsup] [generative] [translate] [adversarial] [diffusion] [ops] [loader] [augment]` runs
only the named parts and leaves docs/benchmarks.md alone.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
PAGE = BENCH.parent / "docs" / "benchmarks.md"
LIBRARIES = ("torch", "timm", "transformers", "diffusers", "torchvision", "pycocotools", "numpy", "Pillow", "opticus")
Row = dict[str, Any]

HEAD = """# Benchmarks

Written by `make bench`; do not edit. Measured {date} at commit {commit}, load average before the run {load}.

{machine}

Versions: {versions}.

Protocol: both sides in one process with the same input and, for networks, the same weights (their outputs are compared first); the
contenders take turns, one untimed call and then {rounds} rounds each, of which the median counts. Times are milliseconds of {clock}; `ratio`
is peer / opticus, so above 1 opticus is faster. Networks run on {threads}, in eval and inference mode except for the training
steps. The peer runs at its default: eager float32, contiguous memory, transformers with SDPA attention. `error` is the
largest difference of the optimised outputs from the plain ones, relative to the largest output, on the example of `optimize()`.
"""


def table(columns: dict[str, str], rows: list[Row]) -> str:
    """A Markdown table; numbers are right-aligned, a column without a value in any row is left out."""
    used = {key: title for key, title in columns.items() if any(row.get(key) is not None for row in rows)}
    cells = [list(used.values()), *([_cell(row.get(key)) for key in used] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(used))]
    right = [any(isinstance(row.get(key), int | float) for row in rows) for key in used]

    def line(values: list[str]) -> str:
        return "| " + " | ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0e}" if 0 < abs(value) < 0.01 else f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)


TIMES = {"name": "what", "ours_ms": "opticus, ms", "peer_ms": "peer, ms", "peer": "peer", "ratio": "ratio", "error": "error"}
RATES = {"what": "what", "library": "library", "value": "rate", "unit": "unit", "ratio": "ratio to torchvision v2"}
PARTS: dict[str, tuple[str, dict[str, str]]] = {
    "models": ("Networks", TIMES),
    "detectors": ("Detectors", TIMES),
    "selfsup": ("Learning without labels", TIMES),
    "generative": ("Autoencoders", TIMES),
    "translate": ("Pictures answered by pictures", TIMES),
    "adversarial": ("Adversarial training", TIMES),
    "diffusion": ("Diffusion", TIMES),
    "ops": ("Operations", TIMES),
    "loader": ("Loader", RATES),
    "augment": ("Augmentation", RATES),
}


def measure(part: str) -> list[Row]:
    """The rows of one part (bench/<part>.py); its progress goes to stderr."""
    print(f"bench: {part}", file=sys.stderr, flush=True)
    run: Callable[..., list[Row]] = import_module(part).run
    if PARTS[part][1] is TIMES and part != "ops":
        return run(
            show=lambda row: print(f"  {row['name']}: {row['ours_ms']} ms, ratio {row['ratio']}", file=sys.stderr, flush=True)
        )
    return run()


def head() -> str:
    models = import_module("models")
    return HEAD.format(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=_first_line(["git", "-C", str(BENCH), "describe", "--always", "--dirty"]) or "unknown",
        load=f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        machine=f"Machine: {_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}.",
        versions=", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
        rounds=models.ROUNDS,
        threads="one thread" if models.THREADS == 1 else f"{models.THREADS} threads",
        clock="wall clock"
        if models.THREADS > 1
        else "wall clock (networks: of the thread's processor time, since the machine was shared)",
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    """Family and vector units, from the kernel where it tells them."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor() or "unknown processor"
    facts = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in facts.get("flags", "").split()]
    return f"{facts.get('model name', 'unknown processor')} (family {facts.get('cpu family')}, model {facts.get('model')}; {', '.join(units)})"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


def main(words: list[str]) -> None:
    sys.path.insert(0, str(BENCH))
    unknown = [word for word in words if word not in PARTS]
    if unknown:
        raise SystemExit(f"bench: expected some of {', '.join(PARTS)}, found {unknown[0]!r}")
    import_module("models").allow_torchvision()  # once and first: ops and loader import the same shim under two names
    top = head()
    sections: list[str] = []
    for part in words or PARTS:
        title, columns = PARTS[part]
        sections.append(f"## {title}\n\n{table(columns, measure(part))}\n")
        print(f"\n{sections[-1]}", flush=True)
    if not words:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text("\n".join([top, *sections]))
        print(f"written: {PAGE.relative_to(BENCH.parent)}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
