"""docs/generative.md: every small generative system under one protocol for its task, beside fitted baselines.

Drawing: 1 x 16 x 16 pictures of `digits`; drawn pictures and the test pictures are compared in the features of a digit classifier that is
trained first. Restoring: what comes back from an autoencoder's code, beside PCA with as many numbers. Translating: pictures answered
by pictures, beside what needs no network. Runs live in runs/generative/<system>; finished ones are kept, interrupted ones resumed.
`--only dcgan`, `--budget 20` (minutes), `--render`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import opticus
from opticus import zoo
from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.losses.pictures import pictures
from opticus.metrics.passport import Passport, compare
from opticus.metrics.pictures import Restoration
from opticus.metrics.samples import class_figures, distances, frechet
from opticus.plot.panels import Panel, panels
from opticus.plot.sheet import sheet
from opticus.recipes.budgeted import fresh, run_until, seconds_of, steps_of
from opticus.recipes.choose import default
from opticus.structures import Density, Picture, Prepare, Sample
from opticus.transforms.pixels import resize
from opticus.transforms.prepare import place, prepare
from opticus.verbs.evaluate import evaluate
from opticus.verbs.evaluate_pictures import Features, bits, features_of
from opticus.verbs.models import Model, load
from opticus.verbs.report import keep_passport

ROOT = Path(__file__).resolve().parents[1]
RUNS, DOCS = ROOT / "runs" / "generative", ROOT / "docs"
SAMPLES, SHOWN, DRAWS = 1000, 16, 200
MORE = (("cyclegan/tiny", "sketches"),)  # further data of a translator; what it learns from is not paired for it either
UNPAIRED = ("cyclegan",)  # they see no pairs, so their rivals see none
FRAME = Prepare(channels=1, resize="fixed", size=(16, 16), mean=(0.5,), std=(0.5,))
Found = dict[str, Any]
Rows = npt.NDArray[np.float64]


def systems(task: str) -> list[str]:
    """Every paper of a task that has a small variant; of those that draw, what draws in the common frame."""
    names = [f"{stem}/tiny" for stem in zoo.paper_files() if task == zoo.paper(stem).TASK and "tiny" in zoo.paper(stem).VARIANTS]
    if task != "generate":
        return names
    return [name for name in names if cast(Prepare, zoo.create(name).prepare).size == FRAME.size]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", action="append", default=[], help="systems whose name contains this word, or =NAME (may be repeated)"
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes of training in all")
    parser.add_argument("--render", action="store_true", help="write the page from the stored figures and train nothing")
    words = parser.parse_args()
    stop, file = time.monotonic() + words.budget * 60, DOCS / "generative.json"
    measures: dict[str, Callable[[str, Path], Found]] = {"generate": draws, "reconstruct": restores, "translate": translates}
    asked = [(task, name, None) for task in measures for name in systems(task)] + [("translate", name, data) for name, data in MORE]
    for task, name, other in asked if not words.render else ():
        if words.only and not any(word in name or word == f"={name}" for word in words.only):
            continue
        folder, measure = trained(name, stop, other), measures[task]
        if folder is not None:
            row = {**measure(name, folder), "seconds": round(seconds_of(folder))}
            known = stored(file)  # read again: another process may have written meanwhile
            known.setdefault(task, {})[name if other is None else f"{name} on {other}"] = row
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    known = stored(file)
    drawn_sheet(known.get("generate", {}))
    (DOCS / "generative.md").write_text(page(known), encoding="utf-8")


def drawn_sheet(rows: Found) -> None:
    """docs/generative.png: what every system draws for the seeds 0, best first; runs that are not here are left out."""
    names = [
        name
        for name in sorted(rows, key=lambda name: rows[name]["FID"])
        if (RUNS / name.replace("/", "-") / "samples.png").is_file()
    ]
    if not names:
        return
    lines: list[list[Panel | None]] = []
    for name in names:
        image = np.asarray(Image.open(RUNS / name.replace("/", "-") / "samples.png"))
        side = (image.shape[0] - 2) // 8  # eight pictures a row, with a gap of two
        cuts = [(row * side + 2, column * side + 2) for row in range(2) for column in range(8)]
        lines.append([Panel(image[top : top + side - 2, left : left + side - 2]) for top, left in cuts])
    panels(lines, cell=48, row_titles=names).save(DOCS / "generative.png")


def stored(file: Path) -> Found:
    """The figures so far."""
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def trained(name: str, stop: float, other: str | None = None) -> Path | None:
    """The finished run of a system by its own small recipe, on `other` data than its own; None if the budget ended before."""
    folder = RUNS / (name.replace("/", "-") if other is None else f"{name.replace('/', '-')}-{other}")
    first = default(name, open_data("sketches" if zoo.paper(zoo.split(name)[0]).TASK == "translate" else "digits", "train"))
    data = other or first.data or "digits"
    recipe = default(name, open_data(data, "train"))
    if not ((steps_of(folder) or 0) >= (recipe.steps or 0) and fresh(folder)):
        if time.monotonic() >= stop:
            return None
        print(f"{name} on {data}, of {recipe.steps} steps", file=sys.stderr)
        run_until(stop, name, data, folder, replace(recipe, model=name, data=data), open_data(data, "test"))
    return folder if fresh(folder) else None


# --- drawing ---------------------------------------------------------------------------------------------------------------


def judge() -> Model:
    """The digit classifier whose features and answers drawn pictures are compared in."""
    folder = RUNS / "judge"
    if not (folder / "weights" / "best.safetensors").is_file():
        opticus.train("lenet/5", "digits", out=folder, quiet=True)
    return load(folder, quiet=True)


def real(split: str, rule: Prepare = FRAME) -> list[Picture]:
    """The digits of a split in the common frame."""
    data = open_data("digits", split)
    return [Picture(place(data[i].picture.pixels, rule).pixels) for i in range(len(data))]


def gaussian() -> list[Picture]:
    """Pictures drawn from the normal distribution with mean and full covariance of the training pixels."""
    rows = torch.stack([p.pixels.flatten() for p in real("train")]).double().numpy() / 127.5 - 1
    drawn = np.random.default_rng(0).multivariate_normal(rows.mean(0), np.cov(rows.T), SAMPLES, method="eigh")
    return pictures(torch.from_numpy(drawn).reshape(-1, 1, *FRAME.size), FRAME)


def closeness(true: Features, seen: Features) -> Found:
    """Distances of drawn pictures to the test pictures and what the classifier says about them."""
    assert seen.probs is not None
    return {key: round(value, 4) for key, value in {**distances(true.vectors, seen.vectors), **class_figures(seen.probs)}.items()}


def draws(name: str, folder: Path) -> Found:
    """One row of the table of systems that draw."""
    network, referee = load(folder, quiet=True), judge()
    true, model = features_of(real("test"), referee, FRAME), cast(Any, network)
    start = time.perf_counter()
    labels = torch.arange(SAMPLES) % model.config.classes if getattr(model.config, "classes", 0) else None
    made = opticus.sample(network, SAMPLES, seed=0, condition=labels)
    seconds = (time.perf_counter() - start) / SAMPLES
    opticus.sample(network, 64, seed=0, condition=None if labels is None else labels[:64]).save(folder / "samples.png")
    seen = features_of(made.pictures, referee, FRAME)
    rivals = {"Gaussian": features_of(gaussian(), referee, FRAME), "training pictures": features_of(real("train"), referee, FRAME)}
    row = closeness(true, seen) | {"per picture": round(seconds, 5), "steps": steps_of(folder)}
    row["parameters"] = sum(p.numel() for p in network.parameters())
    if labels is not None and seen.probs is not None:
        row["class accuracy"] = round(float((seen.probs.argmax(1) == labels.numpy()).mean()), 4)
    if isinstance(network, Density) and not hasattr(network, "TIMES"):  # of diffusion it costs a pass for every time and picture
        row["bits/dim"] = round(bits(network, real("test"), model.prepare, None), 4)
    row["beside"] = {title: closeness(true, one) for title, one in rivals.items()}
    low, high = lead(true.vectors, seen.vectors, rivals["Gaussian"].vectors)
    base, ceiling = row["beside"]["Gaussian"]["FID"], row["beside"]["training pictures"]["FID"]
    row |= {"interval": [low, high], "closed": round((base - row["FID"]) / (base - ceiling), 3)}
    return row


def lead(true: npt.NDArray[Any], seen: npt.NDArray[Any], rival: npt.NDArray[Any]) -> tuple[float, float]:
    """95 % interval of FID(rival) - FID(system) over bootstrap draws of all three sets of pictures."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(DRAWS):
        a, b, c = (rows[rng.integers(len(rows), size=len(rows))] for rows in (true, seen, rival))
        gaps.append(frechet(a, c) - frechet(a, b))
    low, high = np.percentile(gaps, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


# --- restoring and translating ---------------------------------------------------------------------------------------------


def against(
    name: str, folder: Path, rivals: dict[str, list[Picture]], right: list[Picture], ids: list[str], like: Restoration
) -> Found:
    """PSNR and SSIM of a finished run beside those of rivals' answers to the same pictures, with intervals of the difference."""
    passport = Passport.read(folder)
    found: Found = {key: round(passport.numbers[key].value, 4) for key in ("PSNR", "SSIM", "MAE")}
    found |= {"beside": {}, "name": name}
    for title, answers in rivals.items():
        metric = Restoration(channel=like.channel, border=like.border, frame=like.frame, data=like.data, split=like.split)
        for id, answer, target in zip(ids, answers, right):
            metric.update(answer, target, id)
        where = folder / "baselines" / title.replace(" ", "-")
        where.mkdir(parents=True, exist_ok=True)
        Passport.of(metric, {**metric.protocol, "limit": None}).write(where)
        gap = next(d for d in compare(where, folder) if d.name == "PSNR")
        found["beside"][title] = {key: round(value, 4) for key, value in metric.compute().items()} | {
            "difference": round(gap.difference, 3), "interval": [round(gap.low, 3), round(gap.high, 3)]}  # fmt: skip
    return found


def restores(name: str, folder: Path) -> Found:
    """One row of the table of autoencoders: PCA with as many numbers as the code has is the rival."""
    from sklearn.decomposition import PCA

    network, data = load(folder, quiet=True), open_data("digits", "test")
    rule = cast(Prepare, network.prepare)
    with torch.no_grad():
        code = cast(Any, network).encode(prepare([data[0].picture], rule).pixels)[0].numel()
    done = evaluate(network, "digits", quiet=True)
    scorer = cast(Restoration, done.metric)
    train, test = (
        np.stack([p.pixels.numpy().ravel() for p in real(split, rule)]).astype(np.float64) for split in ("train", "test")
    )
    if hasattr(network, "codes"):  # discrete ones: PCA gets as many bits
        with torch.no_grad():
            places = cast(Any, network).codes(prepare([data[0].picture], rule).pixels)[0].numel()
        bits_ = round(places * math.log2(network.config.codes))
        title, back = f"PCA, {bits_} bits", quantised(train, test, bits_)
        code = f"{places} x {network.config.codes} codes"
    else:
        fitted = PCA(min(code, min(train.shape) - 1), random_state=0).fit(train)
        title, back = f"PCA, {code} numbers", cast(Any, fitted).inverse_transform(fitted.transform(test))
    answers = [as_picture(row, rule.size, rule.channels) for row in back]
    ids = [data.id_of(i) for i in range(len(data))]
    found = against(name, folder, {title: answers}, real("test", rule), ids, scorer)
    gallery([real("test", rule)[:SHOWN], list(done.results.values())[:SHOWN] or answers[:SHOWN]], folder / "sheet.png")
    return found | {"code": code, "steps": steps_of(folder), "parameters": sum(p.numel() for p in network.parameters())}


def quantised(train: Rows, test: Rows, bits_: int) -> Rows:
    """Test pictures through PCA whose numbers are rounded to so many bits in all, each to as many; how many is chosen on train."""
    from sklearn.decomposition import PCA

    best: tuple[float, Rows] = (math.inf, test)
    for each in range(2, 9):
        if not 1 <= bits_ // each < min(train.shape):
            continue
        fitted: Any = PCA(bits_ // each, random_state=0).fit(train)
        low, high = np.percentile(fitted.transform(train), [0.5, 99.5], axis=0)
        step = (high - low) / 2**each

        def through(rows: Rows, fitted: Any = fitted, low: Rows = low, step: Rows = step, each: int = each) -> Rows:
            places = np.clip(np.floor((fitted.transform(rows) - low) / step), 0, 2**each - 1)
            return fitted.inverse_transform(low + (places + 0.5) * step)

        error = float(np.square(through(train) - train).mean())
        if error < best[0]:
            best = (error, through(test))
    return best[1]


def as_picture(row: npt.NDArray[Any], size: tuple[int, int], channels: int) -> Picture:
    values = np.clip(np.rint(row), 0, 255).astype(np.uint8)
    return Picture(torch.from_numpy(values.reshape(*size, channels)))


def translates(name: str, folder: Path) -> Found:
    """One row of the table of translators; which rivals there are depends on what the data is."""
    word = json.loads((folder / "args.json").read_text("utf-8"))["data"]
    train, test = open_data(word, "train"), open_data(word, "test")
    network = load(folder, quiet=True)
    if not isinstance(test.target_of(0), Picture):  # a system with a protocol of its own
        return {
            "values": {k: round(n.value, 4) for k, n in Passport.read(folder).numbers.items()},
            "steps": steps_of(folder),
            "data": word,
        }
    larger = getattr(network, "scale", 1) > 1  # super-resolution is compared on luma, without a border
    done = evaluate(network, word, quiet=True, metric="y" if larger else None)
    where = folder / "luma" if larger else folder
    if larger:
        keep_passport(where, done)
    scorer, ids = cast(Restoration, done.metric), [test.id_of(i) for i in range(len(test))]
    right = [cast(Picture, test.target_of(i)) for i in range(len(test))]
    shown = [test[i].picture for i in range(len(test))]
    apart = name.split("/")[0] in UNPAIRED
    found = against(name, where, rivals_of(train, shown, right, apart), right, ids, scorer)
    answers = [result for p in network.predict([one.pixels for one in shown[:SHOWN]]) if isinstance(result := p.result, Picture)]
    gallery([[enlarged(one, right[0].size) for one in shown[:SHOWN]], answers, right[:SHOWN]], folder / "sheet.png")
    return found | {
        "data": word + (" (luma)" if larger else ""),
        "steps": steps_of(folder),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def rivals_of(train: Source, shown: list[Picture], right: list[Picture], apart: bool) -> dict[str, list[Picture]]:
    """Answers to the test pictures by what needs no network; `apart` leaves out what is fitted to pairs."""
    size, channels = right[0].size, int(right[0].pixels.shape[2])
    if shown[0].size != size:
        return {"bicubic": [enlarged(one, goal.size) for one, goal in zip(shown, right)]}
    copies = [Picture(one.pixels.expand(-1, -1, channels).contiguous()) for one in shown]
    rivals = {"copy": copies}
    picked = np.linspace(0, len(train) - 1, min(len(train), 1500)).astype(int)
    samples = [train[int(i)] for i in picked]
    if samples[0].views or apart:  # unpaired: the levels of each channel are brought to those of the other domain
        sides = [domains_of(sample) for sample in samples]
        domains = [np.concatenate([side[k].pixels.numpy().reshape(-1, channels) for side in sides]) for k in range(2)]
        mean = np.mean([side[1].pixels.numpy() for side in sides], 0)
        rivals["mean answer"] = [as_picture(mean, size, channels)] * len(shown)
        return rivals | {"matched histograms": [Picture(torch.from_numpy(matched(one.pixels.numpy(), *domains))) for one in copies]}
    x = np.stack([s.picture.pixels.numpy().ravel() for s in samples]).astype(np.float64)
    y = np.stack([cast(Picture, s.target).pixels.numpy().ravel() for s in samples]).astype(np.float64)
    asked = np.stack([one.pixels.numpy().ravel() for one in shown]).astype(np.float64)
    rivals["mean answer"] = [as_picture(y.mean(0), size, channels)] * len(shown)
    nearest = ((asked**2).sum(1)[:, None] - 2 * asked @ x.T + (x**2).sum(1)).argmin(1)
    rivals["nearest pair"] = [as_picture(y[i], size, channels) for i in nearest]
    from sklearn.linear_model import RidgeCV

    scale = x.std() + 1e-9
    ridge = cast(Any, RidgeCV(np.logspace(0, 5, 6))).fit(x / scale, y)
    return rivals | {"linear": [as_picture(row, size, channels) for row in ridge.predict(asked / scale)]}


def domains_of(sample: Sample) -> tuple[Picture, Picture]:
    """A picture of either domain."""
    if sample.views:
        return sample.views[0][1].picture, sample.views[1][1].picture
    return sample.picture, cast(Picture, sample.target)


def matched(pixels: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8], goal: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Each channel's levels, moved to the same quantile of the other domain."""
    out = np.empty_like(pixels)
    for c in range(pixels.shape[2]):
        share = np.searchsorted(np.sort(source[:, c]), np.arange(256), side="right") / len(source)
        out[..., c] = np.quantile(goal[:, c], share).astype(np.uint8)[pixels[..., c]]
    return out


def enlarged(picture: Picture, size: tuple[int, int]) -> Picture:
    pixels = picture.pixels
    return picture if picture.size == size else Picture(resize(pixels, size, "bicubic"))


def gallery(rows: list[list[Picture]], path: Path) -> None:
    """Rows of pictures on one sheet."""
    tiles = [p.pixels if p.pixels.shape[2] == 3 else p.pixels.expand(-1, -1, 3) for row in rows for p in row]
    sheet([tile.contiguous().numpy() for tile in tiles], len(rows[0])).save(path)


# --- the page --------------------------------------------------------------------------------------------------------------


def verdict(row: Found) -> str:
    return "yes" if row["interval"][0] > 0 and row["closed"] >= 0.3 else "no"


def page(known: Found) -> str:
    """docs/generative.md."""
    lines = [
        "# Generative systems", "",
        "Generated by `python tools/make_generative.py` from `docs/generative.json`; not edited by hand. Every system trains by its own small",
        "recipe (`src/opticus/recipes`). These are test beds, not benchmarks.", "",
        "## Drawing digits", "",
        f"1 x 16 x 16 pictures; {SAMPLES} drawn ones beside the 500 test digits, in the features of a LeNet trained on the training digits. FID:",
        "lower is better, 0 would be the test digits themselves; the pictures that the systems learned from have the figure of the last row, a",
        "normal distribution with mean and full covariance of the training pixels that of the row before. *Recall*: the share of test digits",
        "whose like is drawn; *confidence* and *evenness*: how sure the classifier is, and how evenly it finds the ten digits (1 = equally often).",
        "*Closed*: the share of the gap between the Gaussian and the training pictures; *clear*: at least 30 %, and the 95 % interval of the",
        "difference to the Gaussian (bootstrap over pictures) excludes zero.", "",
        "Seconds are those of the clock, with other runs beside on two cores: upper bounds.", "", "![what every system draws](generative.png)", "",
        "| system | FID | KID | precision | recall | confidence | evenness | bits/dim | closed | clear | parameters | training s | ms a picture |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    rows = sorted(known.get("generate", {}).items(), key=lambda item: item[1]["FID"])
    for name, row in rows:
        figures = [f"{row[key]:.3f}" for key in ("FID", "KID", "precision", "recall", "confidence", "evenness")]
        lines.append(
            f"| {name} | {' | '.join(figures)} | {row.get('bits/dim', '')} | {row['closed']:.0%} | {verdict(row)} | {row['parameters']:,} "
            f"| {row['seconds']} | {1000 * row['per picture']:.1f} |"
        )
    for title, row in rows[0][1]["beside"].items() if rows else ():
        lines.append(
            f"| *{title}* | {' | '.join(f'{row[k]:.3f}' for k in ('FID', 'KID', 'precision', 'recall', 'confidence', 'evenness'))} | | | | | | |"
        )
    lines += [
        "", "Pictures of each: `runs/generative/<system>/samples.png`, drawn again by `opticus sample runs/generative/dcgan-tiny n=64 --grid`.", "",
        "## Restoring from a code", "",
        "Test digits in the network's frame; PCA keeps as many numbers (of discrete codes: bits, shared evenly) as the code has. The interval is",
        "that of the difference in PSNR.", "",
        "| system | code | PSNR | SSIM | rival | its PSNR | difference | parameters | training s |", "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in sorted(known.get("reconstruct", {}).items(), key=lambda item: -item[1]["PSNR"]):
        title, rival = next(iter(row["beside"].items()))
        lines.append(
            f"| {name} | {row['code']} | {row['PSNR']:.2f} | {row['SSIM']:.3f} | {title} | {rival['PSNR']:.2f} | {gap(rival)} "
            f"| {row['parameters']:,} | {row['seconds']} |"
        )
    lines += [
        "",
        "## Pictures answered by pictures",
        "",
        "| system | data | PSNR | SSIM | rival | its PSNR | difference | training s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in known.get("translate", {}).items():
        if "values" in row:
            figures = ", ".join(f"{key} {value:.3f}" for key, value in row["values"].items())
            lines.append(f"| {name} | {row['data']} | {figures} | | | | | {row['seconds']} |")
            continue
        for number, (title, rival) in enumerate(sorted(row["beside"].items(), key=lambda item: -item[1]["PSNR"])):
            own = [name, row["data"], f"{row['PSNR']:.2f}", f"{row['SSIM']:.3f}"] if number == 0 else [""] * 4
            seconds = row["seconds"] if number == 0 else ""
            lines.append(f"| {' | '.join(own)} | {title} | {rival['PSNR']:.2f} | {gap(rival)} | {seconds} |")
    return "\n".join(lines) + "\n"


def gap(rival: Found) -> str:
    return f"{rival['difference']:+.2f} ({rival['interval'][0]:+.2f} to {rival['interval'][1]:+.2f})"


if __name__ == "__main__":
    Image.init()
    main()
