"""docs/selfsup.md: every method that learns without labels under one protocol on the embedded pictures, over several seeds.

Every method trains by its own small recipe on the pictures without their labels; then the 20 nearest training pictures of its frozen
vectors vote on the test pictures. Beside it: raw pixels, and the same backbone with random weights. Runs live in
runs/selfsup/<method>-<data>-<seed>; finished ones are kept, interrupted ones resumed. `--only moco`, `--budget 20` (minutes), `--render`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import opticus
from opticus import zoo
from opticus.data.open import open_data
from opticus.metrics.passport import Passport, compare
from opticus.recipes.budgeted import fresh, run_until, seconds_of, steps_of
from opticus.recipes.choose import default
from opticus.structures import Part
from opticus.training.recipe import to_json
from opticus.verbs.embedding import neighbour_accuracy, pixel_accuracy
from opticus.verbs.evaluate import Evaluation
from opticus.verbs.models import Model, load
from opticus.verbs.report import keep_passport

ROOT = Path(__file__).resolve().parents[1]
RUNS, DOCS = ROOT / "runs" / "selfsup", ROOT / "docs"
DATA = ("textures", "crops")
SEEDS = {"dino/tiny": 3, "mae/tiny": 3, "simclr/tiny": 3}  # of the others one
Found = dict[str, Any]


def methods() -> list[str]:
    """Every paper of the task "embed" that has a small variant."""
    return [f"{stem}/tiny" for stem in zoo.paper_files() if zoo.paper(stem).TASK == "embed" and "tiny" in zoo.paper(stem).VARIANTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="methods whose name contains this word (may be repeated)")
    parser.add_argument("--data", action="append", choices=DATA, help="only on this data")
    parser.add_argument("--seeds", type=int, default=max(SEEDS.values()), help="at most so many seeds")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes of training in all")
    parser.add_argument("--render", action="store_true", help="write the page from the stored figures and train nothing")
    words = parser.parse_args()
    stop, file = time.monotonic() + words.budget * 60, DOCS / "selfsup.json"
    known: Found = json.loads(file.read_text("utf-8")) if file.is_file() else {"rows": {}}
    for data in words.data or DATA if not words.render else ():
        for name in methods():
            if words.only and not any(word in name for word in words.only):
                continue
            for seed in range(min(SEEDS.get(name, 1), words.seeds)):
                found = measured(name, data, seed, stop)
                if found is not None:
                    known["rows"][f"{name} {data} {seed}"] = found
                    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (DOCS / "selfsup.md").write_text(page(known["rows"]), encoding="utf-8")


def measured(name: str, data: str, seed: int, stop: float) -> Found | None:
    """Train what is missing and compare it with its baselines; None if the budget ended before anything was learned."""
    folder = RUNS / f"{name.replace('/', '-')}-{data}-{seed}"
    learned = open_data(data, "train")
    recipe = default(name, learned)
    done = steps_of(folder) or 0
    if not (done >= (recipe.steps or 0) and fresh(folder)):
        if time.monotonic() >= stop:
            return None
        print(
            f"{name} on {data}, seed {seed}: {'from the start' if done == 0 else f'from step {done}'}, of {recipe.steps}",
            file=sys.stderr,
        )
        run_until(stop, name, data, folder, replace(recipe, seed=seed, model=name, data=data), open_data(data, "test"))
    if not fresh(folder):
        return None
    model = load(folder, quiet=True)
    part = named_part(model)
    rivals = {"raw pixels": pixels(data), "random weights": random_weights(name, part, data)}
    value = Passport.read(folder).numbers["top1"].value
    beside: Found = {}
    for title, where in rivals.items():
        lead = next(d for d in compare(where, folder) if d.name == "top1")
        beside[title] = {
            "top1": round(lead.a, 4),
            "difference": round(lead.difference, 4),
            "interval": [round(lead.low, 4), round(lead.high, 4)],
        }
    return {"method": name, "data": data, "seed": seed, "top1": round(value, 4), "beside": beside, "steps": steps_of(folder),
            "planned": recipe.steps, "seconds": round(seconds_of(folder)), "backbone": part,
            "parameters": sum(p.numel() for p in model.parameters()), "recipe": to_json(recipe)["options"]}  # fmt: skip


def named_part(model: Model) -> str:
    """What the method trained."""
    part: Any = getattr(model.config, "backbone", None)
    return part.name if isinstance(part, Part) else model.card.name


def pixels(data: str) -> Path:
    return baseline(f"pixels-{data}", data, lambda: pixel_accuracy(open_data(data, "train"), open_data(data, "test"), "test"))


def random_weights(name: str, part: str, data: str) -> Path:
    """The vectors of the method's network before it has learned anything."""

    def score() -> Evaluation:
        torch.manual_seed(0)
        fresh_one = opticus.create(name, **dict(default(name, open_data(data, "train")).changes)).eval()
        return neighbour_accuracy(fresh_one, open_data(data, "train"), open_data(data, "test"), "test", cache=False, quiet=True)

    return baseline(f"random-{part.replace('/', '-')}-{data}", data, score)


