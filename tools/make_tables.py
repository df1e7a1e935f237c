"""Every table of the docs: trains what is not trained yet, scores it beside its baselines, writes docs/tables.json and docs/tables.md.

Runs live in runs/tables/<name>. A finished one is not repeated, an interrupted one is resumed, one whose recipe has changed since is
moved aside and made anew. `--only lenet` takes rows whose name contains a word, `--budget 20` stops training after so many minutes
(what is reached by then is scored and marked), `--render` only writes docs/tables.md from docs/tables.json.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from opticus.data.open import open_data
from opticus.metrics.passport import Passport, compare
from opticus.recipes.budgeted import fresh, run_until, seconds_of, steps_of
from opticus.recipes.choose import default
from opticus.recipes.compare_models import BASELINES, FIGURE, INCIDENTAL, SHOWN, slug
from opticus.recipes.compare_models import baseline as fitted
from opticus.training.recipe import Recipe, to_json
from opticus.training.state import load_state
from opticus.verbs.models import load
from opticus.weights.save import read_meta

ROOT = Path(__file__).resolve().parents[1]
RUNS, TABLE, PAGE = ROOT / "runs" / "tables", ROOT / "docs" / "tables.json", ROOT / "docs" / "tables.md"
SHARE = 0.3  # of what the baseline leaves to the ceiling


@dataclass(frozen=True)
class Row:
    """One system on one data set."""

    model: str
    data: str

    @property
    def name(self) -> str:
        return f"{self.model}-{self.data}".replace("/", "-")


ROWS = (
    Row("lenet/5", "digits"),
    Row("linear/softmax", "digits"),
    Row("mlp/tiny", "digits"),
    Row("alexnet/tiny", "crops"),
    Row("vgg/tiny", "crops"),
    Row("googlenet/tiny", "crops"),
    Row("resnet/tiny", "crops"),
    Row("resnet/tiny", "textures"),
    Row("senet/tiny", "crops"),
    Row("sknet/tiny", "crops"),
    Row("bit/tiny", "crops"),
    Row("efficientnet/tiny", "crops"),
    Row("convnext/tiny", "crops"),
    Row("vit/tiny", "digits"),
    Row("vit/tiny", "crops"),
    Row("deit/tiny", "digits"),
    Row("swin/tiny", "digits"),
    Row("mixer/tiny", "crops"),
    Row("ffonly/tiny", "crops"),
    Row("gmlp/tiny", "crops"),
    Row("convmixer/tiny", "crops"),
    Row("hourglass/tiny", "crops"),
    Row("dla/tiny", "crops"),
    Row("centernet/tiny", "scenes"),
    Row("extremenet/tiny", "scenes"),
    Row("detr/tiny", "scenes"),
    Row("retinanet/tiny", "scenes"),
    Row("fcos/tiny", "scenes"),
    Row("ssd/tiny", "scenes"),
    Row("rcnn/tiny", "scenes"),
    Row("sppnet/tiny", "scenes"),
    Row("fast_rcnn/tiny", "scenes"),
    Row("efficientdet/tiny", "scenes"),
    Row("faster_rcnn/tiny", "scenes"),
    Row("yolov1/tiny", "scenes"),
    Row("yolov2/tiny", "scenes"),
    Row("yolov3/tiny", "scenes"),
    Row("cornernet/tiny", "scenes"),
    Row("yolov4/tiny", "scenes"),
    Row("yolov5/tiny", "scenes"),
    Row("yolov8/tiny", "scenes"),
    Row("rfcn/tiny", "scenes"),
    Row("cascade_rcnn/tiny", "scenes"),
    Row("panet/tiny", "scenes"),
    Row("tridentnet/tiny", "scenes"),
    Row("faster_rcnn_c4/tiny", "scenes"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="rows whose name contains this word (may be repeated)")
    parser.add_argument("--skip", action="append", default=[], help="rows whose name contains this word are left as they are")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes of training in all")
    parser.add_argument("--render", action="store_true", help="write the page from the stored figures and train nothing")
    words = parser.parse_args()
    stop = time.monotonic() + words.budget * 60
    wanted = [row for row in ROWS if not words.only or any(word in row.name for word in words.only)]
    wanted = [row for row in wanted if not any(word in row.name for word in words.skip)]
    if not wanted:
        sys.exit(f"no row's name contains {words.only}; there are {', '.join(row.name for row in ROWS)}")
    for row in wanted if not words.render else ():
        folder = trained(row, stop)
        if folder is None:
            print(f"{row.name}: not trained, the budget is spent", file=sys.stderr)
            continue
        keep(scored(row, folder))
    PAGE.write_text(page(stored()), encoding="utf-8")
    print(f"{TABLE.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}", file=sys.stderr)


# --- training -------------------------------------------------------------------------------------------------------------


def trained(row: Row, stop: float) -> Path | None:
    """The run folder of `row`, trained as far as the budget allows; None if nothing is there."""
    folder, recipe = RUNS / row.name, recipe_of(row)
    if (folder / "args.json").is_file() and (unlike(folder, recipe) or trained_on(folder) not in (None, recipe_data(row))):
        aside = next(path for n in itertools.count(1) if not (path := folder.with_name(f"{row.name}.{n}")).exists())
        print(f"{row.name}: the recipe or its data has changed, the earlier run is now {aside.name}", file=sys.stderr)
        folder.rename(aside)
    done = steps_of(folder)
    if done is not None and done >= (recipe.steps or 0) and fresh(folder):
        return folder
    if time.monotonic() >= stop:
        return folder if fresh(folder) else None
    print(f"{row.name}: {'from the start' if done is None else f'from step {done}'}, of {recipe.steps}", file=sys.stderr)
    run_until(stop, row.model, row.data, folder, default(row.model, open_data(row.data, "train")), open_data(row.data, "test"))
    return folder if fresh(folder) else None


def recipe_of(row: Row) -> Recipe:
    return replace(default(row.model, open_data(row.data, "train")), model=row.model, data=row.data)


def unlike(folder: Path, recipe: Recipe) -> bool:
    """Whether the run in `folder` was made by another recipe."""
    then, now = json.loads((folder / "args.json").read_text())["recipe"], json.loads(json.dumps(to_json(recipe)))
    return any(then[key] != now[key] for key in then.keys() & now.keys() - INCIDENTAL)


def trained_on(folder: Path) -> str | None:
    """The hash of the data that the run in `folder` learned from, None if it has no weights yet."""
    file = folder / "weights" / "last.safetensors"
    return read_meta(file)["provenance"]["trained_on"] if file.is_file() else None


def recipe_data(row: Row) -> str:
    return open_data(row.data, "train").hash


# --- scoring --------------------------------------------------------------------------------------------------------------


def scored(row: Row, folder: Path) -> dict[str, Any]:
    """The row's figures beside its baselines'; the stored row itself if nothing has changed since it was made."""
    data = open_data(row.data, "test")
    rivals = {name: baseline(row.data, name, make) for name, make in BASELINES[data.task].items()}
    digest = hashlib.sha256(b"".join((f / "passport.json").read_bytes() for f in (folder, *rivals.values()))).hexdigest()[:16]
    earlier = next((old for old in stored() if old["name"] == row.name), None)
    if earlier is not None and earlier["digest"] == digest:
        return earlier
    figure, passport, recipe = FIGURE[data.task], Passport.read(folder), recipe_of(row)
    value, steps = passport.numbers[figure].value, steps_of(folder) or 0
    beside: list[dict[str, Any]] = []
    for name, where in rivals.items():
        lead = next(d for d in compare(where, folder) if d.name == figure)
        closed = (value - lead.a) / (1 - lead.a) if lead.a < 1 else 0.0
        beside.append({
            "name": name,
            "values": shown(Passport.read(where), data.task),
            "difference": round(lead.difference, 4),
            "interval": [round(lead.low, 4), round(lead.high, 4)],
            "closed": round(closed, 4),
            "clear": bool(lead.low > 0 and closed >= SHARE),
        })  # fmt: skip
    return {
        "name": row.name, "model": row.model, "data": row.data, "figure": figure, "values": shown(passport, data.task),
        "baselines": beside,
        "clear": all(one["clear"] for one in beside) and steps >= (recipe.steps or 0),
        "parameters": sum(p.numel() for p in load(folder, quiet=True).parameters()),
        "steps": steps, "planned": recipe.steps, "batch": recipe.batch, "seconds": round(seconds_of(folder)),
        "threads": load_state(folder)["environment"].get("threads"), "torch": torch.__version__, "machine": machine(),
        "commit": commit(), "date": datetime.date.today().isoformat(), "protocol": dict(passport.numbers[figure].protocol),
        "recipe": to_json(recipe), "digest": digest,
    }  # fmt: skip


def shown(passport: Passport, task: str) -> dict[str, float]:
    numbers = passport.numbers
    return {name: round(numbers[name].value, 4) for name in SHOWN[task] if name in numbers and numbers[name].value >= 0}


def baseline(data: str, name: str, make: Callable[[], Any]) -> Path:
    """The folder with the passport of a baseline fitted on the training split."""
    folder = RUNS / "baselines" / f"{data}-{slug(name)}"
    fitted(name, make, open_data(data, "train"), open_data(data, "test"), folder, False)
    return folder


def commit() -> str:
    """The commit that made a row, with "+" if the sources had been changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", "src") else "")


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores"


