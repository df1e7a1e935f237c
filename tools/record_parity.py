"""Record a paper's reference into src/opticus/parity/<paper>.json, or compare it at full size with the port.

    python tools/record_parity.py tools/references/resnet.py            record
    python tools/record_parity.py tools/references/resnet.py --check    record again, compare with the file, write nothing
    python tools/record_parity.py tools/references/resnet.py --full     full-size, formula-filled variants against the port

The adapter's protocol is described in tools/references/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from opticus import zoo
from opticus.parity.case import build_and_run
from opticus.parity.compare import difference, summarise
from opticus.parity.manifests import fold, manifest_entry, pack, unfold

FOLDER = Path(__file__).resolve().parents[1] / "src" / "opticus" / "parity"
LIMIT = 80_000
KINDS = ("package", "repository", "transcription")
FULL_TOLERANCE = 1e-4


def load_adapter(path: Path) -> ModuleType:
    """Import an adapter file; its own folder is importable meanwhile (shims, neighbours)."""
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record_case(case: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of one tiny case."""
    for name, tensor in case["outputs"].items():
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            raise SystemExit(f"{case['name']}: the output {name!r} is {tensor.dtype}; run the reference in float64")
        if not bool(torch.isfinite(tensor.double()).all()):
            raise SystemExit(f"{case['name']}: the output {name!r} is not finite")
    kept = {key: value for key, value in case.items() if key not in ("outputs", "state")}
    return {**kept, "state": fold(case["state"]), "expected": {n: summarise(t) for n, t in case["outputs"].items()}}


def record_manifest(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Count, hash and folded keys of one published layout."""
    shapes = {key: tuple(int(n) for n in shape) for key, shape in shapes.items()}
    entry = manifest_entry(shapes)
    if unfold(entry["keys"]) != shapes:
        raise SystemExit("a manifest does not survive folding")
    return entry


def record(adapter: ModuleType) -> dict[str, Any]:
    """The whole parity record of an adapter."""
    reference = adapter.reference()
    if reference.get("kind") not in KINDS or not {"repository", "license"} <= reference.keys():
        raise SystemExit(f"reference() needs repository, license and a kind out of {KINDS}, found {reference}")
    cases = adapter.tiny()
    extends = {"extends": adapter.EXTENDS} if hasattr(adapter, "EXTENDS") else {}
    return {
        "paper": adapter.PAPER,
        **extends,
        "reference": reference,
        "tiny": [record_case(case) for case in ([cases] if isinstance(cases, dict) else cases)],
        "manifests": {
            form: {variant: record_manifest(shapes) for variant, shapes in variants.items()}
            for form, variants in adapter.manifests().items()
        },
        "parameters": adapter.parameters(),
    }


def encode(value: Any, indent: int = 0) -> str:
    """JSON in sorted order with one line per small branch, so that a changed number is one changed line; a folded tree is one line."""
    flat = json.dumps(value, sort_keys=True, separators=(",", ":"))
    if not isinstance(value, dict) or len(flat) < 100 or "" in value:
        return flat
    inner = ",\n".join(f"{' ' * (indent + 1)}{json.dumps(key)}:{encode(value[key], indent + 1)}" for key in sorted(value))
    return "{\n" + inner + "\n" + " " * indent + "}"


def compare_full(adapter: ModuleType) -> int:
    """Compare every full-size case of an adapter with the port; the number of failures."""
    failures = 0
    for case in adapter.full():
        expected = {name: summarise(tensor) for name, tensor in case["outputs"].items()}
        found = build_and_run({**case, "expected": expected}, adapter.PAPER, zoo, torch.float32)
        for name, summary in expected.items():
            error = difference(summary, found[name]) if name in found else float("inf")
            limit = case.get("tolerance", {}).get(name, FULL_TOLERANCE)
            verdict = "ok" if error <= limit else "FAIL"
            failures += error > limit
            print(f"{verdict:4} {adapter.PAPER} {case['name']:24} {name:20} relative difference {error:.2e} (limit {limit:.0e})")
    return failures


def main() -> int:
    """Run the command line; 0 if all is well, 1 on a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true", help="compare with the recorded file instead of writing it")
    parser.add_argument("--full", action="store_true", help="compare full-size variants with the port")
    options = parser.parse_args()
    failures = 0
    for path in options.adapter:
        adapter = load_adapter(path)
        if options.full:
            failures += compare_full(adapter) if hasattr(adapter, "full") else 0
            continue
        found = record(adapter)
        text = encode(found) + "\n"
        if len(text.encode()) > LIMIT:  # a family with many variants
            text = encode(pack(found)) + "\n"
        target = FOLDER / f"{adapter.PAPER}.json"
        if len(text.encode()) > LIMIT:
            raise SystemExit(
                f"{target.name} would have {len(text.encode())} bytes, more than {LIMIT}: record fewer or smaller cases"
            )
        if options.check:
            failures += check(target, text)
        else:
            target.write_text(text, "utf-8")
            print(f"{target}: {len(text.encode())} bytes, {text.count(chr(10))} lines")
    return 1 if failures else 0


def check(target: Path, text: str) -> int:
    """1 if the record differs from what the reference gives now by more than rounding."""
    old, new = (json.loads(t) for t in (target.read_text("utf-8"), text))
    same = {k: v for k, v in old.items() if k != "tiny"} == {k: v for k, v in new.items() if k != "tiny"}
    worst = worst_difference(old["tiny"], new["tiny"])
    print(f"{target.name}: facts and manifests {'equal' if same else 'DIFFER'}, tiny cases differ by at most {worst:.1e}")
    return 0 if same and worst <= 1e-9 else 1


def worst_difference(old: Any, new: Any) -> float:
    """The largest relative difference between the numbers of two JSON values; infinite where anything else differs."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return max((worst_difference(old[key], new[key]) for key in old), default=0.0)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return max((worst_difference(a, b) for a, b in zip(old, new)), default=0.0)
    if isinstance(old, float) and isinstance(new, int | float):
        return abs(old - new) / max(abs(old), 1.0)
    return 0.0 if old == new else float("inf")


if __name__ == "__main__":
    sys.exit(main())