def baseline(title: str, data: str, score: Callable[[], Evaluation]) -> Path:
    """The folder of a passport that is made once for each version of the data."""
    folder = RUNS / "baselines" / title
    if (folder / "passport.json").is_file():
        found = next(iter(Passport.read(folder).numbers.values()))
        if found.protocol.get("data") == open_data(data, "test").hash:
            return folder
    keep_passport(folder, score())
    return folder


# --- the page --------------------------------------------------------------------------------------------------------------


def page(rows: dict[str, Found]) -> str:
    """docs/selfsup.md."""
    lines = [
        "# Learning without labels", "",
        "Generated by `python tools/make_selfsup.py` from `docs/selfsup.json`; not edited by hand. Every method trains by its own small recipe",
        "(`src/opticus/recipes`) on pictures of 32 pixels without their labels; then the 20 nearest training",
        "pictures of its frozen vectors vote on the test pictures (cosine, temperature 0.07), as on raw pixels and on the vectors of the same",
        "network with random weights. *Above* means that the 95 % interval of the difference (paired bootstrap over pictures) excludes zero in",
        "every seed. These are test beds, not benchmarks.",
    ]  # fmt: skip
    for data in DATA:
        chosen = [row for row in rows.values() if row["data"] == data]
        if not chosen:
            continue
        lines += ["", f"## {data}", "", "| method | backbone | 20-NN top-1 (seeds) | raw pixels | random weights | above both | steps | seconds |",
                  "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        groups = {name: [row for row in chosen if row["method"] == name] for name in dict.fromkeys(row["method"] for row in chosen)}
        for name, group in sorted(groups.items(), key=lambda pair: -mean(pair[1])):
            beside = group[0]["beside"]
            above = all(one["interval"][0] > 0 for row in group for one in row["beside"].values())
            values = ", ".join(f"{row['top1']:.3f}" for row in group)
            stopped = "" if all(row["steps"] >= row["planned"] for row in group) else f" of {group[0]['planned']}"
            lines.append(
                f"| {name} | {group[0]['backbone']} | {mean(group):.3f} ({values}) | {beside['raw pixels']['top1']:.3f} | "
                f"{beside['random weights']['top1']:.3f} | {'yes' if above else 'no'} | {group[0]['steps']}{stopped} | "
                f"{statistics.mean(row['seconds'] for row in group):.0f} |"
            )
    lines += ["", f"Measured with torch {torch.__version__} while other work ran beside it: seconds are upper bounds."]
    return "\n".join(lines) + "\n"


def mean(group: list[Found]) -> float:
    return statistics.mean(row["top1"] for row in group)


if __name__ == "__main__":
    main()
