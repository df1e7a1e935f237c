"""docs/density.md: Image GPT on the embedded digits, as a density and as features.

`make_density.py RUN` scores a run of `opticus train imagegpt/tiny data=digits out=RUN` beside simple densities that are fitted to the
same quantised pictures, and its layers beside the pixels. `--render` writes the page from docs/density.json only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import opticus
from opticus.models.classical._densities import Contexts, Gaussian, Histograms
from opticus.structures import Classes
from opticus.training.state import load_state
from opticus.transforms.prepare import prepare

DOCS = Path(__file__).resolve().parents[1] / "docs"
RIVALS = {"histogram of every pixel": Histograms, "Gaussian, full covariance": Gaussian, "left and upper neighbour": Contexts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a trained imagegpt/tiny")
    parser.add_argument("--render", action="store_true", help="write the page from docs/density.json only")
    words = parser.parse_args()
    file = DOCS / "density.json"
    if not words.render:
        if words.run is None:
            parser.error("give the folder of a run, or --render")
        file.write_text(json.dumps(measured(words.run), indent=1) + "\n", encoding="utf-8")
    (DOCS / "density.md").write_text(page(json.loads(file.read_text("utf-8"))), encoding="utf-8")


def measured(run: Path) -> dict[str, Any]:
    """Bits a value on the test pictures and probe accuracies, of the run and of what it is compared with."""
    torch.set_num_threads(1)
    network = opticus.load(run, quiet=True).eval()
    train, test = (seen(network, split) for split in ("train", "test"))
    rivals = {name: make(network.config.colours).fit(train["levels"]) for name, make in RIVALS.items()}
    bits = {name: np.asarray([one.bits(row[None]) for row in test["levels"]]) for name, one in rivals.items()}
    own, random = test["bits"], np.random.default_rng(0)
    drawn = random.integers(0, len(own), (10_000, len(own)))
    densities = [{"name": "imagegpt/tiny", "bits": round(float(own.mean()), 4)}]
    for name, values in bits.items():
        gains = (values - own)[drawn].mean(1)
        low, high = np.quantile(gains, (0.025, 0.975)).round(4).tolist()
        densities.append({"name": name, "bits": round(float(values.mean()), 4), "ahead": round(float((values - own).mean()), 4),
                          "low": low, "high": high})  # fmt: skip
    probes = {name: probed(train, test, name) for name in train["features"]}
    state = load_state(run)
    return {
        "densities": densities, "probes": probes, "pictures": len(own), "train": len(train["levels"]), "size": network.config.size,
        "colours": network.config.colours, "steps": int(state["step"]), "torch": torch.__version__,
        "parameters": sum(p.numel() for p in network.parameters()), "date": datetime.date.today().isoformat(),
        "data": {split: opticus.open_data("digits", split).hash for split in ("train", "test")},
    }  # fmt: skip


@torch.no_grad()
def seen(network: Any, split: str) -> dict[str, Any]:
    """Levels, bits a value, labels, and the mean over the pixels of every layer's normalised input, of the pictures of a split."""
    data = opticus.open_data("digits", split)
    pixels = prepare([data[i].picture for i in range(len(data))], network.prepare).pixels
    means: dict[str, list[Tensor]] = {f"layer {i}": [] for i in range(len(network.h) + 1)}
    norms = [*(block.ln_1 for block in network.h), network.ln_f]
    hooks = [norm.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out.mean(1)))
             for norm, kept in zip(norms, means.values(), strict=True)]  # fmt: skip
    likelihood = torch.cat([network.log_likelihood(part) for part in pixels.split(64)])
    for hook in hooks:
        hook.remove()
    features = {"pixels": pixels.flatten(1), **{name: torch.cat(parts) for name, parts in means.items()}}
    labels = [int(cast(Classes, data[i].target).labels[0]) for i in range(len(data))]
    bits = -likelihood.double().numpy() / (network.config.size**2 * math.log(2))
    return {"levels": network.levels(pixels), "bits": bits, "labels": np.asarray(labels), "features": features}


def probed(train: dict[str, Any], test: dict[str, Any], name: str) -> float:
    """Test accuracy of logistic regression on standardised features."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(train["features"][name].numpy(), train["labels"])
    return round(float(classifier.score(test["features"][name].numpy(), test["labels"])), 4)


def page(known: dict[str, Any]) -> str:
    side = known["size"]
    lines = [
        "# Image GPT as a density and as features", "",
        f"Generated by `tools/make_density.py` on {known['date']} (torch {known['torch']}) from a run of `opticus train imagegpt/tiny",
        f"data=digits` ({known['parameters']:,} parameters, {known['steps']:,} steps); not edited by hand. Pictures are {side}x{side} pixels of "
        f"{known['colours']} grey", f"levels; {known['train']:,} train, {known['pictures']} test.", "",
        "## Density", "",
        "Bits a pixel on the test pictures, less is better, and by how much the network is ahead of each (95 % interval, paired bootstrap",
        "over pictures); the Gaussian's are an upper bound. There is no ceiling to measure a gap against: what is left is the entropy of",
        "handwriting in grey levels, which nobody knows; zero bits would mean that every test picture is known beforehand.", "",
        "| density | bits a pixel | network ahead by |", "|---|---|---|",
    ]  # fmt: skip
    for row in sorted(known["densities"], key=lambda one: one["bits"]):
        ahead = f"{row['ahead']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})" if "ahead" in row else ""
        lines.append(f"| {row['name']} | {row['bits']:.3f} | {ahead} |")
    lines += [
        "", "## Features", "",
        f"Top-1 on the {known['pictures']} test digits of logistic regression on standardised features: the {side * side} pixels, and the mean over",
        "the pixels of every layer's normalised input (section 2.4 of the paper); layer 0 is the embedded input, the last one the output.", "",
        "| features | top1 |", "|---|---|",
        *(f"| {name} | {value:.3f} |" for name, value in known["probes"].items()),
    ]  # fmt: skip
    best = max((name for name in known["probes"] if name != "pixels"), key=known["probes"].__getitem__)
    gain = known["probes"][best] - known["probes"]["pixels"]
    verdict = "better than" if gain > 0 else "no better than"
    lines += ["", f"The best layer, {best}, is {verdict} the pixels themselves ({gain:+.3f})."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