# --- the stored figures and the page ----------------------------------------------------------------------------------------


def stored() -> list[dict[str, Any]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))["rows"] if TABLE.is_file() else []


def keep(row: dict[str, Any]) -> None:
    """Put `row` in its place in docs/tables.json."""
    rows = {old["name"]: old for old in stored()} | {row["name"]: row}
    order = [r.name for r in ROWS]
    chosen = [rows[name] for name in order if name in rows]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    part = TABLE.with_suffix(".part")
    part.write_text(json.dumps({"share": SHARE, "rows": chosen}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(TABLE)


def page(rows: list[dict[str, Any]]) -> str:
    """docs/tables.md."""
    lines = [
        "# What trains on embedded data", "",
        "Generated by `make tables` from `docs/tables.json`; not edited by hand. Every system is trained by its own recipe in",
        "`src/opticus/recipes` on data that ships inside the package's dependencies and scored on the held-out test split, beside",
        "baselines that are fitted on the same training split. A row is *clear* if, against **every** baseline named here, the 95 %",
        f"interval of the difference (paired bootstrap over samples) excludes zero and at least {SHARE:.0%} of what the baseline leaves",
        "to the ceiling (1) is closed. These are test beds, not benchmarks.", "",
        "| system | data | figure | value | strongest baseline | difference (95 % interval) | gap closed | clear |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        best = max(row["baselines"], key=lambda one: one["values"][row["figure"]])
        lines.append(
            f"| {row['model']} | {row['data']} | {row['figure']} | {row['values'][row['figure']]:.3f} | "
            f"{best['name']} {best['values'][row['figure']]:.3f} | {best['difference']:+.3f} {span(best['interval'])} | "
            f"{best['closed']:.0%} | {verdict(row)} |"
        )
    for row in rows:
        names = list(row["values"])
        lines += [
            "",
            f"## {row['model']} on {row['data']}",
            "",
            f"| system | {' | '.join(names)} | its gap closed by {row['model']} | clear |",
        ]
        lines += ["|---" * (len(names) + 3) + "|", line(row["model"], row["values"], names, "", "")]
        for one in row["baselines"]:
            lines.append(line(one["name"], one["values"], names, f"{one['closed']:.0%}", "yes" if one["clear"] else "no"))
        protocol = row["protocol"]
        count = protocol.get("samples", protocol.get("images"))
        lines += [
            "",
            f"{row['parameters']:,} parameters; {row['steps']:,} of {row['planned']:,} steps of batch {row['batch']}; {row['seconds']:,} s "
            f"of training ({row['threads']} thread(s), {row['machine']}, torch {row['torch']}, other work running beside it); "
            f"{protocol['metric']} on the {count} pictures of the {protocol['split']} split (data {protocol['data'][:12]}); "
            f'commit {row["commit"]}, {row["date"]}. Again: `make tables ARGS="--only {row["name"]}"`.',
        ]
    return "\n".join(lines) + "\n"


def verdict(row: dict[str, Any]) -> str:
    if row["clear"]:
        return "yes"
    return "no" if row["steps"] >= row["planned"] else f"no, stopped at {row['steps']} of {row['planned']} steps"


def span(values: list[float]) -> str:
    return f"({values[0]:+.3f} to {values[1]:+.3f})"


def line(name: str, values: dict[str, float], names: list[str], *more: str) -> str:
    return f"| {name} | " + " | ".join([f"{values[n]:.3f}" if n in values else "" for n in names] + list(more)) + " |"


if __name__ == "__main__":
    main()
